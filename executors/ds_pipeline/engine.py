"""A rank that trains with DeepSpeed: its pipeline engine for several stages, its plain engine for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import nn

from executors.ds_pipeline.command import ds_config
from executors.ds_pipeline.cut import Anchored, CutModule, planned_topology
from executors.ds_pipeline.states import gather_states, load_states, restart_counters
from executors.layout import Layout
from executors.training.chain import Chain, token_loss, with_recompute
from executors.training.clock import Clock, Kind
from executors.training.engine import LayerState, StepResult
from executors.training.model_spec import ModelSpec
from executors.training.optimiser import build_optimiser, set_learning_rate
from planner.plan import ReplicaPlan
from planner.training import TrainingJob

BatchOf = Callable[[int, int, range], torch.Tensor]
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
IGNORED = -100
GROUP_TIMEOUT = timedelta(minutes=10)
EvaluationBatch = Callable[[int], torch.Tensor | None]


def join(device: torch.device) -> None:
    """Meet the other ranks at the address in the environment, as DeepSpeed wants it done.

    DeepSpeed would compile an operator here at the first start on a processor. It serves all-reduces of
    inference engines alone, takes half a minute and needs a compiler, so it does without.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, verbose=False, timeout=GROUP_TIMEOUT)


class PlannedModule(CutModule):
    """A pipeline cut where the plan cuts it; a rank builds the layers of its own stage only."""

    def __init__(self, layers: Mapping[int, nn.Module], borders: Sequence[int], topology: Any) -> None:
        # DeepSpeed passes over plain functions when it looks for weights, and calls its own stage's only.
        chain = [layers.get(i, _elsewhere) for i in range(borders[-1])]
        super().__init__(chain, borders, topology, loss_fn=token_loss)
        self.tied: tuple[nn.Parameter, Any] | None = None

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
        """The rank's copy of the tied weight, with the ranks that hold the other one."""
        return [] if self.tied is None else [self.tied]


def _elsewhere(given: Any) -> Any:
    raise RuntimeError("a layer of another stage was called")


