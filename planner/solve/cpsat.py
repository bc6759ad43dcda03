"""CP-SAT: exact packing of enumerated replicas on small fleets, a plan finder by cut points on larger ones.

Legend of array suffixes: N columns (replicas), R capacity rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodels.interface import FloatArray
from planner.problem import BoundaryProblem
from planner.solve.cut_points import find_plan
from planner.solve.enumerate_replicas import ProblemTooLargeError, enumerate_replicas
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.small_master import ColumnMaster, MasterAnswer, solve_over_columns

SCALE = 2.0**42
"""Merits and rows are scaled to integers of at most this size, so that sums stay far below 2^63."""


def solve_boundary(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """Proven where every replica can be listed, otherwise FEASIBLE or UNKNOWN without a bound."""
    try:
        columns = enumerate_replicas(problem)
    except ProblemTooLargeError:
        return find_plan(problem, limits)
    return solve_over_columns(problem, columns, limits, solve_master)


def solve_master(master: ColumnMaster, limits: Limits) -> MasterAnswer:
    """The master in integers: merits rounded down, rows to nearest within the tolerance already granted."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    most_N = _most_uses(master)
    x_N = [model.new_int_var(0, most, f"x[{n}]") for n, most in enumerate(most_N)]
    limit_capacity(model, x_N, master.rows_RN, master.limit_R)
    limit_replicas(model, x_N, master.count_min, master.count_max)
    merit_N = master.value_N if master.target is None else master.usd_per_hour_N
    unit = max(float(merit_N.max()), 1e-300) * master.count_max / SCALE
    scaled_N = [int(v) for v in np.floor(merit_N / unit)]
    if master.target is None:
        model.maximize(cp_model.LinearExpr.weighted_sum(x_N, scaled_N))
    else:
        require_tokens(model, x_N, master.value_N, master.target)
        model.minimize(cp_model.LinearExpr.weighted_sum(x_N, scaled_N))
    solver = solver_for(limits)
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return MasterAnswer(status=Status.INFEASIBLE)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return MasterAnswer(status=Status.UNKNOWN)
    counts = tuple(int(solver.value(x)) for x in x_N)
    if not master.admits(counts):
        return MasterAnswer(status=Status.UNKNOWN)
    rounding = master.count_max if master.target is None else 0
    bound = (solver.best_objective_bound + rounding) * unit
    proven = status == cp_model.OPTIMAL
    return MasterAnswer(
        status=Status.OPTIMAL if proven else Status.FEASIBLE, counts=counts, bound=float(bound)
    )


def solver_for(limits: Limits, *, deterministic_s: float = 30.0) -> Any:
    """One worker and a fixed seed; deterministic time instead of wall time when asked for."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = limits.seed
    solver.parameters.relative_gap_limit = 0.0
    if limits.deterministic:
        solver.parameters.max_deterministic_time = deterministic_s
    else:
        solver.parameters.max_time_in_seconds = max(0.1, limits.deadline_s)
    return solver


def _most_uses(master: ColumnMaster) -> list[int]:
    """How often each column fits the rows alone."""
    rows_RN = master.rows_RN
    with np.errstate(divide="ignore", invalid="ignore"):
        fits_RN = np.where(rows_RN > 0.0, master.limit_R[:, None] / rows_RN, np.inf)
    most_N = np.minimum(np.floor(fits_RN.min(axis=0, initial=np.inf)), master.count_max)
    return [int(most) for most in np.maximum(most_N, 0.0)]


def limit_capacity(model: Any, x_N: list[Any], rows_RN: FloatArray, limit_R: FloatArray) -> None:
    """`class[c]`, `pool[..]`, `price`: sum_n row_rn x_n <= limit_r for every capacity row."""
    from ortools.sat.python import cp_model

    for r, (row_N, limit) in enumerate(zip(rows_RN, limit_R.tolist(), strict=True)):
        unit = max(abs(limit), float(row_N.max()), 1e-300) / SCALE
        scaled_N = [int(v) for v in np.rint(row_N / unit)]
        expression = cp_model.LinearExpr.weighted_sum(x_N, scaled_N)
        model.add(expression <= int(np.floor(limit / unit))).with_name(f"row[{r}]")


def limit_replicas(model: Any, x_N: list[Any], count_min: int, count_max: int) -> None:
    """`replicas-min`: sum_n x_n >= k_min; `replicas-max`: sum_n x_n <= R_max."""
    from ortools.sat.python import cp_model

    model.add(cp_model.LinearExpr.sum(x_N) >= count_min).with_name("replicas-min")
    model.add(cp_model.LinearExpr.sum(x_N) <= count_max).with_name("replicas-max")


def require_tokens(model: Any, x_N: list[Any], value_N: FloatArray, target: float) -> None:
    """`tokens-min`: sum_n tokens/s of n x_n >= target."""
    from ortools.sat.python import cp_model

    unit = max(target, float(value_N.max())) / SCALE
    scaled_N = [int(v) for v in np.rint(value_N / unit)]
    wanted = int(np.ceil(target * (1.0 - 5e-10) / unit))
    model.add(cp_model.LinearExpr.weighted_sum(x_N, scaled_N) >= wanted).with_name("tokens-min")
