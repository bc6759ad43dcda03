"""The linear master over the replicas found so far, solved by GLOP.

    max  sum_p t_p x_p                      or   min  sum_p usd_p x_p
    row[r]:        sum_p a_rp x_p <= b_r         for every capacity row
    replicas-min:  sum_p x_p >= k
    replicas-max:  sum_p x_p <= R                (when set)
    tokens-min:    sum_p t_p x_p >= G            (price objective)

Legend: P columns, R capacity rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Shape
from planner.solve.tables import FloatArray

if TYPE_CHECKING:
    from ortools.linear_solver import pywraplp


@dataclass(frozen=True, kw_only=True)
class MasterSolution:
    """Value, fractions and multipliers; `short` counts replicas (or tokens/s) that are still missing.

    With objective price `duals` are scaled so that the worth of a replica is tokens/s per USD.
    """

    value: float
    x_P: FloatArray
    duals: Duals
    short: float


class Master:
    """The growing linear program. Columns are added, and dropped where they stand."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, penalty: float) -> None:
        from ortools.linear_solver import pywraplp

        self._shape = shape
        self._price = problem.objective.kind is ObjectiveKind.PRICE
        self._solver = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self._solver.infinity()
        self._rows = [self._solver.Constraint(-infinity, float(limit)) for limit in shape.limit_R]
        self._fewest = self._solver.Constraint(float(problem.replicas_min), infinity)
        most = float(problem.replicas_max) if problem.replicas_max is not None else infinity
        self._most = self._solver.Constraint(-infinity, most)
        target = problem.objective.tokens_per_s_min or 0.0
        self._target = self._solver.Constraint(target if self._price else -infinity, infinity)
        self._objective = self._solver.Objective()
        if self._price:
            self._objective.SetMinimization()
        else:
            self._objective.SetMaximization()
        self._short = self._solver.NumVar(0.0, infinity, "short")
        self._fewest.SetCoefficient(self._short, 1.0)
        self._target.SetCoefficient(self._short, 1.0 if self._price else 0.0)
        self._objective.SetCoefficient(self._short, penalty if self._price else -penalty)
        self._x: list[pywraplp.Variable] = []

    def add(self, column: Column) -> None:
        """One more replica to choose from."""
        self.add_devices(column.usage_C, column.tokens_per_s)

    def add_devices(self, usage_C: NDArray[np.number], tokens_per_s: float) -> None:
        """One more way to make tokens of devices."""
        x = self._solver.NumVar(0.0, self._solver.infinity(), "")
        usd = float(self._shape.usd_C @ usage_C)
        self._objective.SetCoefficient(x, usd if self._price else tokens_per_s)
        row_R = self._shape.coefficient_RC @ usage_C
        for r in np.flatnonzero(row_R):
            self._rows[int(r)].SetCoefficient(x, float(row_R[r]))
        self._fewest.SetCoefficient(x, 1.0)
        self._most.SetCoefficient(x, 1.0)
        if self._price:
            self._target.SetCoefficient(x, tokens_per_s)
        self._x.append(x)

    def drop(self, p: int) -> None:
        """Choose the p-th no more."""
        self._x[p].SetBounds(0.0, 0.0)

    def solve(self) -> MasterSolution:
        """Optimum over the columns so far."""
        status = self._solver.Solve()
        if status not in (self._solver.OPTIMAL, self._solver.FEASIBLE):
            raise RuntimeError(f"GLOP ended with status {status}")
        sign = -1.0 if self._price else 1.0
        row_R = np.maximum(0.0, sign * np.array([row.dual_value() for row in self._rows]))
        price_C = row_R @ self._shape.coefficient_RC + (self._shape.usd_C if self._price else 0.0)
        rho = max(0.0, sign * float(self._most.dual_value()))
        nu = 0.0 if self._price else max(0.0, -float(self._fewest.dual_value()))
        return MasterSolution(
            value=float(self._objective.Value()),
            x_P=np.array([x.solution_value() for x in self._x]),
            duals=Duals(row_R=row_R, rho=rho, nu=nu, price_C=np.asarray(price_C, dtype=np.float64)),
            short=float(self._short.solution_value()),
        )


def master_over(problem: BoundaryProblem, shape: Shape, top_tokens_per_s: float) -> Master:
    """An empty master; missing replicas cost more than any replica of at most this speed is worth."""
    if problem.objective.kind is ObjectiveKind.PRICE:
        return Master(problem, shape, 10.0 * float(shape.usd_C.sum() + 1.0))
    return Master(problem, shape, 20.0 * top_tokens_per_s)


def mixed(shape: Shape, one: Duals, other: Duals, share: float, usd_C: FloatArray | None) -> Duals:
    """`share` of `other` in `one`: smoothed multipliers, as valid as any."""
    row_R = (1 - share) * one.row_R + share * other.row_R
    price_C = row_R @ shape.coefficient_RC + (usd_C if usd_C is not None else 0.0)
    return Duals(
        row_R=row_R,
        rho=(1 - share) * one.rho + share * other.rho,
        nu=(1 - share) * one.nu + share * other.nu,
        price_C=np.asarray(price_C, dtype=np.float64),
    )


def bound_of(problem: BoundaryProblem, shape: Shape, duals: Duals, factor: float) -> float:
    """The bound that a factor proves, in the objective's own unit."""
    most = float(problem.replicas_max or 0)
    priced = float(duals.row_R @ shape.limit_R) + duals.rho * most
    if problem.objective.kind is ObjectiveKind.PRICE:
        target = problem.objective.tokens_per_s_min or 0.0
        return target / factor - priced if factor > 0.0 else float("inf")
    return factor * priced - duals.nu * problem.replicas_min
