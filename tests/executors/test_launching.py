"""What a launch would write and start: golden texts, and refusals before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from two_hosts import plan_in

from executors.launching import LaunchOptions, plan_launches, replacement_launch
from executors.layout import layout_of
from planner.canonical import Inputs
from planner.cli.launch_text import dry_run_data, dry_run_text
from planner.files import load_inputs
from planner.plan import Plan
from planner.problem import Objective
from planner.solve.result import Limits
from planner.solving import Request, solve_inputs
from planner.training import PipelineSchedule, TrainingJob
from policies.errors import ExecutorFailedError, InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "planner" / "examples"
JOB = TrainingJob(data=("/data/notes",))
OPTIONS = LaunchOptions(folder=Path("/runs/1"), python="python", accelerator="cpu")


def inputs_of(example: str) -> Inputs:
    folder = EXAMPLES / example
    return load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")


@cache
def plan_of(example: str, executor: str) -> Plan:
    """A plan of the example, by rule of thumb: what it is worth plays no part here."""
    inputs = inputs_of(example)
    request = Request(solver="greedy", objective=Objective(), executor=executor)
    return solve_inputs(inputs, request, Limits(deadline_s=20.0, deterministic=True)).plan


@pytest.mark.parametrize("executor", ["deepspeed", "torch"])
def test_a_dry_run_shows_files_and_one_command_per_host(
    executor: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    plan, _ = plan_in(tmp_path, "deepspeed")
    launches = plan_launches(plan, JOB, replace(OPTIONS, executor=executor, address_of={"east": "10.0.0.1"}))
    golden(f"launch_{executor}.txt", dry_run_text(launches) + "\n")


def test_the_ranks_of_a_layout_are_those_of_the_hostfile() -> None:
    plan = plan_of("university", "torch")
    fleet = inputs_of("university").fleet
    for replica in plan.boundaries[0].replicas:
        layout = layout_of(fleet, replica)
        assert [rank.rank for rank in layout.ranks] == list(range(layout.world_size))
        assert {rank.device for rank in layout.ranks} == {d for s in replica.stages for d in s.devices}
        assert layout.hosts[0] == fleet.device_by_id[replica.stages[0].head].host_id
        for host in layout.hosts:
            slots = [rank.slot for rank in layout.on_host(host)]
            assert slots == sorted(slots)
        for rank in layout.ranks:
            stage = replica.stages[rank.stage]
            assert stage.ranks[rank.dp_i][rank.tp_i] == rank.device
            assert layout.rank_at(rank.stage, rank.dp_i, rank.tp_i) == rank.rank


def test_json_holds_what_the_text_shows() -> None:
    launches = plan_launches(plan_of("desk", "deepspeed"), JOB, replace(OPTIONS, one_machine=True))
    (replica,) = dry_run_data(launches)["replicas"]
    assert set(replica["files"]) == {"hostfile", "ds_config.json", "plan.json", "run.json"}
    assert replica["commands"][0]["host"] == "localhost"
    assert replica["commands"][0]["argv"][-2:] == ["executors.training.worker", "/runs/1/desk-r0/run.json"]


def test_a_boundary_has_to_be_named_where_there_are_several() -> None:
    plan = plan_of("two-hospitals-and-a-lab", "torch")
    with pytest.raises(InputError) as caught:
        plan_launches(plan, JOB, OPTIONS)
    assert caught.value.code == "choose-a-boundary"
    named = plan_launches(plan, JOB, replace(OPTIONS, boundary=plan.boundaries[1].name))
    assert {launch.boundary.name for launch in named} == {plan.boundaries[1].name}
    assert [launch.start.participant for launch in named] == list(range(len(named)))
    for options, code in (
        (replace(OPTIONS, boundary="nowhere"), "no-such-boundary"),
        (replace(OPTIONS, boundary=plan.boundaries[0].name, replicas=("x",)), "no-such-replica"),
    ):
        with pytest.raises(InputError) as caught:
            plan_launches(plan, JOB, options)
        assert caught.value.code == code


def test_a_plan_of_unequal_widths_is_refused_by_deepspeed_with_every_reason() -> None:
    plan = plan_of("desk", "deepspeed")
    (boundary,) = plan.boundaries
    (replica,) = boundary.replicas
    first = replace(replica.stages[0], zero=2)
    bent = replace(replica, stages=(first, replace(replica.stages[1], dp=2)))
    edited = replace(plan, boundaries=(replace(boundary, replicas=(bent,)),))
    with pytest.raises(ExecutorFailedError) as caught:
        plan_launches(edited, JOB, OPTIONS)
    assert caught.value.code == "plan-not-supported"
    for code in ("deepspeed-zero-in-pipeline", "deepspeed-unequal-widths", "deepspeed-mixed-zero"):
        assert code in caught.value.message
    assert "--executor torch" in caught.value.hint


def test_schedules_other_than_1f1b_are_not_for_deepspeed() -> None:
    job = replace(JOB, pipeline=PipelineSchedule.GPIPE)
    with pytest.raises(ExecutorFailedError, match="deepspeed-schedule"):
        plan_launches(plan_of("desk", "deepspeed"), job, OPTIONS)


def test_after_a_loss_the_replacement_of_the_plan_is_launched() -> None:
    plan = plan_of("desk", "deepspeed")
    (launch,) = plan_launches(plan, JOB, OPTIONS)
    entries = plan.boundaries[0].failover
    entry = next(i for i, each in enumerate(entries) if each.replacement is not None)
    again = replacement_launch(plan, launch, JOB, entry, 4711)
    assert again.start.resume
    assert again.start.failover == entry
    devices = {rank.device for rank in again.spec.layout.ranks}
    assert not devices & set(entries[entry].devices)
    assert '"master_port": 4711' in again.spec.files["run.json"]
