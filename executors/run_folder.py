"""Names inside a replica's run folder, and what can be told of it without torch."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
REPORT = "report.json"
LAYERS = "layers.json"
PROFILE = "profile.json"
ADAPTER = "adapter"
MODEL = "model"
BASE = "base"


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after this many steps."""
    return f"step-{step:08d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, ascending; half-written ones don't count."""
    names = [path.parent.name.removeprefix("step-") for path in folder.glob(f"step-*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdigit())
