"""The integer master over enumerated replicas in a MILP solver: HiGHS or SCIP, both inside ortools.

A backend is taken at its word only for the choice it returns and for having closed the search at gap 0;
values are computed again from the columns. Its bound is not used: through this interface HiGHS reports the
objective itself as the bound, whatever the gap. While a search is open the bound is that of the linear
relaxation.

Legend of array suffixes: N columns (replicas), R capacity rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from costmodels.interface import FloatArray
from planner.problem import BoundaryProblem
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.small_master import ColumnMaster, MasterAnswer, build_master, solve_over_columns

BACKENDS = ("highs", "scip")
_EXACT = {
    "highs": "mip_rel_gap=0\nmip_abs_gap=0\nmip_feasibility_tolerance=1e-9\nthreads=1\n"
    "random_seed={seed}\noutput_flag=false",
    "scip": "limits/gap = 0\nlimits/absgap = 0\nnumerics/feastol = 1e-9\n"
    "randomization/randomseedshift = {seed}\n",
}


def solve_boundary(problem: BoundaryProblem, limits: Limits, *, backend: str = "highs") -> BoundaryResult:
    """The best set of replicas by integer programming over all that could matter; small fleets only.

    `prices` are the multipliers of the capacity rows in the linear relaxation.

    Raises:
        ProblemTooLargeError: `problem-too-large`.
    """
    columns = enumerate_replicas(problem)
    result = solve_over_columns(problem, columns, limits, partial(solve_master, backend=backend))
    if result.status is Status.INFEASIBLE:
        return result
    relaxed = relax(build_master(problem, columns))
    names = [row.name for row in problem.rows]
    return replace(result, prices=dict(zip(names, relaxed.price_R.tolist(), strict=True)))


def solve_master(master: ColumnMaster, limits: Limits, *, backend: str = "highs") -> MasterAnswer:
    """The master by branch and cut; OPTIMAL when the backend closed it at gap 0."""
    from ortools.linear_solver.python import model_builder as mb

    model, x_N = _model(master, integer=True)
    solver = mb.Solver(backend)
    solver.enable_output(False)
    solver.set_solver_specific_parameters(_EXACT[backend].format(seed=limits.seed))
    if not limits.deterministic:
        solver.set_time_limit_in_seconds(max(0.1, limits.deadline_s))
    status = solver.solve(model)
    if status == mb.SolveStatus.INFEASIBLE:
        return MasterAnswer(status=Status.INFEASIBLE)
    if status not in (mb.SolveStatus.OPTIMAL, mb.SolveStatus.FEASIBLE):
        return MasterAnswer(status=Status.UNKNOWN, bound=relax(master).bound)
    counts = tuple(round(solver.value(x)) for x in x_N)
    if not master.admits(counts):
        return MasterAnswer(status=Status.UNKNOWN, bound=relax(master).bound)
    if status == mb.SolveStatus.OPTIMAL:
        merit_N = master.value_N if master.target is None else master.usd_per_hour_N
        return MasterAnswer(status=Status.OPTIMAL, counts=counts, bound=float(merit_N @ np.array(counts)))
    return MasterAnswer(status=Status.FEASIBLE, counts=counts, bound=relax(master).bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """Multipliers of the linear relaxation and the bound they prove; None where they prove nothing."""

    price_R: FloatArray
    bound: float | None


def relax(master: ColumnMaster) -> Relaxed:
    """Prices of the capacity rows, and the bound that follows from them alone by weak duality.

    With y, rho, nu >= 0 every choice is worth at most f (y . limit + rho count_max) - nu count_min, where f
    is the largest (value_n + nu) / (y . row_n + rho): rounding errors of the solver can only weaken it.
    """
    from ortools.linear_solver.python import model_builder as mb

    model, _ = _model(master, integer=False)
    solver = mb.Solver("glop")
    solver.enable_output(False)
    num_rows = len(master.limit_R)
    if solver.solve(model) != mb.SolveStatus.OPTIMAL:
        return Relaxed(price_R=np.zeros(num_rows), bound=None)
    duals = {c.name: abs(float(solver.dual_value(c))) for c in model.get_linear_constraints()}
    merit_scale, limit_scale_R = _scales(master)
    price_R = np.array([duals[f"row[{r}]"] for r in range(num_rows)]) * merit_scale / limit_scale_R
    if master.target is not None:
        return Relaxed(price_R=price_R, bound=None)
    rho, nu = duals["replicas-max"] * merit_scale, duals["replicas-min"] * merit_scale
    worth_N = (master.value_N + nu) / np.maximum(price_R @ master.rows_RN + rho, 1e-300)
    bound = worth_N.max() * (price_R @ master.limit_R + rho * master.count_max) - nu * master.count_min
    return Relaxed(price_R=price_R, bound=float(bound) if np.isfinite(bound) else None)


def _scales(master: ColumnMaster) -> tuple[float, FloatArray]:
    """Divisors that bring merits and rows near one, where solver tolerances mean what they say."""
    merit_N = master.value_N if master.target is None else master.usd_per_hour_N
    return max(float(merit_N.max()), 1e-30), np.maximum(np.abs(master.limit_R), 1e-30)


def _model(master: ColumnMaster, *, integer: bool) -> tuple[Any, list[Any]]:
    from ortools.linear_solver.python import model_builder as mb

    model: Any = mb.Model()
    num_columns = len(master.value_N)
    most = float(master.count_max)
    if integer:
        x_N = [model.new_int_var(0.0, most, f"x[{n}]") for n in range(num_columns)]
    else:
        x_N = [model.new_num_var(0.0, most, f"x[{n}]") for n in range(num_columns)]
    merit_scale, limit_scale_R = _scales(master)
    limit_capacity(model, x_N, master.rows_RN / limit_scale_R[:, None], master.limit_R / limit_scale_R)
    limit_replicas(model, x_N, master.count_min, master.count_max)
    if master.target is None:
        model.maximize(mb.LinearExpr.weighted_sum(x_N, (master.value_N / merit_scale).tolist()))
    else:
        require_tokens(model, x_N, master.value_N / master.target)
        model.minimize(mb.LinearExpr.weighted_sum(x_N, (master.usd_per_hour_N / merit_scale).tolist()))
    return model, x_N


def limit_capacity(model: Any, x_N: list[Any], rows_RN: FloatArray, limit_R: FloatArray) -> None:
    """`class[c]`, `pool[..]`, `price`: sum_n row_rn x_n <= limit_r for every capacity row."""
    from ortools.linear_solver.python import model_builder as mb

    for r, (row_N, limit) in enumerate(zip(rows_RN.tolist(), limit_R.tolist(), strict=True)):
        model.add(mb.LinearExpr.weighted_sum(x_N, row_N) <= limit).name = f"row[{r}]"


def limit_replicas(model: Any, x_N: list[Any], count_min: int, count_max: int) -> None:
    """`replicas-min`: sum_n x_n >= k_min; `replicas-max`: sum_n x_n <= R_max."""
    from ortools.linear_solver.python import model_builder as mb

    model.add(mb.LinearExpr.sum(x_N) >= count_min).name = "replicas-min"
    model.add(mb.LinearExpr.sum(x_N) <= count_max).name = "replicas-max"


def require_tokens(model: Any, x_N: list[Any], share_N: FloatArray) -> None:
    """`tokens-min`: sum_n (tokens/s of n divided by the target) x_n >= 1."""
    from ortools.linear_solver.python import model_builder as mb

    model.add(mb.LinearExpr.weighted_sum(x_N, share_N.tolist()) >= 1.0 - 1e-10).name = "tokens-min"
