"""The default way to solve a boundary: column generation over whole replicas with a certified bound.

Sweeps over the loads price replicas and prove a bound at once (sweep.py); between them the linear master
gives new multipliers, and plans are put together from the replicas met. Small fleets are closed exactly, and
a single replica has a way of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.bottleneck import is_bottleneck_problem, solve_bottleneck
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Shape, build_shape, to_replica
from planner.solve.generation import Generator, Round, cheapest_columns
from planner.solve.neighbourhood import Neighbourhood
from planner.solve.packing import admissible, better, fill_greedily, pack, value_of
from planner.solve.proof import dual_proof, multipliers
from planner.solve.result import BoundaryResult, Limits, Progress, Status, excess_frac
from planner.solve.single import is_single_problem, solve_single
from planner.solve.small import solve_small_boundary
from planner.solve.sweeper import Sweeper
from planner.solve.tables import build_signatures, build_tables
from planner.solve.tiny import is_tiny, solve_tiny

PACKED_COLUMNS = 300
PACKED_LAST = 800
PACK_NEAR = 0.15
PACK_EVERY_FRAC = 0.6
"""CP-SAT looks for a better plan each time the distance between bound and master has shrunk so far."""
MOVES_COUNTED = 40
"""Moves to neighbouring plans where only counted limits bind."""
MOVES_SHARE = 1.0
"""Moves between two sweeps take so many times as long as the sweep before, so that neither side starves."""
LATE_FRAC = 0.9
"""No sweep begins with less time left than this share of what the last took."""
STALLED_FRAC = 0.03
STALLED_ROUNDS = 4
"""Sweeps stop when that many have brought the bound less than this share of the distance nearer."""


@dataclass(slots=True, kw_only=True)
class _Best:
    """Best plan and best bound so far, and where they came from."""

    columns: tuple[Column, ...] = ()
    value: float | None = None
    bound: float | None = None
    proof: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    duals: Duals | None = None


class _Solve:
    """One run; keeps the incumbent and the bound and tells the limits of both."""

    def __init__(self, problem: BoundaryProblem, limits: Limits, started_s: float) -> None:
        self.problem = problem
        self.limits = limits
        self.started_s = started_s
        self.shape: Shape = build_shape(problem)
        self.best = _Best()
        self.minimise = problem.objective.kind is ObjectiveKind.PRICE

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def should_stop(self) -> bool:
        if self.limits.should_stop():
            return True
        return not self.limits.deterministic and self.elapsed_s() > self.limits.deadline_s

    def left_s(self) -> float:
        return self.limits.deadline_s - self.elapsed_s()

    def is_over(self) -> bool:
        """Whether the plan is good enough or the limits are reached."""
        return self.good_enough() or self.should_stop()

    def offer(self, columns: tuple[Column, ...], note: str) -> None:
        """Take a set of replicas as incumbent when it is admissible and better."""
        if not admissible(self.problem, self.shape, columns):
            return
        value = value_of(self.problem, self.shape, columns)
        if better(self.problem, value, self.best.value):
            self.best.columns, self.best.value = tuple(columns), value
            self.report(note)

    def prove(self, bound: float, proof: dict[str, Any], duals: Duals, note: str) -> None:
        """Take a bound when it is tighter."""
        if not isfinite(bound):
            return
        if self.best.bound is None or (bound > self.best.bound if self.minimise else bound < self.best.bound):
            self.best.bound, self.best.proof, self.best.duals = bound, proof, duals
            self.report(note)

    def report(self, note: str) -> None:
        self.limits.report(
            Progress(elapsed_s=self.elapsed_s(), value=self.best.value, bound=self.best.bound, note=note)
        )

    def excess(self) -> float:
        if self.best.value is None or self.best.bound is None:
            return inf
        return excess_frac(self.best.value, self.best.bound, maximise=not self.minimise)

    def good_enough(self) -> bool:
        return self.excess() <= max(self.limits.max_excess_frac, 1e-9)

    def round_off(self, generator: Generator, round_: Round) -> None:
        """A plan from the master's fractions: whole parts, then what fits."""
        columns = generator.pool.columns
        if columns:
            x_P = np.zeros(len(columns))
            x_P[: round_.solution.x_P.size] = round_.solution.x_P
            price_C = generator.floored(round_.solution.duals).price_C
            self.offer(tuple(fill_greedily(self.problem, self.shape, columns, x_P, price_C)), "rounding")

    def pack(self, generator: Generator, round_: Round, count: int, share: float) -> None:
        """The best plan CP-SAT finds among the most promising replicas, in a share of the time."""
        columns = cheapest_columns(generator.pool, round_.solution.duals, count)
        if not columns:
            return
        left_s = None
        if not self.limits.deterministic:
            left_s = max(0.1, min(self.limits.deadline_s - self.elapsed_s(), share * self.limits.deadline_s))
        packing = pack(
            self.problem,
            self.shape,
            columns,
            hint=self.best.columns,
            deadline_s=left_s,
            deterministic_limit=2.0,
            seed=self.limits.seed,
        )
        if packing is not None:
            self.offer(packing.columns, "packing")

    def infeasible(self, proof: dict[str, Any], stop: str) -> BoundaryResult:
        """No set of replicas keeps the rules."""
        return BoundaryResult(
            boundary=self.problem.name,
            status=Status.INFEASIBLE,
            replicas=(),
            value=None,
            bound=None,
            proof=proof,
            stop=stop,
        )

    def result(self, stop: str) -> BoundaryResult:
        """What was reached."""
        best = self.best
        status = Status.UNKNOWN
        if best.value is not None:
            status = Status.OPTIMAL if self.excess() <= 1e-9 else Status.FEASIBLE
        prices = {} if best.duals is None else multipliers(self.problem, best.duals)["prices"]
        return BoundaryResult(
            boundary=self.problem.name,
            status=status,
            replicas=tuple(to_replica(self.problem, column) for column in best.columns),
            value=best.value,
            bound=best.bound,
            proof=best.proof,
            stop=stop,
            prices=prices,
        )


