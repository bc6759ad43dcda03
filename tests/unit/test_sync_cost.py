"""What keeping boundaries in step costs a plan, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from planner.canonical import Inputs
from planner.files import load_inputs
from planner.plan import Plan
from planner.solve.result import Limits
from planner.solving import Request, solve_inputs
from planner.sync_cost import BoundarySync, sync_costs

EXAMPLE = Path(__file__).resolve().parents[2] / "planner" / "examples" / "two-hospitals-and-a-lab"
WAN_BYTES_PER_S, WAN_S = 500e6 / 8, 0.015


@cache
def solved() -> tuple[Plan, Inputs]:
    """Three boundaries, by the quickest way there is."""
    inputs = load_inputs(EXAMPLE / "fleet.yaml", EXAMPLE / "model.yaml", EXAMPLE / "policy.yaml")
    return solve_inputs(
        inputs, Request(solver="greedy", failover=False), Limits(deadline_s=60.0)
    ).plan, inputs


def costs(**settings: str) -> dict[str, BoundarySync]:
    plan, inputs = solved()
    policy = replace(inputs.policy, sync=tuple(settings.items()))
    return {cost.boundary: cost for cost in sync_costs(plan, replace(inputs, policy=policy))}


def test_payload_and_time_are_those_of_the_adapters_over_the_link() -> None:
    plan, inputs = solved()
    found = costs(method="echelon", local_steps="100")
    params = sum(layer.trainable_params for layer in inputs.workload.layers)
    exchange_s = 2 * (WAN_S + 4 * params / WAN_BYTES_PER_S)
    assert {name: cost.exchange_s for name, cost in found.items()} == {
        name: pytest.approx(0.0 if name == found[name].coordinator else exchange_s) for name in found
    }
    for boundary in plan.boundaries:
        cost = found[boundary.name]
        assert cost.payload_bytes == 4 * params
        assert cost.round_s == pytest.approx(100 * max(r.step_time_s for r in boundary.replicas))
        assert cost.waiting_frac == 0.0


def test_who_waits_for_the_exchange_pays_all_of_it() -> None:
    waiting, going_on = costs(method="diloco", local_steps="1"), costs(method="echelon", local_steps="1")
    for name, cost in waiting.items():
        assert cost.waiting_frac == pytest.approx(cost.exchange_s / (cost.round_s + cost.exchange_s))
        assert cost.waiting_s == pytest.approx(cost.exchange_s)
        late_s = max(0.0, cost.exchange_s - cost.round_s)
        assert going_on[name].waiting_s == pytest.approx(late_s)
        if cost.exchange_s:
            assert cost.bytes_per_s == pytest.approx(
                2 * cost.payload_bytes / (cost.round_s + cost.exchange_s)
            )


def test_one_boundary_pays_nothing_and_a_missing_link_tells_no_cost() -> None:
    plan, inputs = solved()
    assert sync_costs(replace(plan, boundaries=plan.boundaries[:1]), inputs) == ()
    fleet = replace(inputs.fleet, links=())
    assert sync_costs(plan, replace(inputs, fleet=fleet)) == ()
