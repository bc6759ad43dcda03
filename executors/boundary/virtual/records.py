"""What a simulated run leaves behind: one record per outer step, and totals."""

from __future__ import annotations

from dataclasses import dataclass

from executors.boundary.outer.vectors import Vector
from policies.drift import DriftDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """After one outer step: loss (nats, None where not evaluated) against the four budgets.

    `num_steps`: local steps of all participants so far. `num_tokens`: the same in tokens. `crossing_bytes`:
    both directions, all boundaries. `num_local_steps`: H now in force. `rho`: drift of this step, None if
    unknown.
    """

    num_syncs: int
    at_s: float
    num_steps: int
    num_tokens: int
    crossing_bytes: int
    loss: float | None
    num_local_steps: int
    num_reports: int
    staleness_counts: tuple[int, ...]
    rho: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a run; None leaves that axis open."""

    num_tokens: int | None = None
    num_bytes: int | None = None
    num_syncs: int | None = None
    at_s: float | None = None

    def reached(self, record: SyncRecord) -> tuple[bool, ...]:
        """For each bound that is set, whether the run has come that far."""
        pairs = (
            (self.num_tokens, record.num_tokens),
            (self.num_bytes, record.crossing_bytes),
            (self.num_syncs, record.num_syncs),
            (self.at_s, record.at_s),
        )
        return tuple(value >= bound for bound, value in pairs if bound is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run. `num_dropped` counts updates dropped for age, `num_released` those summed."""

    policy: str
    records: tuple[SyncRecord, ...]
    decisions: tuple[DriftDecision, ...]
    w_P: Vector
    num_released: int
    num_dropped: int
    crossing_bytes: int
    inside_bytes: int
    at_s: float
    num_steps: int