def solve_boundary(problem: BoundaryProblem, limits: Limits, *, processes: int = 2) -> BoundaryResult:
    """Best set of replicas found and a bound that no set passes."""
    if is_bottleneck_problem(problem):
        return solve_bottleneck(problem, limits)
    run = _Solve(problem, limits, time.monotonic())
    if is_tiny(problem):
        listed = solve_tiny(problem, run.shape, limits)
        if listed is not None:
            return listed
    small = solve_small_boundary(problem, run.shape, limits)
    if small is not None:
        return small
    if is_single_problem(problem):
        single = solve_single(problem, limits)
        if single is not None:
            return single
    tables = build_tables(problem, build_signatures(problem))
    sweeper = Sweeper(problem, run.shape, tables, threads=processes)
    try:
        return _generate(run, Generator(problem, run.shape, sweeper))
    finally:
        sweeper.close()


def _generate(run: _Solve, generator: Generator) -> BoundaryResult:
    """Sweeps and moves in turn, whichever side of the master is further off, until plan and bound meet."""
    if not generator.sweeper.any_path():
        return _no_replica(run, generator)
    search = _Search(run=run, generator=generator)
    search.take(generator.seed(run.should_stop))
    for _ in range(run.limits.rounds):
        if _is_out_of_reach(run):
            return run.infeasible(run.best.proof, "out-of-reach")
        until_s = run.elapsed_s() + MOVES_SHARE * search.sweep_s
        while search.plan_is_behind() and not run.is_over() and search.may_move(until_s):
            search.move()
        if run.is_over() or search.bound_stands_still() or search.is_too_late():
            break
        search.sweep()
    search.finish()
    if run.good_enough():
        return run.result("good-enough")
    return run.result("limits" if run.should_stop() else "tolerance")


