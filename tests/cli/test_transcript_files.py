"""The command line as its users meet it: every `tests/cli/*.txt` is run line by line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transcripts import matches, parse_transcript

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.txt")))
def test_transcript(name: str, cli: Callable[..., Any]) -> None:
    for step in parse_transcript((FOLDER / name).read_text(encoding="utf-8")):
        program, *argv = shlex.split(step.command)
        place = f"{name}:{step.line}"
        if program == "mkdir":
            for folder in argv:
                Path(folder).mkdir()
            continue
        if program == "cat":
            assert matches(step.out, "".join(Path(file).read_text(encoding="utf-8") for file in argv)), place
            continue
        if program == "ls":
            assert matches(step.out, "\n".join(sorted(path.name for path in Path(*argv).iterdir()))), place
            continue
        assert program == "echelon", f"{place}: a transcript knows echelon, mkdir, ls and cat"
        result = cli(*argv)
        assert result.code == step.code, f"{place}: exit code {result.code}\n{result.out}{result.err}"
        assert matches(step.out, result.out), f"{place}: stdout is\n{result.out}"
        assert matches(step.err or "", result.err), f"{place}: stderr is\n{result.err}"
