"""How the tree itself must look: names, sizes, and words that have no place in finished code."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "costmodels", "planner", "executors")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Distributions whose import name differs from their own.
OTHER_NAMES = {
    "pyyaml": "yaml",
    "types-pyyaml": "",
    "pytest-xdist": "xdist",
    "import-linter": "importlinter",
}


def name_of(path: Path) -> str:
    """The path as a failure should show it."""
    return path.relative_to(ROOT).as_posix()


def dependency_import_names() -> set[str]:
    """What the distributions in pyproject.toml are imported as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    names = [re.split(r"[<>=!~\[ ]", requirement)[0].lower() for requirement in requirements]
    return {OTHER_NAMES.get(name, name.replace("-", "_")) for name in names} - {""}


def test_no_module_hides_the_standard_library_or_a_dependency() -> None:
    taken = set(sys.stdlib_module_names) | dependency_import_names()
    own = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert sorted((own - {"__init__", "__main__"}) & taken) == []


def test_test_files_have_unique_names() -> None:
    twice = [name for name, count in Counter(path.name for path in TESTS).items() if count > 1]
    assert twice == []
    assert [name_of(path) for path in TESTS if path.name == "__init__.py"] == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=name_of)
def test_package_files_hold_a_docstring_and_nothing_else(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_files_and_functions_stay_small() -> None:
    too_long: list[str] = []
    for path in [*SOURCES, *TESTS]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_FILE_LINES:
            too_long.append(f"{name_of(path)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                num_lines = node.end_lineno - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{name_of(path)}:{node.lineno} {node.name}: {num_lines} lines")
    assert too_long == []


def test_nothing_is_left_undone() -> None:
    marks = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    found = [
        f"{name_of(path)}:{number}"
        for path in [*SOURCES, *TESTS]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    assert found == []


def test_imports_are_absolute() -> None:
    relative = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_every_dependency_is_justified_pinned_and_known_to_doctor() -> None:
    from planner.cli.cmd_doctor import CORE, EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {
        "": project["dependencies"],
        **project["optional-dependencies"],
    }
    names = {extra: [re.split(r"[<>=!~\[ ]", item)[0] for item in items] for extra, items in listed.items()}
    assert names == {"": list(CORE), **{extra: list(items) for extra, items in EXTRAS.items()}}
    justified = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").lower()
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for name in chain(*names.values()):
        assert re.search(rf"^\|.*\b{re.escape(name.lower())}\b", justified, flags=re.MULTILINE), name
        assert re.search(rf"^{re.escape(name.lower())}==", pinned, flags=re.MULTILINE), name
    assert "highspy" not in pinned


def test_the_pins_are_what_this_environment_has() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    differing = {}
    for name, version in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # A local build such as 2.13.0+cpu is the pinned release.
        if installed.partition("+")[0] != version:
            differing[name] = (version, installed)
    assert differing == {}
