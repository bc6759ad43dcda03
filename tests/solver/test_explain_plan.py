"""Explanations of plans: prices are upper estimates, reasons for idling are true, alternatives are priced."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from planner.canonical import Inputs
from planner.certificate import boundary_value
from planner.explain.answer import PLANNED, Explanation
from planner.explain.cases import cases_of
from planner.explain.deep import deep_sections
from planner.explain.planned import explain_plan
from planner.explain.prices import prices_of, ranked_classes
from planner.explain.text import explanation_text
from planner.explain.view import BoundaryView, views_of
from planner.objective import price_replica
from planner.problem import BoundaryProblem, DeviceClass
from planner.solve.bruteforce import solve_exhaustively
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.result import Limits
from planner.solve.small_master import solve_over_columns
from planner.solving import Answer, Request, solve_inputs
from policies.errors import InfeasibleError, InputError
from policies.policy import Policy, SpareKind, SpareRule
from solver.micro_fleets import Condition, micro_case
from solver.test_explain_infeasible import BIG, Box, fleet_of, workload_of

LIMITS = Limits(deterministic=True, rounds=20)
POOLED = SpareRule(kind=SpareKind.POOLED, pool_min_devices=3)
CONDITIONS = (
    Condition(),
    Condition(name="tiers", tiers=True),
    Condition(name="pooled", spares=POOLED),
    Condition(name="ceiling", usd_per_hour_max_frac=0.55),
    Condition(name="replicas-max-1", replicas_max=1),
    Condition(name="ratio", speed_ratio_max=1.3),
)


@cache
def micro_plan(seed: int, position: int) -> tuple[Answer, Explanation] | None:
    """A micro fleet's plan with its explanation; None where there is no plan."""
    case = micro_case(seed, CONDITIONS[position], foreign=False)
    inputs = Inputs(fleet=case.fleet, workload=case.workload, policy=case.policy)
    request = Request(rule=case.rule, objective=case.objective, failover=False)
    try:
        answer = solve_inputs(inputs, request, LIMITS)
    except InfeasibleError:
        return None
    return answer, explain_plan(answer.plan, answer.problem, rule=case.rule)


def plans() -> list[tuple[Answer, Explanation]]:
    """All of them; the list is long enough to mean something."""
    found = [
        plan
        for position in range(len(CONDITIONS))
        for seed in range(8)
        if (plan := micro_plan(seed, position))
    ]
    assert len(found) > 25
    return found


def section(explanation: Explanation, name: str) -> Any:
    return next(s.data for s in explanation.sections if s.name.endswith(name))


def with_one_host_more(problem: BoundaryProblem, chosen: DeviceClass) -> BoundaryProblem:
    """The problem with one more host of a class, and the list of clusters as it is."""
    more = tuple(f"more{i}" for i in range(chosen.host_size))
    classes = tuple(
        replace(c, hosts=(*c.hosts, more)) if c.class_i == chosen.class_i else c for c in problem.classes
    )
    rows = tuple(
        replace(row, limit=row.limit + chosen.host_size)
        if row.name != "price" and any(c == chosen.class_i for c, _ in row.coefficients)
        else row
        for row in problem.rows
    )
    return replace(problem, classes=classes, rows=rows)


def test_the_worth_of_one_more_is_never_less_than_solving_again_finds() -> None:
    compared = 0
    for answer, _ in plans():
        view = views_of(answer.plan, answer.problem)[0]
        prices = prices_of(view)
        if prices is None:
            continue
        value = boundary_value(view.problem, view.planned)
        assert prices.bound >= value * (1.0 - 1e-9)
        today = enumerate_replicas(view.problem)
        for device_class in view.problem.classes:
            more = with_one_host_more(view.problem, device_class)
            again = solve_over_columns(more, today, Limits(), solve_exhaustively)
            assert again.value is not None
            estimate = prices.bound + device_class.host_size * prices.device(view, device_class)
            assert again.value <= estimate * (1.0 + 1e-9)
            compared += 1
    assert compared > 40


def test_ranked_devices_are_those_with_a_price() -> None:
    for answer, explanation in plans():
        view = views_of(answer.plan, answer.problem)[0]
        prices = prices_of(view)
        if prices is None:
            continue
        ranked = ranked_classes(view, prices)
        assert [worth for worth, _ in ranked] == sorted((w for w, _ in ranked), reverse=True)
        assert [entry["worth_each"] for entry in section(explanation, ".next")] == [w for w, _ in ranked]


def left_over(view: BoundaryView) -> list[int]:
    return [c.num_devices - view.used[c.class_i] for c in view.problem.classes]


def replica_of_the_rest(view: BoundaryView) -> bool:
    """Whether some replica takes only idle devices and keeps every row beside the plan."""
    for replica in enumerate_replicas(view.problem):
        together = dict(view.used)
        for class_i, count in replica.usage:
            together[class_i] += count
        inside = all(together[c.class_i] <= c.num_devices for c in view.problem.classes)
        if inside and all(
            sum(k * together[c] for c, k in row.coefficients) <= row.limit + 1e-9 for row in view.problem.rows
        ):
            return True
    return False


