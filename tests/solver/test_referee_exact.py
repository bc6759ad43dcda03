"""Closure and threshold proofs on micro problems: the optimum is confirmed, anything less is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner.check.chains import Labels
from planner.check.closure import undominated
from planner.check.completions import chord
from planner.check.multipliers import read_multipliers
from planner.check.proofs import ProofCheck, Proven
from planner.check.report import Findings
from planner.problem import BoundaryProblem, ObjectiveKind
from solver.micro_fleets import CONDITIONS, Condition, micro_case
from solver.referee_plans import best_per_usage, best_set, random_prices, within_rows

SEEDS = range(6)


def closure_proof(problem: BoundaryProblem, rng: random.Random, value: float) -> dict[str, Any]:
    """Multipliers at random, scaled to be just dual feasible over every real replica."""
    free = problem.objective.kind is not ObjectiveKind.PRICE
    proof: dict[str, Any] = {
        "kind": "closure",
        "prices": random_prices(rng, problem),
        "rho": 0.0 if problem.replicas_max is None else rng.choice((0.0, 2.0)),
        "nu": rng.choice((0.0, 20.0)) if free else 0.0,
        "factor": 1.0,
        "bound": value,
    }
    multipliers = read_multipliers(problem, proof, Findings(), "p", coupled=False)
    assert multipliers is not None
    proof["factor"] = max(
        (problem.tokens_per_step / real.step_s + multipliers.nu)
        / (sum(n * p for n, p in zip(real.usage, multipliers.price_C, strict=True)) + multipliers.rho)
        for real in best_per_usage(problem)
        if within_rows(problem, real.usage)
    )
    return proof


def judge(problem: BoundaryProblem, proof: dict[str, Any], value: float) -> tuple[Proven | None, set[str]]:
    """What the referee says about a boundary of this value."""
    findings = Findings()
    check = ProofCheck(problem=problem, value=value, coupled=False, alone=True, findings=findings, place="p")
    return check.run(proof), {violation.rule for violation in findings.violations}


def targeted(seed: int, condition: Condition) -> BoundaryProblem:
    """The case of a seed; a price target of 60 % of the best speed where price is minimised."""
    case = micro_case(seed, condition, num_devices=3 if seed % 3 else 4)
    if condition.objective is ObjectiveKind.PRICE:
        speeds = [case.workload.job.tokens_per_step / real.step_s for real in best_per_usage(case.problem())]
        case = case.with_target(0.6 * max(speeds, default=1.0))
    return case.problem()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.name)
def test_a_closure_confirms_the_best_value_and_nothing_else(condition: Condition) -> None:
    judged = 0
    for seed in SEEDS:
        problem, rng = targeted(seed, condition), random.Random(seed)
        best = best_set(problem)
        if best is None:
            continue
        judged += 1
        proof = closure_proof(problem, rng, best[0])
        proven, rules = judge(problem, proof, best[0])
        assert proven is not None, (seed, rules)
        assert not rules
        worse = best[0] * (1.001 if problem.objective.kind is ObjectiveKind.PRICE else 0.999)
        assert judge(problem, proof | {"bound": worse}, worse) == (None, {"proof-closure"}), seed
        assert "proof-factor" in judge(problem, proof | {"factor": proof["factor"] * 0.999}, best[0])[1], seed
    assert judged >= 2


def round_robin(seed: int, condition: Condition) -> BoundaryProblem:
    """The case of a seed with whole micro-batches handed round, which couples in-flight counts to widths."""
    case = micro_case(seed, condition, num_devices=4)
    job = replace(case.workload.job, schedule="round-robin", micro_batch_sizes=(1, 2))
    return replace(case, workload=replace(case.workload, job=job)).problem()


@pytest.mark.parametrize("condition", [CONDITIONS[0], CONDITIONS[8]], ids=lambda c: c.name)
def test_a_closure_holds_under_round_robin_too(condition: Condition) -> None:
    judged = 0
    for seed in SEEDS:
        problem = round_robin(seed, condition)
        best = best_set(problem)
        if best is None:
            continue
        judged += 1
        proof = closure_proof(problem, random.Random(seed), best[0])
        assert judge(problem, proof, best[0])[1] == set(), seed
        worse = best[0] * 0.999
        assert judge(problem, proof | {"bound": worse}, worse)[1] == {"proof-closure"}, seed
    assert judged >= 2


@pytest.mark.parametrize("seed", range(8))
def test_a_threshold_holds_under_round_robin_too(seed: int) -> None:
    condition = Condition(name="one", objective=ObjectiveKind.STEADY_STATE, replicas_max=1)
    problem = round_robin(seed, condition)
    best = best_set(problem)
    if best is None:
        pytest.skip("no replica fits")
    assert judge(problem, {"kind": "threshold"}, best[0])[1] == set()
    assert judge(problem, {"kind": "threshold"}, best[0] * 0.9999)[1] == {"proof-threshold"}


@pytest.mark.parametrize("seed", range(16))
def test_a_threshold_confirms_the_quickest_bottleneck_and_nothing_else(seed: int) -> None:
    condition = Condition(
        name="one", objective=ObjectiveKind.STEADY_STATE, replicas_max=1, tiers=seed % 2 == 0
    )
    problem = micro_case(seed, condition).problem()
    best = best_set(problem)
    if best is None:
        pytest.skip("no replica fits")
    assert judge(problem, {"kind": "threshold"}, best[0])[1] == set()
    assert judge(problem, {"kind": "threshold"}, best[0] * 0.9999)[1] == {"proof-threshold"}


def test_a_threshold_is_for_one_replica_in_steady_state() -> None:
    problem = micro_case(3, Condition()).problem()
    assert judge(problem, {"kind": "threshold"}, 1.0)[1] == {"proof-kind"}


@pytest.mark.parametrize("seed", range(10))
def test_a_chord_lies_above_the_speed_and_meets_it_at_both_ends(seed: int) -> None:
    rng = random.Random(seed)
    low_s = rng.uniform(0.1, 5.0)
    high_s = low_s * rng.uniform(1.0, 3.0)
    alpha, beta = chord(7.0, low_s, high_s)
    assert alpha - beta * low_s == pytest.approx(7.0 / low_s)
    assert alpha - beta * high_s == pytest.approx(7.0 / high_s)
    for i in range(21):
        step_s = low_s + (high_s - low_s) * i / 20
        assert 7.0 / step_s <= (alpha - beta * step_s) * (1 + 1e-12)
    assert chord(7.0, 0.0, 1.0) == (float("inf"), 0.0)


def test_a_label_is_dropped_only_for_one_that_is_never_slower() -> None:
    problem = micro_case(3, Condition()).problem()

    def labels(*seconds: tuple[float, float, float]) -> Labels:
        fill_s, peak_s, sync_s = np.array(seconds).T
        zeros = np.zeros(len(seconds), dtype=np.int64)
        return Labels(
            start_N=zeros + 1,
            site_N=zeros,
            wide_N=zeros,
            usage_NC=np.zeros((len(seconds), len(problem.classes)), dtype=np.int64),
            fill_s_N=fill_s,
            peak_s_N=peak_s,
            load_s_N=peak_s,
            sync_s_N=sync_s,
        )

    quick = (1.0, 2.0, 0.5)
    assert undominated(problem, labels(quick, (1.0, 2.0, 0.5))).tolist() == [0]
    assert undominated(problem, labels((2.0, 3.0, 1.0), quick)).tolist() == [1]
    # Slower now, but with a lower peak, sync or fill it may be the quicker one behind a slow front.
    for other in ((1.0, 1.5, 1.2), (1.0, 3.0, 0.2), (0.5, 4.0, 0.5)):
        assert sorted(undominated(problem, labels(quick, other)).tolist()) == [0, 1], other
