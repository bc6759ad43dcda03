"""Choosing among enumerated replicas: the integer master, posed once for every solver that is given columns.

    max  sum_n value_n x_n      (with a target: min sum_n usd_n x_n subject to sum_n value_n x_n >= target)
    class[c], pool[..], price:  sum_n row_rn x_n <= limit_r
    replicas-min, replicas-max: count_min <= sum_n x_n <= count_max
    x_n integer >= 0

Speed ratio: with a slowest speed t0 given, columns below t0 are left out and faster ones count
min(speed, ratio t0); scanning t0 over the speeds that occur is exact, because the slowest replica of the best
plan has one of them.

Legend of array suffixes: N columns (replicas), R capacity rows, C device classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray
from planner.objective import Replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.result import BoundaryResult, Limits, Status

TOLERANCE_FRAC = 1e-9
"""Relative slack granted to capacity rows and to the tokens/s target, so that equality survives rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMaster:
    """The integer master; `weight_RC` and `limit_R` are the capacity rows, tolerance granted."""

    value_N: FloatArray
    usage_NC: NDArray[np.int64]
    devices_C: NDArray[np.int64]
    usd_per_hour_C: FloatArray
    weight_RC: FloatArray
    limit_R: FloatArray
    count_min: int
    count_max: int
    target: float | None = None

    @property
    def rows_RN(self) -> FloatArray:
        """What one use of each column takes of each capacity row."""
        return np.asarray(self.weight_RC @ self.usage_NC.T.astype(np.float64))

    @property
    def usd_per_hour_N(self) -> FloatArray:
        """Price of the devices each column uses."""
        return np.asarray(self.usage_NC.astype(np.float64) @ self.usd_per_hour_C)

    def select(self, keep_N: NDArray[np.bool_]) -> ColumnMaster:
        """The master over some of its columns."""
        return replace(self, value_N=self.value_N[keep_N], usage_NC=self.usage_NC[keep_N])

    def admits(self, counts: Sequence[int]) -> bool:
        """Whether a choice keeps every row, every count and the target."""
        x_N = np.asarray(counts, dtype=np.float64)
        if not self.count_min <= x_N.sum() <= self.count_max or (self.rows_RN @ x_N > self.limit_R).any():
            return False
        return self.target is None or float(self.value_N @ x_N) >= self.target * (1.0 - TOLERANCE_FRAC)


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterAnswer:
    """How often each column is used; `bound` limits the master's value (or cost) over its own columns."""

    status: Status
    counts: tuple[int, ...] = ()
    bound: float | None = None


MasterSolver = Callable[[ColumnMaster, Limits], MasterAnswer]


def counted_tokens_per_s(speeds: Sequence[float], ratio_max: float | None) -> float:
    """Tokens/s of replicas that run together: a faster one is throttled to `ratio_max` times the slowest."""
    if ratio_max is None or not speeds:
        return float(sum(speeds))
    ceiling = ratio_max * min(speeds)
    return float(sum(min(speed, ceiling) for speed in speeds))


def objective_value(problem: BoundaryProblem, replicas: Sequence[Replica]) -> float:
    """The value of a set of replicas in the objective's own unit: tokens/s, or USD per hour for price."""
    if problem.objective.kind is ObjectiveKind.PRICE:
        return float(sum(replica.usd_per_hour for replica in replicas))
    return counted_tokens_per_s([replica.tokens_per_s for replica in replicas], problem.speed_ratio_max)


def capacity_rows(problem: BoundaryProblem) -> tuple[FloatArray, FloatArray]:
    """Coefficients per class and right-hand sides of the capacity rows, the tolerance granted."""
    weight_RC = np.zeros((len(problem.rows), len(problem.classes)))
    for r, row in enumerate(problem.rows):
        for class_i, coefficient in row.coefficients:
            weight_RC[r, class_i] += coefficient
    limit_R = np.array([row.limit for row in problem.rows], dtype=np.float64)
    return weight_RC, limit_R + TOLERANCE_FRAC * np.maximum(np.abs(limit_R), 1.0)


def count_max_of(problem: BoundaryProblem) -> int:
    """A finite number of replicas no plan exceeds: every replica takes at least one device."""
    num_devices = sum(c.num_devices for c in problem.classes)
    return num_devices if problem.replicas_max is None else min(problem.replicas_max, num_devices)


def build_master(problem: BoundaryProblem, columns: Sequence[Replica]) -> ColumnMaster:
    """The master of a boundary over these columns, not throttled; asks for at least one replica."""
    usage_NC = np.zeros((len(columns), len(problem.classes)), dtype=np.int64)
    for n, column in enumerate(columns):
        for class_i, count in column.usage:
            usage_NC[n, class_i] = count
    weight_RC, limit_R = capacity_rows(problem)
    price = problem.objective.kind is ObjectiveKind.PRICE
    return ColumnMaster(
        value_N=np.array([column.tokens_per_s for column in columns], dtype=np.float64),
        usage_NC=usage_NC,
        devices_C=np.array([c.num_devices for c in problem.classes], dtype=np.int64),
        usd_per_hour_C=np.array([c.device.usd_per_hour for c in problem.classes], dtype=np.float64),
        weight_RC=weight_RC,
        limit_R=limit_R,
        count_min=max(1, problem.replicas_min),
        count_max=count_max_of(problem),
        target=problem.objective.tokens_per_s_min if price else None,
    )


