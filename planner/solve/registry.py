"""Ways of solving by name. Each is imported when it is asked for: some bring heavy libraries along."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from planner.problem import BoundaryProblem
from planner.solve.result import BoundaryResult, Limits
from policies.errors import EchelonError

SolveBoundary = Callable[[BoundaryProblem, Limits], BoundaryResult]

_MODULES = {
    "decomposition": "planner.solve.decomposition",
    "milp": "planner.solve.milp",
    "cpsat": "planner.solve.cpsat",
    "greedy": "planner.solve.greedy",
    "bruteforce": "planner.solve.bruteforce",
    "cbc": "planner.solve.pulp_cbc",
    "equal-split": "planner.solve.equal_split",
}
_NEEDS = {"decomposition": "ortools", "milp": "ortools", "cpsat": "ortools", "cbc": "pulp"}
SOLVERS = tuple(_MODULES)


class UnknownSolverError(EchelonError):
    """No way of solving has this name, or what it needs is not installed."""

    exit_code = 2


def solver(name: str) -> SolveBoundary:
    """The function that solves one boundary under this name.

    Raises:
        UnknownSolverError: `unknown-solver`; `solver-missing` when its library is not installed.
    """
    if name not in _MODULES:
        raise UnknownSolverError(
            "unknown-solver", f"solver {name!r} is unknown", hint=f"use one of {', '.join(SOLVERS)}"
        )
    needed = _NEEDS.get(name)
    if needed is not None and find_spec(needed) is None:
        raise UnknownSolverError(
            "solver-missing",
            f"solver {name!r} needs {needed!r}, which is not installed",
            hint="install the extra: pip install 'echelon[plan]'",
        )
    solve: SolveBoundary = import_module(_MODULES[name]).solve_boundary
    return solve