@dataclass(slots=True, kw_only=True)
class _Search:
    """Where sweeps and moves stand.

    `distances` are those between bound and master, round by round; `sweep_s` is what the last sweep took.
    """

    run: _Solve
    generator: Generator
    round_: Round | None = None
    distances: list[float] = field(default_factory=list)
    packed_at: float = PACK_NEAR / PACK_EVERY_FRAC
    moves: int = 0
    sweep_s: float = 0.0
    neighbourhood: Neighbourhood | None = None

    def sweep(self) -> None:
        """One more sweep."""
        begun_s = self.run.elapsed_s()
        self.take(self.generator.round(self.run.should_stop))
        self.sweep_s = self.run.elapsed_s() - begun_s

    def may_move(self, until_s: float) -> bool:
        """Whether sweeps can wait; counted limits leave no time to look at."""
        return self.run.limits.deterministic or self.run.elapsed_s() < until_s

    def is_too_late(self) -> bool:
        """Whether another sweep would be cut short and prove nothing."""
        return not self.run.limits.deterministic and self.run.left_s() < LATE_FRAC * self.sweep_s

    def take(self, round_: Round) -> None:
        """Note a sweep's bound and look for plans among the replicas it brought."""
        run = self.run
        self.round_ = round_
        proof = dual_proof(run.problem, round_.certified, round_.bound)
        run.prove(round_.bound, proof, round_.certified.duals, f"sweep {len(self.distances) + 1}")
        run.round_off(self.generator, round_)
        value = round_.solution.value
        distance = abs(self.generator.bound - value) / abs(value) if value else inf
        self.distances.append(distance)
        if distance < PACK_EVERY_FRAC * self.packed_at and not run.is_over():
            self.packed_at = distance
            run.pack(self.generator, round_, PACKED_COLUMNS, 0.06)

    def plan_is_behind(self) -> bool:
        """Whether the plan is further from the master than the bound is, and moves may still help."""
        if self.round_ is None or self.run.best.value is None or self.distances[-1] > PACK_NEAR:
            return False
        if self.run.limits.deterministic and self.moves >= MOVES_COUNTED:
            return False
        return self._plan_distance() > max(self.distances[-1], 1e-9)

    def _plan_distance(self) -> float:
        assert self.round_ is not None
        assert self.run.best.value is not None
        worse, better = sorted((self.run.best.value, self.round_.solution.value))
        return better / worse - 1.0 if worse > 0.0 else inf

    def move(self) -> None:
        """Take a few replicas apart and put them together again."""
        assert self.round_ is not None
        run = self.run
        if self.neighbourhood is None:
            self.neighbourhood = Neighbourhood(run.problem, run.shape, self.generator, run.limits.seed)
        self.moves += 1
        deadline_s = None if run.limits.deterministic else max(0.05, min(1.0, run.left_s()))
        duals = self.generator.floored(self.round_.solution.duals)
        run.offer(self.neighbourhood.move(run.best.columns, duals, run.should_stop, deadline_s), "move")

    def bound_stands_still(self) -> bool:
        """Whether sweeps no longer bring the bound nearer."""
        if self.generator.exhausted:
            return True
        if len(self.distances) <= STALLED_ROUNDS or self.distances[-1] > PACK_NEAR:
            return False
        return self.distances[-1] > (1.0 - STALLED_FRAC) * self.distances[-1 - STALLED_ROUNDS]

    def finish(self) -> None:
        """Spend what is left on better plans."""
        if self.round_ is None or self.run.is_over():
            return
        self.run.pack(self.generator, self.round_, PACKED_LAST, 0.1)
        while self.run.best.value is not None and not self.run.is_over():
            if self.run.limits.deterministic and self.moves >= MOVES_COUNTED:
                return
            self.move()


def _is_out_of_reach(run: _Solve) -> bool:
    """Whether the bound itself breaks a rule: too few replicas, or more money than all devices cost."""
    bound = run.best.bound
    if bound is None or run.best.value is not None:
        return False
    if run.minimise:
        return bound > float(run.shape.usd_C @ run.shape.devices_C) * (1.0 + 1e-9)
    return bound < 0.0


def _no_replica(run: _Solve, generator: Generator) -> BoundaryResult:
    """Not even the relaxation has a path: no replica of the model fits anywhere."""
    round_ = generator.seed(lambda: False)
    return run.infeasible(dual_proof(run.problem, round_.certified, 0.0), "no-replica")
