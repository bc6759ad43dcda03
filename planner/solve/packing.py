"""The integer master over a pool of replicas: which of them to run together, and how many of each.

CP-SAT chooses among the columns; values are scaled to integers and every answer is priced again in floats.

Legend: P columns, R capacity rows, C device classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.columns import Column, Shape, total_tokens_per_s
from planner.solve.tables import FloatArray

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, IntVar

SCALE = 10_000_000.0


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Chosen columns (with repetition), their value, and whether no other choice of the pool is better."""

    columns: tuple[Column, ...]
    value: float
    optimal: bool


def value_of(problem: BoundaryProblem, shape: Shape, columns: Sequence[Column]) -> float:
    """The objective of a set of replicas: tokens/s, or USD per hour for the price objective."""
    if problem.objective.kind is ObjectiveKind.PRICE:
        return float(sum(shape.usd_C @ column.usage_C for column in columns))
    return total_tokens_per_s(columns, problem.speed_ratio_max)


def admissible(problem: BoundaryProblem, shape: Shape, columns: Sequence[Column]) -> bool:
    """Whether a set of replicas keeps every row, the replica counts and the token target."""
    if len(columns) < problem.replicas_min or not columns:
        return False
    if problem.replicas_max is not None and len(columns) > problem.replicas_max:
        return False
    usage_C = np.sum([column.usage_C for column in columns], axis=0)
    if np.any(shape.coefficient_RC @ usage_C > shape.limit_R * (1 + 1e-12) + 1e-9):
        return False
    target = problem.objective.tokens_per_s_min
    if problem.objective.kind is ObjectiveKind.PRICE and target is not None:
        return total_tokens_per_s(columns, problem.speed_ratio_max) >= target
    return True


def better(problem: BoundaryProblem, one: float, other: float | None) -> bool:
    """Whether a value beats another in the direction of the objective."""
    if other is None:
        return True
    return one < other if problem.objective.kind is ObjectiveKind.PRICE else one > other


def fill_greedily(
    problem: BoundaryProblem, shape: Shape, columns: Sequence[Column], x_P: FloatArray, price_C: FloatArray
) -> list[Column]:
    """Whole parts of a fractional solution, then the replicas that give most per price, while they fit."""
    chosen: list[Column] = []
    left_R = shape.limit_R.copy()
    room = problem.replicas_max if problem.replicas_max is not None else 10**9
    worth_P = np.array([c.tokens_per_s / max(1e-12, float(price_C @ c.usage_C)) for c in columns])
    for fractional in (x_P, np.full(len(columns), np.inf)):
        for p in np.lexsort((-worth_P, -np.minimum(fractional - np.floor(x_P), 1.0))):
            row_R = shape.coefficient_RC @ columns[p].usage_C
            wanted = floor(fractional[p] + 1e-9) if np.isfinite(fractional[p]) else 10**9
            while wanted > 0 and len(chosen) < room and np.all(row_R <= left_R + 1e-9):
                chosen.append(columns[p])
                left_R -= row_R
                wanted -= 1
    return chosen


def pack(
    problem: BoundaryProblem,
    shape: Shape,
    columns: Sequence[Column],
    *,
    hint: Sequence[Column] = (),
    slowest_tokens_per_s: float | None = None,
    deadline_s: float | None = None,
    deterministic_limit: float = 10.0,
    seed: int = 0,
) -> Packing | None:
    """The best choice CP-SAT finds among `columns`; None when it finds none.

    With `slowest_tokens_per_s` = t0 every column must be at least that fast and counts at most ratio * t0.
    """
    from ortools.sat.python import cp_model

    price = problem.objective.kind is ObjectiveKind.PRICE
    rates_P = np.array([column.tokens_per_s for column in columns])
    if slowest_tokens_per_s is not None and problem.speed_ratio_max is not None:
        rates_P = np.minimum(rates_P, problem.speed_ratio_max * slowest_tokens_per_s)
    usage_PC = np.array([column.usage_C for column in columns])
    row_PR = usage_PC @ shape.coefficient_RC.T
    model = cp_model.CpModel()
    x = [_count_var(model, problem, shape, row_PR[p], p) for p in range(len(columns))]
    _limit_rows(model, shape, row_PR, x)
    model.add(sum(x) >= problem.replicas_min).with_name("replicas-min")
    if problem.replicas_max is not None:
        model.add(sum(x) <= problem.replicas_max).with_name("replicas-max")
    weight_P = usage_PC @ shape.usd_C if price else rates_P
    unit = max(1e-12, float(np.max(weight_P, initial=0.0))) / SCALE
    if price:
        rate_unit = max(1e-12, float(rates_P.max())) / SCALE
        goal = ceil((problem.objective.tokens_per_s_min or 0.0) / rate_unit)
        counted = [floor(rate / rate_unit) for rate in rates_P]
        model.add(cp_model.LinearExpr.weighted_sum(x, counted) >= goal).with_name("tokens-min")
    objective = cp_model.LinearExpr.weighted_sum(x, [round(w / unit) for w in weight_P])
    (model.minimize if price else model.maximize)(objective)
    _add_hint(model, columns, x, hint)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = deterministic_limit
    if deadline_s is not None:
        solver.parameters.max_time_in_seconds = max(0.05, deadline_s)
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    chosen = tuple(column for p, column in enumerate(columns) for _ in range(solver.value(x[p])))
    return Packing(columns=chosen, value=value_of(problem, shape, chosen), optimal=status == cp_model.OPTIMAL)


def _count_var(model: CpModel, problem: BoundaryProblem, shape: Shape, row_R: FloatArray, p: int) -> IntVar:
    most = min((int(shape.limit_R[r] / row_R[r] + 1e-9) for r in np.flatnonzero(row_R)), default=1)
    if problem.replicas_max is not None:
        most = min(most, problem.replicas_max)
    return model.new_int_var(0, max(0, most), f"x[{p}]")


def _limit_rows(model: CpModel, shape: Shape, row_PR: FloatArray, x: Sequence[IntVar]) -> None:
    """row[r]: sum_p a_rp x_p <= b_r; fractional coefficients are scaled and rounded up, which is safe."""
    from ortools.sat.python import cp_model

    for r, limit in enumerate(shape.limit_R):
        used = np.flatnonzero(row_PR[:, r])
        if used.size == 0:
            continue
        coefficient_P = row_PR[used, r]
        whole = bool(np.all(coefficient_P == np.round(coefficient_P)) and limit == round(limit))
        unit = 1.0 if whole else max(float(limit), 1e-12) / 1e9
        scaled = [ceil(c / unit - 1e-9) for c in coefficient_P]
        expression = cp_model.LinearExpr.weighted_sum([x[int(p)] for p in used], scaled)
        model.add(expression <= floor(limit / unit + 1e-9)).with_name(f"row[{r}]")


def _add_hint(model: CpModel, columns: Sequence[Column], x: Sequence[IntVar], hint: Sequence[Column]) -> None:
    if not hint:
        return
    counts: dict[object, int] = {}
    for column in hint:
        counts[column.key] = counts.get(column.key, 0) + 1
    for p, column in enumerate(columns):
        model.add_hint(x[p], counts.get(column.key, 0))
