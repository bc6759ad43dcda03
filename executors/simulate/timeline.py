"""What a simulated step looked like: who did what from when to when, and how busy each stage was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple


class Kind(StrEnum):
    """What a span of time went into."""

    FORWARD = "forward"
    BACKWARD = "backward"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    SYNC = "sync"
    UPDATE = "update"


class Span(NamedTuple):
    """A piece of work. A tuple, since one step may have hundreds of thousands.

    `row` is the stage, or for a transfer on its link the border. `micro_batch` is -1 for what happens once
    per step.
    """

    kind: Kind
    row: int
    micro_batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUse:
    """Where the seconds of a stage went in one step. `transfer_s` are transfers that hold the stage."""

    forward_s: float
    backward_s: float
    transfer_s: float
    sync_s: float
    step_s: float

    @property
    def busy_s(self) -> float:
        """Seconds in which the stage did anything."""
        return self.forward_s + self.backward_s + self.transfer_s + self.sync_s

    @property
    def idle_s(self) -> float:
        """Seconds in which it waited for others."""
        return max(0.0, self.step_s - self.busy_s)

    @property
    def busy_frac(self) -> float:
        """Part of the step in which it did anything."""
        return self.busy_s / self.step_s if self.step_s > 0.0 else 0.0

    @property
    def compute_frac(self) -> float:
        """Part of the step in which it computed."""
        return (self.forward_s + self.backward_s) / self.step_s if self.step_s > 0.0 else 0.0

    @property
    def bubble_frac(self) -> float:
        """Part of the step in which it waited."""
        return self.idle_s / self.step_s if self.step_s > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True)
class StepTimeline:
    """One step of one replica, from 0 s.

    `work` holds what stages did, `transfers` when links were held (latency not included), both in order of
    their starts. `pipeline_s` is when the last backward pass ended, `step_s` when the last update did.
    """

    num_stages: int
    num_micro_batches: int
    pipeline_s: float
    step_s: float
    work: tuple[Span, ...]
    transfers: tuple[Span, ...]

    @cached_property
    def uses(self) -> tuple[StageUse, ...]:
        """How each stage spent the step."""
        return stage_uses(self.work, self.num_stages, self.step_s)

    @property
    def bubble_frac(self) -> float:
        """Part of the step in which stages waited, averaged over stages."""
        return sum(use.bubble_frac for use in self.uses) / self.num_stages


_TOTALS = {
    Kind.FORWARD: 0,
    Kind.BACKWARD: 1,
    Kind.ACTIVATION: 2,
    Kind.GRADIENT: 2,
    Kind.SYNC: 3,
    Kind.UPDATE: 3,
}


def stage_uses(work: Sequence[Span], num_stages: int, step_s: float) -> tuple[StageUse, ...]:
    """How each stage spent the seconds of a step."""
    totals = [[0.0, 0.0, 0.0, 0.0] for _ in range(num_stages)]
    for kind, stage, _, start_s, end_s in work:
        totals[stage][_TOTALS[kind]] += end_s - start_s
    return tuple(
        StageUse(forward_s=f, backward_s=b, transfer_s=moved, sync_s=synced, step_s=step_s)
        for f, b, moved, synced in totals
    )
