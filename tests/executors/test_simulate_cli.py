"""`echelon simulate` from the shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulation_cases import two_site_fleet, two_site_plan

from planner.plan import dump_plan

Cli = Callable[..., Any]


@pytest.fixture
def plan(tmp_path: Path) -> str:
    """A plan of two replicas with two idle devices."""
    text = dump_plan(two_site_plan(two_site_fleet(2, spares=2), 2))
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    return "plan.json"


def test_the_text_says_how_long_a_step_takes_and_where_it_goes(cli: Cli, plan: str) -> None:
    done = cli("simulate", plan, "--steps", "3")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("simulated  3 steps of 2 replicas")
    assert lines[1].startswith("speed")
    assert "planned" in lines[1]
    assert sum(line.startswith("replica    lab-r") for line in lines) == 2, "the shared link tells them apart"
    assert any("forward" in line and "waits" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_json_answer_has_every_figure(cli: Cli, plan: str) -> None:
    done = cli("simulate", plan, "--format", "json", "--window-steps", "2", "--quorum", "1")
    assert done.code == 0
    data = json.loads(done.out)["data"]
    assert data["steps"] == 10
    assert len(data["windows"]) == 10
    for replica in data["replicas"]:
        assert replica["lower_bound_s"] <= replica["step_alone_s"] <= replica["step_s"]
        assert replica["step_alone_s"] == pytest.approx(replica["cycle_form_s"], rel=0.02)
        assert not replica["closed_form_is_exact"]
        assert replica["planned_step_s"] == pytest.approx(replica["closed_form_s"])
        for stage in replica["stages"]:
            parts = [stage[f"{name}_s"] for name in ("forward", "backward", "transfer", "sync", "idle")]
            assert sum(parts) == pytest.approx(replica["step_alone_s"])
    assert [use["replicas"] for use in data["links"]] == [["lab-r0", "lab-r1"]] * 2


def test_a_loss_is_told_in_words_and_drawn(cli: Cli, plan: str, tmp_path: Path) -> None:
    files = ("--trace", "trace.json", "--gantt", "gantt.svg")
    times = ("--checkpoint-every", "2", "--detect-time", "2s", "--restart-time", "1min")
    done = cli("simulate", plan, "--steps", "5", "--fail", "left-0/0@3", *times, *files)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "left-0/0 lost in step 3 of lab-r0" in told
    assert "goes on 1.03 min later with a replacement, 1 step done again" in told
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert (tmp_path / "gantt.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_blocking_transfers_hold_the_stages(cli: Cli, plan: str) -> None:
    steps = {}
    for mode in ("overlapped", "on-receive", "blocking"):
        done = cli("simulate", plan, "--transfers", mode, "--format", "json", "--steps", "1")
        (first, _) = json.loads(done.out)["data"]["replicas"]
        steps[mode] = first["step_s"]
        assert (first["stages"][0]["transfer_s"] > 0.0) == (mode == "blocking")
    assert steps["overlapped"] <= steps["on-receive"] <= steps["blocking"]


def report_of(plan: dict[str, Any], forward_s: float) -> dict[str, Any]:
    """A launch's report of the first replica with these seconds of forward passes per step."""
    replica = plan["boundaries"][0]["replicas"][0]
    kinds = {"forward": forward_s, "backward": 2 * forward_s, "sync": 0.25, "optimiser": 0.5}
    ranks: list[dict[str, Any]] = [
        {"rank": i, "kinds": {kind: {"wall_s": {"median": s, "best": s}} for kind, s in kinds.items()}}
        for i in range(len(replica["stages"]))
    ]
    ranks[1]["kinds"]["sync"]["wall_s"]["median"] = 9.0
    stages = [{key: stage[key] for key in ("index", "layers", "devices")} for stage in replica["stages"]]
    return {"schema": "echelon/report/1", "replica": replica["id"], "stages": stages, "ranks": ranks}


def test_a_report_gives_measured_stage_times(cli: Cli, plan: str, tmp_path: Path) -> None:
    document = json.loads((tmp_path / plan).read_text(encoding="utf-8"))
    report = report_of(document, 32.0)
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    done = cli("simulate", plan, "--report", "report.json", "--format", "json")
    assert done.code == 0, done.err
    measured, modelled = json.loads(done.out)["data"]["replicas"]
    for stage in measured["stages"]:
        figures = [stage[f"{name}_s"] for name in ("forward", "backward", "sync")]
        assert figures == pytest.approx([32.0, 64.0, 0.75])
    assert modelled["stages"][0]["forward_s"] < 32.0


@pytest.mark.parametrize("key", ["schema", "replica", "stages", "ranks"])
def test_a_report_of_another_launch_is_refused(cli: Cli, plan: str, tmp_path: Path, key: str) -> None:
    report = report_of(json.loads((tmp_path / plan).read_text(encoding="utf-8")), 32.0)
    report[key] = "other" if key in ("schema", "replica") else report[key][:1]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    done = cli("simulate", plan, "--report", "report.json")
    assert done.code == 3
    assert "simulation-report" in done.err
    assert f"report.json: {key}" in done.err


def test_a_report_without_times_is_refused(cli: Cli, plan: str, tmp_path: Path) -> None:
    report = report_of(json.loads((tmp_path / plan).read_text(encoding="utf-8")), 32.0)
    del report["ranks"][1]["kinds"]["forward"]
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    done = cli("simulate", plan, "--report", "report.json")
    assert done.code == 3
    assert "ranks[1].kinds.forward.wall_s.median" in done.err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--fail", "left-0/0"), 2, "no DEVICE@STEP"),
        (("--fail", "@3"), 2, "no DEVICE@STEP"),
        (("--detect-time", "5"), 2, "the unit is missing"),
        (("--quorum", "1"), 2, "only with --window-steps"),
        (("--steps", "0"), 3, "steps: 0; expected 1 to"),
        (("--fail", "left-0@99"), 3, "expected a step from 0 to 9"),
        (("--window-steps", "1", "--quorum", "5"), 3, "quorum: 5; expected 1 to 2"),
        (("--profile", "missing.json"), 3, "missing.json"),
        (("--gantt", "no/such/folder.svg"), 3, "does not exist"),
    ],
)
def test_bad_options_name_place_value_and_limit(
    cli: Cli, plan: str, argv: tuple[str, ...], code: int, words: str
) -> None:
    done = cli("simulate", plan, *argv)
    assert done.code == code
    assert words in " ".join(done.err.split())
    assert done.out == ""


def test_a_plan_that_does_not_fit_its_fleet_is_refused(cli: Cli, plan: str, tmp_path: Path) -> None:
    document = json.loads((tmp_path / plan).read_text(encoding="utf-8"))
    stage = document["boundaries"][0]["replicas"][0]["stages"][0]
    stage["layers"] = [0, 99]
    (tmp_path / "edited.json").write_text(json.dumps(document), encoding="utf-8")
    done = cli("simulate", "edited.json")
    assert done.code == 3
    assert "plan-misfit" in done.err
