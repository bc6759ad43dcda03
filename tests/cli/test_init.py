"""`echelon init` fills a folder or drafts a fleet and never overwrites unasked; `schema` prints schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.examples.bundled import (
    FILE_NAMES,
    JOB_FILE,
    STARTER,
    example_folder,
    example_names,
    example_texts,
)
from planner.files import load_fleet, load_inputs, load_training_job

Cli = Callable[..., Any]
SLURM = example_folder("university") / "slurm.txt"


@pytest.mark.parametrize("name", example_names())
def test_an_example_is_copied_byte_for_byte(name: str, cli: Cli, tmp_path: Path) -> None:
    result = cli("init", "--example", name, "mine/deep")
    assert result.code == 0
    assert result.out.splitlines() == [f"mine/deep/{file}" for file in example_texts(name)]
    assert "next: echelon solve mine/deep/fleet.yaml" in result.err
    for file, text in example_texts(name).items():
        assert (tmp_path / "mine" / "deep" / file).read_text(encoding="utf-8") == text


def test_a_bare_init_gives_a_commented_starter_that_loads(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", "mine").code == 0
    paths = [tmp_path / "mine" / file for file in FILE_NAMES]
    load_inputs(*paths)
    paths.append(tmp_path / "mine" / JOB_FILE)
    load_training_job(paths[-1])
    assert all(path.read_text(encoding="utf-8").count("#") > 5 for path in paths)
    assert STARTER not in example_names()


def test_nothing_is_overwritten_unless_forced(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "policy.yaml").write_text("precious", encoding="utf-8")
    refused = cli("init", "--example", "hospital", "mine")
    assert refused.code == 3
    assert "mine/policy.yaml" in refused.err
    assert "--force" in refused.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["policy.yaml"], "all files or none"
    assert cli("init", "--example", "hospital", "mine", "--force").code == 0
    assert (tmp_path / "mine" / "policy.yaml").read_text(encoding="utf-8") != "precious"


def test_an_unknown_example_lists_those_there_are(cli: Cli, tmp_path: Path) -> None:
    result = cli("init", "--example", "hopsital", "mine")
    assert result.code == 3
    assert "did you mean `hospital`?" in result.err
    assert all(name in result.err for name in example_names())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["fleet.yaml", None])
def test_a_fleet_drafted_from_slurm_loads(output: str | None, cli: Cli, tmp_path: Path) -> None:
    result = cli("init", "--from", "slurm", str(SLURM), *([] if output is None else ["-o", output]))
    assert result.code == 0
    assert "values are assumed" in result.err
    path = tmp_path / "fleet.yaml"
    if output is None:
        path.write_text(result.out, encoding="utf-8")
    assert len(load_fleet(path).devices) == 4 * 2 + 4 + 2 * 4 + 2
    if output is not None:
        assert cli("init", "--from", "slurm", str(SLURM), "-o", output).code == 3, (
            "the draft stays as it was edited"
        )


def test_the_type_of_a_hostfile_can_be_given(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2\n", encoding="utf-8")
    result = cli("init", "--from", "hostfile", "hosts", "--device", "L40S", "--format", "json")
    document = json.loads(result.out)
    assert "type: L40S" in document["data"]["fleet"]
    assert document["data"]["hosts"] == 1
    wrong = cli("init", "--from", "hostfile", "hosts", "--device", "L400")
    assert wrong.code == 3
    assert "L40" in wrong.err


@pytest.mark.parametrize(
    "argv",
    [
        ["init"],
        ["init", "--example", "hospital"],
        ["init", "--from", "hostfile"],
        ["init", "--from", "nothing", "x"],
        ["init", "mine", "-o", "x"],
        ["init", "mine", "--device", "T4"],
        ["init", "--from", "slurm", "x", "--example", "hospital"],
        ["schema"],
        ["schema", "weather"],
    ],
)
def test_wrong_command_lines_are_usage_errors_and_write_nothing(
    argv: list[str], cli: Cli, tmp_path: Path
) -> None:
    result = cli(*argv)
    assert (result.code, result.out) == (2, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["init", "--from", "slurm", "gone"], ["init", "--from", "hostfile", "."]])
def test_a_source_that_cannot_be_read_is_a_bad_input(argv: list[str], cli: Cli) -> None:
    assert cli(*argv).code == 3


def test_a_folder_that_is_a_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file", encoding="utf-8")
    assert cli("init", "mine").code == 3
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "a file"


@pytest.mark.parametrize("kind", ["fleet", "model", "policy", "job", "plan", "profile"])
def test_schema_prints_a_json_schema(kind: str, cli: Cli) -> None:
    plain, wrapped = cli("schema", kind), cli("schema", kind, "--format", "json")
    assert (plain.code, plain.err) == (0, "")
    assert json.loads(plain.out) == json.loads(wrapped.out)["data"]
