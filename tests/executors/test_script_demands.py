"""What the plan demands and the script can't do is refused before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_plans import NO_JOB, Stage, launched, pipeline, plan_of, script_in

from executors import launching
from executors.base import LaunchSpec
from executors.ds_pipeline.executor import DeepSpeedExecutor
from executors.launching import LaunchOptions, plan_launches, replacement_launch
from executors.runfile import read_run
from executors.script.declaration import CHOICES, Declaration
from executors.script.demands import script_reasons
from planner.canonical import inputs_from_documents
from planner.plan import Failover, Plan
from policies.errors import ExecutorFailedError

ABLE: dict[str, Any] = {
    "executors": CHOICES["executors"],
    "pipeline": True,
    "zero": CHOICES["zero"],
    "tensor_parallel": True,
    "unequal_widths": True,
    "uneven_shares": True,
    "recompute": True,
    "tied_embeddings": True,
    "dtypes": CHOICES["dtypes"],
    "methods": CHOICES["methods"],
}
ALONE = (Stage(layers=(0, 4)),)
DEMANDS: dict[str, tuple[Plan, dict[str, Any]]] = {
    "script-executor": (plan_of(ALONE, executor="torch"), {"executors": ("deepspeed",)}),
    "script-pipeline": (plan_of(pipeline(0, 2, 4)), {"pipeline": False}),
    "script-unequal-widths": (
        plan_of((Stage(layers=(0, 2), shares=(1, 1)), Stage(layers=(2, 4)))),
        {"unequal_widths": False},
    ),
    "script-tied-embeddings": (plan_of(pipeline(0, 2, 4), tied=((0, 3),)), {"tied_embeddings": False}),
    "script-zero": (plan_of((Stage(layers=(0, 4), zero=1),)), {"zero": (0, 2)}),
    "script-tensor-parallel": (plan_of((Stage(layers=(0, 4), tp=2),)), {"tensor_parallel": False}),
    "script-uneven-shares": (plan_of((Stage(layers=(0, 4), shares=(2, 1)),)), {"uneven_shares": False}),
    "script-recompute": (plan_of((Stage(layers=(0, 4), recompute=3),)), {"recompute": False}),
    "script-dtype": (plan_of(ALONE, dtype="bf16"), {"dtypes": ("fp32",)}),
    "script-method": (plan_of(ALONE, adapter_rank=4), {"methods": ("full",)}),
}


def codes_of(plan: Plan, **declared: Any) -> list[str]:
    """Codes of the reasons against a script that declares this."""
    workload = inputs_from_documents(plan.inputs).workload
    replica = plan.boundaries[0].replicas[0]
    return [reason.code for reason in script_reasons(replica, workload, Declaration(**declared))]


@pytest.mark.parametrize("code", DEMANDS)
def test_each_demand_is_refused_by_name_and_met_by_its_key(code: str) -> None:
    plan, lacking = DEMANDS[code]
    assert codes_of(plan, **{**ABLE, **lacking}) == [code]
    assert codes_of(plan, **ABLE) == []


def test_a_script_that_declares_nothing_runs_plain_data_parallelism_alone() -> None:
    assert codes_of(plan_of((Stage(layers=(0, 4), shares=(2, 2, 2)),))) == []
    plan = plan_of(
        (
            Stage(layers=(0, 2), shares=(1, 2), zero=1, recompute=1),
            Stage(layers=(2, 4), shares=(3,), tp=2, zero=3),
        ),
        tied=((0, 3),),
    )
    assert codes_of(plan) == [
        "script-pipeline",
        "script-unequal-widths",
        "script-tied-embeddings",
        "script-zero",
        "script-uneven-shares",
        "script-recompute",
        "script-zero",
        "script-tensor-parallel",
    ]


def test_tied_layers_of_one_stage_demand_nothing() -> None:
    assert codes_of(plan_of(ALONE, tied=((0, 3),))) == []


def test_no_script_takes_whole_micro_batches_in_turn() -> None:
    assert codes_of(plan_of(ALONE, schedule="round-robin"), **ABLE) == ["script-schedule"]


@given(
    declared=st.fixed_dictionaries(
        {
            key: st.lists(st.sampled_from(CHOICES[key]), min_size=1).map(tuple)
            if key in CHOICES
            else st.booleans()
            for key in ABLE
        }
    ),
    plan=st.sampled_from([plan for plan, _ in DEMANDS.values()]),
    key=st.sampled_from(sorted(ABLE)),
)
def test_being_able_to_do_more_never_brings_a_refusal(declared: dict[str, Any], plan: Plan, key: str) -> None:
    assert set(codes_of(plan, **{**declared, key: ABLE[key]})) <= set(codes_of(plan, **declared))


def test_the_refusal_names_script_places_and_limits_and_writes_nothing(tmp_path: Path) -> None:
    script = script_in(tmp_path, 'ECHELON_CAN = {"zero": [0, 1]}\n')
    plan = plan_of(pipeline(0, 2, 4, recompute=1))
    with pytest.raises(ExecutorFailedError) as caught:
        plan_launches(plan, NO_JOB, LaunchOptions(folder=tmp_path / "run", script=script))
    assert caught.value.code == "script-not-able"
    assert caught.value.message.splitlines() == [
        "ECHELON_CAN in train.py:1 can't carry out replica lab-r0:",
        "  lab-r0.stages: 2 stages (script-pipeline); it can do one stage",
        "  lab-r0.stages[0].recompute: 1 layers (script-recompute); it can do 0 layers",
        "  lab-r0.stages[1].recompute: 1 layers (script-recompute); it can do 0 layers",
    ]
    assert not (tmp_path / "run").exists()


def test_the_executors_own_rules_are_for_its_own_training(tmp_path: Path) -> None:
    # A chain of explicit layers can't be built by our worker, and DeepSpeed's engine knows one width.
    script = script_in(tmp_path, 'ECHELON_CAN = {"pipeline": True, "unequal_widths": True}\n')
    plan, _ = DEMANDS["script-unequal-widths"]
    assert launched(plan, script, tmp_path / "run").executor == "deepspeed"
    with pytest.raises(ExecutorFailedError, match="no-recipe"):
        plan_launches(plan, NO_JOB, LaunchOptions(folder=tmp_path / "run"))


def test_an_executor_that_knows_no_scripts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign(DeepSpeedExecutor):
        def prepare(self, *arguments: Any) -> LaunchSpec:
            return replace(super().prepare(*arguments), script=None)

    monkeypatch.setattr(launching, "executor_named", lambda name: Foreign())
    with pytest.raises(ExecutorFailedError) as caught:
        launched(plan_of(ALONE), script_in(tmp_path, ""), tmp_path / "run")
    assert caught.value.code == "executor-without-scripts"


def test_ranks_start_the_script_with_its_words_in_sight(tmp_path: Path) -> None:
    script = script_in(tmp_path, "", "--note", "two words")
    run_file = str(tmp_path / "run" / "lab-r0" / "run.json")
    words = ["executors.script.start", run_file, "--", str(tmp_path / "train.py"), "--note", "two words"]
    deepspeed = launched(plan_of(ALONE), script, tmp_path / "run")
    assert list(deepspeed.commands[0].argv[-7:]) == ["--module", *words]
    torch = launched(plan_of(ALONE, executor="torch"), script, tmp_path / "run")
    starter = ["python", "-m", "executors.rank_starter", run_file, "--", "python", "-m"]
    assert list(torch.commands[0].argv) == [*starter, *words]
    for spec in (deepspeed, torch):
        assert "HF_HUB_OFFLINE" not in spec.commands[0].env
        assert not spec.reports


def test_the_run_file_holds_the_script_whole(tmp_path: Path) -> None:
    script = script_in(tmp_path, 'ECHELON_CAN = {"zero": [0, 2], "reports": True}\n', "a", "b")
    spec = launched(plan_of(ALONE), script, tmp_path / "run")
    assert spec.reports
    assert read_run(spec.folder / "run.json").file.script == script
    assert json.loads(spec.files["run.json"])["training"]["data"] == []


def test_after_a_loss_the_script_goes_on_where_it_can(tmp_path: Path) -> None:
    plan = plan_of(ALONE)
    (boundary,) = plan.boundaries
    other = plan_of(pipeline(0, 2, 4)).boundaries[0].replicas[0]
    entries = tuple(
        Failover(devices=("lab-1/0",), replica="lab-r0", replacement=each, tokens_per_s=1.0)
        for each in (boundary.replicas[0], other)
    )
    plan = replace(plan, boundaries=(replace(boundary, failover=entries),))
    script = script_in(tmp_path, "")
    (launch,) = plan_launches(plan, NO_JOB, LaunchOptions(folder=tmp_path / "run", script=script))
    again = replacement_launch(plan, launch, NO_JOB, 0, 4711)
    assert again.spec.script == script
    assert '"resume": true' in again.spec.files["run.json"]
    with pytest.raises(ExecutorFailedError, match="script-pipeline"):
        replacement_launch(plan, launch, NO_JOB, 1, 4711)
