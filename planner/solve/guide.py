"""The linear master with obstacles in it: where multipliers must lie for a sweep to prove much.

Under the master's own multipliers a sweep may stop at paths that the fleet can't form and that neither usage
multipliers nor tracked classes keep out. Such obstacles join a second master, whose multipliers make them as
little worth as any replica. They guide and prove nothing: every sweep proves its bound itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.columns import Pool, Shape
from planner.solve.master import Master, MasterSolution, master_over
from planner.solve.sweep import Obstacle
from planner.solve.tables import FloatArray

LEARNT_MAX = 20
"""Obstacles taken from one sweep, those in whose way the factor rose most."""
FORGOTTEN = 10
"""Obstacles of sweeps that tracked nothing, forgotten before each sweep that does."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """An obstacle at its place in the master, as many tokens/s as it stood for, and what sweep it is from."""

    place: int
    usage_C: FloatArray
    tokens_per_s: float
    exact: bool


class Guide:
    """Obstacles of one boundary and the master that has them."""

    def __init__(self, problem: BoundaryProblem, shape: Shape) -> None:
        self._problem, self._shape = problem, shape
        self._master: Master | None = None
        self._size = 0
        self._num_columns = 0
        self._known: list[_Known] = []

    def solve(self, pool: Pool, plain: MasterSolution) -> MasterSolution:
        """The master over the pool and the obstacles; the plain one's solution while there are none."""
        if self._master is None or not self._known:
            return plain
        for column in pool.columns[self._num_columns :]:
            self._master.add(column)
            self._size += 1
        self._num_columns = len(pool.columns)
        return self._master.solve()

    def learn(
        self, obstacles: Sequence[Obstacle], duals: Duals, factor: float, known: float, *, exact: bool
    ) -> None:
        """Take the obstacles of a sweep that proved `factor`, and drop those that it shows to be none.

        Replicas are worth `known` at least.
        """
        for one in self._known:
            price = float(duals.price_C @ one.usage_C) + duals.rho
            if one.tokens_per_s + duals.nu > factor * price * (1.0 + 1e-9):
                self._drop(one)
        for obstacle in sorted(obstacles, key=lambda one: -one.worth)[:LEARNT_MAX]:
            if obstacle.worth > known and np.any(obstacle.usage_C > self._shape.devices_C):
                price = float(duals.price_C @ obstacle.usage_C) + duals.rho
                self._add(obstacle.usage_C, obstacle.worth * price - duals.nu, exact)

    def forget(self) -> None:
        """Drop a few of the oldest that sweeps with tracked classes might not meet again."""
        for one in [one for one in self._known if not one.exact][:FORGOTTEN]:
            self._drop(one)

    def _add(self, usage_C: FloatArray, tokens_per_s: float, exact: bool) -> None:
        if self._master is None:
            self._master = master_over(self._problem, self._shape, tokens_per_s)
        self._master.add_devices(usage_C, tokens_per_s)
        known = _Known(place=self._size, usage_C=usage_C, tokens_per_s=tokens_per_s, exact=exact)
        self._known.append(known)
        self._size += 1

    def _drop(self, known: _Known) -> None:
        assert self._master is not None
        self._master.drop(known.place)
        self._known = [one for one in self._known if one is not known]
