"""Proofs by ceilings on micro problems: exact ceilings are confirmed, every fault in them is found."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from planner.check import ceilings
from planner.check.ceilings import CeilingsCheck
from planner.check.columns import ColumnSource
from planner.check.count_bounds import CountBounds
from planner.check.counts import CountGrid, better_packing, num_pairs
from planner.check.proofs import ProofCheck, Proven
from planner.check.report import Findings
from planner.problem import BoundaryProblem, ObjectiveKind
from solver.micro_fleets import CONDITIONS, Condition, micro_case
from solver.referee_plans import (
    Real,
    best_per_usage,
    best_set,
    micro_batches_held,
    real_replicas,
    within_rows,
)

SEEDS = range(6)
Ceilings = list[list[Any]]


def exact_ceilings(problem: BoundaryProblem) -> Ceilings:
    """The best speed on every device count, by plain recursion."""
    return [
        [list(real.usage), problem.tokens_per_step / real.step_s]
        for real in best_per_usage(problem)
        if within_rows(problem, real.usage)
    ]


def judge(problem: BoundaryProblem, listed: object, value: float) -> tuple[Proven | None, set[str]]:
    """What the referee says about a boundary of this value."""
    findings = Findings()
    check = ProofCheck(problem=problem, value=value, coupled=False, alone=True, findings=findings, place="p")
    proven = check.run({"kind": "ceilings", "ceilings": listed, "bound": value})
    return proven, {violation.rule for violation in findings.violations}


def targeted(seed: int, condition: Condition) -> BoundaryProblem:
    """The case of a seed; a price target of 60 % of the best speed where price is minimised."""
    case = micro_case(seed, condition, num_devices=3 if seed % 3 else 4, foreign=seed % 2 == 0)
    if condition.objective is ObjectiveKind.PRICE:
        speeds = [case.workload.job.tokens_per_step / real.step_s for real in best_per_usage(case.problem())]
        case = case.with_target(0.6 * max(speeds, default=1.0))
    return case.problem()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.name)
def test_ceilings_confirm_the_best_value_and_nothing_else(condition: Condition) -> None:
    judged = 0
    for seed in SEEDS:
        problem = targeted(seed, condition)
        best = best_set(problem)
        listed = exact_ceilings(problem)
        if best is None:
            empty = CeilingsCheck(problem=problem, value=None, findings=Findings(), place="p")
            assert empty.run(listed), seed
            continue
        judged += 1
        proven, rules = judge(problem, listed, best[0])
        assert (proven is not None, rules) == (True, set()), seed
        worse = best[0] * (1.001 if problem.objective.kind is ObjectiveKind.PRICE else 0.999)
        assert judge(problem, listed, worse) == (None, {"proof-packing"}), seed
    assert judged >= 2


@pytest.mark.parametrize("seed", range(12))
def test_a_lowered_or_dropped_ceiling_is_found(seed: int) -> None:
    """One at a time, wherever no other ceiling on no more devices stands above the replica."""
    problem = targeted(seed, CONDITIONS[seed % 6])
    listed = exact_ceilings(problem)
    found = 0
    for i, (usage, speed) in enumerate(listed):
        others = listed[:i] + listed[i + 1 :]
        within = [s for u, s in others if all(a <= b for a, b in zip(u, usage, strict=True))]
        if max(within, default=0.0) >= speed * (1 - 1e-6):
            continue
        found += 1
        for fault in (others, [*others, [usage, speed * (1 - 1e-6)]]):
            check = CeilingsCheck(problem=problem, value=math.inf, findings=Findings(), place="p")
            assert not check.run(fault)
            assert {v.rule for v in check.findings.violations} == {"proof-ceilings"}, (seed, usage)
        if found == 6:
            break
    assert found or not listed


@pytest.mark.parametrize("seed", range(6))
def test_a_raised_ceiling_proves_nothing(seed: int) -> None:
    problem = targeted(seed, CONDITIONS[0])
    best = best_set(problem)
    if best is None:
        pytest.skip("no plan")
    usage = list(best[1][0].usage)
    listed = [[u, s * 1.01 if u == usage else s] for u, s in exact_ceilings(problem)]
    assert judge(problem, listed, best[0]) == (None, {"proof-packing"})
    huge = [[u, 1e308] for u, _ in listed]
    assert judge(replace(problem, replicas_min=2), huge, best[0])[0] is None or len(listed) < 2


def test_a_ceiling_covers_all_larger_device_counts() -> None:
    """Ceilings on no more devices that are at least as high stand for those left out."""
    left_out = 0
    for seed in range(20):
        problem = targeted(seed, CONDITIONS[0])
        best, listed = best_set(problem), exact_ceilings(problem)
        needed = [
            [usage, speed]
            for usage, speed in listed
            if not any(
                u != usage and s >= speed and all(a <= b for a, b in zip(u, usage, strict=True))
                for u, s in listed
            )
        ]
        left_out += len(listed) - len(needed)
        if best is not None:
            assert judge(problem, needed, best[0])[1] == set(), seed
    assert left_out >= 1


def test_a_claim_that_nothing_fits_is_refuted() -> None:
    problem = next(p for p in (targeted(seed, CONDITIONS[0]) for seed in SEEDS) if best_set(p) is not None)
    check = CeilingsCheck(problem=problem, value=None, findings=Findings(), place="p")
    assert not check.run(exact_ceilings(problem))
    assert not check.run([])
    assert [v.rule for v in check.findings.violations] == ["proof-packing", "proof-ceilings"]


@pytest.mark.parametrize(
    "listed",
    [
        None,
        7,
        "ceilings",
        {"a": 1},
        [None],
        [[1, 2, 3]],
        [[[0], 1.0]],
        [[["0"], 1.0]],
        [[[True, 0], 1.0]],
        [[[10**9, 0], 1.0]],
        [[[-1, 0], 1.0]],
        [[[0, 0], -1.0]],
        [[[0, 0], math.inf]],
        [[[0, 0], math.nan]],
        [[[0, 0], None]],
    ],
    ids=str,
)
def test_broken_lists_are_refused(listed: object) -> None:
    cases = (micro_case(seed, CONDITIONS[0], num_devices=4).problem() for seed in range(40))
    problem = next(p for p in cases if len(p.classes) == 2)
    assert judge(problem, listed, 1.0) == (None, {"proof-ceilings"})


def test_more_device_counts_than_the_referee_goes_through_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = targeted(1, CONDITIONS[0])
    monkeypatch.setattr(ceilings, "COUNTS_MAX", 1)
    assert judge(problem, [], 1.0) == (None, {"proof-size"})
    monkeypatch.undo()
    monkeypatch.setattr(ceilings, "LABELS_MAX", -1)
    value = best_set(problem)
    assert value is not None
    assert judge(problem, exact_ceilings(problem), value[0])[1] <= {"proof-size"}


def test_ranges_that_hold_too_many_chains_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "LABELS_PER_RANGE", 0)
    monkeypatch.setattr(ceilings, "FIRST_RATIO", 8.0)
    monkeypatch.setattr(ceilings, "NARROW_RATIO", 8.0)
    monkeypatch.setattr(ceilings, "FINEST_RATIO", 1.7)
    for seed in SEEDS:
        problem = targeted(seed, CONDITIONS[0])
        best = best_set(problem)
        if best is not None:
            assert judge(problem, exact_ceilings(problem), best[0])[1] == set(), seed


def load_and_fill(problem: BoundaryProblem, real: Real) -> tuple[float, float]:
    """Seconds per step of a replica's busiest stage or link beyond the fill, and of the fill itself."""
    formula, size, busy, loads = problem.formula(real.mode), real.mode.micro_batch_size, 0.0, [0.0]
    for i, (template, first, stop) in enumerate(real.stages):
        held = micro_batches_held(problem, real.mode, [t.strategy.dp for t, _, _ in real.stages[i:]])
        cost = problem.cost_model.stage(template.cluster, (first, stop), template.strategy, size, held)
        assert cost is not None
        one = cost.forward_s + cost.backward_s + cost.exposed_s
        busy += one
        loads.append(formula.repeats * one + (cost.sync_s if formula.sync else 0.0))
    for (a, _, border), (b, _, _) in pairwise(real.stages):
        link = problem.links[a.site_i][b.site_i]
        assert link is not None
        move_s = problem.cost_model.transfer_s(link, border, size)
        busy += move_s
        loads.append(formula.repeats * move_s)
    return max(loads), formula.fill * busy


