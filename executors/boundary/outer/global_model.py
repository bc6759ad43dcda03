"""The coordinator's model: deltas come in, an outer step comes out, each delta is used once.

Legend: P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from executors.boundary.outer.policy import Report, SyncPolicy
from executors.boundary.outer.vectors import Vector, squared_norm, weighted_mean
from policies.drift import DriftSignals
from policies.errors import EchelonError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One boundary's delta as it came in, with the version it was made from."""

    boundary: int
    delta_P: Vector
    base_version: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalModel:
    """`version` counts outer steps; `pending` holds at most one delta per boundary."""

    w_P: Vector
    velocity_P: Vector
    version: int = 0
    pending: tuple[Arrival, ...] = ()

    def arrive(self, arrival: Arrival) -> GlobalModel:
        """The model with one more delta waiting.

        Raises:
            EchelonError: `delta-twice` where that boundary's last delta still waits.
        """
        if any(a.boundary == arrival.boundary for a in self.pending):
            raise EchelonError(
                "delta-twice",
                f"boundary {arrival.boundary} sent a second delta before the outer step",
                hint="one exchange in flight per boundary",
            )
        return replace(self, pending=(*self.pending, arrival))

    def reports(self) -> tuple[Report, ...]:
        """The waiting deltas in order of boundary, so that sums do not depend on the order of arrival."""
        return tuple(
            Report(
                boundary=a.boundary,
                delta_P=a.delta_P,
                staleness=self.version - a.base_version,
                weight=a.weight,
            )
            for a in sorted(self.pending, key=lambda a: a.boundary)
        )

    def merge(self, policy: SyncPolicy, *, num_live: int) -> GlobalModel:
        """The model after the outer step over all waiting deltas."""
        w_P, velocity_P = policy.merge(self.w_P, self.velocity_P, self.reports(), num_live=num_live)
        return GlobalModel(w_P=w_P, velocity_P=velocity_P, version=self.version + 1)


def start_global(w_P: Vector) -> GlobalModel:
    """A global model at version 0 with no velocity."""
    return GlobalModel(w_P=w_P, velocity_P=np.zeros_like(w_P))


def drift_signals(
    reports: Sequence[Report],
    *,
    link_s: float | None = None,
    step_s: float | None = None,
    overhead_s: float = 0.0,
    staleness_counts: tuple[int, ...] = (),
    loss: float | None = None,
) -> DriftSignals:
    """The controller's inputs from the deltas of one outer step and what was measured around it."""
    deltas = [r.delta_P for r in reports]
    mean_P = weighted_mean(deltas, [1.0] * len(deltas)) if deltas else None
    return DriftSignals(
        squared_norms_B=tuple(squared_norm(delta_P) for delta_P in deltas),
        squared_mean_norm=None if mean_P is None else squared_norm(mean_P),
        link_s=link_s,
        step_s=step_s,
        overhead_s=overhead_s,
        staleness_counts=staleness_counts,
        loss=loss,
    )
