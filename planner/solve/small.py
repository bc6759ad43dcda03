"""Small boundaries solved exactly: the hook of the default way, with proof, progress and prices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Shape, to_replica
from planner.solve.master import master_over
from planner.solve.packing import value_of
from planner.solve.proof import multipliers
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from planner.solve.small_fleet import SmallAnswer, SmallFleet
from planner.solve.small_labels import Effort, SmallLimitError
from planner.solve.tables import build_signatures, build_tables

COUNTS_MAX = 10_000
CODES_MAX = 4_000_000
PAIRS_MAX = 10_000_000
EFFORT_MAX = 20_000_000
TIME_FRAC = 0.9
"""Share of the deadline after which the general way takes over."""


def is_small(problem: BoundaryProblem) -> bool:
    """Whether a fleet has few enough device counts, and nothing that this way of solving can't express."""
    if problem.workload.job.schedule == ROUND_ROBIN:
        return False
    if any(coefficient < 0.0 for row in problem.rows for _, coefficient in row.coefficients):
        return False
    if any(c.device.usd_per_hour < 0.0 for c in problem.classes):
        return False
    sizes = [c.num_devices + 1 for c in problem.classes]
    if prod(sizes) > COUNTS_MAX or prod(2 * size - 1 for size in sizes) > CODES_MAX:
        return False
    return prod(size * (size + 1) // 2 for size in sizes) <= PAIRS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    """When to stop, and who hears of progress."""

    limits: Limits
    started_s: float

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def should_stop(self) -> bool:
        late = not self.limits.deterministic and self.elapsed_s() > TIME_FRAC * self.limits.deadline_s
        return late or self.limits.should_stop()

    def hear(self, value: float | None, bound: float | None) -> None:
        self.limits.report(Progress(elapsed_s=self.elapsed_s(), value=value, bound=bound, note="small fleet"))


def solve_small_boundary(problem: BoundaryProblem, shape: Shape, limits: Limits) -> BoundaryResult | None:
    """The proven best plan, or that there is none, with a proof by ceilings.

    None when the boundary is not small, or took more than its share of the time or a counted effort; the
    general way takes over then. Told to stop by the limits, it returns the best plan so far without a bound.
    """
    if not is_small(problem):
        return None
    watch = _Watch(limits=limits, started_s=time.monotonic())
    tables = build_tables(problem, build_signatures(problem), exact=True)
    effort = Effort(left=EFFORT_MAX, should_stop=watch.should_stop)
    fleet = SmallFleet(problem, shape, tables, effort, watch.hear)
    try:
        answer = fleet.solve()
    except SmallLimitError:
        return _interrupted(problem, shape, fleet) if limits.should_stop() else None
    if answer is None:
        return None
    return _result(problem, shape, fleet, answer)


def _result(problem: BoundaryProblem, shape: Shape, fleet: SmallFleet, answer: SmallAnswer) -> BoundaryResult:
    if answer.columns is None:
        return BoundaryResult(
            boundary=problem.name,
            status=Status.INFEASIBLE,
            replicas=(),
            value=None,
            bound=None,
            proof=_proof(answer, None),
            stop="closed",
        )
    value = value_of(problem, shape, answer.columns)
    duals = _duals(problem, shape, list(fleet.columns.values()))
    return BoundaryResult(
        boundary=problem.name,
        status=Status.OPTIMAL,
        replicas=tuple(to_replica(problem, column) for column in answer.columns),
        value=value,
        bound=value,
        proof=_proof(answer, value) | _priced(problem, shape, answer, duals),
        stop="closed",
        prices=multipliers(problem, duals)["prices"],
    )


def _proof(answer: SmallAnswer, value: float | None) -> dict[str, Any]:
    ceilings = [[list(count), tokens_per_s] for count, tokens_per_s in answer.ceilings]
    return {"kind": "ceilings", "ceilings": ceilings, "bound": value}


def _interrupted(problem: BoundaryProblem, shape: Shape, fleet: SmallFleet) -> BoundaryResult:
    columns = fleet.chosen() or ()
    return BoundaryResult(
        boundary=problem.name,
        status=Status.FEASIBLE if columns else Status.UNKNOWN,
        replicas=tuple(to_replica(problem, column) for column in columns),
        value=value_of(problem, shape, columns) if columns else None,
        bound=None,
        proof={"kind": "none"},
        stop="limits",
    )


def _duals(problem: BoundaryProblem, shape: Shape, columns: Sequence[Column]) -> Duals:
    """Multipliers of the linear master over the replicas met: what one more unit of each row is worth."""
    top = max(column.tokens_per_s for column in columns)
    master = master_over(problem, shape, top)
    for column in columns:
        master.add(column)
    return master.solve().duals


def _priced(problem: BoundaryProblem, shape: Shape, answer: SmallAnswer, duals: Duals) -> dict[str, Any]:
    """The multipliers with a factor that the ceilings prove, for limits that boundaries share.

    No replica is faster than a ceiling on no more devices, and these cost no more: t + nu <= factor *
    (price + rho) for every ceiling makes it true for every replica. Nothing where a ceiling costs nothing.
    """
    if not answer.ceilings:
        return {}
    count_MC = np.array([count for count, _ in answer.ceilings])
    worth_M = np.array([tokens_per_s for _, tokens_per_s in answer.ceilings]) + duals.nu
    price_M = count_MC @ duals.price_C + duals.rho
    if price_M.min() <= 0.0:
        return {}
    return {**multipliers(problem, duals), "factor": float((worth_M / price_M).max())}
