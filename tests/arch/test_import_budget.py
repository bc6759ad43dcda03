"""What importing a module pulls in: a fresh process imports each group and lists what it then holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOLVERS = {"numba", "ortools", "pulp", "highspy", "pandas"}
COMPILER = {"numba", "yaml"}  # numba reads its own settings with yaml where there is one
TRAINING = {"torch", "deepspeed", "peft", "transformers"}
FILES = {"pydantic", "yaml"}
SCREEN = {"typer", "rich"}

PROGRAM = """
import importlib, json, sys
first = {name.partition(".")[0]: "the interpreter" for name in sys.modules}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    for held in list(sys.modules):
        first.setdefault(held.partition(".")[0], name)
print(json.dumps(first))
"""


def modules_under(*packages: str) -> list[str]:
    """Every module of the packages, as it is imported."""
    found = []
    for package in packages:
        for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def held_after_importing(names: list[str]) -> dict[str, str]:
    """Top-level modules in memory after importing `names` in turn, with the first name that brought each."""
    argv = [sys.executable, "-c", PROGRAM, json.dumps(names)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return held


def core_of_planner() -> list[str]:
    """The planner's modules that work on checked data: no files, no command line, no scripts."""
    others = ("planner.cli", "planner.schema", "planner.files", "planner.examples", "planner.solve.")
    return [name for name in modules_under("planner") if not name.startswith(others)]


def all_but_solvers() -> list[str]:
    """Every module of the planner outside `planner.solve`, whose kernels are compiled as it is imported."""
    return [name for name in modules_under("planner") if not name.startswith("planner.solve.")]


@pytest.mark.parametrize(
    ("group", "names", "absent"),
    [
        ("package roots", ["policies", "costmodels", "planner", "executors"], {"numpy"}),
        ("policies", modules_under("policies"), SOLVERS | TRAINING | FILES | SCREEN),
        ("costmodels", modules_under("costmodels"), SOLVERS | TRAINING | FILES | SCREEN),
        ("planner core", core_of_planner(), SOLVERS | TRAINING | FILES | SCREEN),
        ("planner", all_but_solvers(), SOLVERS | TRAINING),
        ("solvers", modules_under("planner.solve"), (SOLVERS | TRAINING | FILES | SCREEN) - COMPILER),
        ("executors", modules_under("executors"), SOLVERS),
        ("help", ["planner.cli.main"], SOLVERS | TRAINING | FILES | {"numpy", "rich"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_importing_stays_light(group: str, names: list[str], absent: set[str]) -> None:
    too_heavy = {heavy: by for heavy, by in held_after_importing(names).items() if heavy in absent}
    assert too_heavy == {}, f"{group}: imported where it must not be, and by whom first"


def test_help_loads_no_command() -> None:
    program = (
        "import sys; from planner.cli.main import run; code = run(['--help']);"
        "heavy = [n for n in sys.modules if 'cmd_' in n or n in ('numpy', 'pydantic')]; print(heavy, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_an_import_that_is_too_heavy_is_seen() -> None:
    assert held_after_importing(["policies", "yaml", "pydantic"])["pydantic"] == "pydantic"
