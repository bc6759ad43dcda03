"""One rank of a torch-native pipeline in training.

Legend of tensor suffixes: B rows of this rank, T tokens, H model width, V vocabulary, N elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executors.layout import Layout
from executors.torch_native.collectives import sum_over
from executors.torch_native.exchange import Hidden, Receiver, build_exchange
from executors.torch_native.groups import build_groups
from executors.torch_native.optimiser import AdamW, Moments, clip_scale, squared_norm
from executors.torch_native.rows import common, row_ranges
from executors.torch_native.schedule import Direction, passes
from executors.torch_native.sharding import Part, build_parts
from executors.torch_native.stage import StageModule
from executors.training.chain import token_loss
from executors.training.clock import Clock, Kind, NoClock
from executors.training.engine import LayerState, StepResult
from planner.plan import ReplicaPlan
from planner.training import TrainingJob

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
        timeout_s: float = 600.0,
    ) -> None:
        self._replica, self._layout = replica, layout
        self._me = layout.ranks[rank]
        self._plan = replica.stages[self._me.stage]
        self._batch_of, self._evaluation_batch = batch_of, evaluation_batch
        self._training, self._device = training, device
        self._clock = clock or NoClock()
        self._is_first = self._me.stage == 0
        self._is_last = self._me.stage == len(replica.stages) - 1
        self._groups = build_groups(replica, layout, self._me, None, timeout_s)
        start, stop = self._plan.layers
        self._module = StageModule(chain, range(start, stop), device, self._plan.recompute)
        self._hidden = Hidden(
            tokens=chain.spec.sequence_tokens,
            width=chain.config.hidden_size,
            dtype=DTYPES[chain.spec.dtype],
            device=device,
        )
        self._exchange = build_exchange(replica, layout, self._me, self._groups)
        trains = _trains_by_stage(len(replica.stages), self._me.stage, bool(self._module.trained), device)
        self._trains_before = any(trains[: self._me.stage])
        self._backward_runs = any(trains[: self._me.stage + 1])
        self._parts: list[Part] = list(
            build_parts(
                self._module.trained,
                self._groups.data,
                zero=self._plan.zero,
                dp_i=self._me.dp_i,
                tp_i=self._me.tp_i,
            )
        )
        self._moments = [Moments(part.weight()) for part in self._parts]
        self._adamw = AdamW(training)
        self._rows = row_ranges(self._plan.micro_batch_shares)[self._me.dp_i]
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
        return self._update(loss, learning_rate)

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences, known on every rank."""
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._module.eval()
        with torch.no_grad():
            k = 0
            while (batch := self._evaluation_batch(k)) is not None:
                for rows_BT in batch.split(self._replica.micro_batch_size):
                    total += self._evaluate_rows(rows_BT)
                k += 1
        self._module.train()
        if self._me.tp_i != 0:
            total.zero_()
        dist.all_reduce(total)
        loss_sum, num_tokens = total.tolist()
        return float(loss_sum / num_tokens)

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights with optimiser state of this rank's layers, on one rank of each stage."""
        states: dict[int, dict[str, torch.Tensor]] = {}
        for part, moments in zip(self._parts, self._moments, strict=True):
            weight_N = part.weight() if moments.master_N is None else moments.master_N
            for kind, mine_N in (
                ("weight", weight_N),
                ("exp_avg", moments.exp_avg_N),
                ("exp_avg_sq", moments.exp_avg_sq_N),
            ):
                for trained, whole in part.whole(mine_N):
                    if trained.first and self._me.dp_i == self._me.tp_i == 0:
                        layer = states.setdefault(trained.layer_i, {})
                        layer[f"{kind}:{trained.name}"] = whole.detach().to("cpu", torch.float32, copy=True)
        return states

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` optimiser steps. Holds at least the rank's own layers."""
        self._adamw.num_steps = step
        for part, moments in zip(self._parts, self._moments, strict=True):
            moments.exp_avg_N.copy_(part.share(_kind_of(states, "exp_avg")))
            moments.exp_avg_sq_N.copy_(part.share(_kind_of(states, "exp_avg_sq")))
            master_N = part.share(_kind_of(states, "weight")).to(self._device)
            if moments.master_N is not None:
                moments.master_N.copy_(master_N)
            part.publish(master_N.to(part.weight().dtype))

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
        self._seed_dropout(step, micro_batch)
        with self._clock.span(Kind.FORWARD, micro_batch), torch.set_grad_enabled(self._backward_runs):
            output = self._module(given)
            if self._is_last:
                assert tokens_BT is not None
                output = token_loss(output, tokens_BT[:, 1:]) * self._loss_scale
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
        rows = common(self._rows, range(batch_BT.shape[0]))
        exchange = build_exchange(self._replica, self._layout, self._me, self._groups, batch_BT.shape[0])
        nothing = torch.zeros(2, dtype=torch.float64, device=self._device)
        if not rows:
            return nothing
        tokens_BT = batch_BT[rows.start : rows.stop].to(self._device)
        if exchange.activations_in is None:
            given = tokens_BT[:, :-1]
        else:
            given = exchange.activations_in.receive(len(rows), self._hidden)
        output = self._module(given)
        if exchange.activations_out is not None:
            exchange.activations_out.send(output)
            exchange.finish()
            return nothing
        num_tokens = tokens_BT[:, 1:].numel()
        loss = token_loss(output, tokens_BT[:, 1:]).double()
        return torch.stack((loss * num_tokens, torch.full_like(loss, num_tokens)))

    def _update(self, loss: torch.Tensor, learning_rate: float) -> StepResult:
        with self._clock.span(Kind.SYNC):
            for part in self._parts:
                part.reduce()
            counted = [part.gradient_N for part in self._parts if part.counted]
            totals = torch.stack((loss * (self._me.tp_i == 0), squared_norm(counted).to(self._device)))
            dist.all_reduce(totals)
            loss_mean, norm_sq = totals.tolist()
        norm = norm_sq**0.5
        scale = clip_scale(norm, self._training.clip_norm)
        self._adamw.num_steps += 1
        for part, moments in zip(self._parts, self._moments, strict=True):
            with self._clock.span(Kind.OPTIMISER):
                weight_N = part.weight()
                self._adamw.update(
                    weight_N,
                    part.gradient_N,
                    moments,
                    learning_rate=learning_rate,
                    gradient_scale=scale,
                    decays=part.decays,
                )
            with self._clock.span(Kind.SYNC):
                part.publish(weight_N)
        return StepResult(loss=loss_mean, gradient_norm=norm)

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        """The same dropout on tensor-parallel ranks, another one everywhere else, and again after a resume."""
        place = (self._training.seed, step, micro_batch, self._me.stage, self._me.dp_i)
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:7], "big"))


def _trains_by_stage(num_stages: int, mine: int, trains: bool, device: torch.device) -> list[bool]:
    """Which stages have something to train. Collective."""
    flags = torch.zeros(num_stages, device=device)
    flags[mine] = float(trains)
    sum_over(flags, dist.group.WORLD)
    return [flag > 0 for flag in flags.tolist()]


def _kind_of(states: Mapping[int, LayerState], kind: str) -> dict[tuple[int, str], torch.Tensor]:
    found: dict[tuple[int, str], torch.Tensor] = {}
    for layer_i, state in states.items():
        for name, tensor in state.items():
            label, _, parameter = name.partition(":")
            if label == kind:
                found[layer_i, parameter] = tensor
    return found
