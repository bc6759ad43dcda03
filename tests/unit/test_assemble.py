"""From solver results to plan.json: every plan that is made holds before the referee."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from planner.canonical import Inputs
from planner.check.referee import check
from planner.examples.bundled import example_folder
from planner.files import load_inputs
from planner.former import former_devices, moved_devices
from planner.plan import Plan, dump_plan
from planner.plan_reading import plan_from_json
from planner.problem import Objective, ObjectiveKind
from planner.solve.result import Limits
from planner.solving import Answer, Request, solve_inputs
from policies.errors import InfeasibleError, NoPlanInTimeError
from policies.policy import Policy, SpareKind, SpareRule, SpillOver
from solver.micro_fleets import CONDITIONS, Condition, micro_case

LIMITS = Limits(deterministic=True)
SOLVABLE = [c for c in CONDITIONS if c.replicas_min == 1 and c.target_frac is None]


def example(name: str) -> Inputs:
    folder = example_folder(name)
    return load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")


def answer_of(inputs: Inputs, request: Request | None = None) -> Answer:
    return solve_inputs(inputs, request or Request(solver="greedy"), LIMITS, processes=0)


def reread(plan: Plan) -> Plan:
    """The plan as it comes back from its file."""
    found = plan_from_json(json.loads(dump_plan(plan)))
    assert isinstance(found, Plan)
    return found


def require_holds(plan: Plan) -> None:
    report = check(reread(plan))
    assert report.violations == ()


@pytest.mark.parametrize("condition", SOLVABLE, ids=lambda c: c.name)
@pytest.mark.parametrize("solver", ["greedy", "bruteforce"])
def test_plans_of_tiny_fleets_hold_before_the_referee(condition: Condition, solver: str) -> None:
    num_plans = 0
    for seed in range(4):
        case = micro_case(seed, condition, foreign=False)
        inputs = Inputs(fleet=case.fleet, workload=case.workload, policy=case.policy)
        request = Request(
            solver=solver, objective=case.objective, executor=condition.executor, rule=case.rule
        )
        try:
            plan = answer_of(inputs, request).plan
        except (InfeasibleError, NoPlanInTimeError):
            continue
        num_plans += 1
        require_holds(plan)
    assert num_plans > 0


@pytest.mark.parametrize("name", ["hospital", "university", "two-hospitals-and-a-lab"])
def test_plans_of_the_examples_hold_before_the_referee(name: str) -> None:
    require_holds(answer_of(example(name)).plan)


def test_one_plan_has_one_text() -> None:
    texts = {dump_plan(answer_of(example("hospital")).plan) for _ in range(2)}
    assert len(texts) == 1


def test_ranks_that_share_a_stage_have_a_collective() -> None:
    plan = answer_of(example("hospital")).plan
    stages = [(r.id, s) for b in plan.boundaries for r in b.replicas for s in r.stages]
    shared = {f"{replica_id}/{s.index}" for replica_id, s in stages if len(s.devices) > 1}
    assert shared
    assert {e.source for e in plan.edges if e.kind == "collective"} == shared


def with_policy(inputs: Inputs, **changes: Any) -> Inputs:
    return replace(inputs, policy=replace(inputs.policy, **changes))


def test_every_stage_has_its_dedicated_spare() -> None:
    inputs = with_policy(example("university"), spares=SpareRule(kind=SpareKind.DEDICATED))
    plan = answer_of(inputs).plan
    require_holds(plan)
    spares = [s.spares for b in plan.boundaries for r in b.replicas for s in r.stages]
    assert all(len(spare) == 1 for spare in spares)
    listed = {e.device for b in plan.boundaries for e in b.excluded if e.reason == "spare"}
    assert listed == {spare for (spare,) in spares}


def test_pools_name_their_spares() -> None:
    inputs = example("university")
    inputs = with_policy(inputs, spares=SpareRule(kind=SpareKind.POOLED, pool_min_devices=8))
    plan = answer_of(inputs).plan
    require_holds(plan)
    kinds = Counter(d.type_name for d in inputs.fleet.devices)
    pooled = [e.device for b in plan.boundaries for e in b.excluded if e.reason == "pooled-spare"]
    types = Counter(inputs.fleet.device_by_id[d].type_name for d in pooled)
    assert types == {name: 1 for name, count in kinds.items() if count >= 8}


def test_idle_devices_without_clearance_say_so() -> None:
    inputs = example("hospital")
    inputs = with_policy(inputs, activations_tier="internal", weights_tier="internal")
    plan = answer_of(inputs).plan
    reasons = {e.device: e.reason for b in plan.boundaries for e in b.excluded}
    general = [d.device_id for d in inputs.fleet.devices if d.tier_i == 0]
    assert {reasons[d] for d in general} == {"not-cleared"}


def test_aggregator_and_standby_are_two_hosts_of_the_boundary() -> None:
    inputs = example("two-hospitals-and-a-lab")
    for boundary in answer_of(inputs).plan.boundaries:
        host, standby = boundary.aggregator["host"], boundary.aggregator["standby"]
        assert host is not None
        assert standby is not None
        assert host != standby
        sites = {inputs.fleet.host_by_id[h].site_id for h in (host, standby)}
        assert {inputs.fleet.site_by_id[s].boundary_id for s in sites} == {boundary.name}


def test_only_aggregates_and_the_global_state_cross_a_boundary() -> None:
    plan = answer_of(example("two-hospitals-and-a-lab")).plan
    assert {e.kind for e in plan.edges if e.crossing} == {"aggregate-delta", "global-state"}
    alone = answer_of(example("hospital")).plan
    assert not [e for e in alone.edges if e.crossing]
    assert {n.kind for n in alone.nodes} == {"stage", "aggregator"}


def cloudy(tokens_per_s_below: float | None) -> Inputs:
    """The hospital whose clinic belongs to somebody else."""
    inputs = example("hospital")
    devices = tuple(
        replace(d, owner="cloud") if d.host_id.startswith("ward") else d for d in inputs.fleet.devices
    )
    rule = SpillOver(owners=("cloud",), tokens_per_s_below=tokens_per_s_below)
    return with_policy(replace(inputs, fleet=replace(inputs.fleet, devices=devices)), spill_over=rule)


def test_spill_over_devices_wait_until_they_are_needed() -> None:
    modest = answer_of(cloudy(100.0))
    require_holds(modest.plan)
    assert not modest.spilled
    assert modest.plan.settings["without_owners"] == ["cloud"]
    eager = answer_of(cloudy(1e9))
    require_holds(eager.plan)
    assert eager.spilled
    assert "without_owners" not in eager.plan.settings


def test_memory_reserve_of_the_fleet_reaches_the_plan() -> None:
    inputs = example("hospital")
    tight = replace(inputs, fleet=replace(inputs.fleet, memory_reserve_frac=0.2))
    limits = [
        next(iter(plan.boundaries[0].replicas[0].stages[0].memory_bytes.values()))["limit"]
        for plan in (answer_of(inputs).plan, answer_of(tight).plan)
    ]
    assert limits[1] / limits[0] == pytest.approx(0.8 / 0.94)


def test_a_plan_to_keep_keeps_its_devices() -> None:
    inputs = example("two-hospitals-and-a-lab")
    first = answer_of(inputs).plan
    second = answer_of(inputs, Request(solver="greedy", keep=first))
    assert second.former_used is True
    assert moved_devices(first, second.plan) == ()
    assert former_devices(first) == former_devices(second.plan)


def test_a_better_earlier_plan_stands_as_incumbent() -> None:
    inputs = example("hospital")
    best = answer_of(inputs, Request(solver="greedy")).plan
    few = answer_of(with_policy(inputs, usd_per_hour_max=5.0)).plan
    assert few.tokens_per_s < best.tokens_per_s
    again = answer_of(inputs, Request(solver="greedy", warm_start=best))
    assert again.former_used
    assert again.plan.tokens_per_s >= best.tokens_per_s
    dearer = answer_of(with_policy(inputs, usd_per_hour_max=5.0), Request(solver="greedy", warm_start=best))
    assert dearer.former_used is False
    require_holds(dearer.plan)


def test_shared_limits_need_a_solver_with_multipliers() -> None:
    from planner.solve.coupling import SharedLimitError

    inputs = with_policy(example("two-hospitals-and-a-lab"), usd_per_hour_max=30.0)
    with pytest.raises(SharedLimitError) as caught:
        answer_of(inputs)
    assert caught.value.code == "shared-limit"


def test_no_plan_by_a_rule_of_thumb_is_no_proof() -> None:
    inputs = with_policy(example("hospital"), usd_per_hour_max=0.5)
    with pytest.raises(NoPlanInTimeError):
        answer_of(inputs)


def test_without_devices_nothing_is_feasible() -> None:
    inputs = example("hospital")
    empty = replace(inputs, fleet=replace(inputs.fleet, devices=()), policy=Policy())
    with pytest.raises(InfeasibleError):
        answer_of(empty, Request(objective=Objective(kind=ObjectiveKind.TOKENS), solver="greedy"))
