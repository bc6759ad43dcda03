"""All ways of solving agree with an exhaustive search over devices wherever they claim a proof.

ECHELON_SWEEP=n runs n times as many cases.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from functools import cache, partial

import pytest

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve import bruteforce, cpsat, greedy, milp, pulp_cbc
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.result import BoundaryResult, Limits, Status
from solver.device_oracle import DeviceOracle
from solver.micro_fleets import CONDITIONS, MicroCase, micro_case
from solver.plan_checks import check_plan

SWEEP = int(os.environ.get("ECHELON_SWEEP", "1"))
REL = 1e-6
LIMITS = Limits(deterministic=True)
Solve = Callable[[BoundaryProblem, Limits], BoundaryResult]

PROVING: dict[str, Solve] = {
    "bruteforce": bruteforce.solve_boundary,
    "cpsat": cpsat.solve_boundary,
    "highs": milp.solve_boundary,
    "scip": partial(milp.solve_boundary, backend="scip"),
}
if importlib.util.find_spec("planner.solve.decomposition") is not None:
    from planner.solve import decomposition

    PROVING["decomposition"] = decomposition.solve_boundary


@cache
def _case(
    seed: int, condition_i: int, foreign: bool, num_devices: int | None
) -> tuple[MicroCase, float | None]:
    """A case with the oracle's answer; the price target is a part of what the fleet can do at all."""
    condition = CONDITIONS[condition_i]
    case = micro_case(seed, condition, num_devices=num_devices, foreign=foreign)
    oracle = DeviceOracle(case)
    if condition.target_frac is not None:
        most = max(oracle.totals().values(), default=1.0)
        case = oracle.case = case.with_target(most * condition.target_frac)
    return case, oracle.best()


def _batch(batch_i: int, size: int, num_devices: int | None = None) -> list[tuple[MicroCase, float | None]]:
    """`size` cases, each with its own fleet; conditions and cost models take turns."""
    cases = []
    for seed in range(batch_i * size, (batch_i + 1) * size):
        condition_i = (seed + seed // len(CONDITIONS)) % len(CONDITIONS)
        cases.append(_case(seed, condition_i, seed % 3 != 0, num_devices))
    return cases


def check_against(name: str, case: MicroCase, optimum: float | None, result: BoundaryResult) -> None:
    """A proving solver proves exactly the oracle's answer."""
    where = f"{name} on {case.label}"
    if optimum is None:
        assert result.status is Status.INFEASIBLE, where
        assert not result.replicas
        return
    assert result.status is Status.OPTIMAL, where
    assert result.value == pytest.approx(optimum, rel=REL), where
    assert result.bound is not None
    minimise = case.objective.kind is ObjectiveKind.PRICE
    slack = REL * abs(optimum)
    beyond = optimum - result.bound if not minimise else result.bound - optimum
    assert beyond <= slack, f"{where}: bound {result.bound} contradicts {optimum}"
    assert beyond >= -slack, f"{where}: bound {result.bound} is loose against {optimum}"


@pytest.mark.parametrize("batch_i", range(16 * SWEEP))
@pytest.mark.parametrize("name", PROVING)
def test_every_proof_equals_exhaustive_search_over_devices(name: str, batch_i: int) -> None:
    for case, optimum in _batch(batch_i, 15):
        problem = case.problem()
        result = PROVING[name](problem, LIMITS)
        check_against(name, case, optimum, result)
        if result.replicas:
            check_plan(case, problem, result)


@pytest.mark.parametrize("batch_i", range(16 * SWEEP))
def test_the_best_replica_of_every_set_of_devices_is_found(batch_i: int) -> None:
    """Far sharper than comparing optima: every usage of classes has its own best replica."""
    for seed in range(batch_i * 15, (batch_i + 1) * 15):
        condition = CONDITIONS[(0, 0, 4, 5, 8, 14)[seed % 6]]
        case = micro_case(seed, condition, foreign=seed % 3 != 0)
        problem = case.problem()
        class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
        best: dict[tuple[tuple[int, int], ...], float] = {}
        for mask, speed in DeviceOracle(case).best_by_mask.items():
            ids = [d.device_id for i, d in enumerate(case.fleet.devices) if mask >> i & 1]
            usage = tuple(sorted(Counter(class_of[d] for d in ids).items()))
            best[usage] = max(speed, best.get(usage, 0.0))
        found = {replica.usage: replica.tokens_per_s for replica in enumerate_replicas(problem)}
        assert set(found) <= set(best), case.label
        for usage, speed in best.items():
            have = dict(usage)
            within = [v for u, v in found.items() if all(n <= have.get(c, 0) for c, n in u)]
            assert max(within) >= speed * (1 - 1e-9), (case.label, usage)
            if usage in found:
                assert found[usage] == pytest.approx(speed, rel=1e-9), (case.label, usage)


@pytest.mark.parametrize("batch_i", range(3 * SWEEP))
def test_the_independent_path_milp_agrees(batch_i: int) -> None:
    for case, optimum in _batch(batch_i, 15, num_devices=3 if batch_i else 2):
        problem = case.problem()
        result = pulp_cbc.solve_boundary(problem, LIMITS)
        check_against("cbc", case, optimum, result)
        if result.replicas:
            check_plan(case, problem, result)


@pytest.mark.parametrize("batch_i", range(2 * SWEEP))
def test_six_devices(batch_i: int) -> None:
    for case, optimum in _batch(1000 + batch_i, 4, num_devices=6):
        problem = case.problem()
        for name, solve in PROVING.items():
            check_against(name, case, optimum, solve(problem, LIMITS))


def test_greedy_never_passes_the_optimum_and_never_claims_one() -> None:
    found = 0
    for case, optimum in (c for batch_i in range(8) for c in _batch(batch_i, 15)):
        problem = case.problem()
        result = greedy.solve_boundary(problem, LIMITS)
        assert result.status in (Status.FEASIBLE, Status.UNKNOWN)
        assert result.bound is None
        if result.status is Status.UNKNOWN:
            assert not result.replicas
            continue
        found += 1
        check_plan(case, problem, result)
        assert optimum is not None, case.label
        assert result.value is not None
        if case.objective.kind is ObjectiveKind.PRICE:
            assert result.value >= optimum * (1 - REL)
        else:
            assert result.value <= optimum * (1 + REL)
    assert found >= 40


def test_the_cases_cover_plans_and_refusals() -> None:
    answers = [optimum for batch_i in range(16) for _, optimum in _batch(batch_i, 15)]
    assert sum(optimum is None for optimum in answers) >= 40
    assert sum(optimum is not None for optimum in answers) >= 100
