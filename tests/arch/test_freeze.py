"""What others rely on changes on purpose only: exit codes and the flags of every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from planner.cli.console import ExitCode
from planner.cli.main import COMMANDS, build_group, load_command
from policies import errors

ROOT = Path(__file__).resolve().parents[2]


def test_exit_codes() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "UNEXPECTED_FAULT": 1,
        "USAGE": 2,
        "BAD_INPUT": 3,
        "INFEASIBLE": 4,
        "NO_PLAN_IN_TIME": 5,
        "EXCESS_TOO_LARGE": 6,
        "POLICY_REFUSED": 7,
        "AUDIT_FAILED": 8,
        "EXECUTOR_FAILED": 9,
        "AUDIT_INCONCLUSIVE": 10,
        "INTERRUPTED": 130,
    }


def test_every_error_class_ends_in_a_listed_exit_code() -> None:
    assert {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.EchelonError)
    } == {
        "EchelonError": ExitCode.UNEXPECTED_FAULT,
        "InputError": ExitCode.BAD_INPUT,
        "InfeasibleError": ExitCode.INFEASIBLE,
        "NoPlanInTimeError": ExitCode.NO_PLAN_IN_TIME,
        "ExcessTooLargeError": ExitCode.EXCESS_TOO_LARGE,
        "PolicyRefusedError": ExitCode.POLICY_REFUSED,
        "AuditFailedError": ExitCode.AUDIT_FAILED,
        "ExecutorFailedError": ExitCode.EXECUTOR_FAILED,
        "AuditInconclusiveError": ExitCode.AUDIT_INCONCLUSIVE,
    }


def test_flags_of_every_command(golden: Callable[[str, str], None]) -> None:
    lines = _parameter_lines("echelon", build_group())
    for name, _ in COMMANDS:
        lines += _parameter_lines(f"echelon {name}", load_command(name))
    golden("cli_flags.txt", "\n".join(lines) + "\n")


def test_every_command_module_is_listed_and_every_listed_one_exists() -> None:
    modules = {path.stem.removeprefix("cmd_") for path in (ROOT / "planner" / "cli").glob("cmd_*.py")}
    assert modules == {name for name, _ in COMMANDS}


def _parameter_lines(path: str, command: Any) -> list[str]:
    lines = [path]
    for parameter in command.params:
        names = " ".join([*parameter.opts, *parameter.secondary_opts])
        lines.append(f"  {parameter.param_type_name} {names}{' (required)' if parameter.required else ''}")
    if isinstance(command, TyperGroup):
        for name, leaf in command.commands.items():
            lines += _parameter_lines(f"{path} {name}", leaf)
    return lines
