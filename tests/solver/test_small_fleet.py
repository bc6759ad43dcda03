"""Small fleets solved exactly: against exhaustive search over devices, and before the referee.

ECHELON_SWEEP=n runs n times as many cases.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from costmodels.workload import ROUND_ROBIN
from planner.check.ceilings import CeilingsCheck
from planner.check.multipliers import read_multipliers
from planner.check.proofs import ProofCheck
from planner.check.report import Findings
from planner.problem import BoundaryProblem
from planner.solve import small, small_stages
from planner.solve.columns import build_shape
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from planner.solve.small import is_small, solve_small_boundary
from planner.solve.small_fleet import SmallFleet
from planner.solve.small_labels import Effort
from planner.solve.tables import build_signatures, build_tables
from solver.device_oracle import DeviceOracle
from solver.micro_fleets import CONDITIONS, MicroCase, micro_case
from solver.plan_checks import check_plan

SWEEP = int(os.environ.get("ECHELON_SWEEP", "1"))
PER_BATCH = 10
LIMITS = Limits(deterministic=True)


def build(seed: int, condition_i: int, *, foreign: bool) -> MicroCase:
    """The micro case of a seed under a condition, with a reachable target where one is asked for."""
    condition = CONDITIONS[condition_i]
    case = micro_case(seed, condition, foreign=foreign)
    if condition.target_frac is not None:
        most = max(DeviceOracle(case).totals().values(), default=1.0)
        case = case.with_target(condition.target_frac * most)
    return case


def solve(problem: BoundaryProblem, limits: Limits = LIMITS) -> BoundaryResult | None:
    """The hook on its own."""
    return solve_small_boundary(problem, build_shape(problem), limits)


def confirm(problem: BoundaryProblem, result: BoundaryResult, where: str) -> None:
    """The referee repeats the proof, also where it says that nothing fits."""
    findings = Findings()
    if result.value is None:
        check = CeilingsCheck(problem=problem, value=None, findings=findings, place=where)
        assert check.run(result.proof["ceilings"]), findings.violations
        return
    judge = ProofCheck(
        problem=problem, value=result.value, coupled=False, alone=True, findings=findings, place=where
    )
    assert judge.run(result.proof) is not None, findings.violations
    assert not findings.violations


@pytest.mark.parametrize("batch_i", range(12 * SWEEP))
@pytest.mark.parametrize("foreign", [True, False])
def test_small_fleets_agree_with_exhaustive_search(batch_i: int, foreign: bool) -> None:
    """Value, plan and infeasibility are those of a search over devices; the referee agrees."""
    for i in range(batch_i * PER_BATCH, (batch_i + 1) * PER_BATCH):
        case = build(5000 + i, i % len(CONDITIONS), foreign=foreign)
        problem, want = case.problem(), DeviceOracle(case).best()
        result = solve(problem)
        assert result is not None, case.label
        assert (result.value is None) == (want is None), case.label
        assert result.status is (Status.INFEASIBLE if want is None else Status.OPTIMAL), case.label
        if want is not None:
            assert result.value == pytest.approx(want, rel=1e-9), case.label
            assert result.bound == result.value
            check_plan(case, problem, result)
        confirm(problem, result, case.label)


@pytest.mark.parametrize("seed", [5493, 5538])
def test_a_stage_of_more_load_but_less_sync_may_be_the_better_one(seed: int) -> None:
    """The longest sync and the slowest stage are often two: tables of loads lose such replicas."""
    case = build(seed, 13, foreign=True)
    problem = case.problem()
    result = solve(problem)
    assert result is not None
    confirm(problem, result, case.label)
    tables = build_tables(problem, build_signatures(problem))
    coarse = SmallFleet(problem, build_shape(problem), tables, Effort(left=10**9, should_stop=lambda: False))
    answer = coarse.solve()
    assert answer is not None
    check = CeilingsCheck(problem=problem, value=result.value, findings=Findings(), place="coarse")
    assert not check.run([list(pair) for pair in answer.ceilings])


def with_plan() -> BoundaryProblem:
    """A problem that has a plan of several stages or replicas."""
    for seed in range(40, 90):
        case = build(seed, 0, foreign=True)
        if len(case.problem().classes) > 1 and DeviceOracle(case).best() is not None:
            return case.problem()
    raise AssertionError("no case has a plan")


def run_of(problem: BoundaryProblem) -> SmallFleet:
    """A finished run."""
    tables = build_tables(problem, build_signatures(problem), exact=True)
    run = SmallFleet(problem, build_shape(problem), tables, Effort(left=10**9, should_stop=lambda: False))
    run.run()
    return run


@pytest.mark.parametrize("seed", range(40, 46))
def test_no_replica_passes_its_ceiling(seed: int) -> None:
    """Every set of devices that can form a replica keeps the ceiling of its device counts."""
    case = build(seed, 0, foreign=True)
    oracle, problem = DeviceOracle(case), case.problem()
    answer = run_of(problem).solve()
    assert answer is not None
    class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
    for mask, speed in oracle.best_by_mask.items():
        counts = np.zeros(len(problem.classes), dtype=np.int64)
        for i, device in enumerate(oracle.devices):
            if mask >> i & 1:
                counts[class_of[device.device_id]] += 1
        within = [t for usage, t in answer.ceilings if np.all(np.array(usage) <= counts)]
        assert speed <= max(within, default=0.0) * (1 + 1e-9)


def test_a_raised_ceiling_breaks_the_proof() -> None:
    run = run_of(with_plan())
    assert run.is_proven()
    assert run.choice is not None
    run.ceiling_U[run.choice.counts[0]] *= 1.001
    assert not run.is_proven()


def test_bounds_that_are_too_tight_are_caught_by_the_referee(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the solver's bounds wrong, it would miss the best plan and the referee would not confirm it."""
    problem = with_plan()
    honest, bound = solve(problem), small_stages.CountBounds.least_fill
    assert honest is not None
    monkeypatch.setattr(
        small_stages.CountBounds, "least_fill", lambda *args, **options: bound(*args, **options) + np.inf
    )
    wrong = solve(problem)
    assert wrong is not None
    assert wrong.value != honest.value
    with pytest.raises(AssertionError):
        confirm(problem, wrong, "too tight")