class DeepSpeedEngine:
    """One rank of a replica; see `executors.training.engine.Engine`. The process group exists already."""

    def __init__(
        self,
        *,
        chain: Chain,
        spec: ModelSpec,
        replica: ReplicaPlan,
        layout: Layout,
        rank: int,
        recomputed: frozenset[int],
        batch_of: BatchOf,
        evaluation_batch: EvaluationBatch,
        training: TrainingJob,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.replica, self.layout, self.me = replica, layout, layout.ranks[rank]
        self.batch_of, self.evaluation_batch = batch_of, evaluation_batch
        self.training, self.device, self.clock = training, device, clock
        self.chain = chain
        self.stage = replica.stages[self.me.stage]
        self.layers = built_layers(chain, self.stage.layers, recomputed, device)
        self.config = ds_config(replica, spec.dtype, training.clip_norm)
        self.shards = self.stage.zero > 0 or spec.dtype == "bf16"
        self.norm = 0.0
        self.pipelined = len(replica.stages) > 1
        self.engine = self._pipeline() if self.pipelined else self._plain()

    def train_step(self, step: int, learning_rate: float) -> StepResult:
        """One optimiser step."""
        set_learning_rate(self.engine.optimizer, learning_rate)
        if self.pipelined:
            loss = float(self.engine.train_batch(self._micro_batches(step)))
        else:
            loss = self._accumulated(step)
        norm = float(self.engine.get_global_grad_norm() or 0.0) if self.shards else self.norm
        return StepResult(loss=loss, gradient_norm=norm)

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences.

        A micro-batch too small for the grid is filled up with rows whose labels count for nothing.
        """
        batches = list(iter_evaluation(self.evaluation_batch, self.replica.micro_batch_size))
        pairs = [self._padded(batch) for batch in batches]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.pipelined:
            self.engine.module.loss_fn = summed_loss
            losses = self.engine.eval_batch(
                iter(pairs), num_micro_batches=len(pairs), reduce_output=None, bcast_loss=False
            )
            self.engine.module.loss_fn = token_loss
            total += sum(loss.double() for loss in losses or ())
        else:
            self.engine.module.eval()
            with torch.no_grad():
                total += sum(self.engine.module(*pair, loss=summed_loss).double() for pair in pairs)
        self.engine.module.train()
        dist.all_reduce(total)
        num_tokens = sum(int(batch[:, 1:].numel()) for batch in batches)
        return float(total) / num_tokens

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights and moments of this stage, on its first rank."""
        states = gather_states(self.engine, self._trained(), sharded=self.shards)
        return states if self.me.dp_i == 0 else {}

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states."""
        load_states(self.engine, self._trained(), states, step, sharded=self.shards)

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    def _pipeline(self) -> Any:
        borders = [stage.layers[0] for stage in self.replica.stages] + [self.chain.num_layers]
        topology = planned_topology(self.layout, len(self.replica.stages), self.stage.dp)
        module = PlannedModule(self.layers, borders, topology)
        module.tied = self._tied(module)
        engine = self._initialize(module)
        self._require_plan(engine)
        own = dict(PipelineEngine._INSTRUCTION_MAP)
        own[schedule.OptimizerStep] = self._timed_step(own[schedule.OptimizerStep])
        for instruction, kind in _CLOCKED.items():
            own[instruction] = _timed(self.clock, kind, own[instruction])
        engine._INSTRUCTION_MAP = own
        return engine

    def _plain(self) -> Any:
        return self._initialize(WholeModel([self.layers[i] for i in sorted(self.layers)]))

    def _initialize(self, module: nn.Module) -> Any:
        optimiser = build_optimiser(module.named_parameters(), self.training)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=self.config)
        restart_counters(engine)
        self.trained = [p for p in engine.module.parameters() if p.requires_grad]
        if not self.shards:
            # `_clip` comes first; DeepSpeed would do it again, with the norm of the first stage alone.
            engine.clip_fp32_gradients = _nothing
        return engine

    def _require_plan(self, engine: Any) -> None:
        """The rank runs what the plan says: cut points, stage and place in the grid."""
        planned = [stage.layers[0] for stage in self.replica.stages] + [self.chain.num_layers]
        grid = engine.grid
        assert list(engine.module.parts) == planned, (engine.module.parts, planned)
        assert grid.get_stage_id() == self.me.stage, (grid.get_stage_id(), self.me)
        assert grid.get_data_parallel_id() == self.me.dp_i, (grid.get_data_parallel_id(), self.me)

    def _tied(self, module: PlannedModule) -> tuple[nn.Parameter, Any] | None:
        """The tied weight of this rank, if it holds a copy; every rank makes every group."""
        if self.chain.tied is None:
            return None
        mine: tuple[nn.Parameter, Any] | None = None
        first, last = self.chain.tied
        for dp_i in range(self.stage.dp):
            ends = (self.layout.rank_at(0, dp_i), self.layout.rank_at(len(self.replica.stages) - 1, dp_i))
            group = dist.new_group(list(ends))
            if self.me.rank in ends:
                layer_i = first if self.me.stage == 0 else last
                name = self.chain.tied_parameter(layer_i)
                assert name is not None
                parameter = dict(_inner(self.layers[layer_i]).named_parameters())[name]
                # Counted once in the gradient norm, like DeepSpeed's own tied modules.
                parameter.ds_pipe_replicated = layer_i == last
                mine = (parameter, group) if parameter.requires_grad else None
        return mine

    def _timed_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(engine: Any, *args: Any, **kwargs: Any) -> Any:
            with self.clock.span(Kind.OPTIMISER):
                if not self.shards:
                    self.norm = self._clip()
                return step(engine, *args, **kwargs)

        return run

    def _clip(self) -> float:
        """Global gradient norm over all stages; gradients are scaled down to the limit.

        Without ZeRO and 16-bit weights DeepSpeed keeps no norm of all stages.
        """
        trained = [p for p in self.trained if p.grad is not None]
        own = [p.grad for p in trained if not getattr(p, "ds_pipe_replicated", False)]
        squares = nn.utils.get_total_norm(own).square().to(self.device)
        if self.pipelined:
            dist.all_reduce(squares, group=self.engine.grid.get_model_parallel_group())
        norm = float(squares.sqrt())
        limit = self.training.clip_norm
        if limit > 0.0 and norm > limit:
            for parameter in trained:
                parameter.grad.mul_(limit / (norm + 1e-6))
        return norm

    def _accumulated(self, step: int) -> float:
        """A step of the plain engine: micro-batch by micro-batch, then the optimiser."""
        total = torch.zeros((), device=self.device)
        for j in range(self.replica.micro_batches):
            batch = self.batch_of(step, j, self._rows())
            with self.clock.span(Kind.FORWARD, j):
                loss = self.engine(self._inputs(batch), self._labels(batch))
            with self.clock.span(Kind.BACKWARD, j):
                self.engine.backward(loss)
            if not self.shards and j == self.replica.micro_batches - 1:
                self.norm = self._clip()
            with self.clock.span(Kind.OPTIMISER):
                self.engine.step()
            total += loss.detach().float()
        return self._mean_of_ranks(total / self.replica.micro_batches)

    def _mean_of_ranks(self, value: torch.Tensor) -> float:
        dist.all_reduce(value)
        return float(value) / self.layout.world_size

    def _rows(self) -> range:
        share = self.replica.micro_batch_size // self.stage.dp
        return range(self.me.dp_i * share, (self.me.dp_i + 1) * share)

    def _padded(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows as inputs and labels."""
        rows = self._rows()
        mine = batch[rows.start : rows.stop]
        inputs = mine.new_zeros((len(rows), mine.shape[1] - 1))
        labels = torch.full_like(inputs, IGNORED)
        inputs[: len(mine)], labels[: len(mine)] = mine[:, :-1], mine[:, 1:]
        return inputs.to(self.device), labels.to(self.device)

    def _micro_batches(self, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for j in range(self.replica.micro_batches):
            batch = self.batch_of(step, j, self._rows())
            yield self._inputs(batch), self._labels(batch)

    def _inputs(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, :-1].to(self.device).contiguous()

    def _labels(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, 1:].to(self.device).contiguous()

    def _trained(self) -> dict[tuple[int, str], nn.Parameter]:
        """Trained parameters by layer and name; of a tied weight, the first layer's copy."""
        second = self.chain.tied[1] if self.chain.tied else None
        return {
            (i, name): parameter
            for i, layer in self.layers.items()
            for name, parameter in _inner(layer).named_parameters()
            if parameter.requires_grad and not (i == second and name == self.chain.tied_parameter(i))
        }


class WholeModel(nn.Module):
    """All layers in one module that ends in the loss."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, loss: LossOf = token_loss) -> torch.Tensor:
        """Loss of a micro-batch."""
        given = inputs
        for layer in self.layers:
            given = layer(given)
        return loss(given, labels)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the losses of all tokens but the ignored ones, in fp32."""
    flat = logits.float().flatten(0, 1)
    return nn.functional.cross_entropy(flat, labels.flatten(), reduction="sum", ignore_index=IGNORED)


def built_layers(
    chain: Chain, interval: tuple[int, int], recomputed: frozenset[int], device: torch.device
) -> dict[int, nn.Module]:
    """The layers of one stage, by position; one that trains nothing gets an anchor."""
    layers: dict[int, nn.Module] = {}
    for i in range(*interval):
        layer = chain.build(i).to(device)
        layers[i] = with_recompute(layer) if i in recomputed else layer
    if not any(p.requires_grad for layer in layers.values() for p in layer.parameters()):
        layers[interval[0]] = Anchored(layers[interval[0]]).to(device)
    return layers


def iter_evaluation(evaluation_batch: EvaluationBatch, size: int) -> Iterator[torch.Tensor]:
    """The held-out batches in order, none with more rows than a micro-batch."""
    k = 0
    while (batch := evaluation_batch(k)) is not None:
        yield from batch.split(size)
        k += 1


_CLOCKED = {
    schedule.ForwardPass: Kind.FORWARD,
    schedule.BackwardPass: Kind.BACKWARD,
    schedule.SendActivation: Kind.SEND,
    schedule.SendGrad: Kind.SEND,
    schedule.RecvActivation: Kind.RECEIVE,
    schedule.RecvGrad: Kind.RECEIVE,
    schedule.ReduceGrads: Kind.SYNC,
    schedule.ReduceTiedGrads: Kind.SYNC,
}


def _timed(clock: Clock, kind: Kind, execute: Callable[..., Any]) -> Callable[..., Any]:
    def run(engine: Any, *args: Any, **kwargs: Any) -> Any:
        with clock.span(kind):
            return execute(engine, *args, **kwargs)

    return run


def _nothing() -> None:
    """Stands where DeepSpeed would do what is done already."""


def _inner(layer: nn.Module) -> nn.Module:
    return layer.inner if isinstance(layer, Anchored) else layer
