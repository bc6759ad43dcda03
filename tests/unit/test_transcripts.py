from __future__ import annotations

import pytest

from transcripts import Block, console_steps, fenced_blocks, matches, parse_transcript


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("", ""),
        ("plan 4.1 s", "plan 4.1 s  \n\n"),
        ("plan ... s", "plan 4.1 s"),
        ("a\n...\nz", "a\nb\nc\nz"),
        ("a\n...\nz", "a\nz"),
        ("...", "anything\nat all"),
        ("...", ""),
        ("1 (a+b)*", "1 (a+b)*"),
    ],
)
def test_equal_texts_and_elided_ones_match(expected: str, actual: str) -> None:
    assert matches(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("", "something"),
        ("plan 4.1 s", "plan 4x1 s"),
        ("plan ... s", "plan 4\n1 s"),
        ("a\n...\nz", "a\nb"),
        ("a", "a\nb"),
        ("a\nb", "a"),
    ],
)
def test_a_different_text_does_not_match(expected: str, actual: str) -> None:
    assert not matches(expected, actual)


def test_transcript_tells_streams_and_exit_code_apart() -> None:
    steps = parse_transcript("# comment\n$ echelon x\nout\n! err\n!\n! more\n? 3\n$ echelon y\n")
    assert [(step.command, step.out, step.err, step.code) for step in steps] == [
        ("echelon x", "out\n", "err\n\nmore\n", 3),
        ("echelon y", "", "", 0),
    ]


def test_blocks_know_their_line_and_why_they_do_not_run() -> None:
    text = (
        "# T\n```python\nx = 1\n```\n\n<!-- no-run: needs a GPU -->\n\n```sh\nmake\n```\nword\n```text\n```\n"
    )
    assert list(fenced_blocks(text)) == [
        Block(line=2, language="python", text="x = 1\n", no_run=None),
        Block(line=8, language="sh", text="make\n", no_run="needs a GPU"),
        Block(line=12, language="text", text="\n", no_run=None),
    ]


def test_a_comment_excuses_only_the_block_right_below_it() -> None:
    text = "<!-- no-run: a -->\nprose\n```sh\nls\n```\n"
    assert [block.no_run for block in fenced_blocks(text)] == [None]


def test_an_open_block_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1: this code block never ends"):
        list(fenced_blocks("```sh\nls\n"))


def test_console_commands_may_go_on_over_lines() -> None:
    block = Block(line=10, language="console", text="$ a \\\n  b\nout\n$ c\n", no_run=None)
    assert [(step.line, step.command, step.out) for step in console_steps(block)] == [
        (11, "a \\\n  b", "out\n"),
        (14, "c", ""),
    ]
