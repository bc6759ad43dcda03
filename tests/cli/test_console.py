from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from planner.cli.console import Console, OutputFormat, error_text, write_atomically
from policies.errors import (
    EchelonError,
    ExcessTooLargeError,
    Fault,
    InfeasibleError,
    InputError,
)
from policies.one_home import require_one_home


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def console(**settings: Any) -> tuple[Console, io.StringIO, io.StringIO]:
    """A console with streams to look into."""
    out, err = io.StringIO(), io.StringIO()
    return Console(**{"stdout": out, "stderr": err, **settings}), out, err


FAULTS = InputError(
    "bad-input",
    "2 faults in fleet.yaml",
    faults=[
        Fault(
            place="fleet.yaml:3: hosts[0].memory",
            value="'-4 GiB'",
            limit="a size of 0 or more",
            hint="drop the sign",
        ),
        Fault(place="fleet.yaml:9: name", value="missing", limit=""),
    ],
    hint="correct them and run again",
)
CONFLICT = InfeasibleError(
    "infeasible",
    "no plan exists",
    because=["layers 0-3 need tier `restricted`", "no such device"],
    hint="raise a tier",
)


def test_text_goes_to_stdout_with_one_newline_at_the_end() -> None:
    target, out, err = console()
    target.emit({"a": 1}, "one")
    target.emit({"a": 1}, "two\n")
    target.emit({"a": 1}, "")
    assert (out.getvalue(), err.getvalue()) == ("one\ntwo\n", "")


def test_json_is_one_document_with_sorted_keys() -> None:
    target, out, err = console(format=OutputFormat.JSON)
    target.emit({"b": [1.5, None], "a": "ü"}, "not shown")
    assert json.loads(out.getvalue()) == {
        "schema": "echelon/answer/1",
        "status": "ok",
        "data": {"a": "ü", "b": [1.5, None]},
        "error": None,
    }
    assert list(json.loads(out.getvalue())) == ["data", "error", "schema", "status"]
    assert err.getvalue() == ""


def test_json_refuses_values_that_are_no_json_numbers() -> None:
    target, out, _ = console(format=OutputFormat.JSON)
    with pytest.raises(ValueError, match="not JSON compliant"):
        target.emit({"x": float("nan")}, "")
    assert out.getvalue() == ""


def test_an_answer_may_stand_while_the_command_fails() -> None:
    short = ExcessTooLargeError("excess-too-large", "at most 4.6 % slower, asked for 1 %")
    target, out, err = console()
    with pytest.raises(typer.Exit) as stopped:
        target.emit({}, "plan", but=short)
    assert stopped.value.exit_code == 6
    assert (out.getvalue(), err.getvalue().splitlines()[0]) == (
        "plan\n",
        f"error[{short.code}]: {short.message}",
    )
    target, out, err = console(format=OutputFormat.JSON)
    with pytest.raises(typer.Exit):
        target.emit({"plan": 1}, "plan", but=short)
    answer = json.loads(out.getvalue())
    assert (answer["status"], answer["data"], answer["error"]["code"]) == (
        "error",
        {"plan": 1},
        "excess-too-large",
    )


def test_every_fault_of_an_input_is_shown_with_its_place() -> None:
    assert error_text(FAULTS).splitlines() == [
        "error[bad-input]: 2 faults in fleet.yaml",
        "  fleet.yaml:3: hosts[0].memory: '-4 GiB'; expected a size of 0 or more",
        "    hint: drop the sign",
        "  fleet.yaml:9: name: missing",
        "",
        "hint: correct them and run again",
    ]


def test_very_many_faults_are_cut_in_text_and_whole_in_json() -> None:
    faults = [Fault(place=f"f:{i}", value="x", limit="y") for i in range(1000)]
    many = InputError("bad-input", "1000 faults", faults=faults)
    assert error_text(many).splitlines()[-1] == "  and 800 more (all of them with --format json)"
    target, out, _ = console(format=OutputFormat.JSON)
    assert target.fail(many) == 3
    assert len(json.loads(out.getvalue())["error"]["faults"]) == 1000


def test_a_proof_of_infeasibility_reads_as_a_chain() -> None:
    assert error_text(CONFLICT).splitlines() == [
        "error[infeasible]: no plan exists",
        "  because layers 0-3 need tier `restricted`",
        "  and no such device",
        "",
        "hint: raise a tier",
    ]
    target, out, _ = console(format=OutputFormat.JSON)
    assert target.fail(CONFLICT) == 4
    assert json.loads(out.getvalue())["error"]["because"] == list(CONFLICT.because)


def test_talk_goes_to_stderr_unless_quiet() -> None:
    target, out, err = console()
    target.note("wrote x")
    target.detail("unasked")
    assert (out.getvalue(), err.getvalue()) == ("", "wrote x\n")
    target, _, err = console(quiet=True, verbose=True)
    target.note("wrote x")
    target.detail("asked")
    assert err.getvalue() == "asked\n"


def test_verbose_shows_where_an_error_came_from() -> None:
    target, _, err = console(verbose=True)
    with pytest.raises(EchelonError) as caught:
        require_one_home({"planner": None})
    target.fail(caught.value)
    assert "Traceback" in err.getvalue()


def test_color_only_on_a_willing_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    Console(stderr=screen).fail(EchelonError("x", "y"))
    assert screen.getvalue() == "\x1b[1;31merror[x]\x1b[0m: y\n"
    assert not Console(no_color=True).uses_color(screen)
    assert not Console().uses_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Console().uses_color(screen)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Console().uses_color(screen)


def test_progress_shows_on_a_terminal_and_leaves_nothing() -> None:
    screen = Terminal()
    with Console(stderr=screen).progress() as progress:
        progress.update("a" * 500)
        progress.update("too soon after the first")
        progress.update("12 %", force=True)
    shown = screen.getvalue()
    assert "too soon" not in shown
    assert shown.startswith("\r" + "a" * 79 + "\x1b[K")
    assert shown.endswith("\r12 %\x1b[K\r\x1b[K")


@pytest.mark.parametrize("settings", [{"stderr": io.StringIO()}, {"stderr": Terminal(), "quiet": True}])
def test_progress_is_silent_elsewhere(settings: dict[str, Any]) -> None:
    with Console(**settings).progress() as progress:
        progress.update("12 %", force=True)
    assert settings["stderr"].getvalue() == ""


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old", encoding="utf-8")
    write_atomically(path, "new ü\n")
    assert path.read_bytes() == "new ü\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "lone surrogate \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_a_link_keeps_pointing_at_the_file_that_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_atomically(Path("/dev/null"), "gone")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize(
    ("name", "code"), [("absent/plan.json", "output-folder-missing"), ("folder", "output-not-writable")]
)
def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=name) as caught:
        write_atomically(tmp_path / name, "text")
    assert caught.value.code == code
    assert caught.value.exit_code == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
