"""Whether a boundary can be planned at all: an answer with its method, or an honest "not decided".

"Possible" is told only with replicas that the cost model itself has priced; "impossible" rests on exact
reachability over device counts, on device weights, or on a bound on speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.workload import ROUND_ROBIN
from planner.explain.fits import mode_fits
from planner.explain.reach import Reached, countable, most_replicas, reach, witness
from planner.explain.weights import WHOLE, Weighing, gathered, lightest, weigh
from planner.objective import Replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.registry import solver
from planner.solve.result import BoundaryResult, Limits, Progress, Status

SOLVE_SECONDS = 8.0
TOLERANCE_FRAC = 1e-9


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`possible` is None when neither was proven; `method` says how it was decided.

    `num_replicas` were found together where `wanted` were asked for, and no more exist when `exact`.
    `lowest` is the first layer of the longest tail of the chain that can be held. `best_tokens_per_s` and
    `bound_tokens_per_s` are given where a target was judged.
    """

    possible: bool | None
    method: str
    wanted: int
    num_replicas: int = 0
    exact: bool = False
    lowest: int | None = None
    reached: Reached | None = None
    weighing: Weighing | None = None
    best_tokens_per_s: float | None = None
    bound_tokens_per_s: float | None = None
    result: BoundaryResult | None = None


def judge(
    problem: BoundaryProblem,
    *,
    thorough: bool = True,
    stop: Callable[[], bool] = lambda: False,
    deadline_s: float = SOLVE_SECONDS,
) -> Judgement:
    """Whether the boundary's replicas exist within every row, and reach the target where there is one.

    Without `thorough` it ends with the first replicas that will do, and lists no others.
    """
    wanted = max(1, problem.replicas_min)
    if not any(mode.templates for mode in problem.modes):
        return Judgement(possible=False, method="no candidate cluster", wanted=wanted, exact=True)
    counts = (
        _counted(problem, wanted, thorough)
        if countable(problem)
        else _weighed(problem, wanted, thorough, stop, deadline_s)
    )
    if problem.replicas_max is not None and wanted > problem.replicas_max:
        return replace(counts, possible=False, method="counting")
    if counts.possible and problem.objective.kind is ObjectiveKind.PRICE:
        return _with_target(problem, counts, thorough, stop, deadline_s)
    return counts


def _counted(problem: BoundaryProblem, wanted: int, thorough: bool) -> Judgement:
    """By listing which device counts hold a replica: exact both ways."""

    def enough(minimal: tuple[tuple[int, ...], ...]) -> bool:
        return not thorough and most_replicas(problem, minimal, wanted)[0] >= wanted

    found = reach(problem, enough=enough)
    number, usages = most_replicas(problem, found.minimal, wanted)
    possible: bool | None = number >= wanted
    if possible and not _priced(problem, [witness(found, usage) for usage in usages]):
        possible = None
    return Judgement(
        possible=possible,
        method="reachability over device counts",
        wanted=wanted,
        num_replicas=number,
        exact=True,
        lowest=found.lowest,
        reached=found,
    )


def _priced(problem: BoundaryProblem, replicas: Sequence[Replica | None]) -> bool:
    """Whether all replicas run, and together keep every capacity row."""
    used: dict[int, int] = {}
    for replica in replicas:
        if replica is None:
            return False
        for class_i, count in replica.usage:
            used[class_i] = used.get(class_i, 0) + count
    return all(
        sum(k * used.get(c, 0) for c, k in row.coefficients)
        <= row.limit + TOLERANCE_FRAC * max(1.0, abs(row.limit))
        for row in problem.rows
    )


def _weighed(
    problem: BoundaryProblem, wanted: int, thorough: bool, stop: Callable[[], bool], deadline_s: float
) -> Judgement:
    """By replicas gathered greedily, then by device weights, then by the first plan a solver finds."""
    all_fits = tuple(mode_fits(problem))
    if lightest(all_fits, np.zeros(len(problem.classes))) is None:
        lowest = reach(problem, counted=False).lowest if thorough else None
        method = "reachability with endless devices"
        return Judgement(possible=False, method=method, wanted=wanted, exact=True, lowest=lowest)
    if problem.workload.job.schedule != ROUND_ROBIN:
        replicas = gathered(problem, all_fits, wanted)
        if len(replicas) == wanted and _priced(problem, replicas):
            return Judgement(
                possible=True,
                method="replicas found one by one",
                wanted=wanted,
                num_replicas=wanted,
                lowest=0,
            )
    weighing = weigh(problem, wanted, all_fits)
    if weighing.refutes(wanted):
        return Judgement(
            possible=False,
            method="device weights",
            wanted=wanted,
            num_replicas=int(weighing.most + WHOLE),
            lowest=0,
            weighing=weighing,
        )
    plain = replace(problem, objective=replace(problem.objective, kind=ObjectiveKind.TOKENS))
    result, _ = first_plan(plain, lambda _value: True, stop, deadline_s)
    found = bool(result.replicas) and _priced(problem, result.replicas)
    return Judgement(
        possible=True if found else None,
        method="a plan found" if found else "nothing proven in time",
        wanted=wanted,
        num_replicas=len(result.replicas),
        lowest=0,
        weighing=weighing,
    )


def first_plan(
    problem: BoundaryProblem,
    enough: Callable[[float], bool],
    stop: Callable[[], bool],
    deadline_s: float,
    *,
    hopeless: Callable[[float], bool] = lambda _bound: False,
) -> tuple[BoundaryResult, float | None]:
    """What the decomposition has when a plan is `enough` or a bound `hopeless`, or at the deadline.

    The last bound it reported comes along: a search that is told to stop need not write its proof down.
    """
    done = False
    bound: float | None = None

    def report(progress: Progress) -> None:
        nonlocal done, bound
        bound = progress.bound if progress.bound is not None else bound
        done = done or (progress.value is not None and enough(progress.value))
        done = done or (bound is not None and hopeless(bound))

    limits = Limits(deadline_s=deadline_s, should_stop=lambda: done or stop(), report=report)
    return solver("decomposition")(problem, limits), bound


def _with_target(
    problem: BoundaryProblem,
    counts: Judgement,
    thorough: bool,
    stop: Callable[[], bool],
    deadline_s: float,
) -> Judgement:
    """Whether the tokens/s target can be reached: the fastest plan against the bound on all plans."""
    target = problem.objective.tokens_per_s_min or 0.0
    plain = replace(problem, objective=replace(problem.objective, kind=ObjectiveKind.TOKENS))
    needed = target * (1.0 - TOLERANCE_FRAC)
    result, reported = first_plan(
        plain,
        lambda value: value >= needed,
        stop,
        deadline_s,
        hopeless=lambda bound: not thorough and bound < needed,
    )
    best = result.value if result.replicas else None
    bound = result.bound if result.bound is not None else reported
    possible: bool | None = None
    if best is not None and best >= needed:
        possible = True
    elif result.status is Status.INFEASIBLE or (bound is not None and bound < needed):
        possible = False
    return replace(
        counts,
        possible=possible,
        method="the decomposition's bound on tokens/s" if possible is False else counts.method,
        best_tokens_per_s=best,
        bound_tokens_per_s=bound,
        result=result,
    )
