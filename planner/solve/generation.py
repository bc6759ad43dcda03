"""Column generation: the linear master and sweeps in turn. Every sweep brings replicas and a bound.

Multipliers of the master swing; a sweep is priced at a mixture with those of the best bound so far, until
that finds nothing new for the master. Where paths that the fleet can't form hold the bound back, multipliers
come from a master that has these too (guide.py).

Legend: P columns of the pool, C device classes, R capacity rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Pool, Shape
from planner.solve.guide import Guide
from planner.solve.master import Master, MasterSolution, bound_of, master_over, mixed
from planner.solve.sweep import Goal
from planner.solve.sweeper import Certified, Sweeper
from planner.solve.tables import FloatArray

INERTIA = 0.55
INERTIA_MIN = 0.2
PRICE_FLOOR = 0.03
EXACT_BELOW = 0.02
"""Finer sweeps count some classes exactly."""
COARSE_BELOW, COARSE_BELOW_FEW = 0.06, 0.2
"""So do those not coarser than this after one that its own relaxation held back."""
FEW_REPLICAS = 12.0
"""With fewer in the master each takes much of the fleet, and relaxed paths overstep it all the sooner."""
HELD_BACK_MAX = 3
"""Sweeps held back one after another before the next is made finer all the same."""
FIRST_TOLERANCE = 0.3
LAST_TOLERANCE = 4e-4
COLLECT_FRACS = ((0.05, 0.9), (0.0, 0.98))
"""Replicas worth at least this share of the best are kept, by tolerance."""
SEED_FRAC = 0.3
FEW_COLUMNS, COLUMNS_PER_ROW = 500, 15
"""Of the replicas a sweep brings only the best enter the master."""
WORTH_MIN = 1e-9


@dataclass(frozen=True, kw_only=True)
class Round:
    """One sweep: the master it followed, the certificate and the bound."""

    solution: MasterSolution
    certified: Certified
    bound: float


class Generator:
    """Column generation for one boundary. `bound` is the best so far, `tolerance` that of the next sweep."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, sweeper: Sweeper) -> None:
        self.problem = problem
        self.shape = shape
        self.sweeper = sweeper
        self.pool = Pool()
        self.minimise = problem.objective.kind is ObjectiveKind.PRICE
        self.tolerance = FIRST_TOLERANCE
        self.bound = -inf if self.minimise else inf
        self.exhausted = False
        self._coarse = False
        self._held_back = 0
        self._center: Duals | None = None
        self._inertia = INERTIA
        self.columns_max = max(FEW_COLUMNS, COLUMNS_PER_ROW * len(problem.rows))
        self._floor_R = np.zeros(len(problem.rows))
        self._master: Master | None = None
        self._added = 0
        self._guide = Guide(problem, shape)

    def seed(self, should_stop: Callable[[], bool]) -> Round:
        """First multipliers: a device is worth its rate. The sweep's factor makes them a bound."""
        dtype = self.problem.workload.job.dtype
        rate_C = np.array([c.device.rate_flop_per_s(dtype) for c in self.problem.classes])
        if not np.any(rate_C > 0.0):
            rate_C = np.ones(rate_C.size)
        price_C = np.where(rate_C > 0.0, rate_C, rate_C[rate_C > 0.0].min())
        duals = self._from_class_prices(price_C / price_C.max())
        goal = Goal(
            factor=WORTH_MIN,
            tolerance=FIRST_TOLERANCE,
            collect_frac=SEED_FRAC,
            columns_max=self.columns_max,
            relaxed=True,
        )
        certified = self._sweep(duals, goal, should_stop)
        if isfinite(certified.factor) and certified.factor > 0.0:
            duals = self._from_class_prices(price_C / price_C.max() * certified.factor)
            self._floor_R = PRICE_FLOOR * duals.row_R
        self._center = duals
        bound = bound_of(self.problem, self.shape, certified.duals, certified.factor)
        self._note_bound(bound, duals)
        return Round(solution=self.master(), certified=certified, bound=bound)

    def round(self, should_stop: Callable[[], bool]) -> Round:
        """One sweep near the master's multipliers, with a tolerance that follows the distance left."""
        solution = self.master()
        if self.tolerance <= EXACT_BELOW:
            self._guide.forget()
        guided = self._guide.solve(self.pool, solution)
        duals = self.floored(self._mixture(guided.duals))
        known = max(self.known_worth(duals), WORTH_MIN)
        before = len(self.pool.columns)
        goal = self._goal(known)
        certified = self._sweep(duals, goal, should_stop)
        bound = bound_of(self.problem, self.shape, duals, certified.factor)
        missed = self._is_missed(solution.duals, before)
        self.exhausted = self._inertia == 0.0 and not missed and self.tolerance <= LAST_TOLERANCE
        self._inertia = INERTIA if missed else _loosened(self._inertia)
        self._note_bound(bound, duals)
        if isfinite(certified.factor):
            factor = certified.factor
            best = max(self.unit_worth(duals), self.known_worth(duals))
            self._guide.learn(certified.obstacles, duals, factor, best, exact=goal.exact)
            self._narrow(guided.value, factor, known, float(solution.x_P.sum()))
        return Round(solution=solution, certified=certified, bound=bound)

    def _mixture(self, duals: Duals) -> Duals:
        usd_C = self.shape.usd_C if self.minimise else None
        if self._center is None or self._inertia == 0.0:
            return duals
        return mixed(self.shape, duals, self._center, self._inertia, usd_C)

    def _goal(self, known: float) -> Goal:
        collect_frac = next(frac for least, frac in COLLECT_FRACS if self.tolerance >= least)
        factor = known * (1.0 + self.tolerance)
        return Goal(
            factor=factor,
            tolerance=self.tolerance,
            collect_frac=collect_frac,
            columns_max=self.columns_max,
            exact=self._coarse or self.tolerance <= EXACT_BELOW,
        )

    def _sweep(self, duals: Duals, goal: Goal, should_stop: Callable[[], bool]) -> Certified:
        certified = self.sweeper.run(duals, goal, should_stop)
        self.pool.extend(certified.columns)
        return certified

    def _is_missed(self, duals: Duals, before: int) -> bool:
        """Whether one of the columns since `before` improves the master at its own multipliers."""
        duals = self.floored(duals)
        fresh = self.pool.columns[before:]
        unit = self.unit_worth(duals)
        return any(worth(column, duals) > unit * (1.0 + 1e-6) for column in fresh)

    def unit_worth(self, duals: Duals) -> float:
        """Worth of the replicas the master uses: 1, or tokens/s per USD at the price of the target."""
        return self.known_worth(duals, self._added) if self.minimise else 1.0

    def _note_bound(self, bound: float, duals: Duals) -> None:
        better = bound > self.bound if self.minimise else bound < self.bound
        if isfinite(bound) and better:
            self.bound, self._center = bound, duals

    def _narrow(self, value: float, factor: float, known: float, num_replicas: float) -> None:
        """Sweep finer once the distance between bound and master is no longer the sweep's coarseness."""
        distance = inf
        if isfinite(self.bound) and min(value, self.bound) > 0.0:
            distance = max(value, self.bound) / min(value, self.bound) - 1.0
        within = factor <= known * (1.0 + 1.5 * self.tolerance)
        self._held_back = 0 if within else self._held_back + 1
        coarse_below = COARSE_BELOW_FEW if num_replicas < FEW_REPLICAS else COARSE_BELOW
        self._coarse = not within and self.tolerance <= coarse_below
        if distance < 3.0 * self.tolerance:
            self.tolerance = max(distance / 3.0, LAST_TOLERANCE)
        elif within or self._inertia == 0.0 or self._held_back >= HELD_BACK_MAX:
            self._held_back = 0
            self.tolerance = max(self.tolerance / 2.0, LAST_TOLERANCE)

    def floored(self, duals: Duals) -> Duals:
        """Multipliers with a small price on devices the master has too many of.

        Replicas of free devices would be worth infinitely much; the price costs the bound next to nothing.
        """
        usd_C = self.shape.usd_C if self.minimise else 0.0
        row_R = np.maximum(duals.row_R, self._floor_R)
        price_C = np.asarray(row_R @ self.shape.coefficient_RC + usd_C, dtype=np.float64)
        return Duals(row_R=row_R, rho=duals.rho, nu=duals.nu, price_C=price_C)

    def _from_class_prices(self, price_C: FloatArray) -> Duals:
        row_R = np.zeros(len(self.problem.rows))
        row_R[: price_C.size] = price_C  # class rows stand first, one per class
        usd_C = self.shape.usd_C if self.minimise else np.zeros(price_C.size)
        price_C = np.asarray(row_R @ self.shape.coefficient_RC + usd_C, dtype=np.float64)
        return Duals(row_R=row_R, rho=0.0, nu=0.0, price_C=price_C)

    def master(self) -> MasterSolution:
        """The linear master over the whole pool."""
        if self._master is None:
            top = max((c.tokens_per_s for c in self.pool.columns), default=1.0)
            self._master = master_over(self.problem, self.shape, top)
        for column in self.pool.columns[self._added :]:
            self._master.add(column)
        self._added = len(self.pool.columns)
        return self._master.solve()

    def known_worth(self, duals: Duals, count: int | None = None) -> float:
        """Worth of the best replica among the first `count` of the pool, or all."""
        columns = self.pool.columns[:count]
        if not columns:
            return 0.0
        price_P = self.pool.usage_PC()[: len(columns)] @ duals.price_C + duals.rho
        return float(((self.pool.rates_P()[: len(columns)] + duals.nu) / np.maximum(price_P, 1e-300)).max())


def _loosened(inertia: float) -> float:
    """Less of it, and in the end none, so that multipliers come to the master's own step by step."""
    return 0.5 * inertia if inertia > INERTIA_MIN else 0.0


def worth(column: Column, duals: Duals) -> float:
    """Tokens/s per price of a replica; infinite where it costs nothing."""
    price = float(duals.price_C @ column.usage_C) + duals.rho
    return inf if price <= 0.0 else (column.tokens_per_s + duals.nu) / price


def cheapest_columns(pool: Pool, duals: Duals, limit: int) -> Sequence[Column]:
    """The columns of least slack `price . usage + rho - nu - tokens/s`, at most `limit`, in pool order."""
    if len(pool.columns) <= limit:
        return list(pool.columns)
    slack_P = pool.usage_PC() @ duals.price_C - pool.rates_P()
    keep = np.sort(np.argsort(slack_P, kind="stable")[:limit])
    return [pool.columns[int(p)] for p in keep]
