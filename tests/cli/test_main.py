from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import planner.cli.main as entry
from planner.cli.console import console_of
from policies.errors import PolicyRefusedError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """`planted(f)` makes `echelon doctor` run `f(console)`."""

    def plant(work: Callable[..., None]) -> None:
        app = typer.Typer()

        @app.command()
        def doctor(ctx: typer.Context, name: str = "") -> None:
            """Run the planted work.

            Raises:
                Anything: as the work does.
            """
            work(console_of(ctx))

        module = type(sys)("planner.cli.cmd_doctor")
        module.__dict__["register"] = lambda other: other.registered_commands.extend(app.registered_commands)
        monkeypatch.setitem(sys.modules, "planner.cli.cmd_doctor", module)

    return plant


@pytest.mark.parametrize(
    "argv",
    [
        ("--format", "json", "-q", "-v", "--no-color", "--no-input", "doctor"),
        ("doctor", "--format", "json", "-q", "-v", "--no-color", "--no-input"),
        ("-q", "--no-color", "doctor", "--format=json", "--verbose", "--no-input"),
        ("--format", "text", "doctor", "--format", "json", "-qv", "--no-color", "--no-input"),
    ],
)
def test_common_flags_work_before_and_after_the_command(
    argv: tuple[str, ...], cli: Callable[..., Any], planted: Callable[..., None]
) -> None:
    seen = {}

    def look(console: Any) -> None:
        names = ("is_json", "quiet", "verbose", "no_color", "no_input")
        seen.update({name: getattr(console, name) for name in names})

    planted(look)
    assert cli(*argv).code == 0
    assert seen == dict.fromkeys(("is_json", "quiet", "verbose", "no_color", "no_input"), True)


def test_a_users_error_is_reported_without_a_traceback(
    cli: Callable[..., Any], planted: Callable[..., None]
) -> None:
    def refuse(console: Any) -> None:
        raise PolicyRefusedError("two-boundaries", "2 boundaries, 3 wanted", hint="accept it by name")

    planted(refuse)
    result = cli("doctor")
    assert (result.code, result.out) == (7, "")
    assert result.err == "error[two-boundaries]: 2 boundaries, 3 wanted\n\nhint: accept it by name\n"
    answer = json.loads(cli("doctor", "--format", "json").out)
    assert answer["error"] == {
        "code": "two-boundaries",
        "message": "2 boundaries, 3 wanted",
        "hint": "accept it by name",
    }


def test_an_unexpected_fault_is_one_line_and_a_traceback_on_request(
    cli: Callable[..., Any], planted: Callable[..., None]
) -> None:
    def fail(console: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    planted(fail)
    result = cli("doctor")
    assert result.code == 1
    assert result.err.splitlines()[0] == (
        "error[unexpected-fault]: echelon itself failed with ZeroDivisionError: division"
    )
    assert "-v" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in cli("doctor", "-v").err


def test_an_interrupt_without_an_answer_ends_with_130(
    cli: Callable[..., Any], planted: Callable[..., None]
) -> None:
    def interrupt(console: Any) -> None:
        raise KeyboardInterrupt

    planted(interrupt)
    result = cli("doctor", "--format", "json")
    assert result.code == 130
    assert json.loads(result.out)["error"]["code"] == "interrupted"


def test_help_of_a_command_hides_what_is_for_readers_of_code(
    cli: Callable[..., Any], planted: Callable[..., None]
) -> None:
    planted(lambda console: None)
    result = cli("doctor", "--help")
    assert result.code == 0
    assert "Run the planted work." in result.out
    assert "Raises" not in result.out
    assert "--format" in result.out


def test_words_after_a_double_dash_are_not_our_flags(cli: Callable[..., Any]) -> None:
    result = cli("slove", "--", "--format", "json")
    assert result.out == ""
    assert result.err.startswith("error[no-such-command]")


def test_a_foreign_package_stops_the_command(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from policies.one_home import PACKAGES, require_one_home

    homes = {name: Path("/a") for name in PACKAGES} | {"executors": Path("/b")}
    monkeypatch.setattr(entry, "require_one_home", lambda: require_one_home(homes))
    result = cli("--version")
    assert (result.code, result.out) == (1, "")
    assert "`executors` from /b" in result.err


def start(*argv: str, **settings: Any) -> subprocess.Popen[str]:
    """`echelon` in a process of its own."""
    command = [sys.executable, "-m", "planner.cli.main", *argv]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    )


def test_the_command_runs_as_a_module() -> None:
    process = start("--version")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith("echelon ")


def test_a_reader_who_leaves_causes_no_noise() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "planner.cli.main", "--help"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")


def test_control_c_ends_the_process_with_130() -> None:
    with start("discover", "-v", "--probe-time", "60s") as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert first == "measuring for about 120 s\n"
    assert process.returncode == 130
    assert err.splitlines()[0] == "error[interrupted]: interrupted before there was an answer"