def solve_over_columns(
    problem: BoundaryProblem, columns: Sequence[Replica], limits: Limits, solve: MasterSolver
) -> BoundaryResult:
    """The best set of the given replicas. When they are all that could matter, OPTIMAL means optimal."""
    master = build_master(problem, columns)
    if not columns or master.count_min > master.count_max:
        answer = MasterAnswer(status=Status.INFEASIBLE)
    elif problem.speed_ratio_max is None or master.count_max == 1:
        answer = solve(master, limits)
    else:
        answer = solve_throttled(master, limits, solve, problem.speed_ratio_max)
    replicas = tuple(
        column for column, count in zip(columns, answer.counts, strict=False) for _ in range(int(count))
    )
    proven = answer.status in (Status.OPTIMAL, Status.INFEASIBLE)
    return BoundaryResult(
        boundary=problem.name,
        status=answer.status,
        replicas=replicas,
        value=objective_value(problem, replicas) if replicas else None,
        bound=answer.bound,
        proof={"kind": "closure", "columns": len(columns)} if proven else {"kind": "none"},
        stop="proven" if proven else "limits reached",
    )


def solve_throttled(
    master: ColumnMaster, limits: Limits, solve: MasterSolver, ratio_max: float
) -> MasterAnswer:
    """`speed-ratio`: the master with every replica counted at most `ratio_max` times the slowest one chosen.

    Speeds t0 are tried by decreasing optimistic value; those that can't win by it are never solved.
    Values below are signed so that more is better.
    """
    started = time.monotonic()
    sign = 1.0 if master.target is None else -1.0
    free = solve(master, limits)
    if free.status in (Status.INFEASIBLE, Status.UNKNOWN) or free.bound is None:
        return free
    best = -np.inf
    best_counts: tuple[int, ...] = ()
    if _counted(master, free.counts, ratio_max) >= (master.target or 0.0) * (1.0 - TOLERANCE_FRAC):
        best, best_counts = sign * _value(master, free.counts, ratio_max), free.counts
    proven = free.status is Status.OPTIMAL
    open_bounds: list[float] = []
    for optimistic, slowest in _slowest_candidates(master, sign * free.bound, ratio_max):
        if optimistic <= best * (1.0 + sign * 1e-12):
            open_bounds.append(optimistic)
            break
        if _out_of_time(limits, started):
            open_bounds.append(optimistic)
            proven = False
            break
        keep_N = master.value_N >= slowest
        throttled = replace(master, value_N=np.minimum(master.value_N, ratio_max * slowest)).select(keep_N)
        answer = solve(throttled, limits)
        if answer.status is Status.INFEASIBLE:
            continue
        proven = proven and answer.status is Status.OPTIMAL
        open_bounds.append(optimistic if answer.bound is None else sign * answer.bound)
        if answer.counts:
            counts = _spread(answer.counts, keep_N)
            value = sign * _value(master, counts, ratio_max)
            if value > best:
                best, best_counts = value, counts
    if not best_counts:
        return MasterAnswer(status=Status.INFEASIBLE if proven else Status.UNKNOWN)
    bound = max([best, *(min(b, sign * free.bound) for b in open_bounds)])
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return MasterAnswer(status=status, counts=best_counts, bound=float(sign * bound))


def _slowest_candidates(
    master: ColumnMaster, free_bound: float, ratio_max: float
) -> list[tuple[float, float]]:
    """(optimistic signed value, slowest speed) by decreasing optimism; hopeless targets left out."""
    candidates = []
    for slowest in np.unique(master.value_N).tolist():
        most = ratio_max * slowest * master.count_max
        if master.target is None:
            candidates.append((min(free_bound, most), slowest))
        elif most >= master.target * (1.0 - TOLERANCE_FRAC):
            candidates.append((free_bound, slowest))
    return sorted(candidates, reverse=True)


def _counted(master: ColumnMaster, counts: Sequence[int], ratio_max: float) -> float:
    speeds = [v for v, count in zip(master.value_N.tolist(), counts, strict=True) for _ in range(count)]
    return counted_tokens_per_s(speeds, ratio_max)


def _value(master: ColumnMaster, counts: Sequence[int], ratio_max: float) -> float:
    if master.target is not None:
        return float(master.usd_per_hour_N @ np.asarray(counts))
    return _counted(master, counts, ratio_max)


def _spread(counts: Sequence[int], keep_N: NDArray[np.bool_]) -> tuple[int, ...]:
    full_N = np.zeros(len(keep_N), dtype=np.int64)
    full_N[keep_N] = counts
    return tuple(int(count) for count in full_N)


def _out_of_time(limits: Limits, started: float) -> bool:
    if limits.should_stop():
        return True
    return not limits.deterministic and time.monotonic() - started > limits.deadline_s
