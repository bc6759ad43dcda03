"""A whole problem solved: all boundaries, and what couples them."""

from __future__ import annotations

from collections.abc import Sequence

from planner.objective import Replica
from planner.problem import ObjectiveKind, Problem
from planner.solve.result import BoundaryResult, Limits
from planner.solve.side_by_side import PROCESSES, solve_boundaries


def solve_problem(
    problem: Problem,
    limits: Limits,
    *,
    solver: str = "decomposition",
    processes: int = PROCESSES,
    incumbents: Sequence[Sequence[Replica] | None] | None = None,
) -> list[BoundaryResult]:
    """The result of every boundary, in the problem's order; statuses say what was found and proven.

    Boundaries are solved independently unless a price ceiling or, for objective price, the tokens/s target is
    shared by several of them.

    Raises:
        EchelonError: what a solver refuses; `shared-limit` where it can't divide a limit; `InfeasibleError`
        where only that can't be met.
    """
    if is_coupled(problem):
        from planner.solve.coupling import solve_coupled

        return solve_coupled(problem, limits, solver=solver, processes=processes, incumbents=incumbents)
    return solve_boundaries(
        problem.boundaries, limits, solver=solver, processes=processes, incumbents=incumbents
    )


def is_coupled(problem: Problem) -> bool:
    """Whether several boundaries share a price ceiling or a tokens/s target."""
    shared = problem.usd_per_hour_max is not None or problem.objective.kind is ObjectiveKind.PRICE
    return len(problem.boundaries) > 1 and shared
