"""Every broken file is refused with exit code 3: each fault with its place, no traceback, nothing written.

`tests/corpus/bad` holds the files; the first word of a name says which kind of file is broken, and the sound
ones come from `tests/corpus/good`. The golden file shows what a user reads for each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli.console import error_text
from planner.files import load_fleet, load_inputs, load_training_job
from policies.errors import InputError

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
BAD = sorted(path.name for path in (CORPUS / "bad").iterdir())
KINDS = ("fleet", "model", "policy")
# Job files are read alone, by commands that also need a plan.
PLANNED = [name for name in BAD if name.split("-")[0] in KINDS]
# Commands that read these files; each joins as soon as it exists.
COMMANDS = [name for name in ("check", "solve") if importlib.util.find_spec(f"planner.cli.cmd_{name}")]
PLACE = re.compile(r"(?P<file>[^:]+)(:(?P<line>\d+))?(: (?P<path>\S.*))?")
# Faults of a file as a whole have no line to point at.
WITHOUT_LINE = {"fleet-empty.yaml", "fleet-only-comment.yaml"}


def arguments(name: str) -> list[str]:
    kind = name.split("-")[0]
    return [f"bad/{name}" if other == kind else f"good/{other}.yaml" for other in KINDS]


def refusal(name: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load(name)
    return caught.value


def load(name: str) -> object:
    return load_inputs(*arguments(name)) if name in PLANNED else load_training_job(f"bad/{name}")


@pytest.fixture(autouse=True)
def in_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CORPUS)


def test_the_corpus_is_large_and_its_sound_files_load() -> None:
    assert len(BAD) >= 60
    assert {name.split("-")[0] for name in BAD} == {*KINDS, "job"}
    load_inputs(*(f"good/{kind}.yaml" for kind in KINDS))
    load_inputs("good/fleet.yaml", "good/model-config.yaml", "good/policy.yaml")
    load_training_job("good/job.yaml")


@pytest.mark.parametrize("name", BAD)
def test_every_fault_has_its_place_value_limit_and_way_out(name: str) -> None:
    error = refusal(name)
    assert error.exit_code == 3
    assert error.faults
    for fault in error.faults:
        match = PLACE.fullmatch(fault.place)
        assert match is not None
        assert match["file"] == f"bad/{name}", "the fault is told where the user can mend it"
        assert match["line"] or name in WITHOUT_LINE
        assert fault.value
        assert fault.limit, "what would have been accepted is the least way out"
        assert len(fault.value) < 200
        assert "".join(map(str, (fault.place, fault.value, fault.limit, fault.hint))).isprintable()


def test_what_users_read_for_the_whole_corpus(golden: Callable[[str, str], None]) -> None:
    golden("bad_inputs.txt", "".join(f"{name}\n{error_text(refusal(name))}\n\n" for name in BAD))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", PLANNED)
def test_commands_refuse_it_and_write_nothing(
    name: str, command: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    # The fixture `cli` works in an empty folder; the files are there under the names used above.
    for folder in ("bad", "good"):
        (tmp_path / folder).symlink_to(CORPUS / folder)
    output = ["-o", "plan.json"] if command == "solve" else []
    text = cli(command, *arguments(name), *output)
    assert text.code == 3
    assert text.out == ""
    assert text.err == error_text(refusal(name)) + "\n"
    assert "Traceback" not in text.err
    answer = cli(command, *arguments(name), *output, "--format", "json")
    assert answer.code == 3
    document = json.loads(answer.out)
    assert document["status"] == "error"
    assert len(document["error"]["faults"]) == len(refusal(name).faults)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good"]
    assert sorted(path.name for path in (CORPUS / "bad").iterdir()) == BAD


# What is in the file, and what the one fault says of it.
BOMBS = {
    "10 MB of nesting": ("[" * 10_000_000, "10,000,000 bytes"),
    "8 MB of nesting": ("[" * 8_000_000, "nested deeper than 64"),
    "mappings": ("{a: " * 2_000_000, "nested deeper than 64"),
    "dashes": ("- " * 4_000_000, "nested deeper than 64"),
    "keys": ("? " * 4_000_000, "a key that is no word"),
    "items": ("[0," + "1," * 4_000_000, "more than 100,000 values"),
    "lines": ("a:\n" + "- 1\n" * 1_500_000, "more than 100,000 values"),
    "quotes": ('"' * 8_000_000, '\'"""'),
    "duplicates": ("a: 1\n" * 1_500_000, "more than 1,000 faults"),
    "tags": ("!" * 8_000_000, "'!!"),
    "comments": ("#" * 9_000_000, "9,000,000 bytes"),
    "alias": ("a: &a [*a]\n", "'&a'"),
}


@pytest.mark.parametrize(("text", "value"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_are_built(text: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_fleet(path)
    assert caught.value.faults[-1].value.startswith(value)
    assert all(len(fault.value) < 200 for fault in caught.value.faults)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing.yaml", "", "pipe", "loop", "with\0zero", "x" * 5000, "missing/deep/fleet.yaml"):
        with pytest.raises(InputError) as caught:
            load_fleet(f"{tmp_path}/{name}")
        assert len(caught.value.faults) == 1


GOOD_TEXTS = {
    kind: (CORPUS / "good" / f"{kind}.yaml").read_text(encoding="utf-8") for kind in (*KINDS, "job")
}
SNIPPETS = st.sampled_from(
    [
        *"[]{}'\":|#0x\t\né\u2028", ": ", "- ", "? ", "&a ", "*a", "!!int ", "---\n", "",
        "-1", "1e999", ".nan", "null", "true", "GiB", "{}", "[]", "9" * 20,
    ]
)  # fmt: skip
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), SNIPPETS), min_size=1, max_size=4)


@given(kind=st.sampled_from(sorted(GOOD_TEXTS)), edits=EDITS)
def test_no_edit_of_a_file_ends_in_anything_but_inputs_or_an_input_error(
    kind: str, edits: list[tuple[float, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = GOOD_TEXTS[kind]
    for where, num_removed, added in edits:
        at = int(where * len(text))
        text = text[:at] + added + text[at + num_removed :]
    path = tmp_path_factory.getbasetemp() / f"{kind}.yaml"
    path.write_text(text, encoding="utf-8")
    paths = {other: CORPUS / "good" / f"{other}.yaml" for other in KINDS} | {kind: path}
    try:
        if kind == "job":
            load_training_job(path)
        else:
            load_inputs(paths["fleet"], paths["model"], paths["policy"])
    except InputError as error:
        assert error.faults  # noqa: PT017 - either ending is right, but a refusal names a fault
