"""Interleaved and zero-bubble pipelines, run by `torch.distributed.pipelining`.

Every stage splits micro-batches alike, so data-parallel rank i of all stages forms a pipeline of its own.

Legend of tensor suffixes: B rows of this rank, T tokens, V vocabulary.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from executors.layout import Layout, Rank
from executors.torch_native.engine import BatchOf, EvaluationBatch, require_place, tied_stages
from executors.torch_native.groups import build_groups
from executors.torch_native.rows import row_ranges
from executors.torch_native.stage import build_stage, first_blocks, seed_dropout
from executors.torch_native.update import Updater
from executors.torch_native.virtual import PIECES, own_pieces, piece_layers
from executors.training.clock import Clock, Kind, NoClock
from executors.training.engine import LayerState, StepResult
from planner.plan import ReplicaPlan
from planner.training import PipelineSchedule, TrainingJob

IGNORED = -100


class Piece(nn.Module):
    """Layers as the library wants them: what they put out asks for a gradient even where nothing is trained.

    Without it the stage behind would compute no gradients of its weights at all when they are split off.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """The inner layers' output."""
        found: torch.Tensor = self.inner(given)
        if torch.is_grad_enabled() and not found.requires_grad:
            return found.detach().requires_grad_()
        return found


class PipeliningEngine:
    """One rank of an interleaved or zero-bubble pipeline. Arguments are those of `TorchEngine`.

    The clock counts all passes of a step, with what they wait for, as forward.
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
        self._replica, self._me = replica, layout.ranks[rank]
        self._batch_of, self._evaluation_batch = batch_of, evaluation_batch
        self._training, self._device = training, device
        self._clock = clock or NoClock()
        plan = replica.stages[self._me.stage]
        self._rows = row_ranges(plan.micro_batch_shares)[self._me.dp_i]
        tied = tied_stages(chain, replica)
        self._groups = build_groups(replica, layout, self._me, tied, device=device, timeout_s=timeout_s)
        pieces = own_pieces(replica, training.pipeline, self._me.stage)
        if recomputed is None or PIECES[training.pipeline] > 1:
            # Layers stand elsewhere than planned: as many as planned are recomputed, but others.
            own = [i for piece in pieces.values() for i in piece]
            recomputed = first_blocks(own, chain.num_layers, plan.recompute)
        built = {
            i: build_stage(chain, piece, zero=0, recomputed=recomputed, data=None, tensor=None, device=device)
            for i, piece in pieces.items()
        }
        self._modules = nn.ModuleList(stage.module for stage in built.values())
        self._is_first = self._me.stage == 0
        self._is_last = self._me.stage == len(replica.stages) - 1
        self._evaluates = False
        self._schedule = _schedule(
            training.pipeline,
            {i: Piece(stage.module) for i, stage in built.items()},
            num_pieces=len(piece_layers(replica, training.pipeline)),
            num_micro_batches=replica.micro_batches,
            loss=self._loss,
            device=device,
            group=_pipeline_group(replica, layout, self._me, device, timeout_s),
        )
        self._updater = Updater(
            [one for stage in built.values() for one in stage.trained],
            self._groups,
            training,
            zero=plan.zero,
            device=device,
            clock=self._clock,
            tied_source=None if tied is None else layout.rank_at(tied[0], 0),
        )

    def train_step(self, step: int, learning_rate: float) -> StepResult:
        """Run one optimiser step on the text of this step (from 0)."""
        tokens_BT = None
        if self._is_first or self._is_last:
            count = self._replica.micro_batches
            tokens_BT = torch.cat([self._batch_of(step, j, self._rows) for j in range(count)])
        seed_dropout(self._training.seed, step, self._me.stage, self._me.dp_i)
        with self._clock.span(Kind.FORWARD):
            loss = self._run(tokens_BT)
        return self._updater.step(loss, learning_rate)

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences, known on every rank."""
        batches: list[torch.Tensor] = []
        while (batch := self._evaluation_batch(len(batches))) is not None:
            batches.append(batch)
        rows_BT = torch.cat(batches)
        at_once = self._replica.micro_batches * self._replica.micro_batch_size
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        self._modules.eval()
        self._evaluates = True
        for start in range(0, len(rows_BT), at_once):
            total += self._run(self._own_rows(rows_BT[start : start + at_once]))
        self._evaluates = False
        self._modules.train()
        dist.all_reduce(total)
        return float(total.item() / rows_BT[:, 1:].numel())

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights with optimiser state of this rank's layers, on one rank of each stage."""
        return self._updater.states(keep=self._me.dp_i == 0)

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` optimiser steps. Holds at least the rank's own layers."""
        self._updater.load(states, step)

    def tied_weight(self) -> torch.Tensor | None:
        """This stage's copy of a weight shared with another stage, in full; None where it shares none."""
        return self._updater.tied_weight()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _run(self, tokens_BT: torch.Tensor | None) -> torch.Tensor:
        """All passes over a step's sequences; the sum of what `_loss` makes of each micro-batch."""
        run = self._schedule.eval if self._evaluates else self._schedule.step
        given: list[torch.Tensor] = []
        target = None
        losses: list[torch.Tensor] = []
        if tokens_BT is not None:
            tokens_BT = tokens_BT.to(self._device)
            given = [tokens_BT[:, :-1].clamp(min=0)] if self._is_first else []
            target = tokens_BT[:, 1:] if self._is_last else None
        with torch.set_grad_enabled(not self._evaluates):
            run(*given, target=target, losses=losses if self._is_last else None, return_outputs=False)
        if not self._is_last:
            return torch.zeros((), dtype=torch.float64, device=self._device)
        return torch.stack([loss.detach().double() for loss in losses]).sum()

    def _loss(self, logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """A micro-batch's addend to the step's mean loss; while evaluating, the sum over its tokens."""
        total = nn.functional.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), reduction="sum", ignore_index=IGNORED
        )
        if self._evaluates:
            return total
        replica = self._replica
        return total / (replica.micro_batch_size * replica.micro_batches * labels_BT.shape[1])

    def _own_rows(self, rows_BT: torch.Tensor) -> torch.Tensor:
        """This rank's rows of full micro-batches; rows that there aren't have no labels that count."""
        size = self._replica.micro_batch_size
        filled = torch.full((self._replica.micro_batches * size, rows_BT.shape[1]), IGNORED)
        filled[: len(rows_BT)] = rows_BT
        own = filled.view(-1, size, rows_BT.shape[1])[:, self._rows.start : self._rows.stop]
        return own.flatten(0, 1)


def _pipeline_group(
    replica: ReplicaPlan, layout: Layout, me: Rank, device: torch.device, timeout_s: float
) -> Any:
    """The ranks of this rank's pipeline in the order of stages. Collective over all ranks."""
    found = None
    for dp_i in range(replica.stages[0].dp):
        ranks = [layout.rank_at(stage.index, dp_i) for stage in replica.stages]
        group = dist.new_group(ranks, timeout=datetime.timedelta(seconds=timeout_s), sort_ranks=False)
        found = group if dp_i == me.dp_i else found
    dist.all_reduce(torch.zeros(1, device=device), group=found)
    return found


def _schedule(
    kind: PipelineSchedule,
    modules: Mapping[int, nn.Module],
    *,
    num_pieces: int,
    num_micro_batches: int,
    loss: Any,
    device: torch.device,
    group: Any,
) -> Any:
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

    stages = [PipelineStage(module, i, num_pieces, device, group=group) for i, module in modules.items()]
    chosen = {
        PipelineSchedule.INTERLEAVED: ScheduleInterleaved1F1B,
        PipelineSchedule.ZERO_BUBBLE: ScheduleInterleavedZeroBubble,
    }[kind]
    return chosen(stages, n_microbatches=num_micro_batches, loss_fn=loss, scale_grads=False)
