"""Column generation: the linear master and the pricing of load boxes in turn, until nothing better is found.

Legend: P columns of the pool, C device classes, R capacity rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals
from planner.solve.certify import Certified
from planner.solve.columns import Column, Pool, Shape
from planner.solve.master import Master, MasterSolution, bound_of, mixed
from planner.solve.tables import FloatArray
from planner.solve.team import CertifyTask, RefineTask, RoundTask, Team

INERTIA = 0.4
PRICE_FLOOR = 0.03
TOLERANCE = 3e-4
NEAR_FRAC = 0.9
FULL_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Where column generation stands: the last master solution, and whether nothing better was found."""

    solution: MasterSolution
    converged: bool


class Generator:
    """Column generation for one boundary. The pool only grows; `certify` is the only source of bounds."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, team: Team, pool: Pool) -> None:
        self.problem = problem
        self.shape = shape
        self.team = team
        self.pricer = team.local
        self.pool = pool
        self.minimise = problem.objective.kind is ObjectiveKind.PRICE
        self._added = 0
        self._master: Master | None = None
        self._usage_PC = np.zeros((0, shape.devices_C.size), dtype=np.int64)
        self._rate_P = np.zeros(0)
        self._top = np.inf
        self._floor_R = np.zeros(len(problem.rows))

    def seed(self, should_stop: Callable[[], bool]) -> Duals:
        """First multipliers: a device is worth its rate; paths priced with them start the pool."""
        dtype = self.problem.workload.job.dtype
        rate_C = np.array([c.device.rate_flop_per_s(dtype) for c in self.problem.classes])
        if not np.any(rate_C > 0.0):
            rate_C = np.ones(rate_C.size)
        price_C = np.where(rate_C > 0.0, rate_C, rate_C[rate_C > 0.0].min())
        duals = self._from_class_prices(np.asarray(price_C, dtype=np.float64))
        known = self._first_worth(duals)
        self._round(duals, known, 0.0, should_stop, wide=False)
        seed = self._from_class_prices(price_C * max(known, self.known_worth(duals)))
        self._floor_R = PRICE_FLOOR * seed.row_R
        return seed

    def floored(self, duals: Duals) -> Duals:
        """Multipliers with a small price on devices the master has too many of.

        Replicas of free devices would be worth infinitely much; the price costs the bound next to nothing.
        """
        usd_C = self.shape.usd_C if self.minimise else 0.0
        row_R = np.maximum(duals.row_R, self._floor_R)
        price_C = np.asarray(row_R @ self.shape.coefficient_RC + usd_C, dtype=np.float64)
        return Duals(row_R=row_R, rho=duals.rho, nu=duals.nu, price_C=price_C)

    def _first_worth(self, duals: Duals) -> float:
        """Worth of the quickest path of all, to have a scale for angles."""
        still = np.zeros_like(duals.price_C)
        free = Duals(row_R=np.zeros_like(duals.row_R), rho=0.0, nu=0.0, price_C=still)
        for box in self.pricer.boxes:
            columns = self.pricer.run(box, free, 1.0, 0.0, None).columns
            if columns:
                return max(self.pricer.worth(column, duals) for column in columns)
        return 1e-12

    def uniform_duals(self) -> Duals:
        """Multipliers that value every device alike."""
        return self._from_class_prices(np.ones(self.shape.devices_C.size))

    def _from_class_prices(self, price_C: FloatArray) -> Duals:
        row_R = np.zeros(len(self.problem.rows))
        row_R[: price_C.size] = price_C  # class rows stand first, one per class
        usd_C = self.shape.usd_C if self.minimise else np.zeros(price_C.size)
        return Duals(row_R=row_R, rho=0.0, nu=0.0, price_C=row_R @ self.shape.coefficient_RC + usd_C)

    def drop_relaxed(self) -> None:
        """From now on only replicas the fleet can form count, in the master and in the certificate."""
        self.pool.drop_relaxed()
        self._master, self._added = None, 0
        self._rate_P = np.zeros(0)

    def master(self) -> MasterSolution:
        """The linear master over the whole pool."""
        if self._master is None:
            top = max((c.tokens_per_s for c in self.pool.columns), default=1.0)
            penalty = 10.0 * float(self.shape.usd_C.sum() + 1.0) if self.minimise else 20.0 * top
            self._master = Master(self.problem, self.shape, penalty)
        for column in self.pool.columns[self._added :]:
            self._master.add(column)
        self._added = len(self.pool.columns)
        if self._rate_P.size != self._added:
            self._usage_PC, self._rate_P = self.pool.usage_PC(), self.pool.rates_P()
        return self._master.solve()

    def known_worth(self, duals: Duals) -> float:
        """Worth of the best replica in the pool."""
        if not self.pool.columns:
            return 1e-12
        if self._rate_P.size != len(self.pool.columns):
            self._usage_PC, self._rate_P = self.pool.usage_PC(), self.pool.rates_P()
        price_P = self._usage_PC @ duals.price_C + duals.rho
        return float(((self._rate_P + duals.nu) / np.maximum(price_P, 1e-300)).max())

    def _round(
        self, duals: Duals, worth: float, least_worth: float, should_stop: Callable[[], bool], *, wide: bool
    ) -> int:
        """Price the boxes worth at least so much last time; returns how many new columns came."""
        task = RoundTask(
            duals=duals, worth=worth, least_worth=least_worth, learn=self.pool.real_only, wide=wide
        )
        columns, self._top = self.team.round(task, should_stop)
        return self.pool.extend(columns)

    def run(self, duals: Duals, *, rounds: int, should_stop: Callable[[], bool]) -> Generated:
        """Rounds of master and pricing until a full round at the master's own multipliers brings nothing new.

        Between such rounds prices follow the master with some inertia, which keeps them from swinging.
        """
        usd_C = self.shape.usd_C if self.minimise else None
        inertia = INERTIA
        solution = self.master()
        for number in range(rounds):
            if should_stop():
                break
            full = inertia == 0.0 or number % FULL_EVERY == 0
            duals = self.floored(mixed(self.shape, solution.duals, duals, inertia, usd_C))
            least = 0.0 if full else NEAR_FRAC * self._top
            self._round(duals, self.known_worth(duals), least, should_stop, wide=inertia == 0.0)
            improving = self.known_worth(solution.duals) > self.unit_worth(solution) * (1.0 + TOLERANCE)
            if not improving and inertia == 0.0:
                return Generated(solution=solution, converged=True)
            inertia = INERTIA if improving else 0.0
            solution = self.master()
        return Generated(solution=solution, converged=False)

    def refine(self, near_frac: float, ratio: float) -> None:
        """Narrower boxes where replicas come near the best worth."""
        self.team.refine(RefineTask(least_worth=near_frac * self._top, ratio=ratio))

    def unit_worth(self, solution: MasterSolution) -> float:
        """Worth of the replicas the master uses: 1, or tokens/s per USD at the price of the target."""
        used = solution.x_P > 1e-9
        if not self.minimise or not used.any():
            return 1.0
        price_P = self._usage_PC[: used.size][used] @ solution.duals.price_C + solution.duals.rho
        return float((self._rate_P[: used.size][used] / price_P).max())

    def certify(
        self, duals: Duals, *, tolerance: float, should_stop: Callable[[], bool], give_up: bool
    ) -> tuple[Certified, float]:
        """A certificate under these multipliers and the bound it proves; its paths join the pool.

        With `give_up` it ends early once a replica turns up that is clearly worth more than any known one.
        """
        known = self.known_worth(duals)
        task = CertifyTask(
            duals=duals,
            known=known,
            tolerance=tolerance,
            give_up_above=known * (1.0 + tolerance) if give_up else np.inf,
        )
        certified = self.team.certify(task, should_stop)
        self.pool.extend(certified.columns)
        return certified, bound_of(self.problem, self.shape, duals, certified.factor)


def cheapest_columns(pool: Pool, duals: Duals, limit: int) -> list[Column]:
    """The columns of least slack `price . usage + rho - nu - tokens/s`, at most `limit`, in pool order."""
    if len(pool.columns) <= limit:
        return list(pool.columns)
    slack_P = pool.usage_PC() @ duals.price_C - pool.rates_P()
    keep = np.sort(np.argsort(slack_P, kind="stable")[:limit])
    return [pool.columns[int(p)] for p in keep]
