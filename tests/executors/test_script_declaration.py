"""What a script says it can do: read from its text, never by running it, and refused with every fault."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_plans import script_in

from executors.script.declaration import CHOICES, CONSTANT, Declaration, read_script, script_sha256
from policies.errors import InputError

KEYS = tuple(each.name for each in fields(Declaration))


def refusal(folder: Path, text: str) -> InputError:
    """The error with which a script of this text is refused."""
    with pytest.raises(InputError) as caught:
        script_in(folder, text)
    return caught.value


def test_a_script_without_a_declaration_is_plain_data_parallelism(tmp_path: Path) -> None:
    script = script_in(tmp_path, "print('hello')\n", "--steps", "5")
    assert script.can == Declaration()
    assert script.arguments == ("--steps", "5")
    assert script.words == ("--", str(tmp_path / "train.py"), "--steps", "5")
    assert script.line == 0
    assert script.sha256 == script_sha256(b"print('hello')\n")
    assert script.place == f"train.py without {CONSTANT}"


def test_the_declaration_is_read_without_running_the_script(tmp_path: Path) -> None:
    text = f"""
import nothing_of_this_name
open('ran', 'w').close()
{CONSTANT}: dict[str, object] = {{
    "executors": ("torch",),
    "pipeline": True,  # cut where the plan cuts
    "zero": {{3, 0, 3}},
    "reports": False,
}}
"""
    script = script_in(tmp_path, text)
    assert script.can == Declaration(executors=("torch",), pipeline=True, zero=(0, 3))
    assert script.line == 4
    assert not (tmp_path / "ran").exists()


declarations = st.fixed_dictionaries(
    {},
    optional={
        key: st.lists(st.sampled_from(CHOICES[key]), min_size=1) if key in CHOICES else st.booleans()
        for key in KEYS
    },
)


@given(declared=declarations)
def test_what_is_declared_is_what_is_read(
    declared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = script_in(tmp_path_factory.mktemp("script"), f"{CONSTANT} = {declared!r}\n")
    for key, value in declared.items():
        found = getattr(script.can, key)
        assert found == value if key not in CHOICES else set(found) == set(value)
    assert all(getattr(script.can, key) == getattr(Declaration(), key) for key in KEYS if key not in declared)


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    text = f"""{CONSTANT} = {{
    "pipelines": True,
    "zero": [True],
    "executors": [],
    "recompute": 1,
    "dtypes": ["bf16", "int8"],
    "methods": ["full"] + ["lora"],
    "pipeline": True,
    "pipeline": False,
    3: True,
    **dict(reports=True),
}}
"""
    error = refusal(tmp_path, text)
    path = tmp_path / "train.py"
    assert error.code == "bad-declaration"
    assert [(fault.place, fault.value) for fault in error.faults] == [
        (f"{path}:2: {CONSTANT}['pipelines']", "unknown key"),
        (f"{path}:3: {CONSTANT}['zero']", "[True]"),
        (f"{path}:4: {CONSTANT}['executors']", "[]"),
        (f"{path}:5: {CONSTANT}['recompute']", "1"),
        (f"{path}:6: {CONSTANT}['dtypes']", "['bf16', 'int8']"),
        (f"{path}:7: {CONSTANT}['methods']", "['full'] + ['lora']"),
        (f"{path}:9: {CONSTANT}['pipeline']", "given twice"),
        (f"{path}:10: {CONSTANT}[3]", "a key that is no text"),
        (f"{path}:11: {CONSTANT}[dict(reports=True)]", "a key that is no text"),
    ]
    assert error.faults[0].hint == "did you mean `pipeline`?"
    assert error.faults[1].limit == "a list of 0, 1, 2, 3"
    assert error.faults[3].limit == "True or False"
    assert error.faults[5].limit == "a list of 'full', 'lora', written out"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{CONSTANT} = {{}}\n{CONSTANT} = {{}}\n", 2),
        (f"if True:\n    {CONSTANT} = {{}}\n", 2),
        (f"{CONSTANT} = {{}}\ndel {CONSTANT}\n", 2),
        (f"{CONSTANT} = {{}}\n{CONSTANT} |= {{}}\n", 2),
        (f"other = {CONSTANT} = {{}}\n", 1),
        (f"for {CONSTANT} in ({{}},):\n    pass\n", 1),
        (f"{CONSTANT} = dict(pipeline=True)\n", 1),
    ],
)
def test_the_declaration_stands_once_at_the_top_level(text: str, line: int, tmp_path: Path) -> None:
    error = refusal(tmp_path, text)
    assert error.code == "bad-declaration"
    assert [fault.place for fault in error.faults] == [f"{tmp_path / 'train.py'}:{line}"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (b"x = (1,\n", "1:5"),
        (b"#!/bin/sh\necho hello there\n", "2:6"),
        (b"\x7fELF\x00\x00", "1:1"),
        (b"# -*- coding: nonsense -*-\n", "1:"),
        (b"name = '\xff'\n", "1:"),
        (b"(" * 5000, "1:"),
    ],
)
def test_what_is_no_python_is_refused_with_its_place(source: bytes, place: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(source)
    with pytest.raises(InputError) as caught:
        read_script(("train.py",), tmp_path)
    assert caught.value.code == "bad-script"
    assert caught.value.faults[0].place.startswith(f"{path}:{place}")


def test_a_style_warning_is_no_fault(tmp_path: Path) -> None:
    assert script_in(tmp_path, "pattern = '\\d'\n").can == Declaration()


@pytest.mark.parametrize(
    ("words", "told"),
    [((), "no script"), (("missing.py",), "no such file"), (("folder",), "a folder"), (("a\0b",), "a.b: ")],
)
def test_a_script_that_is_not_there_is_refused(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=told) as caught:
        read_script(words, tmp_path)
    assert caught.value.code == "no-such-script"
