"""Usage multipliers by cutting planes: the best lower bound over the paths seen so far, found by a small LP.

    max  eta   s.t.   eta <= cost_p + sum_k lambda_k * overuse_pk   for every path p,   0 <= lambda <= cap

Each path is linear in the multipliers, so the LP value bounds from above what any multipliers can reach. The
next multipliers lie between the best ones and the LP's, which keeps the search from jumping between corners.

Legend: P paths, C device classes; `usage_2C` holds visit and once multipliers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.solve.tables import FloatArray, IntArray

if TYPE_CHECKING:
    from ortools.linear_solver import pywraplp

TOWARDS_LP = 0.6


class UsageBundle:
    """Paths of one box at one angle, and the multipliers they suggest."""

    def __init__(self, num_classes: int, cap: float) -> None:
        self._num_classes = num_classes
        self._cap = cap
        self._costs: list[float] = []
        self._overuse: list[FloatArray] = []

    def add(self, cost: float, overuse_2C: FloatArray) -> None:
        """A path: its cost without multipliers, and its overuse per multiplier."""
        self._costs.append(cost)
        self._overuse.append(overuse_2C.reshape(-1))

    def propose(self, best_2C: FloatArray | None) -> tuple[FloatArray, float] | None:
        """Multipliers to try next and the most that any could reach; None when no path overuses anything."""
        overuse_PK = np.array(self._overuse)
        active = np.flatnonzero((overuse_PK > 0.0).any(axis=0))
        if active.size == 0:
            return None
        scale = max(1e-300, *(abs(cost) for cost in self._costs))
        solver, solved = self._program(overuse_PK, active, scale)
        if not solved:
            return None
        variables = solver.variables()
        lp_K = np.zeros(2 * self._num_classes)
        lp_K[active] = [scale * variables[i].solution_value() for i in range(active.size)]
        reach = scale * float(solver.Objective().Value())
        lp_2C = lp_K.reshape(2, self._num_classes)
        if best_2C is None:
            return TOWARDS_LP * lp_2C, reach
        return (1.0 - TOWARDS_LP) * best_2C + TOWARDS_LP * lp_2C, reach

    def _program(
        self, overuse_PK: FloatArray, active: IntArray, scale: float
    ) -> tuple[pywraplp.Solver, bool]:
        """The LP in units of the largest cost, and whether it was solved."""
        from ortools.linear_solver import pywraplp

        solver = pywraplp.Solver.CreateSolver("GLOP")
        cap = max(1e-9, self._cap / scale)
        multipliers = [solver.NumVar(0.0, cap, "") for _ in active]
        eta = solver.NumVar(-1e6 * (1.0 + cap), 2.0, "eta")
        for cost, overuse_K in zip(self._costs, overuse_PK, strict=True):
            row = solver.Constraint(-solver.infinity(), cost / scale)
            row.SetCoefficient(eta, 1.0)
            for variable, k in zip(multipliers, active, strict=True):
                if overuse_K[k] != 0.0:
                    row.SetCoefficient(variable, -float(overuse_K[k]))
        solver.Objective().SetCoefficient(eta, 1.0)
        solver.Objective().SetMaximization()
        return solver, solver.Solve() == pywraplp.Solver.OPTIMAL
