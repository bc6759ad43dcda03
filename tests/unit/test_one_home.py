from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from policies.one_home import (
    PACKAGES,
    ForeignPackageError,
    files_unlike_record,
    package_homes,
    require_one_home,
)

ROOT = Path(__file__).resolve().parents[2]
GUARD = "from policies.one_home import require_one_home; print(require_one_home())"


def run_guard(*folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The guard in a fresh process whose import path begins with `folders`."""
    program = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}; {GUARD}"
    # -I: neither the environment's variables nor the working directory decide; -S: nor an installed echelon.
    argv = [sys.executable, "-I", "-S", "-c", program]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Our packages without their content, but for the guard itself."""
    home = tmp_path / "home"
    for name in PACKAGES:
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("", encoding="utf-8")
    for name in ("errors.py", "one_home.py"):
        shutil.copy(ROOT / "policies" / name, home / "policies")
    return home


def test_this_checkout_is_one_home() -> None:
    assert require_one_home() == ROOT
    assert set(package_homes()) == set(PACKAGES)


def test_one_folder_is_accepted(copy: Path, tmp_path: Path) -> None:
    done = run_guard(copy, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(copy))


def test_a_shadowing_package_is_named(copy: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger" / "executors"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").write_text("", encoding="utf-8")
    done = run_guard(stranger.parent, copy, cwd=tmp_path)
    assert done.returncode == 1
    assert f"`executors` from {stranger.parent}" in done.stderr
    assert f"`planner` from {copy}" in done.stderr


def test_a_package_that_lost_its_init_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "costmodels" / "__init__.py").unlink()
    done = run_guard(copy, cwd=tmp_path)
    assert done.returncode == 1
    assert "`costmodels` from nowhere" in done.stderr


def test_an_absent_package_is_named(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "planner")
    done = run_guard(copy, cwd=tmp_path)
    assert done.returncode == 1
    assert "`planner` from nowhere" in done.stderr


def test_the_error_is_an_import_error_with_a_way_out() -> None:
    homes: dict[str, Path | None] = dict.fromkeys(PACKAGES, Path("/a"))
    assert require_one_home(homes) == Path("/a")
    with pytest.raises(ForeignPackageError, match="do not share one folder") as caught:
        require_one_home(homes | {"planner": Path("/b")})
    with pytest.raises(ForeignPackageError, match="`planner` from nowhere"):
        require_one_home(dict.fromkeys(PACKAGES))
    assert isinstance(caught.value, ImportError)
    assert (caught.value.code, caught.value.exit_code) == ("foreign-package", 1)
    assert caught.value.hint


@pytest.fixture
def installed(tmp_path: Path) -> metadata.Distribution:
    """A small installed distribution with a RECORD."""
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (tmp_path / "thing").mkdir()
    record = []
    for name, content in (("thing/__init__.py", b"x = 1\n"), ("thing/data.bin", bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n", encoding="utf-8")
    (info / "RECORD").write_text(
        "\n".join([*record, "thing-1.0.dist-info/RECORD,,"]) + "\n", encoding="utf-8"
    )
    return metadata.Distribution.at(info)


def test_untouched_files_are_as_recorded(installed: metadata.Distribution) -> None:
    assert files_unlike_record(installed) == ()


def test_changed_and_missing_files_are_named(installed: metadata.Distribution, tmp_path: Path) -> None:
    (tmp_path / "thing" / "__init__.py").write_bytes(b"x = 2\n")
    assert files_unlike_record(installed) == ("thing/__init__.py",)
    (tmp_path / "thing" / "data.bin").unlink()
    assert files_unlike_record(installed) == ("thing/__init__.py", "thing/data.bin")
