"""The bundled examples by name. Standard library only."""

from __future__ import annotations

from pathlib import Path

FILE_NAMES = ("fleet.yaml", "model.yaml", "policy.yaml")
JOB_FILE = "job.yaml"
STARTER = "starter"

_FOLDER = Path(__file__).resolve().parent


def example_names() -> tuple[str, ...]:
    """Examples that hold a whole problem, in alphabetical order; the starter is no example."""
    return tuple(
        sorted(path.parent.name for path in _FOLDER.glob("*/fleet.yaml") if path.parent.name != STARTER)
    )


def example_folder(name: str) -> Path:
    """Where an example's files are."""
    return _FOLDER / name


def example_texts(name: str) -> dict[str, str]:
    """The text of an example's files by file name; not every example has a job file."""
    folder = _FOLDER / name
    present = [file for file in (*FILE_NAMES, JOB_FILE) if (folder / file).is_file()]
    return {file: (folder / file).read_text(encoding="utf-8") for file in present}
