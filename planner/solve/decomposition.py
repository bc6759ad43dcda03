"""The default way to solve a boundary: column generation over whole replicas with a certified bound.

Order: relaxed column generation (fast multipliers), the same over replicas the fleet can form, then plans
and certificates in turn until the plan is proven good enough or the limits are reached. Small fleets are
closed exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.bottleneck import is_bottleneck_problem, solve_bottleneck
from planner.solve.boxes import Duals
from planner.solve.closure import Enumerator, close, improve, slack_rule
from planner.solve.columns import Column, Pool, Shape, build_shape, to_replica
from planner.solve.generation import Generated, Generator, cheapest_columns
from planner.solve.labels import Budget, LabelLimitError
from planner.solve.master import bound_of
from planner.solve.packing import admissible, better, fill_greedily, pack, value_of
from planner.solve.proof import dual_proof, multipliers
from planner.solve.result import BoundaryResult, Limits, Progress, Status, excess_frac
from planner.solve.tables import build_signatures, build_tables
from planner.solve.team import Team
from planner.solve.tiny import is_tiny, solve_tiny

TOLERANCES = (0.005, 0.002, 0.0007, 0.0002)
REFINEMENTS = ((0.93, 1.12), (0.97, 1.04))
PACKED_COLUMNS = 2500
CERTIFICATES = 8
SMALL_FLEET = 24
LABELS_MAX = 3_000_000


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

    def stop_after(self, frac: float) -> Callable[[], bool]:
        """A stop that leaves the rest of the time to later steps; counted limits have no such share."""

        def stop() -> bool:
            late = not self.limits.deterministic and self.elapsed_s() > frac * self.limits.deadline_s
            return late or self.should_stop()

        return stop

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

    def first_plan(self, generator: Generator, duals: Duals) -> None:
        """The first replicas put together greedily."""
        real = [column for column in generator.pool.columns if column.real]
        if real:
            greedy = fill_greedily(self.problem, self.shape, real, np.zeros(len(real)), duals.price_C)
            self.offer(tuple(greedy), "first replicas")

    def plan(self, generator: Generator, generated: Generated) -> None:
        """Look for a better plan in the pool: rounding first, then CP-SAT."""
        duals = generated.solution.duals
        real = [column for column in generator.pool.columns if column.real]
        if not real:
            return
        if len(generated.solution.x_P) == len(generator.pool.columns) == len(real):
            greedy = fill_greedily(self.problem, self.shape, real, generated.solution.x_P, duals.price_C)
            self.offer(tuple(greedy), "rounding")
        columns = cheapest_columns(generator.pool, duals, PACKED_COLUMNS)
        columns = [column for column in columns if column.real]
        left_s = None if self.limits.deterministic else max(0.2, self.limits.deadline_s - self.elapsed_s())
        packing = pack(
            self.problem,
            self.shape,
            columns,
            hint=self.best.columns,
            deadline_s=None if left_s is None else min(left_s, 0.15 * self.limits.deadline_s),
            deterministic_limit=4.0,
            seed=self.limits.seed,
        )
        if packing is not None:
            self.offer(packing.columns, "packing")

    def closed(self) -> BoundaryResult:
        """The end of an exact closure: the best plan is proven, or proven not to exist."""
        if self.best.value is not None:
            return self.result("closed")
        return BoundaryResult(
            boundary=self.problem.name,
            status=Status.INFEASIBLE,
            replicas=(),
            value=None,
            bound=None,
            proof=self.best.proof,
            stop="closed",
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
    small = sum(c.num_devices for c in problem.classes) <= SMALL_FLEET
    tables = build_tables(problem, build_signatures(problem))
    team = Team(problem, run.shape, tables, processes=1 if small else processes)
    try:
        return _solve(run, Generator(problem, run.shape, team, Pool()), small=small)
    finally:
        team.close()


def _solve(run: _Solve, generator: Generator, *, small: bool) -> BoundaryResult:
    """Column generation, then plans and certificates in turn."""
    limits = run.limits
    if not generator.pricer.any_path():
        return _no_replica(run.problem, generator)
    duals = generator.seed(run.should_stop)
    run.first_plan(generator, duals)
    generated = generator.run(duals, rounds=limits.rounds, should_stop=run.stop_after(0.25))
    generator.drop_relaxed()
    generated = generator.run(
        generated.solution.duals, rounds=limits.rounds, should_stop=run.stop_after(0.35)
    )
    if small and _close(run, generator):
        return run.closed()
    for near_frac, ratio in REFINEMENTS:
        run.plan(generator, generated)
        generator.refine(near_frac, ratio)
        generated = generator.run(
            generated.solution.duals, rounds=limits.rounds, should_stop=run.stop_after(0.45)
        )
    for tolerance in TOLERANCES:
        for attempt in range(CERTIFICATES):
            run.plan(generator, generated)
            duals = generator.floored(generated.solution.duals)
            certified, bound = generator.certify(
                duals,
                tolerance=tolerance,
                should_stop=run.should_stop,
                give_up=attempt + 1 < CERTIFICATES and not run.stop_after(0.6)(),
            )
            run.prove(
                bound, dual_proof(run.problem, certified, bound), duals, f"certificate within {tolerance:.2%}"
            )
            if run.good_enough() or run.should_stop():
                return run.result("good-enough" if run.good_enough() else "limits")
            if certified.complete and certified.factor <= 1.0 + 2.0 * tolerance:
                break
            generated = generator.run(duals, rounds=limits.rounds, should_stop=run.stop_after(0.7))
    return run.result("tolerance")


def _close(run: _Solve, generator: Generator) -> bool:
    """Exact closure of a small fleet; says whether it succeeded.

    The master is first made exact by listing every replica its multipliers undervalue, which makes them dual
    feasible; then everything that could still improve the plan is listed and packed.
    """
    problem, enumerator = run.problem, Enumerator(generator.pricer)
    budget = Budget(labels_left=LABELS_MAX, should_stop=run.should_stop)
    try:
        generated = generator.run(generator.master().duals, rounds=30, should_stop=run.should_stop)
        depth = 0.1
        while True:
            solution = generator.master()
            factor = generator.unit_worth(solution)
            rule = slack_rule(problem, solution.duals, factor)
            scale = rule.speed_weight * max((c.tokens_per_s for c in generator.pool.columns), default=1.0)
            columns = improve(enumerator, rule, -depth * scale, budget)
            generator.pool.extend(columns)
            if not columns and depth <= 1e-9:
                break
            if not columns:
                depth = 1e-9 if depth < 1e-3 else depth / 5.0
    except LabelLimitError:
        return False
    run.plan(generator, Generated(solution=solution, converged=generated.converged))
    bound = bound_of(problem, run.shape, solution.duals, factor)
    run.prove(bound, {"kind": "none"}, solution.duals, "exact multipliers")
    closed = close(
        problem,
        run.shape,
        enumerator,
        duals=solution.duals,
        factor=factor,
        bound=bound,
        incumbent=run.best.columns,
        value=run.best.value,
        labels_max=LABELS_MAX,
        should_stop=run.should_stop,
    )
    if closed.packing is not None:
        run.offer(closed.packing.columns, "closure")
    if closed.proven:
        proof = {
            "kind": "closure",
            **multipliers(problem, solution.duals),
            "factor": factor,
            "bound": run.best.value,
        }
        run.best.bound, run.best.proof, run.best.duals = run.best.value, proof, solution.duals
        run.report("closed")
    else:
        run.best.bound, run.best.proof = None, {"kind": "none"}
    return closed.proven


def _no_replica(problem: BoundaryProblem, generator: Generator) -> BoundaryResult:
    """Not even the relaxation has a path: no replica of the model fits anywhere."""
    duals = generator.uniform_duals()
    certified, _ = generator.certify(duals, tolerance=0.01, should_stop=lambda: False, give_up=False)
    return BoundaryResult(
        boundary=problem.name,
        status=Status.INFEASIBLE,
        replicas=(),
        value=None,
        bound=None,
        proof=dual_proof(problem, certified, 0.0),
        stop="no-replica",
    )
