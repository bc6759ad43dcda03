"""Obstacles in the second master: what they do to multipliers, and when they leave it."""

from __future__ import annotations

import numpy as np
import pytest

from planner.problem import BoundaryProblem
from planner.solve.columns import Column, Pool, Shape, build_shape
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.guide import FORGOTTEN, Guide
from planner.solve.master import MasterSolution, master_over
from planner.solve.packing import pack
from planner.solve.sweep import Obstacle
from planner.solve.tiny import _column
from solver.micro_fleets import CONDITIONS, micro_case

SEEDS = range(2, 8)


def all_columns(problem: BoundaryProblem, shape: Shape) -> Pool:
    pool = Pool()
    pool.extend(_column(shape, replica) for replica in enumerate_replicas(problem))
    return pool


def plain_solution(problem: BoundaryProblem, shape: Shape, pool: Pool) -> MasterSolution:
    master = master_over(problem, shape, max(column.tokens_per_s for column in pool.columns))
    for column in pool.columns:
        master.add(column)
    return master.solve()


def obstacle_of(shape: Shape, times: float) -> Obstacle:
    """A path that takes one device more of every class than there is, worth `times` what it costs."""
    return Obstacle(usage_C=shape.devices_C.astype(np.float64) + 1.0, worth=times)


def case_of(seed: int) -> tuple[BoundaryProblem, Shape, Pool, MasterSolution]:
    problem = micro_case(seed, CONDITIONS[0], num_devices=4, foreign=False).problem()
    shape = build_shape(problem)
    pool = all_columns(problem, shape)
    return problem, shape, pool, plain_solution(problem, shape, pool)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_obstacle_is_worth_no_more_than_its_price_at_the_new_multipliers(seed: int) -> None:
    problem, shape, pool, plain = case_of(seed)
    guide = Guide(problem, shape)
    assert guide.solve(pool, plain) is plain
    obstacle = obstacle_of(shape, 1.5)
    guide.learn([obstacle], plain.duals, 2.0, 1.0, exact=False)
    guided = guide.solve(pool, plain)
    tokens_per_s = 1.5 * (float(plain.duals.price_C @ obstacle.usage_C) + plain.duals.rho) - plain.duals.nu
    price = float(guided.duals.price_C @ obstacle.usage_C) + guided.duals.rho - guided.duals.nu
    assert tokens_per_s <= price * (1.0 + 1e-9)
    assert guided.value >= plain.value * (1.0 - 1e-9)
    for column in pool.columns:
        worth = float(guided.duals.price_C @ column.usage_C) + guided.duals.rho - guided.duals.nu
        assert column.tokens_per_s <= worth * (1.0 + 1e-9) + 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_obstacles_leave_when_a_sweep_shows_them_to_be_none(seed: int) -> None:
    problem, shape, pool, plain = case_of(seed)
    guide = Guide(problem, shape)
    guide.learn([obstacle_of(shape, 1.5)], plain.duals, 2.0, 1.0, exact=True)
    guide.learn([], plain.duals, 1.2, 1.0, exact=True)
    assert guide.solve(pool, plain) is plain


@pytest.mark.parametrize("exact", [False, True])
def test_only_obstacles_of_sweeps_that_tracked_nothing_are_forgotten(exact: bool) -> None:
    problem, shape, pool, plain = case_of(SEEDS[0])
    guide = Guide(problem, shape)
    many = [obstacle_of(shape, 1.1 + 0.01 * i) for i in range(FORGOTTEN)]
    guide.learn(many, plain.duals, 2.0, 1.0, exact=exact)
    guide.forget()
    assert (guide.solve(pool, plain) is plain) is not exact


def test_paths_that_the_fleet_can_form_are_no_obstacles() -> None:
    problem, shape, pool, plain = case_of(SEEDS[0])
    guide = Guide(problem, shape)
    usage_C = pool.columns[0].usage_C.astype(np.float64)
    guide.learn([Obstacle(usage_C=usage_C, worth=1.5)], plain.duals, 2.0, 1.0, exact=False)
    assert guide.solve(pool, plain) is plain


@pytest.mark.parametrize("seed", SEEDS)
def test_packing_is_never_worse_than_its_hint(seed: int) -> None:
    problem, shape, pool, _ = case_of(seed)
    best: Column = max(pool.columns, key=lambda column: column.tokens_per_s)
    packing = pack(
        problem, shape, pool.columns, hint=[best], deadline_s=None, deterministic_limit=1.0, seed=0
    )
    assert packing is not None
    assert sum(column.tokens_per_s for column in packing.columns) >= best.tokens_per_s * (1.0 - 1e-9)
