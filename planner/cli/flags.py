"""The flags that every command has, before and after the command's name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

from planner.cli.console import Console, OutputFormat, console_of

# Name of the flag's parameter -> name of the Console field it sets.
_FIELDS = {
    "format_": "format",
    "quiet": "quiet",
    "verbose": "verbose",
    "no_color": "no_color",
    "no_input": "no_input",
}


def _declarations(
    format_: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Answer as text, or as one JSON document.", show_choices=True),
    ] = None,
    quiet: Annotated[bool | None, typer.Option("-q", "--quiet", help="No talk on stderr but errors.")] = None,
    verbose: Annotated[
        bool | None, typer.Option("-v", "--verbose", help="More talk, and tracebacks.")
    ] = None,
    no_color: Annotated[bool | None, typer.Option("--no-color", help="No colour (as with NO_COLOR).")] = None,
    no_input: Annotated[bool | None, typer.Option("--no-input", help="Never ask anything.")] = None,
) -> None:
    """Carries the common flags' declarations; never runs."""


def common_parameters() -> list[Any]:
    """The common flags as parameters of a command: they set up its console; its function never sees them."""
    scratch = typer.Typer(add_completion=False, rich_markup_mode=None)
    scratch.command("flags")(_declarations)
    parameters = list(typer.main.get_command(scratch).params)
    for parameter in parameters:
        parameter.expose_value = False
        parameter.callback = _store
    return parameters


def _store(ctx: Any, parameter: Any, value: Any) -> Any:
    console = console_of(ctx)
    if value is not None:
        setattr(console, _FIELDS[parameter.name], value)
    return value


def console_for(argv: Sequence[str]) -> Console:
    """A console that already knows the answer's format, for faults met before or while the flags are read."""
    words = list(argv)[: list(argv).index("--")] if "--" in argv else list(argv)
    is_json = "--format=json" in words or ("--format", "json") in pairwise(words)
    console = Console(format=OutputFormat.JSON if is_json else OutputFormat.TEXT)
    console.verbose = "-v" in words or "--verbose" in words
    console.no_color = "--no-color" in words
    return console
