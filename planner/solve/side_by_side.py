"""Boundaries solved independently, side by side, within one deadline.

A first pass by rule of thumb gives every boundary a plan early; then the solver asked for works on each in
turn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from planner.objective import Replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve import registry
from planner.solve.registry import SolveBoundary
from planner.solve.result import BoundaryResult, Limits, Progress, Status, excess_frac
from planner.solve.second_proof import needs_evidence, with_evidence
from planner.solve.small_master import objective_value
from planner.solve.workers import Job, run_jobs

PROCESSES = 2
FIRST_SOLVER = "greedy"
DEFAULT = "decomposition"
SOLVERS_WITH_FIRST = (DEFAULT,)
FINISHING_FRAC = 0.03
"""Share of the deadline kept for what comes after the last solve."""


def solve_boundaries(
    boundaries: Sequence[BoundaryProblem],
    limits: Limits,
    *,
    solver: str = "decomposition",
    processes: int = PROCESSES,
    incumbents: Sequence[Sequence[Replica] | None] | None = None,
) -> list[BoundaryResult]:
    """The result of every boundary on its own, in order.

    `limits.deadline_s` covers all of them: each gets a share by its size of the time that is left when it
    starts. `incumbents` are replicas known before (an earlier plan's); they stand where nothing better is
    found. Progress is told for all boundaries together.

    Raises:
        EchelonError: what a solver refuses.
    """
    started_s = time.monotonic()
    clock = _Clock(limits=limits, started_s=started_s, processes=min(max(1, processes), len(boundaries)))
    board = _Board(boundaries, limits, started_s)
    best: list[BoundaryResult] = [
        with_incumbent(boundary, _nothing(boundary), known or ())
        for boundary, known in zip(boundaries, incumbents or [None] * len(boundaries), strict=True)
    ]
    passes = [FIRST_SOLVER, solver] if solver in SOLVERS_WITH_FIRST else [solver]
    # The small ones first: what they leave of their share goes to the large ones.
    order = sorted(range(len(boundaries)), key=lambda i: (size_of(boundaries[i]), i))
    sizes = [size_of(boundaries[i]) for i in order]
    helpers = 2 if len(boundaries) == 1 and processes > 0 else 1
    for name in passes:
        found = run_jobs(
            [Job(boundary=boundaries[i], work=work_of(name, helpers)) for i in order],
            lambda position, waiting: clock.limits_for(sizes, position, waiting),
            lambda position, progress: board.tell(order[position], progress),
            should_stop=limits.should_stop,
            processes=processes,
        )
        for i, result in zip(order, found, strict=True):
            if result is not None:
                best[i] = with_incumbent(boundaries[i], result, best[i].replicas)
                board.settle(i, best[i])
    return best


def work_of(name: str, helpers: int) -> SolveBoundary:
    """The solver of this name, with evidence for its proof; the default one may use `helpers` processes."""
    solve = registry.solver(name)
    if name == DEFAULT:
        return default_solver(helpers)

    def work(boundary: BoundaryProblem, limits: Limits) -> BoundaryResult:
        result = solve(boundary, limits)
        if not needs_evidence(result):
            return result
        return with_evidence(boundary, result, limits, default_solver(helpers))

    return work


def default_solver(helpers: int) -> SolveBoundary:
    """The default way of solving with so many processes."""
    registry.solver(DEFAULT)
    from planner.solve.decomposition import solve_boundary

    return partial(solve_boundary, processes=helpers)


def with_incumbent(
    boundary: BoundaryProblem, result: BoundaryResult, replicas: Sequence[Replica]
) -> BoundaryResult:
    """The result, or these replicas in its place where they are better; its bound and proof stay."""
    if not replicas:
        return result
    value = objective_value(boundary, replicas)
    minimise = boundary.objective.kind is ObjectiveKind.PRICE
    if result.value is not None and (value >= result.value if minimise else value <= result.value):
        return result
    status = Status.FEASIBLE
    if result.bound is not None and excess_frac(value, result.bound, maximise=not minimise) <= 1e-9:
        status = Status.OPTIMAL
    return replace(result, replicas=tuple(replicas), value=value, status=status)


def size_of(boundary: BoundaryProblem) -> float:
    """How much work a boundary is, compared with others."""
    return 1.0 + sum(len(mode.templates) for mode in boundary.modes) * boundary.num_layers


def _nothing(boundary: BoundaryProblem) -> BoundaryResult:
    return BoundaryResult(
        boundary=boundary.name,
        status=Status.UNKNOWN,
        replicas=(),
        value=None,
        bound=None,
        proof={"kind": "none"},
        stop="not begun",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clock:
    """Shares one deadline out: by size, over the processes that work side by side."""

    limits: Limits
    started_s: float
    processes: int

    def limits_for(self, sizes: Sequence[float], position: int, waiting: Sequence[int]) -> Limits:
        """The limits of a job that starts now."""
        whole_s = self.limits.deadline_s * (1.0 - FINISHING_FRAC)
        left_s = max(0.0, whole_s - (time.monotonic() - self.started_s))
        share = self.processes * sizes[position] / sum(sizes[i] for i in waiting)
        return replace(self.limits, deadline_s=left_s * min(1.0, share))


class _Board:
    """What is known of every boundary, told as one progress in the unit of a plan's value."""

    def __init__(self, boundaries: Sequence[BoundaryProblem], limits: Limits, started_s: float) -> None:
        self._boundaries = boundaries
        self._limits = limits
        self._started_s = started_s
        self._values: list[float | None] = [None] * len(boundaries)
        self._bounds: list[float | None] = [None] * len(boundaries)

    def tell(self, i: int, progress: Progress) -> None:
        """A boundary's own progress; what was known to be better stays."""
        self._values[i] = self._better(i, self._values[i], progress.value, sign=1.0)
        self._bounds[i] = self._better(i, self._bounds[i], progress.bound, sign=-1.0)
        name = self._boundaries[i].name
        note = progress.note if len(self._boundaries) == 1 else f"{name}: {progress.note}"
        self._report(note)

    def settle(self, i: int, result: BoundaryResult) -> None:
        """A boundary's result."""
        note = result.stop if len(self._boundaries) == 1 else f"{result.boundary}: {result.stop}"
        self._values[i] = self._better(i, self._values[i], result.value, sign=1.0)
        self._bounds[i] = self._better(i, self._bounds[i], result.bound, sign=-1.0)
        self._report(note)

    def _better(self, i: int, known: float | None, new: float | None, *, sign: float) -> float | None:
        if known is None or new is None:
            return new if known is None else known
        if self._boundaries[i].objective.kind is ObjectiveKind.PRICE:
            sign = -sign
        return new if sign * new > sign * known else known

    def _total(self, numbers: Sequence[float | None]) -> float | None:
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return None
        if self._boundaries[0].objective.kind is ObjectiveKind.STEP_TIME:
            pairs = zip(self._boundaries, known, strict=True)
            return sum(b.tokens_per_step / number if number > 0.0 else inf for b, number in pairs)
        return float(sum(known))

    def _report(self, note: str) -> None:
        self._limits.report(
            Progress(
                elapsed_s=time.monotonic() - self._started_s,
                value=self._total(self._values),
                bound=self._total(self._bounds),
                note=note,
            )
        )