@pytest.mark.parametrize("seed", range(10))
def test_bounds_by_device_counts_hold_for_every_replica(seed: int) -> None:
    """Whatever the load range, no real replica fills faster than the bound on its device counts."""
    problem = targeted(seed, CONDITIONS[(0, 4, 5, 8)[seed % 4]])
    grid, source = CountGrid(problem), ColumnSource(problem)
    for mode in problem.modes:
        columns = source.columns(mode)
        if not len(columns.load_s_E):
            continue
        loads_s = np.quantile(columns.load_s_E, (0.2, 0.5, 0.8, 1.0)) * 1.0001
        bounds = CountBounds(columns)
        charged = bounds.charged(loads_s)
        least_UB = bounds.least_fill(charged, grid.shape).reshape(grid.size, -1)
        for real in real_replicas(problem, mode):
            load_s, fill_s = load_and_fill(problem, real)
            code = int(grid.codes(np.array([real.usage]))[0])
            for b in np.flatnonzero(loads_s >= load_s):
                assert least_UB[code, b] <= fill_s * (1 + 1e-9) + 1e-12


def test_packing_agrees_with_plain_enumeration_of_sets() -> None:
    for seed in range(8):
        for condition in CONDITIONS[:8]:
            problem = targeted(seed, condition)
            best, grid = best_set(problem), CountGrid(problem)
            speed_U = np.zeros(grid.size)
            for usage, speed in exact_ceilings(problem):
                code = int(grid.codes(np.array([usage]))[0])
                speed_U[code] = max(speed_U[code], speed)
            found = better_packing(grid, speed_U, None)
            assert (found is None) == (best is None), (seed, condition.name)
            if best is not None:
                assert better_packing(grid, speed_U, best[0] * (1 - 1e-6)) == pytest.approx(best[0])
                assert better_packing(grid, speed_U, best[0]) is None


def test_pairs_are_counted_as_they_are_listed() -> None:
    problem = targeted(2, CONDITIONS[0])
    one_P, rest_P, first_U = CountGrid(problem).pairs
    assert len(one_P) == len(rest_P) == num_pairs(problem)
    assert np.all(np.diff(one_P + rest_P) >= 0)
    assert len(first_U) == CountGrid(problem).size
