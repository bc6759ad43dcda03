"""The script behind every make target: which Python it takes, what it refuses, when it does nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "cat", "cksum", "tr", "dirname", "pwd", "rm", "mkdir")

# A stand-in for an interpreter: it logs every call, answers as told, and `-m venv` makes another one.
STAND_IN = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$*" in
    *version_info*) {version} ;;
    *ensurepip*) {ensurepip} ;;
    "-m venv "*) mkdir -p "$3/bin"; cat "$0" > "$3/bin/python"; chmod +x "$3/bin/python" ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the script reads, and a `bin` with nothing but the tools it uses."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "environment.sh", folder / ".ci")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (tmp_path / "bin").mkdir()
    for tool in (*TOOLS, "chmod"):
        found = shutil.which(tool)
        if found is not None:
            (tmp_path / "bin" / tool).symlink_to(found)
    return folder


def add_python(checkout: Path, name: str, *, version: str = "exit 0", ensurepip: str = "exit 0") -> None:
    """Put a stand-in called `name` on the path."""
    path = checkout.parent / "bin" / name
    log = checkout.parent / "log"
    path.write_text(STAND_IN.format(log=log, version=version, ensurepip=ensurepip), encoding="utf-8")
    path.chmod(0o755)


def run_script(checkout: Path, extras: str = "plan", **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with nothing but our tools on the path."""
    return subprocess.run(
        ["/bin/sh", str(checkout / ".ci" / "environment.sh"), extras],
        env={"PATH": str(checkout.parent / "bin"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def log_of(checkout: Path) -> str:
    """Every call of a stand-in so far."""
    path = checkout.parent / "log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_no_python_is_named_with_a_way_out(checkout: Path) -> None:
    done = run_script(checkout)
    assert done.returncode == 1
    assert done.stderr.startswith("error[environment]: no Python 3.11 or newer found (looked for python3.14 ")
    assert "hint: install Python 3.11 or newer" in done.stderr


def test_an_old_python_does_not_count(checkout: Path) -> None:
    add_python(checkout, "python3", version="exit 1")
    done = run_script(checkout)
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr


def test_a_python_without_ensurepip_is_named(checkout: Path) -> None:
    add_python(checkout, "python3.12", ensurepip="exit 1")
    done = run_script(checkout)
    assert done.returncode == 1
    assert "bin/python3.12, but without the modules venv and ensurepip" in done.stderr
    assert "apt-get install python3-venv" in done.stderr


def test_the_newest_usable_one_is_taken_and_installed_from_the_pins(checkout: Path) -> None:
    add_python(checkout, "python3.11")
    add_python(checkout, "python3.12")
    add_python(checkout, "python3.13", ensurepip="exit 1")
    done = run_script(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "bin/python3.12\n" in done.stderr
    assert "-c constraints.txt -e .[plan]" in log_of(checkout)


def test_another_interpreter_may_be_named(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    add_python(checkout, "mine")
    assert run_script(checkout, ECHELON_PYTHON="mine").returncode == 0
    assert "bin/mine -m venv .venv" in log_of(checkout)


def test_nothing_is_installed_twice(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    run_script(checkout, "plan,dev")
    before = log_of(checkout).count("pip install")
    for extras in ("plan,dev", "plan", "dev"):
        done = run_script(checkout, extras)
        assert (done.returncode, done.stderr) == (0, "")
    assert log_of(checkout).count("pip install") == before == 1


def test_more_extras_or_other_pins_are_installed(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    run_script(checkout, "plan")
    run_script(checkout, "plan,dev")
    assert log_of(checkout).count("pip install") == 2
    with (checkout / "constraints.txt").open("a", encoding="utf-8") as pins:
        pins.write("other==1.0\n")
    run_script(checkout, "plan")
    assert log_of(checkout).count("pip install") == 3


def test_a_moved_checkout_is_installed_again(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    run_script(checkout)
    moved = checkout.rename(checkout.parent / "moved")
    run_script(moved)
    assert log_of(moved).count("pip install") == 2


def test_a_broken_environment_is_named_not_removed(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    (checkout / ".venv").mkdir()
    done = run_script(checkout)
    assert done.returncode == 1
    assert "hint: remove it: rm -r .venv" in done.stderr
    assert (checkout / ".venv").is_dir()


def test_a_failed_installation_is_tried_again(checkout: Path) -> None:
    add_python(checkout, "python3.12")
    run_script(checkout)
    python = checkout / ".venv" / "bin" / "python"
    whole = python.read_text(encoding="utf-8")
    for stamp in (checkout / ".venv").glob(".echelon-*"):
        stamp.unlink()
    python.write_text(
        whole.replace("exit 0\n", 'case "$*" in *install*) exit 7 ;; esac\nexit 0\n'), encoding="utf-8"
    )
    assert run_script(checkout).returncode == 7
    python.write_text(whole, encoding="utf-8")
    assert run_script(checkout).returncode == 0
    assert len(list((checkout / ".venv").glob(".echelon-*"))) == 1
