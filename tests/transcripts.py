"""Text with expectations: command transcripts and the code blocks of documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[A-Za-z0-9_+-]*) *$")
_NO_RUN = re.compile(r"^\s*<!--\s*no-run:(?P<reason>.*?)-->\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command and what it must say. `err` is None where the two streams are not told apart."""

    line: int
    command: str
    out: str
    err: str | None = None
    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced code block; `no_run` is the reason it is not run, None if it is."""

    line: int
    language: str
    text: str
    no_run: str | None


def parse_transcript(text: str) -> list[Step]:
    """Steps of a transcript: `$ command`, stdout as it is, stderr after `! `, the exit code after `? `."""
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("$ "):
            steps.append(Step(line=number, command=line[2:], out="", err=""))
        elif line.startswith("#") and not steps:
            continue
        elif not steps:
            raise ValueError(f"line {number}: text before the first command")
        else:
            steps[-1] = _with_line(steps[-1], line)
    return steps


def _with_line(step: Step, line: str) -> Step:
    if line.startswith("? "):
        return Step(line=step.line, command=step.command, out=step.out, err=step.err, code=int(line[2:]))
    if line == "!" or line.startswith("! "):
        return Step(
            line=step.line, command=step.command, out=step.out, err=f"{step.err}{line[2:]}\n", code=step.code
        )
    return Step(line=step.line, command=step.command, out=f"{step.out}{line}\n", err=step.err, code=step.code)


def console_steps(block: Block) -> list[Step]:
    """Steps of a `console` block: `$ command`, continued after a backslash, then what it prints."""
    steps: list[Step] = []
    goes_on = False
    for offset, line in enumerate(block.text.splitlines(), start=1):
        if goes_on:
            last = steps[-1]
            steps[-1] = Step(line=last.line, command=f"{last.command}\n{line}", out="")
        elif line.startswith("$ "):
            steps.append(Step(line=block.line + offset, command=line[2:], out=""))
        elif not steps:
            raise ValueError(f"line {block.line + offset}: output before the first command")
        else:
            last = steps[-1]
            steps[-1] = Step(line=last.line, command=last.command, out=f"{last.out}{line}\n")
        goes_on = (goes_on or line.startswith("$ ")) and line.endswith("\\")
    return steps


def fenced_blocks(markdown: str) -> Iterator[Block]:
    """The fenced code blocks of a document, in order."""
    lines = markdown.splitlines()
    number = 0
    reason: str | None = None
    while number < len(lines):
        line = lines[number]
        opening = _FENCE.match(line)
        if opening is None:
            comment = _NO_RUN.match(line)
            if comment is not None:
                reason = comment["reason"].strip()
            elif line.strip():
                reason = None
            number += 1
            continue
        body: list[str] = []
        start = number + 1
        number += 1
        while number < len(lines) and lines[number].strip() != opening["ticks"]:
            body.append(lines[number].removeprefix(opening["indent"]))
            number += 1
        if number == len(lines):
            raise ValueError(f"line {start}: this code block never ends")
        number += 1
        yield Block(line=start, language=opening["language"], text="\n".join(body) + "\n", no_run=reason)
        reason = None


def matches(expected: str, actual: str) -> bool:
    """Whether `actual` reads like `expected`, where `...` stands for anything and a line `...` for any lines.

    Spaces at line ends and empty lines at the end do not count.
    """
    pattern = ""
    for line in _tidy(expected):
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in line.split("...")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _tidy(actual))) is not None


def _tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