def test_too_much_effort_leaves_it_to_the_general_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "EFFORT_MAX", 0)
    assert solve(with_plan()) is None


def test_a_late_clock_leaves_it_to_the_general_way() -> None:
    assert solve(with_plan(), Limits(deadline_s=0.0)) is None
    assert solve(with_plan(), Limits(deadline_s=0.0, deterministic=True)) is not None


def test_whoever_is_told_to_stop_claims_no_bound() -> None:
    result = solve(with_plan(), Limits(should_stop=lambda: True))
    assert result is not None
    assert result.bound is None
    assert result.proof == {"kind": "none"}
    assert result.status in (Status.UNKNOWN, Status.FEASIBLE)


def test_progress_brackets_the_answer() -> None:
    heard: list[Progress] = []
    result = solve(with_plan(), Limits(deterministic=True, report=heard.append))
    assert result is not None
    assert result.value is not None
    assert heard
    for progress in heard:
        assert progress.bound is None or progress.bound >= result.value * (1 - 1e-9)
        assert progress.value is None or progress.value <= result.value * (1 + 1e-9)


def test_prices_are_worth_of_rows() -> None:
    problem = with_plan()
    result = solve(problem)
    assert result is not None
    assert set(result.prices) <= {row.name for row in problem.rows}
    assert all(price >= 0.0 for price in result.prices.values())
    assert any(price > 0.0 for price in result.prices.values())


@pytest.mark.parametrize("condition_i", [0, 1, 2, 6, 11, 12])
def test_multipliers_that_come_along_bound_every_replica(condition_i: int) -> None:
    """Boundaries that share a limit use them: no replica is worth more than the factor allows."""
    priced = 0
    for seed in range(6000, 6030):
        problem = build(seed, condition_i, foreign=True).problem()
        result = solve(problem)
        assert result is not None
        if "factor" not in result.proof:
            continue
        priced += 1
        terms = read_multipliers(problem, result.proof, Findings(), "p", coupled=False)
        assert terms is not None
        for replica in enumerate_replicas(problem):
            cost = sum(n * terms.price_C[class_i] for class_i, n in replica.usage) + terms.rho
            assert replica.tokens_per_s + terms.nu <= terms.factor * cost * (1 + 1e-9)
    assert priced >= 3


def test_what_this_way_does_not_express_is_left_to_the_general_one() -> None:
    problem = with_plan()
    rows = tuple(replace(row, coefficients=((0, -1.0),)) for row in problem.rows)
    job = replace(problem.workload.job, schedule=ROUND_ROBIN)
    assert is_small(problem)
    for other in (
        replace(problem, rows=rows),
        replace(problem, workload=replace(problem.workload, job=job)),
        replace(problem, classes=problem.classes * 40),
    ):
        assert not is_small(other)
        assert solve_small_boundary(other, build_shape(problem), LIMITS) is None
