"""What a wheel of this checkout holds, and that its recorded hashes give away any changed file."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

from costmodels.registry import BUILT_IN
from policies.one_home import files_unlike_record

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "costmodels", "planner", "executors")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling (extra `dev`) is not installed"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    argv += ["--disable-pip-version-check", "--no-index", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("echelon-*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> metadata.Distribution:
    """The wheel unpacked, which for pure Python is what installing does to the files it records."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (info,) = tmp_path.glob("echelon-*.dist-info")
    return metadata.Distribution.at(info)


def test_the_wheel_is_pure_and_named_for_any_python_3(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_every_source_and_data_file_of_the_packages_is_there(names: set[str]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    present = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    assert present - names == set()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_nothing_else_is_there(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_command_and_the_cost_models_are_announced(installed: metadata.Distribution) -> None:
    parser = ConfigParser(delimiters=("=",))
    parser.read_string(installed.read_text("entry_points.txt") or "")
    groups = {section: dict(parser.items(section)) for section in parser.sections()}
    assert groups["console_scripts"] == {"echelon": "planner.cli.main:main"}
    assert groups["echelon.costmodels"] == BUILT_IN


def test_every_announced_object_exists() -> None:
    found = {
        f"{group}:{point.name}": callable(point.load())
        for group in ("echelon.costmodels", "console_scripts")
        for point in metadata.entry_points(group=group)
        if point.value.startswith(PACKAGES)
    }
    if not found:
        pytest.skip("runs from a checkout that is not installed")
    assert all(found.values())


def test_the_licence_travels_along(names: set[str]) -> None:
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_the_wheel_agrees_with_its_record(installed: metadata.Distribution) -> None:
    assert files_unlike_record(installed) == ()


def test_an_overwritten_file_is_given_away(installed: metadata.Distribution, tmp_path: Path) -> None:
    (tmp_path / "executors" / "__init__.py").write_text("# a stranger's\n", encoding="utf-8")
    (tmp_path / "policies" / "py.typed").unlink()
    assert files_unlike_record(installed) == ("executors/__init__.py", "policies/py.typed")
