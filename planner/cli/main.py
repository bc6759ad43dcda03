"""`echelon`: finds the command, loads its module, runs it, and turns every ending into an exit code.

A command lives in `planner/cli/cmd_<name>.py` and offers `register(app: typer.Typer) -> None`, which adds one
command (or group) of that name. The names and one-line helps stand here, so that `echelon --help` loads none.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planner.cli.console import Console, ExitCode
from planner.cli.flags import common_parameters, console_for
from policies.errors import EchelonError
from policies.one_home import require_one_home

COMMANDS: tuple[tuple[str, str], ...] = (
    ("init", "Write starter files from a bundled example, or draft a fleet file."),
    ("discover", "Probe this machine and draft its entry for a fleet file."),
    ("profile", "Measure layers, links and memory in running training steps."),
    ("check", "Check input files, or re-derive everything a plan claims."),
    ("solve", "Find the best topology and prove how far from the best it can be."),
    ("explain", "Say what binds in a plan, or why no plan exists."),
    ("simulate", "Replay a plan in virtual time."),
    ("show", "Show a plan as text, HTML or SVG."),
    ("launch", "Carry a plan out and compare it with what was predicted."),
    ("pki", "Make and keep the identities, certificates and keys of a run."),
    ("audit", "Verify, show or export the logs of what crossed a boundary."),
    ("schema", "Print the JSON Schema of a file format."),
    ("doctor", "Check this installation."),
)

_HELP = """Training topologies for mixed fleets, with a proof of how far from the best they are.

A first plan, from the bundled example:

\b
  echelon init --example hospital mine
  echelon solve mine/fleet.yaml mine/model.yaml mine/policy.yaml -o plan.json
  echelon check plan.json
  echelon show plan.json --html plan.html
"""
_SECTIONS_FOR_READERS_OF_CODE = re.compile(r"\n\s*(?:Args|Returns|Raises):\n.*", re.DOTALL)


class UsageFault(EchelonError):
    """The command line itself is wrong."""

    exit_code = int(ExitCode.USAGE)


class LazyCommands(TyperGroup):
    """A command group whose members are imported when they run, not when they are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the help page."""
        return [name for name, _ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, with the common flags added, or None."""
        if cmd_name in dict(COMMANDS) and cmd_name not in self.commands:
            self.commands[cmd_name] = load_command(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; an unknown one is refused with the names that look like it."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            similar = difflib.get_close_matches(args[0], names, n=3)
            raise UsageFault(
                "no-such-command",
                f"there is no command `{args[0]}`",
                hint=f"did you mean {_listed(similar)}?" if similar else f"the commands are {_listed(names)}",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table of commands, from the literal names alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS))


def load_command(name: str) -> Any:
    """Import `planner.cli.cmd_<name>` and build its command, with the common flags behind its own."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    importlib.import_module(f"planner.cli.cmd_{name}").register(app)
    command = typer.main.get_group(app).commands[name]
    leaves = list(command.commands.values()) if isinstance(command, TyperGroup) else [command]
    for leaf in leaves:
        leaf.params.extend(common_parameters())
        leaf.help = _SECTIONS_FOR_READERS_OF_CODE.sub("", leaf.help or "")
    return command


def build_group() -> Any:
    """The whole command line; no command module is imported yet."""
    app = typer.Typer(
        cls=LazyCommands,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=False,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(help=_HELP)
    def echelon(
        ctx: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    ) -> None:
        """What stands before a command, and a call without one."""
        if version:
            ctx.find_root().obj.emit({"version": installed_version()}, f"echelon {installed_version()}")
            raise typer.Exit(ExitCode.DONE)
        if ctx.invoked_subcommand is None:
            raise UsageFault("no-command", "no command given", hint="`echelon --help` lists the commands")

    group = typer.main.get_group(app)
    group.params.extend(common_parameters())
    return group


def installed_version() -> str:
    """The version of the installed distribution, or a word for a bare checkout."""
    from importlib import metadata

    try:
        return metadata.version("echelon")
    except metadata.PackageNotFoundError:
        return "(checkout, not installed)"


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; every fault ends in an answer, none in a traceback."""
    console = console_for(argv)
    try:
        require_one_home()
        ended = build_group().main(args=list(argv), prog_name="echelon", standalone_mode=False, obj=console)
        code = ended if isinstance(ended, int) else ExitCode.DONE
        if code == ExitCode.INTERRUPTED:
            _report_interrupt(console)
    except EchelonError as error:
        code = console.fail(error)
    except typer.TyperException as error:
        code = console.fail(_usage_fault(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _report_interrupt(console)
    except BrokenPipeError:
        # Whoever read our answer has left. Python must not complain about the unwritten rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.UNEXPECTED_FAULT
    except Exception as error:
        code = _report_unexpected(console, error)
    return int(code)


def main() -> None:
    """Entry point of the `echelon` command."""
    sys.exit(run(sys.argv[1:]))


def _report_interrupt(console: Console) -> ExitCode:
    console.fail(EchelonError("interrupted", "interrupted before there was an answer"))
    return ExitCode.INTERRUPTED


def _report_unexpected(console: Console, error: Exception) -> ExitCode:
    lines = str(error).strip().splitlines()
    summary = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    fault = EchelonError(
        "unexpected-fault",
        f"echelon itself failed with {summary}",
        hint=""
        if console.verbose
        else "run it again with -v for the traceback, and report it: this is a bug",
    )
    console.fail(fault)
    if console.verbose:
        console.stderr.write("\n" + "".join(traceback.format_exception(error)))
    return ExitCode.UNEXPECTED_FAULT


def _usage_fault(error: typer.TyperException) -> UsageFault:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "echelon"
    message = error.format_message().strip().rstrip(".")
    return UsageFault("usage", message, hint=f"`{path} --help` shows what is possible")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
