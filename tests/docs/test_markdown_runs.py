"""Every code block of the README and the manual runs, in the order of the page, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transcripts import Block, console_steps, fenced_blocks, matches

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
RUN_LANGUAGES = ("python", "console", "sh")
COMMAND_TIMEOUT_S = 300


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page that are in a language that runs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [block for block in fenced_blocks(text) if block.language in RUN_LANGUAGES]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    to_run = [block for block in blocks_of(page) if block.no_run is None]
    record_property("blocks_ran", len(to_run))
    record_property("blocks_skipped", len(blocks_of(page)) - len(to_run))
    for block in to_run:
        run_block(page, block, folder=tmp_path, names=names)


@pytest.mark.parametrize("page", PAGES)
def test_every_skipped_block_says_why(page: str) -> None:
    assert [block.line for block in blocks_of(page) if block.no_run == ""] == []


def test_the_readme_skips_nothing_but_installation() -> None:
    for block in blocks_of("README.md"):
        if block.no_run is None:
            continue
        commands = [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]
        install = ("make ", "git clone ", "cd ", "apt-get install ")
        assert all(command.startswith(install) for command in commands), f"README.md:{block.line} should run"


def test_a_wrong_block_is_caught(tmp_path: Path) -> None:
    good = Block(line=1, language="console", text="$ echo one; echo two\none\n...\n", no_run=None)
    run_block("page", good, folder=tmp_path, names={})
    bad_output = Block(line=1, language="console", text="$ echo one\nthree\n", no_run=None)
    bad_command = Block(line=1, language="sh", text="false\ntrue\n", no_run=None)
    bad_code = Block(line=1, language="python", text="assert 1 == 2\n", no_run=None)
    for block in (bad_output, bad_command):
        with pytest.raises(pytest.fail.Exception, match="page:"):
            run_block("page", block, folder=tmp_path, names={})
    with pytest.raises(AssertionError):
        run_block("page", bad_code, folder=tmp_path, names={})


def run_block(page: str, block: Block, *, folder: Path, names: dict[str, Any]) -> None:
    """Run one block; Python blocks of a page share their names."""
    if block.language == "python":
        # The empty lines put the page's own line numbers into a traceback.
        exec(compile("\n" * block.line + block.text, page, "exec"), names)
    elif block.language == "sh":
        run_shell(f"{page}:{block.line}", block.text, expected=None, folder=folder)
    else:
        for step in console_steps(block):
            run_shell(f"{page}:{step.line}", step.command, expected=step.out, folder=folder)


def run_shell(place: str, commands: str, *, expected: str | None, folder: Path) -> None:
    """Run commands, this environment's `echelon` first on the path; both streams are one, as on a screen."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands],
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "110", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    # A page may show a failure on purpose: then it shows what is printed.
    if done.returncode != 0 and (expected is None or not expected.strip()):
        pytest.fail(f"{place}: exit code {done.returncode} from\n{commands}\n{done.stdout}")
    if expected is not None and expected.strip() and not matches(expected, done.stdout):
        pytest.fail(f"{place}: expected\n{expected}\nbut `{commands}` printed\n{done.stdout}")
