"""One replica: equal to exhaustive search over devices, with a bound the referee derives as well."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from math import inf

import numpy as np
import pytest

from planner.check.proofs import ProofCheck
from planner.check.report import Findings
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve import single, single_bound
from planner.solve.columns import build_shape
from planner.solve.result import BoundaryResult, Limits, Progress
from planner.solve.single import solve_single
from planner.solve.single_views import pack_rows
from policies.policy import SpareKind, SpareRule
from solver.device_oracle import DeviceOracle
from solver.micro_fleets import Condition, MicroCase, micro_case
from solver.plan_checks import check_plan

CONDITIONS = (
    Condition(name="one", replicas_max=1),
    Condition(name="one-tiers", replicas_max=1, tiers=True),
    Condition(name="one-pooled", replicas_max=1, spares=SpareRule(kind=SpareKind.POOLED, pool_min_devices=3)),
    Condition(name="one-dedicated", replicas_max=1, spares=SpareRule(kind=SpareKind.DEDICATED)),
    Condition(name="one-ceiling", replicas_max=1, usd_per_hour_max_frac=0.55),
    Condition(name="one-step-time", objective=ObjectiveKind.STEP_TIME, tiers=True),
    Condition(name="one-deepspeed", replicas_max=1, executor="deepspeed"),
)
EXACT = Limits(deterministic=True)
SEEDS = range(3000, 3056)


@cache
def case_of(seed: int) -> tuple[MicroCase, BoundaryProblem, float | None]:
    """A random fleet and what exhaustive search says about it."""
    case = micro_case(seed, CONDITIONS[seed % len(CONDITIONS)], foreign=seed % 3 != 0)
    problem = replace(case.problem(), replicas_max=1)
    return case, problem, DeviceOracle(case).best()


def referee(problem: BoundaryProblem, result: BoundaryResult) -> tuple[float | None, list[str]]:
    """The bound the referee derives from a result's proof, and the rules it finds broken."""
    findings = Findings()
    assert result.value is not None
    check = ProofCheck(
        problem=problem, value=result.value, coupled=False, alone=True, findings=findings, place="proof"
    )
    proven = check.run(result.proof)
    return (None if proven is None else proven.bound), [v.rule for v in findings.violations]


def check_result(
    case: MicroCase, problem: BoundaryProblem, result: BoundaryResult | None, optimum: float | None
) -> None:
    """A sound plan and a sound bound around the optimum."""
    if optimum is None:
        assert result is None, case.label
        return
    assert result is not None, case.label
    assert result.value is not None
    assert result.bound is not None
    check_plan(case, problem, result)
    assert result.value <= optimum * (1 + 1e-9), case.label
    assert result.bound >= optimum * (1 - 1e-9), case.label
    bound, broken = referee(problem, result)
    assert broken == [], case.label
    assert bound == pytest.approx(result.bound, rel=1e-9), case.label


@pytest.mark.parametrize("seed", SEEDS)
def test_one_replica_equals_exhaustive_search_over_devices(seed: int) -> None:
    case, problem, optimum = case_of(seed)
    result = solve_single(problem, EXACT)
    check_result(case, problem, result, optimum)
    if result is not None:
        assert result.stop in ("searched", "good-enough"), case.label
        assert result.value == pytest.approx(optimum, rel=1e-9), case.label


@pytest.mark.parametrize("seed", range(3100, 3114))
def test_five_and_six_devices(seed: int) -> None:
    case = micro_case(seed, CONDITIONS[seed % 2], num_devices=5 + seed % 2)
    problem = replace(case.problem(), replicas_max=1)
    optimum = DeviceOracle(case).best()
    result = solve_single(problem, EXACT)
    check_result(case, problem, result, optimum)
    if result is not None:
        assert result.value == pytest.approx(optimum, rel=1e-9), case.label


@pytest.mark.parametrize("seed", SEEDS[:21])
def test_a_coarse_goal_stays_within_it(seed: int) -> None:
    case, problem, optimum = case_of(seed)
    result = solve_single(problem, Limits(deterministic=True, max_excess_frac=0.05))
    check_result(case, problem, result, optimum)
    if result is not None and optimum is not None:
        assert result.value is not None
        assert result.value >= optimum / 1.05 * (1 - 1e-9), case.label


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 8, 21])
def test_stopped_at_any_time_it_has_a_valid_bound(calls: int) -> None:
    found = 0
    for seed in SEEDS[:21]:
        case, problem, optimum = case_of(seed)
        asked = count()
        limits = Limits(deterministic=True, should_stop=lambda asked=asked: next(asked) >= calls)  # type: ignore[misc]
        result = solve_single(problem, limits)
        if result is not None:
            found += 1
            check_result(case, problem, result, optimum)
    assert found > 0 or calls < 3


