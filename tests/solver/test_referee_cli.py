"""`echelon check` from the outside: answers, refusals and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from costmodels import registry
from planner.cli.main import run
from planner.plan import dump_plan
from solver.micro_fleets import Condition
from solver.test_referee import MODEL, _foreign, sound_plan

EXAMPLE = Path(__file__).resolve().parents[2] / "planner" / "examples" / "hospital"


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry.register(MODEL, _foreign)
    yield
    registry._REGISTRY.forget(MODEL)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    plan = sound_plan(1, Condition(), num_devices=3)
    assert plan is not None
    path = tmp_path / "plan.json"
    path.write_text(dump_plan(plan), encoding="utf-8")
    return path


def test_a_sound_plan_holds(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(plan_file)]) == 0
    shown = capsys.readouterr()
    assert "holds" in shown.out
    assert "re-derived" in shown.out
    assert shown.err == ""
    assert run(["check", str(plan_file), "--quick", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["data"]["holds"] is True
    assert "NOT" in answer["data"]["scope"]
    assert set(answer["data"]["inputs"]) == {"fleet", "model", "policy"}


def test_a_changed_plan_is_refused_with_every_fault(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(plan_file.read_text(encoding="utf-8"))
    data["boundaries"][0]["replicas"][0]["step_time_s"] *= 0.5
    data["certificate"]["value"] *= 2.0
    plan_file.write_text(json.dumps(data), encoding="utf-8")
    assert run(["check", str(plan_file), "--format", "json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "plan-refused"
    assert {"[step-time]", "[value]"} <= {fault["place"].split()[-1] for fault in error["faults"]}
    assert run(["check", str(plan_file)]) == 3
    assert "plan-refused" in capsys.readouterr().err


def test_an_unreadable_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "echelon/plan/1", "job": NaN}', encoding="utf-8")
    assert run(["check", str(path)]) == 3
    assert "bad-plan-file" in capsys.readouterr().err


def test_inputs_are_described_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(EXAMPLE / name) for name in ("fleet.yaml", "model.yaml", "policy.yaml")]
    assert run(["check", *files, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["boundaries"][0]["clusters"] > 0
    assert data["boundaries"][0]["modes"]
    broken = tmp_path / "fleet.yaml"
    shutil.copy(files[0], broken)
    broken.write_text(broken.read_text(encoding="utf-8") + "\nsurprise: 1\n", encoding="utf-8")
    assert run(["check", str(broken), *files[1:]]) == 3
    assert "surprise" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a", "b", "c", "d"], ["a", "b", "--quick"], []])
def test_wrong_usage_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", *arguments]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_lone_input_file_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(EXAMPLE / "fleet.yaml")]) == 3
    assert "FLEET MODEL [POLICY]" in capsys.readouterr().err
