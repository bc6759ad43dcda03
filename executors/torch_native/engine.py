"""One rank of a torch-native pipeline in training.

Legend of tensor suffixes: B rows of this rank, T tokens, H model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executors.layout import Layout
from executors.torch_native.collectives import sum_over
from executors.torch_native.exchange import Hidden, Receiver, build_exchange
from executors.torch_native.groups import build_groups
from executors.torch_native.rows import common, row_ranges
from executors.torch_native.schedule import Direction, passes
from executors.torch_native.stage import WEIGHTS_SHARDED, build_stage, first_blocks, seed_dropout
from executors.torch_native.update import Updater
from executors.torch_native.vocabulary import cut_token_loss
from executors.training.chain import token_loss
from executors.training.clock import Clock, Kind, NoClock
from executors.training.engine import LayerState, StepResult
from planner.plan import ReplicaPlan
from planner.training import TrainingJob
from policies.errors import ExecutorFailedError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BatchOf = Callable[[int, int, range], torch.Tensor]
EvaluationBatch = Callable[[int], torch.Tensor | None]


@dataclass(slots=True)
class _Held:
    """A micro-batch between its forward and backward pass: the stage's input and where backward begins."""

    given: torch.Tensor
    root: Any


class TorchEngine:
    """A stage's share of the work on one rank.

    Args:
        chain: the model, built layer by layer.
        replica: what runs where.
        layout: the ranks of the replica.
        rank: this process's rank in the default group, which has been joined already.
        batch_of: sequences of T+1 tokens (rows, T+1) of some rows of a step's micro-batch.
        evaluation_batch: held-out sequences (any number of rows, T+1), None after the last one; every rank
            gets the same.
        training: optimiser settings and schedule.
        device: where this rank computes.
        clock: takes the time of each kind of work.
        recomputed: layers that run again in backward; by default the first blocks of the stage, as many as
            the plan says.
        timeout_s: how long any rank waits for any other.
    """

    def __init__(
        self,
        *,
        chain: Any,
        replica: ReplicaPlan,
        layout: Layout,
        rank: int,
        batch_of: BatchOf,
        evaluation_batch: EvaluationBatch,
        training: TrainingJob,
        device: torch.device,
        clock: Clock | None = None,
        recomputed: frozenset[int] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        require_place(layout, rank)
        self._replica, self._layout = replica, layout
        self._me = layout.ranks[rank]
        self._batch_of, self._evaluation_batch = batch_of, evaluation_batch
        self._training, self._device = training, device
        self._clock = clock or NoClock()
        plan = self._plan = replica.stages[self._me.stage]
        layers = range(*plan.layers)
        self._is_first = self._me.stage == 0
        self._is_last = self._me.stage == len(replica.stages) - 1
        self._rows = row_ranges(plan.micro_batch_shares)[self._me.dp_i]
        tied = tied_stages(chain, replica)
        self._groups = build_groups(replica, layout, self._me, tied, device=device, timeout_s=timeout_s)
        if recomputed is None:
            recomputed = first_blocks(layers, chain.num_layers, plan.recompute)
        self._stage = build_stage(
            chain,
            layers,
            zero=plan.zero,
            recomputed=recomputed,
            data=self._groups.data,
            tensor=self._groups.tensor,
            device=device,
        )
        self._hidden = Hidden(
            tokens=chain.spec.sequence_tokens,
            width=chain.config.hidden_size,
            dtype=DTYPES[chain.spec.dtype],
            device=device,
        )
        self._exchange = build_exchange(replica, layout, self._me, self._groups)
        trains = _trains_by_stage(len(replica.stages), self._me.stage, bool(self._stage.trained), device)
        self._trains_before = any(trains[: self._me.stage])
        self._backward_runs = any(trains[: self._me.stage + 1])
        self._updater = Updater(
            self._stage.trained,
            self._groups,
            training,
            zero=plan.zero,
            device=device,
            clock=self._clock,
            tied_source=None if tied is None else layout.rank_at(tied[0], 0),
        )
        self._held: dict[int, _Held] = {}

    def train_step(self, step: int, learning_rate: float) -> StepResult:
        """Run one optimiser step on the text of this step (from 0)."""
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        stages_left = len(self._replica.stages) - self._me.stage
        order = passes(
            self._training.pipeline, stages_left=stages_left, micro_batches=self._replica.micro_batches
        )
        self._expect(self._exchange.activations_in, 0)
        if self._backward_runs:
            self._expect(self._exchange.gradients_in, 0)
        for one in order:
            if one.direction is Direction.FORWARD:
                loss += self._forward(step, one.micro_batch)
            elif self._backward_runs:
                self._backward(one.micro_batch)
        with self._clock.span(Kind.SEND):
            self._exchange.finish()
        return self._updater.step(loss * (self._me.tp_i == 0), learning_rate)

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences, known on every rank."""
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._stage.module.eval()
        with torch.no_grad():
            k = 0
            while (batch := self._evaluation_batch(k)) is not None:
                for rows_BT in batch.split(self._replica.micro_batch_size):
                    total += self._evaluate_rows(rows_BT)
                k += 1
        self._stage.module.train()
        if self._me.tp_i != 0:
            total.zero_()
        dist.all_reduce(total)
        loss_sum, num_tokens = total.tolist()
        return float(loss_sum / num_tokens)

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights with optimiser state of this rank's layers, on one rank of each stage."""
        return self._updater.states(keep=self._me.dp_i == self._me.tp_i == 0)

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` optimiser steps. Holds at least the rank's own layers."""
        self._updater.load(states, step)

    def tied_weight(self) -> torch.Tensor | None:
        """This stage's copy of a weight shared with another stage, in full; None where it shares none.

        Collective in the stage. All copies are equal bit for bit after every step.
        """
        return self._updater.tied_weight()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _forward(self, step: int, micro_batch: int) -> torch.Tensor | float:
        tokens_BT = None
        if self._is_first or self._is_last:
            tokens_BT = self._batch_of(step, micro_batch, self._rows).to(self._device)
        given = self._given(tokens_BT, micro_batch)
        if self._trains_before:
            given.requires_grad_()
        seed_dropout(self._training.seed, step, micro_batch, self._me.stage, self._me.dp_i)
        with self._clock.span(Kind.FORWARD, micro_batch), torch.set_grad_enabled(self._backward_runs):
            output = self._stage.module(given)
            if self._is_last:
                assert tokens_BT is not None
                output = self._loss(output, tokens_BT[:, 1:]) * self._loss_scale
        if self._backward_runs:
            root = output if self._is_last else torch.autograd.graph.get_gradient_edge(output)
            self._held[micro_batch] = _Held(given, root)
        if self._is_last:
            return output.detach()
        assert self._exchange.activations_out is not None
        with self._clock.span(Kind.SEND, micro_batch):
            self._exchange.activations_out.send(output)
        return 0.0

    def _backward(self, micro_batch: int) -> None:
        held = self._held.pop(micro_batch)
        gradient = None
        if self._exchange.gradients_in is not None:
            gradient = self._receive(self._exchange.gradients_in, micro_batch)
        with self._clock.span(Kind.BACKWARD, micro_batch):
            torch.autograd.backward(held.root, gradient)
        if self._trains_before and self._exchange.gradients_out is not None:
            assert held.given.grad is not None
            with self._clock.span(Kind.SEND, micro_batch):
                self._exchange.gradients_out.send(held.given.grad)

    @property
    def _loss_scale(self) -> float:
        return len(self._rows) / (self._replica.micro_batch_size * self._replica.micro_batches)

    def _given(self, tokens_BT: torch.Tensor | None, micro_batch: int) -> torch.Tensor:
        if self._exchange.activations_in is None:
            assert tokens_BT is not None
            return tokens_BT[:, :-1]
        return self._receive(self._exchange.activations_in, micro_batch)

    def _receive(self, receiver: Receiver, micro_batch: int) -> torch.Tensor:
        with self._clock.span(Kind.RECEIVE, micro_batch):
            received = receiver.receive(len(self._rows), self._hidden)
        self._expect(receiver, micro_batch + 1)
        return received

    def _expect(self, receiver: Receiver | None, micro_batch: int) -> None:
        """Let what is needed next arrive while this rank computes."""
        if receiver is not None and micro_batch < self._replica.micro_batches:
            receiver.expect(len(self._rows), self._hidden)

    def _evaluate_rows(self, batch_BT: torch.Tensor) -> torch.Tensor:
        """Sum of the loss over this rank's tokens of a joint batch, and how many tokens these are."""
        num_rows = batch_BT.shape[0]
        rows = common(self._rows, range(num_rows))
        nothing = torch.zeros(2, dtype=torch.float64, device=self._device)
        if not rows:
            self._take_part()
            return nothing
        exchange = build_exchange(self._replica, self._layout, self._me, self._groups, num_rows)
        tokens_BT = batch_BT[rows.start : rows.stop].to(self._device)
        given = tokens_BT[:, :-1]
        if exchange.activations_in is not None:
            given = exchange.activations_in.receive(len(rows), self._hidden)
        output = self._stage.module(given)
        if exchange.activations_out is not None:
            exchange.activations_out.send(output)
            exchange.finish()
            return nothing
        num_tokens = tokens_BT[:, 1:].numel()
        loss = self._loss(output, tokens_BT[:, 1:]).double()
        return torch.stack((loss * num_tokens, torch.full_like(loss, num_tokens)))

    def _take_part(self) -> None:
        """A pass without rows, where other ranks of the stage need this one's shard of the weights."""
        if self._plan.zero < WEIGHTS_SHARDED:
            return
        form = self._hidden
        if self._is_first:
            self._stage.module(torch.zeros(1, form.tokens, dtype=torch.int64, device=form.device))
        else:
            self._stage.module(torch.zeros(1, form.tokens, form.width, dtype=form.dtype, device=form.device))

    def _loss(self, logits: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        if self._stage.head_is_cut:
            return cut_token_loss(logits, labels_BT, self._groups.tensor)
        return token_loss(logits, labels_BT)


def _trains_by_stage(num_stages: int, mine: int, trains: bool, device: torch.device) -> list[bool]:
    """Which stages have something to train. Collective."""
    flags = torch.zeros(num_stages, device=device)
    flags[mine] = float(trains)
    sum_over(flags, dist.group.WORLD)
    return [flag > 0 for flag in flags.tolist()]


def require_place(layout: Layout, rank: int) -> None:
    """The process group is that of the plan.

    Raises:
        ExecutorFailedError: `ranks-differ`.
    """
    found, size = dist.get_rank(), dist.get_world_size()
    if (found, size) != (rank, layout.world_size):
        raise ExecutorFailedError(
            "ranks-differ",
            f"this process is rank {found} of {size}, the plan makes it rank {rank} of {layout.world_size}",
            hint="start one process for each device of the replica, numbered like the plan's rank table",
        )


def tied_stages(chain: Any, replica: ReplicaPlan) -> tuple[int, int] | None:
    """The two stages that hold copies of one trained weight, if there are two."""
    if chain.tied is None or not chain.spec.full:
        return None
    first, last = (
        next(stage.index for stage in replica.stages if layer_i in range(*stage.layers))
        for layer_i in chain.tied
    )
    return None if first == last else (first, last)
