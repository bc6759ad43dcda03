"""The import contracts hold, and would be seen to be broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "costmodels", "planner", "executors")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `folder` on the packages of `folder`."""
    program = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's packages and contracts, free to be broken."""
    folder = tmp_path_factory.mktemp("layers")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_contracts_hold(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "named"),
    [
        ("costmodels/fleet.py", "import planner.plan", "costmodels.fleet -> planner.plan"),
        ("policies/errors.py", "import costmodels", "policies.errors -> costmodels"),
        ("policies/one_home.py", "import pydantic", "policies.one_home -> pydantic"),
        ("executors/planted.py", "import ortools.sat.python.cp_model", "executors.planted -> ortools"),
        ("planner/planted.py", "import executors", "planner.planted -> executors"),
        ("planner/planted.py", "import torch", "planner.planted -> torch"),
        ("planner/plan.py", "import yaml", "planner.plan -> yaml"),
        ("planner/check/planted.py", "import planner.solve", "planner.check.planted -> planner.solve"),
        ("planner/solve/planted.py", "import planner.check", "planner.solve.planted -> planner.check"),
    ],
)
def test_a_forbidden_import_is_named(copy: Path, module: str, line: str, named: str) -> None:
    path = copy / module
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        done = lint_imports(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    assert named in done.stdout
