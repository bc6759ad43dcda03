"""Parts of the referee by themselves, where whole plans would rarely tell a wrong one from a right one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from costmodels.fleet import Link
from costmodels.interface import Cluster, CostModel, Interval, StageCost, Strategy
from planner.build import build_problem
from planner.canonical import Inputs
from planner.check.columns import ColumnSource, held_range
from planner.check.dual import DualCheck
from planner.check.fleet_view import in_flight
from planner.check.multipliers import read_multipliers
from planner.check.referee import check_against
from planner.check.relaxed import BoxPaths
from planner.check.report import CheckReport, Findings
from planner.plan import Plan
from planner.problem import Problem
from solver.micro_fleets import CONDITIONS, Condition, micro_case
from solver.referee_plans import best_set, make_plan, random_prices, real_replicas


@pytest.mark.parametrize("seed", range(16))
def test_charges_never_lift_a_cut_above_a_real_replica(seed: int) -> None:
    rng = random.Random(seed)
    problem = micro_case(seed, CONDITIONS[seed % 5], num_devices=1 + seed % 2).problem()
    numbers = {"prices": random_prices(rng, problem), "rho": 0.0, "nu": 0.0, "factor": 1.0}
    multipliers = read_multipliers(problem, numbers, Findings(), "p", coupled=False)
    assert multipliers is not None
    walk = DualCheck(problem=problem, multipliers=multipliers, findings=Findings(), place="p")
    source = ColumnSource(problem)
    for mode in problem.modes:
        columns = source.columns(mode)
        paths = BoxPaths(columns, float("inf"))
        kinds = [{c.class_i: rng.uniform(1.0, 50.0) for c in problem.classes} for _ in range(2)]
        for visit, once in ((kinds[0], {}), ({}, kinds[1]), (kinds[0], kinds[1])):
            stated = {"w": 0.0, "c": 1.0, "visit": visit, "once": once}
            least, _ = walk.least(paths, columns, stated)
            for real in real_replicas(problem, mode):
                price = sum(n * p for n, p in zip(real.usage, multipliers.price_C, strict=True))
                assert price >= least - 1e-9 * (1.0 + abs(least))


def test_micro_batches_in_flight() -> None:
    assert in_flight("joint", 8, [4, 1, 1]) == 3
    assert in_flight("joint", 2, [1, 1, 1]) == 2
    assert in_flight("round-robin", 8, [2, 1]) == 2
    assert in_flight("round-robin", 8, [1, 2, 4]) == 7
    assert in_flight("round-robin", 4, [1, 2, 4]) == 4
    assert in_flight("round-robin", 4, [4, 4]) == 1


@pytest.mark.parametrize("seed", range(8))
def test_positions_cover_every_in_flight_count(seed: int) -> None:
    rng = random.Random(seed)
    case = micro_case(seed, Condition(), num_devices=5)
    job = replace(
        case.workload.job, schedule="round-robin" if seed % 2 else "joint", micro_batch_sizes=(1, 2)
    )
    problem = replace(case, workload=replace(case.workload, job=job)).problem()
    for mode in problem.modes:
        widths = sorted({problem.templates[i].strategy.dp for i in mode.templates})
        for _ in range(40):
            chain = [rng.choice(widths) for _ in range(rng.randint(1, 5))]
            held = in_flight(job.schedule, mode.num_micro_batches, chain)
            assert held in held_range(problem, mode, chain[0], len(chain))


class TightMemory:
    """A cost model whose stages never fit, though it prices them."""

    def __init__(self, inner: CostModel) -> None:
        self.name = inner.name
        self._inner = inner

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """The inner figures with next to no memory."""
        cost = self._inner.stage(cluster, interval, strategy, micro_batch_size, in_flight)
        return None if cost is None else replace(cost, limit_bytes=tuple(1.0 for _ in cost.limit_bytes))

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """As the inner model has it."""
        return self._inner.transfer_s(link, border, micro_batch_size)

    def interval_key(self, interval: Interval) -> Interval:
        """No two intervals are alike."""
        return interval


def plain_plan(seed: int) -> tuple[Problem, Plan] | None:
    case = micro_case(seed, Condition(), num_devices=3)
    problem = build_problem(case.fleet, case.workload, case.policy, case.cost_model, rule=case.rule)
    best = best_set(problem.boundaries[0])
    if best is None:
        return None
    inputs = Inputs(fleet=case.fleet, workload=case.workload, policy=case.policy)
    plan = make_plan(
        inputs, problem, [best[1]], value=best[0], bound=best[0], proof={"b": {"kind": "none"}}, settings={}
    )
    return problem, plan


def with_boundary(problem: Problem, **changes: Any) -> Problem:
    return replace(problem, boundaries=(replace(problem.boundaries[0], **changes),))


def judged(plan: Plan, problem: Problem) -> CheckReport:
    return check_against(plan, problem, quick=True)


def test_a_stage_that_does_not_fit_is_found_by_its_sum() -> None:
    made = next(m for seed in range(40) if (m := plain_plan(seed)) is not None)
    problem, plan = made
    report = judged(plan, with_boundary(problem, cost_model=TightMemory(problem.cost_model)))
    assert any(v.rule == "memory" and "usable" in v.limit for v in report.violations)


def test_a_device_below_the_required_tier_is_found() -> None:
    for seed in range(40):
        made = plain_plan(seed)
        if made is None:
            continue
        problem, plan = made
        used = {d for r in plan.boundaries[0].replicas for s in r.stages for d in s.devices}
        if all(problem.fleet.device_by_id[d].tier_i == 2 for d in used):
            continue
        required = (2,) * problem.boundaries[0].num_layers
        report = judged(plan, with_boundary(problem, tier_required=required))
        assert "tier" in {v.rule for v in report.violations}
        return
    raise AssertionError("no plan uses a device below the top tier")
