"""What the referee derives from a proof is a true bound: exhaustive search over micro problems obeys it."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.check.columns import ColumnSource
from planner.check.dual import DualCheck
from planner.check.hull import Cut, largest_ratio
from planner.check.multipliers import read_multipliers
from planner.check.proofs import ProofCheck
from planner.check.rate import best_rates, boundary_rate_bound
from planner.check.relaxed import BoxPaths, Weights
from planner.check.report import Findings
from planner.problem import BoundaryProblem, Mode, ObjectiveKind
from solver.micro_fleets import CONDITIONS, Condition, micro_case
from solver.referee_plans import best_per_usage, best_set, random_boxes, random_prices

SEEDS = range(7)


def slow_least(problem: BoundaryProblem, mode: Mode, upto_s: float, weights: Weights) -> float:
    """The cheapest relaxed path by plain recursion."""
    formula, model = problem.formula(mode), problem.cost_model

    def onward(layer: int, site: int, left: int) -> float:
        best = math.inf
        for template in (problem.templates[i] for i in mode.templates if left):
            held = min(mode.num_micro_batches, left)
            for stop in range(layer + 1, problem.num_layers + 1):
                if max(problem.tier_required[layer:stop]) > template.tier_i:
                    continue
                if (left == 1) != (stop == problem.num_layers):
                    continue
                cost = model.stage(
                    template.cluster, (layer, stop), template.strategy, mode.micro_batch_size, held
                )
                if cost is None or not cost.fits:
                    continue
                if formula.repeats * cost.busy_s + (cost.sync_s if formula.sync else 0.0) > upto_s:
                    continue
                total = weights.price_J[template.template_i] + weights.seconds * formula.fill * cost.busy_s
                if site >= 0:
                    link = problem.links[site][template.site_i]
                    if link is None:
                        continue
                    move_s = model.transfer_s(link, layer, mode.micro_batch_size)
                    if formula.repeats * move_s > upto_s:
                        continue
                    total += weights.seconds * formula.fill * move_s
                if site != template.site_i:
                    total += weights.start_S[template.site_i]
                if stop < problem.num_layers:
                    total += onward(stop, template.site_i, left - 1)
                best = min(best, total)
        return best

    return min(onward(0, -1, left) for left in range(1, min(mode.max_stages, problem.num_layers) + 1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "condition", [CONDITIONS[0], CONDITIONS[4], CONDITIONS[5], CONDITIONS[8]], ids=lambda c: c.name
)
def test_relaxed_paths_are_the_cheapest_ones(seed: int, condition: Condition) -> None:
    rng = random.Random(seed)
    case = micro_case(seed, condition)
    # Links slow enough for a box to shut them out.
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s / 100.0) for link in case.fleet.links)
    sites = tuple(replace(s, fabric_bytes_per_s=s.fabric_bytes_per_s / 1000.0) for s in case.fleet.sites)
    problem = replace(case, fleet=replace(case.fleet, links=links, sites=sites)).problem()
    source = ColumnSource(problem)
    for mode in problem.modes:
        for _ in range(3):
            weights = Weights(
                seconds=rng.choice((0.0, rng.uniform(0.0, 3.0))),
                price_J=np.array([rng.uniform(-0.5, 2.0) for _ in problem.templates]),
                start_S=np.array([-rng.uniform(0.0, 2.0) for _ in problem.site_ids]),
            )
            upto_s = rng.choice((math.inf, rng.uniform(0.1, 10.0)))
            found = BoxPaths(source.columns(mode), upto_s).least(weights) if mode.templates else math.inf
            assert found == pytest.approx(slow_least(problem, mode, upto_s, weights), rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_the_hull_bounds_every_point_and_is_attained(seed: int) -> None:
    rng = random.Random(seed)
    cuts = [
        Cut(
            w_weight=rng.choice((0.0, rng.uniform(0.1, 3.0))),
            c_weight=rng.uniform(0.1, 3.0),
            least=rng.uniform(-1, 4),
        )
        for _ in range(rng.randint(1, 5))
    ]
    cuts.append(Cut(w_weight=1.0, c_weight=0.0, least=rng.uniform(0.0, 1.0)))
    seconds_min, rho, nu = rng.uniform(0.01, 2.0), rng.choice((0.05, 1.0)), rng.choice((0.0, 3.0))
    found = largest_ratio(
        cuts, tokens_per_step=10.0, seconds_min=seconds_min, fill_max_s=math.inf, rho=rho, nu=nu
    )
    best = 0.0
    w_low = max(0.0, cuts[-1].least)
    for i in range(40_001):
        w = w_low + i * 5e-4
        c = max(0.0, *((cut.least - cut.w_weight * w) / cut.c_weight for cut in cuts[:-1]))
        best = max(best, (10.0 / (w + seconds_min) + nu) / (c + rho))
    assert best <= found * (1 + 1e-12)
    assert best >= found * (1 - 5e-3)


def test_no_cuts_prove_nothing_without_a_price_per_replica() -> None:
    assert (
        largest_ratio([], tokens_per_step=1.0, seconds_min=1.0, fill_max_s=math.inf, rho=0.0, nu=0.0)
        == math.inf
    )
    assert (
        largest_ratio([], tokens_per_step=1.0, seconds_min=2.0, fill_max_s=math.inf, rho=0.5, nu=0.0) == 1.0
    )
    steep = [Cut(w_weight=1.0, c_weight=0.0, least=2.0), Cut(w_weight=0.0, c_weight=1.0, least=4.0)]
    assert (
        largest_ratio(steep, tokens_per_step=8.0, seconds_min=0.0, fill_max_s=math.inf, rho=0.0, nu=0.0)
        == 1.0
    )


def derive(problem: BoundaryProblem, rng: random.Random) -> tuple[float, float] | None:
    """Factor and bound that random prices and boxes support; None when they support nothing."""
    free = problem.objective.kind is not ObjectiveKind.PRICE
    proof = {
        "kind": "dual",
        "prices": random_prices(rng, problem),
        "rho": 0.0 if problem.replicas_max is None else rng.choice((0.0, rng.uniform(0.0, 5.0))),
        "nu": rng.choice((0.0, rng.uniform(0.0, 50.0))) if free else 0.0,
        "factor": 1.0,
        "modes": random_boxes(rng, problem, charged=True),
    }
    findings = Findings()
    multipliers = read_multipliers(problem, proof, findings, "proof", coupled=False)
    assert multipliers is not None, findings.violations
    factor = DualCheck(problem=problem, multipliers=multipliers, findings=findings, place="p").run(
        proof["modes"]
    )
    assert not findings.violations
    assert factor is not None
    proof["factor"] = factor
    if factor in (0.0, math.inf):
        return None
    scaled = read_multipliers(problem, proof, findings, "proof", coupled=False)
    assert scaled is not None
    for real in best_per_usage(problem):
        price = sum(n * p for n, p in zip(real.usage, scaled.price_C, strict=True)) + scaled.rho
        assert (problem.tokens_per_step / real.step_s + scaled.nu) / price <= factor * (1 + 1e-9)
    bound = scaled.bound(problem)
    proof["bound"] = bound
    run = ProofCheck(problem=problem, value=0.0, coupled=False, alone=True, findings=findings, place="p").run(
        proof
    )
    assert not findings.violations
    assert run is not None
    assert run.bound == pytest.approx(bound)
    return factor, bound


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.name)
def test_no_set_of_replicas_passes_a_dual_bound(condition: Condition) -> None:
    judged = 0
    for seed in SEEDS:
        case = micro_case(seed, condition, num_devices=3)
        problem = case.problem()
        best = best_set(problem)
        derived = derive(problem, random.Random(seed))
        if best is None or derived is None:
            continue
        judged += 1
        if problem.objective.kind is ObjectiveKind.PRICE:
            assert derived[1] <= best[0] * (1 + 1e-9)
        else:
            assert derived[1] >= best[0] * (1 - 1e-9)
    assert judged >= 2 or condition.replicas_min > 1


def test_no_replica_passes_a_dual_bound_under_round_robin() -> None:
    judged = 0
    for seed in range(8):
        case = micro_case(seed, CONDITIONS[0], num_devices=4)
        job = replace(case.workload.job, schedule="round-robin", micro_batch_sizes=(1, 2))
        problem = replace(case, workload=replace(case.workload, job=job)).problem()
        best = best_set(problem)
        derived = derive(problem, random.Random(seed))
        if best is not None and derived is not None:
            judged += 1
            assert derived[1] >= best[0] * (1 - 1e-9)
    assert judged >= 3


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.name)
def test_no_set_of_replicas_passes_the_rate_bound(condition: Condition) -> None:
    for seed in SEEDS:
        problem = micro_case(seed, condition, num_devices=3).problem()
        best = best_set(problem)
        if best is None:
            continue
        bound = boundary_rate_bound(problem, best_rates(problem))
        if problem.objective.kind is ObjectiveKind.PRICE:
            assert bound <= best[0] * (1 + 1e-9)
        else:
            assert bound >= best[0] * (1 - 1e-9)


def test_a_cut_that_nearly_ignores_time_needs_the_longest_fill() -> None:
    cuts = [Cut(w_weight=1e-14, c_weight=1.0, least=2.0)]
    found = [
        largest_ratio(cuts, tokens_per_step=6.0, seconds_min=3.0, fill_max_s=most_s, rho=0.0, nu=0.0)
        for most_s in (10.0, math.inf)
    ]
    assert found[0] == pytest.approx(1.0)
    assert found[1] == math.inf


def test_pairs_of_cuts_cross_where_the_hull_says() -> None:
    cuts = [Cut(w_weight=1.0, c_weight=1.0, least=4.0), Cut(w_weight=3.0, c_weight=1.0, least=6.0)]
    corners = [(0.0, 6.0), (1.0, 3.0), (4.0, 0.0)]
    expected = max(10.0 / (w + 1.0) / (c + 1.0) for w, c in corners)
    assert largest_ratio(
        cuts, tokens_per_step=10.0, seconds_min=1.0, fill_max_s=math.inf, rho=1.0, nu=0.0
    ) == pytest.approx(expected)
    assert all(a[0] < b[0] for a, b in pairwise(corners))
