"""The stream contract of the command line, in one place.

stdout carries data, stderr carries talk. In text mode stdout is the answer as text; with `--format json` it
is exactly one document, also when the command fails:

    {"schema": "echelon/answer/1", "status": "ok", "data": ..., "error": null}
    {"schema": "echelon/answer/1", "status": "error", "data": null, "error": {"code", "message", "hint"}}

An input error adds `faults` to `error`, a proof of infeasibility adds `because`. Messages have no final full
stop, no meaning by colour alone, and a hint on lines of its own after an empty one.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, TextIO

import typer

from policies.errors import EchelonError, InfeasibleError, InputError

ANSWER_SCHEMA = "echelon/answer/1"
PROGRESS_INTERVAL_S = 0.1
MAX_FAULTS_IN_TEXT = 200


class ExitCode(IntEnum):
    """What the shell sees. All but the last stay below 64; `tests/arch` freezes them."""

    DONE = 0
    UNEXPECTED_FAULT = 1
    USAGE = 2
    BAD_INPUT = 3
    INFEASIBLE = 4
    NO_PLAN_IN_TIME = 5
    EXCESS_TOO_LARGE = 6
    POLICY_REFUSED = 7
    AUDIT_FAILED = 8
    EXECUTOR_FAILED = 9
    AUDIT_INCONCLUSIVE = 10
    INTERRUPTED = 130


class OutputFormat(StrEnum):
    """What `--format` accepts."""

    TEXT = "text"
    JSON = "json"


@dataclass(slots=True)
class Progress:
    """One line on stderr that is overwritten in place; silent when `stream` is None."""

    stream: TextIO | None
    _last_s: float = field(default=-1.0)

    def update(self, text: str, *, force: bool = False) -> None:
        """Show `text` instead of what stood there, at most ten times a second unless `force`."""
        now_s = time.monotonic()
        if self.stream is None or (not force and 0.0 <= now_s - self._last_s < PROGRESS_INTERVAL_S):
            return
        self._last_s = now_s
        width = _terminal_width(self.stream)
        self.stream.write("\r" + text[: width - 1] + "\x1b[K")
        self.stream.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self.stream is not None and self._last_s >= 0.0:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


@dataclass(slots=True, kw_only=True)
class Console:
    """Where a command puts its answer, its talk and its faults. Commands get theirs by `console_of(ctx)`."""

    format: OutputFormat = OutputFormat.TEXT
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    no_input: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def is_json(self) -> bool:
        """Whether stdout is one JSON document."""
        return self.format is OutputFormat.JSON

    @property
    def may_ask(self) -> bool:
        """Whether a question may be put to the user."""
        return not self.no_input and not self.is_json and sys.stdin is not None and sys.stdin.isatty()

    def uses_color(self, stream: TextIO) -> bool:
        """Whether `stream` is a terminal that wants colour (https://no-color.org)."""
        plain = self.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return not plain and stream.isatty()

    def emit(self, data: Any, text: str, *, but: EchelonError | None = None) -> None:
        """Give the command's one answer: `data` as JSON, or `text`.

        With `but` the answer stands and the command still fails (a plan whose excess is above the one asked
        for): both are given, and the exit code is that of the error.

        Raises:
            typer.Exit: when `but` is given.
        """
        if self.is_json:
            self._write_envelope(data, but)
        else:
            self.stdout.write(text if text.endswith("\n") or not text else text + "\n")
            self.stdout.flush()
            if but is not None:
                self._write_error(but)
        if but is not None:
            raise typer.Exit(but.exit_code)

    def fail(self, error: EchelonError) -> int:
        """Report `error` as the command's answer and return its exit code; commands just raise it."""
        if self.is_json:
            self._write_envelope(None, error)
        else:
            self._write_error(error)
        return int(error.exit_code)

    def note(self, text: str) -> None:
        """Talk: one line on stderr, unless `-q`."""
        if not self.quiet:
            self.stderr.write(text + "\n")
            self.stderr.flush()

    def detail(self, text: str) -> None:
        """Talk that only `-v` wants to hear."""
        if self.verbose:
            self.stderr.write(text + "\n")
            self.stderr.flush()

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A line that tells how far the work is; only on a terminal, never with `-q`, gone afterwards."""
        shown = Progress(self.stderr if self.stderr.isatty() and not self.quiet else None)
        try:
            yield shown
        finally:
            shown.clear()

    def _write_envelope(self, data: Any, error: EchelonError | None) -> None:
        status = "ok" if error is None else "error"
        answer = {"schema": ANSWER_SCHEMA, "status": status, "data": data, "error": error_document(error)}
        text = json.dumps(answer, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        self.stdout.write(text + "\n")
        self.stdout.flush()

    def _write_error(self, error: EchelonError) -> None:
        text = error_text(error)
        if self.uses_color(self.stderr):
            head, colon, rest = text.partition(":")
            text = f"\x1b[1;31m{head}\x1b[0m{colon}{rest}"
        self.stderr.write(text + "\n")
        if self.verbose and error.__traceback__ is not None:
            self.stderr.write("\n" + "".join(traceback.format_exception(error)))
        self.stderr.flush()


def console_of(ctx: typer.Context) -> Console:
    """The console of the running command, set up from the common flags."""
    console = ctx.find_root().obj
    if not isinstance(console, Console):
        console = ctx.find_root().obj = Console()
    return console


def error_document(error: EchelonError | None) -> dict[str, Any] | None:
    """The `error` part of the JSON answer."""
    if error is None:
        return None
    document: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, InputError):
        document["faults"] = [
            {"place": fault.place, "value": fault.value, "limit": fault.limit, "hint": fault.hint}
            for fault in error.faults
        ]
    if isinstance(error, InfeasibleError):
        document["because"] = list(error.because)
    return document


def error_text(error: EchelonError) -> str:
    """The lines that stderr shows: what is wrong, why or where, and after an empty line the way out."""
    lines = [f"error[{error.code}]: {error.message}"]
    if isinstance(error, InputError):
        for fault in error.faults[:MAX_FAULTS_IN_TEXT]:
            expected = f"; expected {fault.limit}" if fault.limit else ""
            lines.append(f"  {fault.place}: {fault.value}{expected}")
            if fault.hint:
                lines.append(f"    hint: {fault.hint}")
        if len(error.faults) > MAX_FAULTS_IN_TEXT:
            num_more = len(error.faults) - MAX_FAULTS_IN_TEXT
            lines.append(f"  and {num_more} more (all of them with --format json)")
    if isinstance(error, InfeasibleError):
        words = ["because"] + ["and"] * len(error.because)
        lines += [f"  {word} {reason}" for word, reason in zip(words, error.because, strict=False)]
    if error.hint:
        lines += ["", f"hint: {error.hint}"]
    return "\n".join(lines)


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path`, all of it or nothing: a temporary file beside it is renamed at the end.

    A path that is no regular file (a pipe, `/dev/stdout`) is written to directly.

    Raises:
        InputError: `output-folder-missing` or `output-not-writable`.
    """
    target = path.resolve() if path.is_symlink() else path
    folder = target.parent
    if not folder.is_dir():
        raise InputError(
            "output-folder-missing",
            f"can't write `{path}`: folder `{folder}` does not exist",
            hint=f"create it first: mkdir -p '{folder}'",
        )
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    try:
        if target.is_dir():
            raise IsADirectoryError(f"`{target}` is a folder")
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8", newline="\n")
            return
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            "output-not-writable",
            f"can't write `{path}`: {reason}",
            hint="name a file in a folder you may write to",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _terminal_width(stream: TextIO) -> int:
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return 80
