"""What a sync policy is: settings, and four questions: due, weight, merge, apply.

Legend: P parameters, B boundaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from executors.boundary.outer.exchange import LocalCopy
from executors.boundary.outer.local import Proximal
from executors.boundary.outer.optimiser import MEAN, OuterOptimiser
from executors.boundary.outer.vectors import Vector, weighted_mean
from policies.clipping import ClipRule
from policies.drift import DriftRule
from policies.errors import InputError, PolicyRefusedError
from policies.staleness import StalenessRule


class Pull(StrEnum):
    """When a participant takes the newer model: at its commit, its window's release, or the outer step."""

    COMMIT = "commit"
    RELEASE = "release"
    OUTER_STEP = "outer-step"


class Due(StrEnum):
    """What can be due: the first two at a participant, then at a boundary, then at the coordinator."""

    TRAIN = "train"
    COMMIT = "commit"
    SHIP = "ship"
    MERGE = "merge"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantSituation:
    """Steps since the last commit (or start), and whether an update of it waits for its release."""

    num_steps: int
    is_waiting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySituation:
    """Releases since the last ship, and whether an exchange is in flight."""

    num_releases: int
    is_in_flight: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSituation:
    """Boundaries that have reported, boundaries alive, and whether the global window has expired."""

    num_reported: int
    num_live: int
    is_expired: bool


Situation = ParticipantSituation | BoundarySituation | CoordinatorSituation


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One boundary's delta at the coordinator, with the versions it is behind."""

    boundary: int
    delta_P: Vector
    staleness: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPolicy:
    """One way to synchronise, as settings of one scheduler.

    `num_local_steps` is H. `num_ahead_steps`: steps a participant may train past a commit while it waits.
    `close_frac`: K of a window as a share of the members. `num_releases`: releases per ship. `report_frac`:
    share of the live boundaries whose deltas an outer step waits for. `drift` makes H follow the controller.

    Raises:
        InputError: `sync-policy` where a setting is out of range.
        PolicyRefusedError: `lone-delta-momentum` where single deltas would meet momentum: momentum then
            amplifies whatever direction came last, and the run diverges.
    """

    name: str
    num_local_steps: int
    num_ahead_steps: int = 0
    close_frac: float = 1.0
    pull: Pull = Pull.OUTER_STEP
    num_releases: int = 1
    report_frac: float = 1.0
    optimiser: OuterOptimiser = MEAN
    proximal: Proximal = field(default_factory=Proximal)
    staleness: StalenessRule = field(default_factory=StalenessRule)
    global_staleness: StalenessRule = field(default_factory=StalenessRule)
    clip: ClipRule = field(default_factory=ClipRule)
    drift: DriftRule | None = None

    def __post_init__(self) -> None:
        checks = (
            ("num_local_steps", self.num_local_steps, self.num_local_steps >= 1, "at least 1"),
            ("num_ahead_steps", self.num_ahead_steps, self.num_ahead_steps >= 0, "at least 0"),
            ("close_frac", self.close_frac, 0.0 < self.close_frac <= 1.0, "above 0, at most 1"),
            ("num_releases", self.num_releases, self.num_releases >= 1, "at least 1"),
            ("report_frac", self.report_frac, 0.0 < self.report_frac <= 1.0, "above 0, at most 1"),
        )
        for name, value, is_fine, limit in checks:
            if not is_fine:
                raise InputError(
                    "sync-policy",
                    f"sync policy: {name} is {value}, allowed is {limit}",
                    hint="set it within range",
                )
        if self.report_frac < 1.0 and self.optimiser.momentum > 0.0:
            raise PolicyRefusedError(
                "lone-delta-momentum",
                f"report_frac {self.report_frac} with momentum {self.optimiser.momentum}: "
                "single boundary deltas would be applied with momentum",
                hint="wait for all boundaries, or set the momentum to 0",
            )

    def due(self, situation: Situation, *, num_local_steps: int) -> frozenset[Due]:
        """Everything due in this situation, with H as it is now; an empty set means wait."""
        if isinstance(situation, ParticipantSituation):
            return self._due_at_participant(situation, num_local_steps)
        if isinstance(situation, BoundarySituation):
            is_due = situation.num_releases >= self.num_releases and not situation.is_in_flight
            return frozenset({Due.SHIP}) if is_due else frozenset()
        num_needed = max(1, math.ceil(self.report_frac * situation.num_live - 1e-9))
        is_due = situation.num_reported >= num_needed or (situation.num_reported > 0 and situation.is_expired)
        return frozenset({Due.MERGE}) if is_due else frozenset()

    def _due_at_participant(self, situation: ParticipantSituation, num_local_steps: int) -> frozenset[Due]:
        if not situation.is_waiting:
            return frozenset({Due.COMMIT if situation.num_steps >= num_local_steps else Due.TRAIN})
        return frozenset({Due.TRAIN}) if situation.num_steps < self.num_ahead_steps else frozenset()

    def weight(self, *, staleness: int, num_examples: float = 1.0) -> float:
        """What the participant multiplies its delta by before masking: staleness weight times examples."""
        return self.staleness.weight(staleness) * num_examples

    def report_weight(self, report: Report) -> float:
        """What the coordinator weights one boundary's delta by."""
        return self.global_staleness.weight(report.staleness) * report.weight

    def merge(
        self, w_P: Vector, velocity_P: Vector, reports: Sequence[Report], *, num_live: int
    ) -> tuple[Vector, Vector]:
        """The next global vector and velocity.

        The mean runs over the live boundaries' deltas, an absent one counting as a delta of zero where the
        policy waits for all. A lone delta among several live boundaries is added without momentum, which
        stays as it was.
        """
        kept = [r for r in reports if self.report_weight(r) > 0.0]
        if not kept:
            return w_P, velocity_P
        mean_P = weighted_mean([r.delta_P for r in kept], [self.report_weight(r) for r in kept])
        if self.report_frac == 1.0 and len(kept) < num_live:
            mean_P = (mean_P * np.float32(len(kept) / num_live)).astype(np.float32)
        if len(kept) == 1 and num_live > 1:
            return self.optimiser.step_without_momentum(w_P, mean_P), velocity_P
        return self.optimiser.step(w_P, velocity_P, mean_P)

    def apply(self, copy: LocalCopy, received_P: Vector, *, version: int) -> LocalCopy:
        """A participant's copy after a pull: started afresh, or on top of what was learned since."""
        if self.pull is Pull.COMMIT:
            return copy.restart(received_P, version=version)
        return copy.receive(received_P, version=version)
