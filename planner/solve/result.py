"""What every way of solving returns, and the limits it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from planner.objective import Replica


class Status(StrEnum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Best value and bound so far; `value` is None before the first plan."""

    elapsed_s: float
    value: float | None
    bound: float | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop.

    `deadline_s` is wall time from the start of the solve. `max_excess_frac` is the excess at which a plan
    is good enough. With `deterministic` only counted limits bind and `deadline_s` is ignored. `should_stop`
    is asked often (Ctrl-C); `report` is told of every improvement.
    """

    deadline_s: float = 60.0
    max_excess_frac: float = 0.0
    deterministic: bool = False
    seed: int = 0
    rounds: int = 60
    should_stop: Callable[[], bool] = field(default=lambda: False)
    report: Callable[[Progress], None] = field(default=lambda _progress: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryResult:
    """The best set of replicas found for one boundary, and a bound no other set passes.

    `value` and `bound` are in the objective's own unit (tokens/s; USD per hour when minimising price).
    `proof` is the evidence `echelon check` repeats. `prices` are multipliers per capacity row, for
    explanations and warm starts.
    """

    boundary: str
    status: Status
    replicas: tuple[Replica, ...]
    value: float | None
    bound: float | None
    proof: Mapping[str, Any]
    stop: str
    prices: Mapping[str, float] = field(default_factory=dict)


def excess_frac(value: float, bound: float, *, maximise: bool) -> float:
    """bound/value - 1 when maximising, value/bound - 1 when minimising: how much better the best could be."""
    better, worse = (bound, value) if maximise else (value, bound)
    if worse <= 0.0:
        return 0.0 if better <= worse else float("inf")
    return max(0.0, better / worse - 1.0)
