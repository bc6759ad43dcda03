"""Sweeps over loads against all replicas and all paths of small problems: factor, cover, cuts, repeatability.

Legend: C device classes, P listed paths, R capacity rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.objective import price_replica
from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.columns import build_shape, fits
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.sweep import Goal
from planner.solve.sweeper import SEGMENTS, Certified, Sweeper
from planner.solve.tables import build_signatures, build_tables
from solver.all_paths import AllPaths, all_paths, listable, problem_of
from solver.micro_fleets import Condition

CASES = listable(range(420, 438))
TOLERANCES = (0.1, 0.02)
HOPELESS = Goal(factor=1.0, tolerance=0.3, collect_frac=0.5, columns_max=500)
"""For fleets that can form no replica: only forced steps raise the factor, and fine ones take long."""
by_name = pytest.mark.parametrize(
    ("seed", "condition"), CASES, ids=lambda value: getattr(value, "name", str(value))
)


def never() -> bool:
    return False


def after(num_calls: int) -> Callable[[], bool]:
    """Says stop from the given call on."""
    calls = iter(range(num_calls))
    return lambda: next(calls, None) is None


def sweeper_of(problem: BoundaryProblem, threads: int = 1) -> Sweeper:
    tables = build_tables(problem, build_signatures(problem))
    return Sweeper(problem, build_shape(problem), tables, threads=threads)


def random_duals(problem: BoundaryProblem, rng: random.Random) -> Duals:
    """Multipliers of all sizes, some of them nothing; a replica always costs something."""
    row_R = np.array([rng.choice((0.0, 1.0, rng.uniform(0.1, 10.0))) for _ in problem.rows])
    price_C = row_R @ build_shape(problem).coefficient_RC
    rho = rng.choice((0.0, 1.0)) if (price_C > 0.0).all() else 1.0
    return Duals(row_R=row_R, rho=rho, nu=rng.choice((0.0, 0.0, 5.0)), price_C=price_C)


def goal_for(problem: BoundaryProblem, duals: Duals, rng: random.Random) -> Goal:
    tolerance = rng.choice(TOLERANCES)
    known = best_worth(problem, duals) * rng.choice((0.3, 0.9, 1.0, 1.2))
    if known == 0.0:
        return HOPELESS
    return Goal(
        factor=known * (1.0 + tolerance),
        tolerance=tolerance,
        collect_frac=rng.choice((0.5, 0.9, 0.98)),
        columns_max=500,
    )


def best_worth(problem: BoundaryProblem, duals: Duals) -> float:
    """Worth of the best replica that the fleet can form."""
    return max(
        (worth(r.tokens_per_s, price_of(r.usage, duals), duals) for r in enumerate_replicas(problem)),
        default=0.0,
    )


def price_of(usage: Iterable[tuple[int, int]], duals: Duals) -> float:
    return sum(float(duals.price_C[class_i]) * count for class_i, count in usage)


def worth(tokens_per_s: float, price: float, duals: Duals) -> float:
    return (tokens_per_s + duals.nu) / (price + duals.rho)


def listed_modes(problem: BoundaryProblem) -> dict[int, AllPaths]:
    """All paths of every mode; nothing when one has too many."""
    listed = {mode.mode_i: all_paths(problem, mode) for mode in problem.modes}
    return (
        {i: paths for i, paths in listed.items() if paths is not None}
        if all(paths is not None for paths in listed.values())
        else {}
    )


@by_name
def test_no_replica_is_worth_more_than_the_factor(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    sweeper = sweeper_of(problem)
    for _ in range(3):  # later sweeps begin from what earlier ones found
        duals = random_duals(problem, rng)
        goal = goal_for(problem, duals, rng)
        certified = sweeper.run(duals, goal, never)
        assert best_worth(problem, duals) <= certified.factor * (1 + 1e-9) < inf
        assert certified.factor >= goal.factor
        relaxed = sweeper.run(duals, replace(goal, relaxed=True), never)
        assert best_worth(problem, duals) <= relaxed.factor * (1 + 1e-9) < inf


@by_name
def test_replicas_met_are_real_and_priced_rightly(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    duals = random_duals(problem, rng)
    goal = replace(goal_for(problem, duals, rng), collect_frac=0.5)
    shape = build_shape(problem)
    certified = sweeper_of(problem).run(duals, goal, never)
    for column in certified.columns:
        replica = price_replica(problem, problem.modes[column.mode_i], column.stages)
        assert replica is not None
        assert fits(shape, column.usage_C, shape.limit_R)
        assert column.step_s == pytest.approx(replica.step_s, rel=1e-12)
        assert [(c, n) for c, n in enumerate(column.usage_C.tolist()) if n] == list(replica.usage)


@by_name
def test_boxes_cover_all_loads_and_their_cuts_hold(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    sweeper = sweeper_of(problem)
    listed = listed_modes(problem)
    for _ in range(2):
        duals = random_duals(problem, rng)
        certified = sweeper.run(duals, goal_for(problem, duals, rng), never)
        check_cover(problem, certified)
        for mode_i, paths in listed.items():
            check_cuts(paths, certified, mode_i, duals, float(problem.tokens_per_step))


def check_cover(problem: BoundaryProblem, certified: Certified) -> None:
    """From nothing to endless loads without a hole, in every mode."""
    for mode in problem.modes:
        boxes = [box for box in certified.boxes if box.mode_i == mode.mode_i]
        assert (boxes[0].from_s, boxes[-1].upto_s) == (0.0, inf)
        assert all(low.upto_s == high.from_s for low, high in pairwise(boxes))
        assert all(box.from_s < box.upto_s for box in boxes)


def check_cuts(listed: AllPaths, certified: Certified, mode_i: int, duals: Duals, tokens: float) -> None:
    """Every cut holds for every real path within its box, and a path in the box is worth no more."""
    price_P = listed.usage_PC @ duals.price_C
    for box in (box for box in certified.boxes if box.mode_i == mode_i):
        below_P = listed.real_P & (listed.load_P <= box.upto_s)
        for cut in box.cuts:
            cost_P = cut.time_weight * listed.fill_P + cut.price_weight * price_P
            assert (cost_P[below_P] >= cut.value * (1 - 1e-9) - 1e-12).all()
        inside_P = below_P & (listed.load_P > box.from_s)
        worth_P = (tokens / (listed.fill_P + listed.load_P) + duals.nu) / (price_P + duals.rho)
        assert (worth_P[inside_P] <= certified.factor * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("seed", "condition"),
    [pytest.param(seed, condition, id=f"{seed}-{condition.name}") for seed, condition in CASES],
)
@pytest.mark.parametrize("relaxed", [False, True], ids=["free", "relaxed"])
def test_without_limits_the_factor_is_the_best_worth_or_the_goal(
    seed: int, condition: Condition, relaxed: bool
) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    if not relaxed:  # rows so wide that every path is a replica need no usage multipliers either
        problem = replace(problem, rows=tuple(replace(row, limit=1e6) for row in problem.rows))
    listed = listed_modes(problem)
    if not listed:
        return
    duals = random_duals(problem, rng)
    known = rng.choice((1e-9, 0.5, 2.0)) * max(1e-9, relaxed_worth(problem, listed, duals))
    goal = Goal(
        factor=known, tolerance=rng.choice(TOLERANCES), collect_frac=0.9, columns_max=500, relaxed=relaxed
    )
    certified = sweeper_of(problem).run(duals, goal, never)
    most = max(goal.factor, relaxed_worth(problem, listed, duals))
    assert most * (1 - 1e-9) <= certified.factor or not relaxed
    assert certified.factor <= most * (1.0 + goal.tolerance)


def relaxed_worth(problem: BoundaryProblem, listed: dict[int, AllPaths], duals: Duals) -> float:
    """The best worth of any path by fill time and load, whether the fleet can form it or not."""
    most = 0.0
    for paths in listed.values():
        price_P = paths.usage_PC @ duals.price_C + duals.rho
        worth_P = (problem.tokens_per_step / (paths.fill_P + paths.load_P) + duals.nu) / price_P
        most = max(most, float(worth_P.max(initial=0.0)))
    return most


@by_name
def test_an_interrupted_sweep_claims_nothing_and_breaks_nothing(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    duals = random_duals(problem, rng)
    goal = goal_for(problem, duals, rng)
    sweeper = sweeper_of(problem)
    has_paths = sweeper.any_path()
    for num_calls in (0, 2):
        certified = sweeper.run(duals, goal, after(num_calls))
        if has_paths:
            assert certified.factor == inf
    finished = sweeper.run(duals, goal, never)
    check_cover(problem, finished)
    assert best_worth(problem, duals) <= finished.factor * (1 + 1e-9) < inf


@by_name
def test_a_sweep_over_free_devices_ends_and_proves_nothing(seed: int, condition: Condition) -> None:
    problem = problem_of(seed, condition)
    nothing_R, nothing_C = np.zeros(len(problem.rows)), np.zeros(len(problem.classes))
    free = Duals(row_R=nothing_R, rho=0.0, nu=0.0, price_C=nothing_C)
    for relaxed in (False, True):
        certified = sweeper_of(problem).run(free, replace(HOPELESS, relaxed=relaxed), never)
        assert certified.factor == inf or not enumerate_replicas(problem)


def content(certified: Certified) -> tuple[object, ...]:
    """Everything a sweep says, in a form that compares."""
    boxes = [
        (
            box.mode_i,
            box.from_s,
            box.upto_s,
            [(c.time_weight, c.value, listing(c.usage_2C)) for c in box.cuts],
        )
        for box in certified.boxes
    ]
    return (
        certified.factor,
        boxes,
        [(column.mode_i, column.stages) for column in certified.columns],
        certified.num_runs,
    )


def listing(usage_2C: NDArray[np.float64] | None) -> list[list[float]] | None:
    return None if usage_2C is None else usage_2C.tolist()


@by_name
def test_threads_and_repetition_change_nothing(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    steps = []
    for _ in range(2):
        duals = random_duals(problem, rng)
        steps.append((duals, goal_for(problem, duals, rng)))
    answers = []
    for threads in (1, 2, 1):
        sweeper = sweeper_of(problem, threads)
        answers.append([content(sweeper.run(duals, goal, never)) for duals, goal in steps])
        sweeper.close()
    assert answers[0] == answers[1] == answers[2]


@by_name
def test_segments_cut_anew_still_cover_all_loads(seed: int, condition: Condition) -> None:
    problem, rng = problem_of(seed, condition), random.Random(seed)
    sweeper = sweeper_of(problem)
    for _ in range(3):
        duals = random_duals(problem, rng)
        sweeper.run(duals, goal_for(problem, duals, rng), never)
        for mode_i in range(len(problem.modes)):
            segments = [s for s in sweeper.segments if s.mode_i == mode_i]
            assert 1 <= len(segments) <= SEGMENTS
            assert (segments[0].top_s, segments[-1].bottom_s) == (inf, 0.0)
            assert all(high.bottom_s == low.top_s for high, low in pairwise(segments))
            assert all(s.bottom_s < s.top_s for s in segments)
