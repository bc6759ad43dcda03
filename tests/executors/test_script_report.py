"""The report of a script is made of what its ranks have told, in the newest start and before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from script_plans import Stage, launched, pipeline, plan_of, script_in

from executors import events
from executors.base import LaunchSpec
from executors.events import Event
from executors.script.report import script_report, write_script_report

TOKENS = 128


@pytest.fixture
def spec(tmp_path: Path) -> LaunchSpec:
    """Two ranks in two stages."""
    script = script_in(tmp_path, 'ECHELON_CAN = {"pipeline": True, "reports": True}\n')
    return launched(plan_of(pipeline(0, 2, 4)), script, tmp_path / "run")


def told(*said: Event, replica: str = "lab-r0") -> list[Event]:
    """Events as the launcher has them."""
    return [replace(event, replica=replica) for event in said]


def step(rank: int, number: int, loss: float, wall_s: float, cpu_s: float = 0.5) -> Event:
    """The end of a step."""
    return events.step(
        rank, step=number, loss=loss, gradient_norm=loss / 2, wall_s=wall_s, cpu_s=cpu_s, tokens=0
    )


def report_of(spec: LaunchSpec, said: list[Event]) -> dict[str, Any]:
    """The report, which there has to be."""
    report = script_report(spec, said, TOKENS)
    assert report is not None
    return report


def test_times_are_those_of_the_slowest_rank_without_warm_up(spec: LaunchSpec) -> None:
    said = [events.ready(0), events.ready(1)]
    for number, wall_s in enumerate((9.0, 8.0, 2.0, 4.0, 3.0), start=1):
        said += [step(0, number, 10.0 - number, wall_s), step(1, number, 0.0, wall_s / 2, cpu_s=0.25)]
    said += [events.evaluation(1, step=5, loss=4.5), events.finished(0, peak_bytes=100), events.finished(1)]
    report = report_of(spec, told(*said))
    assert report["measured"] == {"step_s": {"best": 2.0, "median": 3.0}, "tokens_per_s": TOKENS / 3.0}
    assert report["predicted"]["step_s"] == spec.replica.step_time_s
    assert report["losses"] == [9.0, 8.0, 7.0, 6.0, 5.0]
    assert report["gradient_norms"] == [4.5, 4.0, 3.5, 3.0, 2.5]
    assert report["evaluations"] == [{"step": 5, "loss": 4.5}]
    stages = {rank.stage: rank.rank for rank in spec.layout.ranks}
    cpu_s = {0: 0.5, 1: 0.25}
    for stage in report["stages"]:
        rank = stages[stage["index"]]
        peak = 100 if rank == 0 else 0
        assert stage["measured"] == {"busy_s": None, "busy_cpu_s": cpu_s[rank], "peak_bytes": peak}
    assert [(rank["busy_s"], rank["busy_cpu_s"]) for rank in report["ranks"]] == [(None, None)] * 2


def test_a_resumed_run_keeps_the_losses_that_still_count(spec: LaunchSpec) -> None:
    said = [events.ready(0), *(step(0, n, float(n), 1.0) for n in (1, 2, 3, 4))]
    said += [events.evaluation(0, step=2, loss=2.5), events.evaluation(0, step=4, loss=4.5)]
    said += [events.ready(0, 2), *(step(0, n, 10.0 * n, 0.5) for n in (3, 4, 5))]
    report = report_of(spec, told(*said))
    assert report["losses"] == [1.0, 2.0, 30.0, 40.0, 50.0]
    assert report["evaluations"] == [{"step": 2, "loss": 2.5}]
    assert report["measured"]["step_s"]["median"] == 0.5


def test_losses_are_those_of_a_rank_that_knows_them(spec: LaunchSpec) -> None:
    said = [events.parse_event(step(0, 1, float("nan"), 1.0).line()), step(1, 1, 3.0, 1.0)]
    assert report_of(spec, told(*said))["losses"] == [3.0]


def test_without_a_step_there_is_no_report(spec: LaunchSpec, tmp_path: Path) -> None:
    others = told(step(0, 1, 1.0, 1.0), replica="lab-r1")
    assert script_report(spec, [*told(events.ready(0)), *others], TOKENS) is None
    assert write_script_report(spec, tmp_path / "events.jsonl", TOKENS) is None
    assert not (spec.folder / "report.json").exists()


def test_the_report_lies_in_the_folder_of_the_replica(spec: LaunchSpec, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(event.line() for event in told(step(0, 1, 1.0, 1.0))), encoding="utf-8")
    assert write_script_report(spec, path, TOKENS) == spec.folder / "report.json"
    assert [each.name for each in spec.folder.glob("report*")] == ["report.json"]


def test_stages_of_several_ranks_count_the_busiest(tmp_path: Path) -> None:
    script = script_in(tmp_path, 'ECHELON_CAN = {"reports": True}\n')
    wide = launched(plan_of((Stage(layers=(0, 4), shares=(1, 1)),)), script, tmp_path / "run")
    said = told(step(0, 1, 1.0, 1.0, cpu_s=0.25), step(1, 1, 1.0, 1.0, cpu_s=0.75))
    assert report_of(wide, said)["stages"][0]["measured"]["busy_cpu_s"] == 0.75
