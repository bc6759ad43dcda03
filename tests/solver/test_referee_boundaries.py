"""Several boundaries at once: shared ceilings and targets, foreign devices, crossings, failovers, spares."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from costmodels.fleet import Fleet
from planner.build import build_problem
from planner.canonical import Inputs
from planner.check.certificate import total_bound
from planner.check.dual import DualCheck
from planner.check.multipliers import read_multipliers
from planner.check.proofs import ProofCheck, Proven
from planner.check.referee import check_against
from planner.check.report import CheckReport, Findings
from planner.plan import Excluded, Failover, Plan
from planner.problem import BoundaryProblem, Objective, ObjectiveKind, Problem
from policies.policy import Policy, SpareKind, SpareRule
from solver.micro_fleets import Condition, MicroCase, micro_case
from solver.referee_plans import (
    Real,
    best_per_usage,
    best_set,
    make_plan,
    random_boxes,
    random_prices,
    replica_plan,
    usd_per_hour,
    within_rows,
    worth,
)

NAMES = ("north", "south", "west")


def joined_fleet(seed: int, names: tuple[str, ...] = NAMES, num_devices: int = 2) -> tuple[Fleet, MicroCase]:
    """One micro fleet per boundary, told apart by prefixes."""
    case = micro_case(seed, Condition())
    parts = [micro_case(seed * 10 + i, Condition(), num_devices=num_devices).fleet for i in range(len(names))]
    fleet = replace(
        case.fleet,
        boundaries=names,
        sites=tuple(
            replace(s, site_id=f"{n}-{s.site_id}", boundary_id=n)
            for n, part in zip(names, parts, strict=True)
            for s in part.sites
        ),
        hosts=tuple(
            replace(h, host_id=f"{n}-{h.host_id}", site_id=f"{n}-{h.site_id}")
            for n, part in zip(names, parts, strict=True)
            for h in part.hosts
        ),
        devices=tuple(
            replace(d, device_id=f"{n}-{d.device_id}", host_id=f"{n}-{d.host_id}")
            for n, part in zip(names, parts, strict=True)
            for d in part.devices
        ),
        links=tuple(
            replace(x, source_site_id=f"{n}-{x.source_site_id}", target_site_id=f"{n}-{x.target_site_id}")
            for n, part in zip(names, parts, strict=True)
            for x in part.links
        ),
    )
    return fleet, case


def joint_problem(
    seed: int, objective: Objective, usd_per_hour_max: float | None = None
) -> tuple[Problem, Inputs]:
    """Three boundaries, each with at least one replica."""
    fleet, case = joined_fleet(seed)
    policy = Policy(min_cohort=1, drop_tolerance=0, usd_per_hour_max=usd_per_hour_max)
    problem = build_problem(
        fleet, case.workload, policy, case.cost_model, objective=objective, rule=case.rule
    )
    return problem, Inputs(fleet=fleet, workload=case.workload, policy=policy)


def every_set(problem: BoundaryProblem) -> list[tuple[Real, ...]]:
    """All sets of replicas that fit, the fastest one per device counts."""
    reals = best_per_usage(problem)
    found: list[tuple[Real, ...]] = []

    def grow(first: int, chosen: tuple[Real, ...], used: tuple[int, ...]) -> None:
        if chosen:
            found.append(chosen)
        for i in range(first, len(reals)):
            more = tuple(a + b for a, b in zip(used, reals[i].usage, strict=True))
            if within_rows(problem, more):
                grow(i, (*chosen, reals[i]), more)

    grow(0, (), (0,) * len(problem.classes))
    return found


def priced(problem: BoundaryProblem, chosen: tuple[Real, ...]) -> float:
    return sum(usd_per_hour(problem, real.usage) for real in chosen)


def dual_proof(problem: BoundaryProblem, rng: random.Random, *, coupling: float) -> dict[str, Any]:
    """A true dual proof from random prices; `coupling` prices a shared ceiling."""
    proof: dict[str, Any] = {
        "kind": "dual",
        "prices": random_prices(rng, problem) | ({"price": coupling} if coupling else {}),
        "rho": 0.0 if problem.replicas_max is None else 0.5,
        "nu": 0.0,
        "factor": 1.0,
        "modes": random_boxes(rng, problem),
    }
    first = read_multipliers(problem, proof, Findings(), "p", coupled=coupling > 0.0)
    assert first is not None
    walk = DualCheck(problem=problem, multipliers=first, findings=Findings(), place="p")
    proof["factor"] = walk.run(proof["modes"])
    scaled = read_multipliers(problem, proof, Findings(), "p", coupled=coupling > 0.0)
    assert scaled is not None
    proof["bound"] = scaled.bound(problem)
    return proof


def proven(problem: BoundaryProblem, proof: dict[str, Any], *, coupled: bool, alone: bool) -> Proven:
    findings = Findings()
    run = ProofCheck(
        problem=problem, value=0.0, coupled=coupled, alone=alone, findings=findings, place="p"
    ).run(proof)
    assert run is not None, findings.violations
    return run


@pytest.mark.parametrize("seed", range(12))
def test_a_shared_ceiling_or_target_never_passes_the_bound(seed: int) -> None:
    problem, _ = joint_problem(seed, Objective())
    sets = [every_set(b) for b in problem.boundaries]
    if not all(sets):
        pytest.skip("a boundary has no replica")
    combos = list(product(*sets))
    totals = [
        (
            sum(priced(b, c) for b, c in zip(problem.boundaries, combo, strict=True)),
            sum(worth(b, c) for b, c in zip(problem.boundaries, combo, strict=True)),
        )
        for combo in combos
    ]
    rng = random.Random(seed)
    ceiling = sorted(usd for usd, _ in totals)[len(totals) // 2]
    problem, _ = joint_problem(seed, Objective(), ceiling)
    best = max(speed for usd, speed in totals if usd <= ceiling)
    proofs = [dual_proof(b, rng, coupling=rng.uniform(0.1, 50.0)) for b in problem.boundaries]
    runs = [proven(b, p, coupled=True, alone=True) for b, p in zip(problem.boundaries, proofs, strict=True)]
    total = total_bound(problem, runs)
    assert total is not None
    assert total >= best * (1 - 1e-9)
    target = 0.7 * max(speed for _, speed in totals)
    problem, _ = joint_problem(seed, Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=target))
    cheapest = min(usd for usd, speed in totals if speed >= target)
    proofs = [dual_proof(b, rng, coupling=0.0) for b in problem.boundaries]
    runs = [proven(b, p, coupled=False, alone=False) for b, p in zip(problem.boundaries, proofs, strict=True)]
    total = total_bound(problem, runs)
    assert total is not None
    assert total <= cheapest * (1 + 1e-9)


def test_a_shared_target_is_bought_where_it_is_cheapest() -> None:
    problem, _ = joint_problem(1, Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=100.0))
    runs = [
        Proven(kind="dual", bound=0.0, usd_per_rate=rate, deduction=deduction)
        for rate, deduction in ((0.3, 1.0), (0.1, 2.0), (0.2, 0.0))
    ]
    assert total_bound(problem, runs) == pytest.approx(100.0 * 0.1 - 3.0)


def joint_plan(seed: int) -> tuple[Problem, Plan]:
    problem, inputs = joint_problem(seed, Objective())
    best = [best_set(b) for b in problem.boundaries]
    found = [one for one in best if one is not None]
    if len(found) < len(best):
        pytest.skip("a boundary has no replica")
    proofs = {b.name: dual_proof(b, random.Random(seed), coupling=0.0) for b in problem.boundaries}
    plan = make_plan(
        inputs,
        problem,
        [one[1] for one in found],
        value=sum(one[0] for one in found),
        bound=sum(proof["bound"] for proof in proofs.values()),
        proof=proofs,
        settings={},
    )
    return problem, plan


def judged(plan: Plan, problem: Problem, seed: int) -> CheckReport:
    return check_against(plan, problem, rule=micro_case(seed, Condition()).rule)


def rules(report: CheckReport) -> set[str]:
    return {violation.rule for violation in report.violations}


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_add_up_and_stay_apart(seed: int) -> None:
    problem, plan = joint_plan(seed)
    report = judged(plan, problem, seed)
    assert report.holds, report.violations
    first, second, third = plan.boundaries
    stage = first.replicas[0].stages[0]
    foreign = second.replicas[0].stages[0].devices[0]
    moved = replace(stage, devices=(foreign, *stage.devices[1:]))
    replica = replace(first.replicas[0], stages=(moved, *first.replicas[0].stages[1:]))
    wrong = replace(first, replicas=(replica, *first.replicas[1:]))
    assert "boundary" in rules(judged(replace(plan, boundaries=(wrong, second, third)), problem, seed))
    assert "frame" in rules(judged(replace(plan, boundaries=(first, second)), problem, seed))
    assert "frame" in rules(judged(replace(plan, boundaries=(first, second, second)), problem, seed))
    edges = tuple(
        replace(e, target="north/aggregator" if e.target != "north/aggregator" else "south/aggregator")
        if e.kind == "masked-update"
        else e
        for e in plan.edges
    )
    crossing = tuple(replace(e, crossing=e.kind in ("masked-update", "aggregate-delta")) for e in edges)
    assert "law-1" in rules(judged(replace(plan, edges=crossing), problem, seed))


def test_a_shared_ceiling_is_kept() -> None:
    problem, plan = joint_plan(1)
    tight = replace(problem, usd_per_hour_max=0.01)
    assert "price" in rules(judged(plan, tight, 1))


def test_a_missed_target_is_found() -> None:
    problem, plan = joint_plan(1)
    hard = replace(problem, objective=Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=1e12))
    assert "target" in rules(judged(plan, hard, 1))


def test_closures_prove_nothing_about_shared_targets() -> None:
    problem, _ = joint_problem(1, Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=1.0))
    findings = Findings()
    run = ProofCheck(
        problem=problem.boundaries[0], value=1.0, coupled=False, alone=False, findings=findings, place="p"
    )
    assert run.run({"kind": "closure"}) is None
    assert [v.rule for v in findings.violations] == ["proof-kind"]


def one_replica_plan(seed: int, spares: SpareRule) -> tuple[Problem, Plan, list[Real]] | None:
    """The slowest replica alone, so that devices are left for a replacement."""
    case = micro_case(seed, Condition(spares=spares, replicas_max=1), num_devices=5)
    problem = build_problem(case.fleet, case.workload, case.policy, case.cost_model, rule=case.rule)
    boundary = problem.boundaries[0]
    reals = sorted(best_per_usage(boundary), key=lambda real: sum(real.usage))
    if not reals:
        return None
    chosen = reals[0]
    plan = make_plan(
        Inputs(fleet=case.fleet, workload=case.workload, policy=case.policy),
        problem,
        [(chosen,)],
        value=boundary.tokens_per_step / chosen.step_s,
        bound=1.0,
        proof={boundary.name: {"kind": "none"}},
        settings={},
    )
    certificate = replace(plan.certificate, bound=None, excess_frac=None)
    return problem, replace(plan, certificate=certificate), reals


@pytest.mark.parametrize("kind", [SpareKind.NONE, SpareKind.POOLED, SpareKind.DEDICATED])
def test_a_replacement_from_what_is_left_is_sound(kind: SpareKind) -> None:
    met = 0
    for seed in range(40):
        made = one_replica_plan(seed, SpareRule(kind=kind))
        if made is None:
            continue
        problem, plan, _ = made
        boundary, case = plan.boundaries[0], micro_case(seed, Condition())
        assert check_against(plan, problem, rule=case.rule).holds
        old = boundary.replicas[0]
        view = problem.boundaries[0]
        class_of = {d: c.class_i for c in view.classes for host in c.hosts for d in host}
        if len(old.stages) > 1 or len(old.stages[0].devices) > 1:
            continue
        lost = old.stages[0].devices[0]
        alike = [e.device for e in boundary.excluded if class_of[e.device] == class_of[lost]]
        alike += list(old.stages[0].spares)
        if not alike:
            continue
        met += 1
        chosen = next(r for r in best_per_usage(view) if old.tokens_per_s == view.tokens_per_step / r.step_s)
        new = replica_plan(problem, view, chosen, "b-r0", [([alike[0]], [])])
        entry = Failover(devices=(lost,), replica=old.id, replacement=new, tokens_per_s=new.tokens_per_s)
        sound = replace(plan, boundaries=(replace(boundary, failover=(entry,)),))
        report = check_against(sound, problem, rule=case.rule)
        assert report.holds, report.violations
        for wrong in (
            replace(entry, tokens_per_s=entry.tokens_per_s * 1.01),
            replace(entry, devices=(alike[0],)),
            replace(entry, replacement=old),
        ):
            broken = replace(plan, boundaries=(replace(boundary, failover=(wrong,)),))
            assert "failover" in rules(check_against(broken, problem, rule=case.rule))
        if met == 2:
            break
    assert met >= 1


def test_dedicated_spares_are_counted_named_and_used_once() -> None:
    made = next(
        m for s in range(60) if (m := one_replica_plan(s, SpareRule(kind=SpareKind.DEDICATED))) is not None
    )
    problem, plan, _ = made
    boundary = plan.boundaries[0]
    stage = boundary.replicas[0].stages[0]
    assert stage.spares

    def with_spares(*spares: str) -> set[str]:
        replica = replace(
            boundary.replicas[0], stages=(replace(stage, spares=spares), *boundary.replicas[0].stages[1:])
        )
        changed = replace(boundary, replicas=(replica,))
        return rules(check_against(replace(plan, boundaries=(changed,)), problem))

    assert "spare" in with_spares()
    assert "device-once" in with_spares(stage.devices[0])
    assert "spare" in with_spares("nobody")
    listed = replace(
        boundary, excluded=(*boundary.excluded, Excluded(device=stage.spares[0], reason="spare"))
    )
    assert "excluded" not in rules(check_against(replace(plan, boundaries=(listed,)), problem))


def test_pooled_spares_stay_idle() -> None:
    made = next(m for s in range(60) if (m := one_replica_plan(s, SpareRule())) is not None)
    problem, plan, _ = made
    rule = SpareRule(kind=SpareKind.POOLED, per_pool=5, pool_min_devices=1)
    strict = replace(problem, policy=replace(problem.policy, spares=rule))
    assert "pool" in rules(check_against(plan, strict))
