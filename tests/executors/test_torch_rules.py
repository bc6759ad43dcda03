"""Why the torch executor refuses a schedule: each reason by name, and none where the schedule works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from script_plans import Stage, pipeline, plan_of

from executors.torch_native.rules import reasons
from planner.canonical import Inputs, input_documents, inputs_from_documents
from planner.plan import Plan, ReplicaPlan
from planner.training import PipelineSchedule, TrainingJob
from policies.policy import LayerTier

GPIPE, INTERLEAVED, ZERO_BUBBLE = (
    PipelineSchedule.GPIPE,
    PipelineSchedule.INTERLEAVED,
    PipelineSchedule.ZERO_BUBBLE,
)
BYTES: Mapping[str, float] = {
    "weights": 100.0,
    "activations": 50.0,
    "transient": 10.0,
    "fragmentation": 16.0,
    "limit": 400.0,
}


def codes(plan: Plan, schedule: PipelineSchedule, **changes: Any) -> list[str]:
    """Codes of the reasons against the plan's replica under a schedule."""
    replica = plan.boundaries[0].replicas[0]
    stages = tuple(replace(stage, memory_bytes={stage.devices[0]: BYTES}) for stage in replica.stages)
    replica = replace(replica, stages=stages, **changes)
    found = reasons(plan, replica, TrainingJob(data=(), pipeline=schedule))
    assert all(reason.value and reason.limit for reason in found)
    assert all(reason.place.startswith(replica.id) for reason in found)
    return [reason.code for reason in found]


@pytest.mark.parametrize("schedule", PipelineSchedule)
def test_equal_stages_of_alike_layers_run_every_schedule(schedule: PipelineSchedule) -> None:
    assert codes(plan_of(pipeline(0, 4, 8, zero=1, shares=(1, 1)), executor="torch"), schedule) == []


@pytest.mark.parametrize("schedule", PipelineSchedule)
def test_a_single_stage_runs_every_schedule(schedule: PipelineSchedule) -> None:
    assert codes(plan_of([Stage(layers=(0, 8), shares=(3, 1), zero=3)], executor="torch"), schedule) == []


@pytest.mark.parametrize("schedule", [INTERLEAVED, ZERO_BUBBLE])
def test_library_schedules_refuse_what_they_get_wrong(schedule: PipelineSchedule) -> None:
    unequal = [Stage(layers=(0, 4), shares=(3, 1)), Stage(layers=(4, 8), shares=(2, 2))]
    assert codes(plan_of(unequal, executor="torch"), schedule) == ["torch-schedule-unequal-shares"]
    tensor = pipeline(0, 4, 8, tp=2)
    assert codes(plan_of(tensor, executor="torch"), schedule) == ["torch-schedule-tensor-parallel"] * 2
    sharded = pipeline(0, 4, 8, shares=(1, 1), zero=2)
    assert codes(plan_of(sharded, executor="torch"), schedule) == ["torch-schedule-zero"] * 2
    plan = plan_of(pipeline(0, 4, 8), executor="torch")
    assert codes(plan, schedule, micro_batches=5) == ["torch-schedule-rounds"]
    assert codes(plan, schedule, micro_batches=3) == []


def test_interleaved_needs_two_layers_on_every_device() -> None:
    plan = plan_of(pipeline(0, 1, 8), executor="torch")
    assert codes(plan, INTERLEAVED) == ["torch-schedule-too-few-layers"]
    assert codes(plan, ZERO_BUBBLE) == []


def test_interleaved_moves_layers_among_their_like_only() -> None:
    plan = plan_of(pipeline(0, 4, 8), executor="torch")
    inputs = inputs_from_documents(plan.inputs)
    odd = replace(inputs.workload.layers[2], kind="odd")
    layers = (*inputs.workload.layers[:2], odd, *inputs.workload.layers[3:])
    changed = with_inputs(plan, replace(inputs, workload=replace(inputs.workload, layers=layers)))
    assert codes(changed, INTERLEAVED) == ["torch-schedule-unlike-layers"] * 2
    assert codes(changed, ZERO_BUBBLE) == []


def test_interleaved_moves_no_layer_to_a_device_without_clearance() -> None:
    plan = plan_of(pipeline(0, 4, 8), executor="torch")
    inputs = inputs_from_documents(plan.inputs)
    fleet = inputs.fleet
    replica: ReplicaPlan = plan.boundaries[0].replicas[0]
    above = set(replica.stages[1].devices)
    devices = tuple(replace(device, tier_i=int(device.device_id in above)) for device in fleet.devices)
    raised = replace(fleet, tiers=("low", "high"), devices=devices)
    rule = LayerTier(start=4, stop=8, tier="high")
    policy = replace(inputs.policy, layer_tiers=(rule,))
    changed = with_inputs(plan, replace(inputs, fleet=raised, policy=policy))
    assert codes(changed, INTERLEAVED) == ["torch-schedule-tier"]
    assert codes(changed, ZERO_BUBBLE) == []


def test_schedules_that_hold_more_micro_batches_than_fit_are_refused() -> None:
    plan = plan_of(pipeline(0, 4, 8), executor="torch")
    assert codes(plan, GPIPE, micro_batches=4) == []
    assert "torch-schedule-memory" in codes(plan, GPIPE, micro_batches=40)
    assert codes(plan, ZERO_BUBBLE, micro_batches=40) == []


def with_inputs(plan: Plan, inputs: Inputs) -> Plan:
    """The same plan with other inputs."""
    return replace(plan, inputs=input_documents(inputs))