def test_idle_devices_are_told_with_true_reasons() -> None:
    told: set[str] = set()
    for answer, explanation in plans():
        view = views_of(answer.plan, answer.problem)[0]
        entries = section(explanation, ".idle")
        idle = sorted(d for entry in entries for d in entry["devices"])
        running = {d for r in view.planned.replicas for s in r.stages for d in s.devices}
        assert idle == sorted(d.device_id for d in answer.problem.fleet.devices if d.device_id not in running)
        for entry in entries:
            told.add(entry["because"])
            device_class = view.problem.classes[entry["class"]]
            if entry["because"] == "not-cleared":
                assert device_class.device.tier_i < min(view.problem.tier_required)
            if entry["because"] == "left-over":
                assert not replica_of_the_rest(view)
            if entry["because"] in ("missed", "speed-ratio"):
                assert replica_of_the_rest(view)
            if entry["because"] == "replicas-max":
                assert len(view.replicas) == view.problem.replicas_max
            if entry["because"] == "pooled-spare":
                assert len(entry["devices"]) <= left_over(view)[entry["class"]]
    assert {"left-over", "pooled-spare", "replicas-max"} <= told


def test_alternatives_of_a_stage_are_priced_by_the_cost_model() -> None:
    shifts = 0
    for answer, _ in plans()[:25]:
        view = views_of(answer.plan, answer.problem)[0]
        replica, planned = view.replicas[0], view.planned.replicas[0]
        for stage in planned.stages:
            name = f"{view.problem.name}/{planned.id}/{stage.index}"
            found = explain_plan(answer.plan, answer.problem, stage=name).sections[0]
            assert found.data["tokens_per_s"] == pytest.approx(planned.tokens_per_s)
            for alternative in found.data["alternatives"]:
                if (
                    alternative["kind"] != "layers"
                    or alternative["text"] != "one layer more from the stage behind"
                ):
                    continue
                stages = list(replica.stages)
                here, behind = stages[stage.index], stages[stage.index + 1]
                stages[stage.index] = replace(here, stop=here.stop + 1)
                stages[stage.index + 1] = replace(behind, start=behind.start + 1)
                cleared = all(
                    max(view.problem.tier_required[s.start : s.stop])
                    <= view.problem.templates[s.template_i].tier_i
                    for s in stages
                )
                again = price_replica(view.problem, view.problem.modes[replica.mode_i], stages)
                speed = again.tokens_per_s if again is not None and cleared else None
                assert alternative["tokens_per_s"] == speed
                shifts += 1
    assert shifts > 3


def test_a_stage_that_is_not_there_is_refused_with_those_that_are() -> None:
    answer, _ = plans()[0]
    with pytest.raises(InputError) as caught:
        explain_plan(answer.plan, answer.problem, stage="b/b-r0/99")
    assert caught.value.code == "no-such-stage"
    assert answer.plan.boundaries[0].replicas[0].id in caught.value.hint


def test_a_plan_of_other_inputs_is_refused() -> None:
    answer, _ = plans()[0]
    other = replace(answer.problem.boundaries[0], templates=(), modes=())
    with pytest.raises(InputError) as caught:
        explain_plan(answer.plan, replace(answer.problem, boundaries=(other,)))
    assert caught.value.code == "plan-misfit"


def test_deep_prices_demands_by_solving_again() -> None:
    fleet = fleet_of(
        Box(name="h", count=1, memory_gib=BIG), Box(name="g", count=2, memory_gib=BIG, tier="open")
    )
    inputs = Inputs(fleet=fleet, workload=workload_of(), policy=Policy(tokens_tier="secret"))
    answer = solve_inputs(inputs, Request(failover=False), LIMITS)
    view = views_of(answer.plan, answer.problem)[0]
    value = boundary_value(view.problem, view.planned)
    said: list[str] = []
    demands, following = deep_sections(view, cases_of(answer.problem)[0], value, said.append, seconds=5.0)
    without_tier = next(entry for entry in demands.data if entry["text"] == "without see.tokens")
    assert without_tier["value"] > 1.5 * value
    assert without_tier["bound"] >= without_tier["value"] * (1.0 - 1e-9)
    assert any("without see.tokens" in line and "better" in line for line in demands.lines)
    for entry in following.data:
        assert entry["bound"] is None or entry["bound"] >= value * (1.0 - 1e-9)
    assert said


def test_the_text_names_what_the_data_hold() -> None:
    for answer, explanation in plans()[:10]:
        assert explanation.status == PLANNED
        text = explanation_text(explanation)
        assert "what binds" in text
        assert "idle devices" in text
        assert all(replica.id in text for replica in answer.plan.boundaries[0].replicas)
        assert explanation.to_json()["sections"]["b.stages"][0]["replica"] == "b-r0"
