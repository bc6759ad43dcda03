"""A ceiling or target that three tiny boundaries share, against every combination there is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.fleet import Fleet, Site
from planner.canonical import Inputs
from planner.check.referee import check
from planner.problem import BoundaryProblem, Objective, ObjectiveKind
from planner.solve.result import Limits
from planner.solve.shares import Cut, Option, Side, choose, common_cuts, divide, mix_at
from planner.solving import Request, problem_of, solve_inputs
from policies.errors import InfeasibleError
from policies.policy import Policy
from solver.micro_fleets import random_fleet, random_workload
from solver.referee_plans import Real, best_per_usage, within_rows, worth

SEEDS = (0, 1, 4, 5)
Outcome = tuple[float, float]


@cache
def three_boundaries(seed: int) -> Inputs:
    """Three unlinked fleets of two or three devices under one policy without a cohort."""
    rng = random.Random(seed)
    parts = [_renamed(random_fleet(rng, rng.choice((2, 3)), scattered=False), name) for name in "xyz"]
    fleet = Fleet(
        name="three",
        tiers=parts[0].tiers,
        boundaries=("x", "y", "z"),
        sites=tuple(site for part in parts for site in part.sites),
        hosts=tuple(host for part in parts for host in part.hosts),
        devices=tuple(device for part in parts for device in part.devices),
        links=tuple(link for part in parts for link in part.links),
    )
    workload = random_workload(rng)
    small = replace(workload, job=replace(workload.job, sync_copies_bytes_per_param=0.0, max_stages=3))
    return Inputs(fleet=fleet, workload=small, policy=Policy(min_cohort=1, drop_tolerance=0))


def _renamed(fleet: Fleet, name: str) -> Fleet:
    def site(s: Site) -> Site:
        return replace(s, site_id=f"{name}-{s.site_id}", boundary_id=name)

    return replace(
        fleet,
        sites=tuple(site(s) for s in fleet.sites),
        hosts=tuple(
            replace(h, host_id=f"{name}-{h.host_id}", site_id=f"{name}-{h.site_id}") for h in fleet.hosts
        ),
        devices=tuple(
            replace(d, device_id=f"{name}-{d.device_id}", host_id=f"{name}-{d.host_id}")
            for d in fleet.devices
        ),
        links=tuple(
            replace(
                link,
                source_site_id=f"{name}-{link.source_site_id}",
                target_site_id=f"{name}-{link.target_site_id}",
            )
            for link in fleet.links
        ),
    )


def outcomes(problem: BoundaryProblem) -> list[Outcome]:
    """USD per hour and tokens/s of every admissible set of replicas."""
    reals = best_per_usage(problem)
    usd_C = [c.device.usd_per_hour for c in problem.classes]
    found: list[Outcome] = []

    def grow(first: int, chosen: tuple[Real, ...], used: tuple[int, ...]) -> None:
        if chosen:
            usd = sum(n * price for n, price in zip(used, usd_C, strict=True))
            found.append((usd, worth(problem, chosen)))
        for i in range(first, len(reals)):
            more = tuple(a + b for a, b in zip(used, reals[i].usage, strict=True))
            if within_rows(problem, more):
                grow(i, (*chosen, reals[i]), more)

    grow(0, (), (0,) * len(problem.classes))
    return found


@cache
def all_totals(seed: int) -> tuple[Outcome, ...] | None:
    """USD per hour and tokens/s of every combination of the three boundaries; None when one has no plan."""
    totals: list[Outcome] = [(0.0, 0.0)]
    for boundary in problem_of(three_boundaries(seed), Request()).boundaries:
        totals = [(a + usd, b + speed) for a, b in totals for usd, speed in outcomes(boundary)]
    return tuple(totals) or None


def frac_of_range(numbers: Sequence[float], frac: float) -> float:
    low, high = min(numbers), max(numbers)
    return low + frac * (high - low)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("frac", [0.0, 0.4, 0.8, 1.0])
def test_a_shared_ceiling_is_kept_and_its_bound_is_true(seed: int, frac: float) -> None:
    totals = all_totals(seed)
    inputs = three_boundaries(seed)
    if totals is None:
        pytest.skip("a boundary of this seed holds no replica")
    ceiling = frac_of_range([usd for usd, _ in totals], frac) + 1e-6
    best = max(speed for usd, speed in totals if usd <= ceiling)
    capped = replace(inputs, policy=replace(inputs.policy, usd_per_hour_max=ceiling))
    plan = solve_inputs(capped, Request(), Limits(deterministic=True), processes=0).plan
    report = check(plan)
    assert report.violations == ()
    assert report.value is not None
    assert report.bound is not None
    assert report.value <= best * (1 + 1e-9)
    assert report.bound >= best * (1 - 1e-9)
    assert report.value == pytest.approx(best), "every share of so small a fleet is tried"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("frac", [0.1, 0.6, 1.0])
def test_a_shared_target_is_met_and_its_bound_is_true(seed: int, frac: float) -> None:
    totals = all_totals(seed)
    if totals is None:
        pytest.skip("a boundary of this seed holds no replica")
    target = frac_of_range([speed for _, speed in totals], frac) * (1 - 1e-9)
    best = min(usd for usd, speed in totals if speed >= target)
    objective = Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=target)
    request = Request(objective=objective)
    plan = solve_inputs(three_boundaries(seed), request, Limits(deterministic=True), processes=0).plan
    report = check(plan)
    assert report.violations == ()
    assert report.value is not None
    assert report.bound is not None
    assert plan.tokens_per_s >= target * (1 - 1e-9)
    assert report.value >= best * (1 - 1e-9)
    assert report.bound <= best * (1 + 1e-9)


def test_limits_out_of_reach_are_proven_so() -> None:
    seed = next(s for s in SEEDS if all_totals(s) is not None)
    totals, inputs = all_totals(seed), three_boundaries(seed)
    assert totals is not None
    cheap = min(usd for usd, _ in totals) * 0.9
    capped = replace(inputs, policy=replace(inputs.policy, usd_per_hour_max=cheap))
    with pytest.raises(InfeasibleError):
        solve_inputs(capped, Request(), Limits(deterministic=True), processes=0)
    fast = max(speed for _, speed in totals) * 1.1
    request = Request(objective=Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=fast))
    with pytest.raises(InfeasibleError):
        solve_inputs(inputs, request, Limits(deterministic=True), processes=0)


def random_sides(rng: random.Random) -> list[Side]:
    sides = []
    for _ in range(rng.randint(1, 4)):
        multipliers = {"prices": {}, "rho": 0.0, "nu": 0.0}
        cuts = [
            Cut(base=rng.uniform(0, 9), slope=rng.uniform(0, 3), multipliers=multipliers)
            for _ in range(rng.randint(1, 4))
        ]
        options = [Option(used=rng.uniform(0, 5), value=rng.uniform(0, 9)) for _ in range(rng.randint(1, 4))]
        least, most = (pick(option.used for option in options) for pick in (min, max))
        sides.append(Side(least=least, most=most, cuts=cuts, options=options))
    return sides


@given(st.integers(0, 10**9), st.floats(0.0, 1.0))
def test_shares_keep_the_amount_and_no_other_division_is_higher(seed: int, frac: float) -> None:
    rng = random.Random(seed)
    sides = random_sides(rng)
    least, most = sum(s.least for s in sides), sum(s.most for s in sides)
    amount = least + frac * (most - least)
    shares, _ = divide(sides, amount)
    assert sum(shares) <= amount + 1e-6
    height = sum(side.height(x) for side, x in zip(sides, shares, strict=True))
    for _ in range(30):
        weights = [rng.random() for _ in sides]
        room = amount - least
        other = [min(s.most, s.least + room * w / sum(weights)) for s, w in zip(sides, weights, strict=True)]
        assert sum(s.height(x) for s, x in zip(sides, other, strict=True)) <= height + 1e-6


@given(st.integers(0, 10**9))
def test_options_are_combined_as_well_as_can_be(seed: int) -> None:
    rng = random.Random(seed)
    sides = random_sides(rng)
    amount = rng.uniform(0.0, 20.0)
    totals: list[Outcome] = [(0.0, 0.0)]
    for side in sides:
        totals = [(a + o.used, b + o.value) for a, b in totals for o in side.options]
    best = max((value for used, value in totals if used <= amount), default=None)
    chosen = choose(sides, amount)
    assert (chosen is None) == (best is None)
    if chosen is not None:
        assert sum(o.used for o in chosen) <= amount + 1e-6
        assert sum(o.value for o in chosen) == pytest.approx(best)


@given(st.integers(0, 10**9), st.booleans())
def test_cuts_of_one_slope_lie_above_the_least_cut(seed: int, upwards: bool) -> None:
    rng = random.Random(seed)
    sides = random_sides(rng)
    slope = rng.uniform(0.0, 3.0)
    for side in sides:
        mixed = mix_at(side, slope, upwards=upwards)
        if mixed is not None:
            for share in (0.0, 1.0, 5.0):
                assert mixed.at(share) >= side.height(share) - 1e-9
    together = common_cuts(sides, 3.0, upwards=upwards)
    if together is not None:
        slopes = [cut.slope for cut in together]
        worst = min(slopes) if upwards else max(slopes)
        assert all(cut.slope >= worst if upwards else cut.slope <= worst for cut in together)