def test_the_cases_cover_plans_and_refusals() -> None:
    optima = [case_of(seed)[2] for seed in SEEDS]
    assert sum(optimum is None for optimum in optima) >= 8
    assert sum(optimum is not None for optimum in optima) >= 20


def test_counted_limits_repeat_byte_for_byte() -> None:
    for seed in SEEDS[:12]:
        problem = case_of(seed)[1]
        one, two = solve_single(problem, EXACT), solve_single(problem, EXACT)
        assert repr(one) == repr(two)


def test_every_report_is_as_good_as_the_one_before() -> None:
    for seed in SEEDS[:20]:
        heard: list[Progress] = []
        solve_single(case_of(seed)[1], Limits(deterministic=True, report=heard.append))
        values = [p.value for p in heard if p.value is not None]
        bounds = [p.bound for p in heard if p.bound is not None]
        assert values == sorted(values)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(bounds))


def test_problems_of_another_kind_are_left_alone() -> None:
    problem = micro_case(1, Condition()).problem()
    assert solve_single(problem, EXACT) is None
    price = micro_case(1, Condition(objective=ObjectiveKind.PRICE, replicas_max=1)).problem()
    assert solve_single(price, EXACT) is None
    assert solve_single(replace(problem, replicas_max=1, replicas_min=2), EXACT) is None


def test_packed_rows_compare_field_by_field() -> None:
    for seed in SEEDS[:20]:
        problem = case_of(seed)[1]
        shape = build_shape(problem)
        room = pack_rows(shape)
        for one, other in np.random.default_rng(seed).integers(0, len(problem.templates), (30, 2)):
            used_X = room.used_JX[one] + room.used_JX[other]
            alone = all(
                bool(np.all((room.limit_X | room.guard_X) - room.used_JX[j] & room.guard_X == room.guard_X))
                for j in (one, other)
            )
            packed = bool(np.all(((room.limit_X | room.guard_X) - used_X) & room.guard_X == room.guard_X))
            true = bool(
                np.all(shape.coefficient_RC @ (shape.usage_JC[one] + shape.usage_JC[other]) <= shape.limit_R)
            )
            if alone:
                assert packed == true


def test_a_bound_taken_too_high_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: multipliers that credit too little make a proof the referee rejects."""
    real = single_bound.FillBounds.run

    def cheat(self: single_bound.FillBounds, view: object, usage_2C: object) -> tuple[float, list[object]]:
        value, paths = real(self, view, usage_2C)  # type: ignore[arg-type]
        return value * 1.2, list(paths)

    monkeypatch.setattr(single_bound.FillBounds, "run", cheat)
    broken = 0
    for seed in SEEDS[:30]:
        result = solve_single(case_of(seed)[1], EXACT)
        if result is not None:
            broken += "proof-factor" in referee(case_of(seed)[1], result)[1]
    assert broken > 0


def test_a_search_that_overlooks_replicas_is_refused() -> None:
    """A box that claims more than its search could show: seconds just above the best replica's."""
    refused = stated = 0
    for seed in SEEDS[:30]:
        _, problem, _ = case_of(seed)
        result = solve_single(problem, EXACT)
        if result is None:
            continue
        step_s = result.replicas[0].step_s * (1 + 1e-6)
        modes = [
            {**mode, "boxes": [{**box, "searched_s": step_s} for box in mode["boxes"]]}
            for mode in result.proof["modes"]
        ]
        broken = referee(problem, replace(result, proof={**result.proof, "modes": modes}))[1]
        refused += "proof-searched" in broken
        stated += 1
    assert refused == stated > 0


def test_no_replica_is_lost_between_boxes() -> None:
    """Boxes of a result run from zero to infinity without a hole."""
    for seed in SEEDS[:30]:
        result = solve_single(case_of(seed)[1], EXACT)
        for mode in [] if result is None else result.proof["modes"]:
            edges = [inf if box["upto_s"] is None else box["upto_s"] for box in mode["boxes"]]
            assert edges == sorted(edges)
            assert edges[-1] == inf
    assert single.SWEEPS[-1][0] == 0.0
