"""Rules of thumb: what they promise on micro fleets and on a thousand devices."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings

from bench.fleets import bench_policy, generate_fleet
from costmodels.analytic import AnalyticCostModel
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.problem import BoundaryProblem, Objective, ObjectiveKind
from planner.solve import cut_points, equal_split, greedy
from planner.solve.result import Limits, Status
from planner.solve.small_master import counted_tokens_per_s
from solver.micro_fleets import Condition, ForeignCostModel, MicroCase, micro_case
from solver.plan_checks import check_plan
from strategies import micro_cases

LIMITS = Limits(deterministic=True)


def chain(num_blocks: int) -> Workload:
    """A decoder of equal blocks with adapters, about 7 billion weights at 32 blocks."""
    hidden = 4096

    def layer(kind: str, params: float, activation_bytes: float, transient_bytes: float) -> LayerSpec:
        return LayerSpec(
            kind=kind,
            params=int(params),
            trainable_params=int(params * 0.005),
            forward_flops_per_token=2.0 * params,
            activation_bytes_per_token=activation_bytes,
            input_bytes_per_token=2.0 * hidden,
            output_bytes_per_token=2.0 * hidden,
            transient_bytes_per_token=transient_bytes,
        )

    ends = 128_000 * hidden
    blocks = [layer("block", 2.0e8, 34.0 * hidden, 0.0) for _ in range(num_blocks)]
    layers = (
        layer("embedding", ends, 2.0 * hidden, 0.0),
        *blocks,
        layer("head", ends, 2.0 * hidden, 768_000.0),
    )
    return Workload(model_name="chain", layers=layers, job=Job(adapter_rank=16))


def bench_problem(num_devices: int, objective: Objective | None = None) -> BoundaryProblem:
    workload = chain(80)
    fleet = generate_fleet(num_devices, 1)
    policy = bench_policy(workload.num_layers)
    model = AnalyticCostModel(workload)
    return build_problem(fleet, workload, policy, model, objective=objective).boundaries[0]


@settings(max_examples=60)
@given(case=micro_cases())
def test_rules_of_thumb_give_real_plans_and_no_proof(case: MicroCase) -> None:
    problem = case.problem()
    for solve in (greedy.solve_boundary, equal_split.solve_boundary):
        result = solve(problem, LIMITS)
        assert result.bound is None
        assert result.status in (Status.FEASIBLE, Status.UNKNOWN)
        if result.status is Status.FEASIBLE:
            check_plan(case, problem, result)
        else:
            assert result.value is None
            assert result.replicas == ()


def test_greedy_plans_a_thousand_devices_the_same_way_twice() -> None:
    problem = bench_problem(1024)
    first, second = greedy.solve_boundary(problem, LIMITS), greedy.solve_boundary(problem, LIMITS)
    assert first == second
    assert len(first.replicas) >= 20
    assert first.value is not None
    hand = equal_split.solve_boundary(problem, LIMITS)
    assert hand.value is not None


def test_greedy_starts_and_ends_on_cleared_devices() -> None:
    problem = bench_problem(64)
    result = greedy.solve_boundary(problem, LIMITS)
    assert result.replicas
    for replica in result.replicas:
        first, last = replica.stages[0], replica.stages[-1]
        assert problem.templates[first.template_i].tier_i >= problem.tier_required[0]
        assert problem.templates[last.template_i].tier_i >= problem.tier_required[-1]


def test_greedy_goes_on_while_a_single_replica_gains() -> None:
    problem = bench_problem(64)
    shortest = greedy.solve_boundary(problem, LIMITS)
    single = replace(problem, replicas_max=1, objective=Objective(kind=ObjectiveKind.STEP_TIME))
    longest = greedy.solve_boundary(single, LIMITS)
    assert longest.value is not None
    assert longest.value >= max(r.tokens_per_s for r in shortest.replicas)


def test_greedy_for_price_stops_at_the_target() -> None:
    everything = greedy.solve_boundary(bench_problem(64), LIMITS)
    assert everything.value is not None
    target = everything.value / 3
    wanted = Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=target)
    problem = bench_problem(64, wanted)
    result = greedy.solve_boundary(problem, LIMITS)
    assert counted_tokens_per_s([r.tokens_per_s for r in result.replicas], None) >= target
    assert result.value == pytest.approx(sum(r.usd_per_hour for r in result.replicas))
    assert len(result.replicas) < len(everything.replicas)
    beyond = replace(problem, objective=replace(wanted, tokens_per_s_min=everything.value * 100))
    assert greedy.solve_boundary(beyond, LIMITS).status is Status.UNKNOWN


def test_greedy_asks_a_foreign_cost_model_only_what_it_needs() -> None:
    case = micro_case(3, Condition(), num_devices=4)
    model = CountingCostModel(5, roomy_frac=1.2)
    greedy.solve_boundary(replace(case, cost_model=model, workload=chain(78)).problem(), LIMITS)
    num_intervals = 80 * 81 // 2
    assert 0 < model.num_calls < num_intervals


class CountingCostModel(ForeignCostModel):
    """Counts the stages it is asked for."""

    num_calls = 0

    def _stage(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        self.num_calls += 1
        return super()._stage(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_cut_points_find_plans_on_the_same_problems(seed: int) -> None:
    case = micro_case(random.Random(seed).randrange(10**6), Condition(), num_devices=4)
    problem = case.problem()
    result = cut_points.find_plan(problem, LIMITS)
    assert result.bound is None
    if result.replicas:
        check_plan(case, problem, result)
