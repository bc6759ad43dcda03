"""Checkpoints that no layout owns: one file per layer, so that any cut, width or executor resumes from them.

A checkpoint is a folder `step-<n>`; it appears under that name when every file of it is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from executors.run_folder import MANIFEST, checkpoint_name, checkpoint_steps
from executors.training.disk import full_disk_named
from executors.training.engine import LayerState
from executors.training.model_spec import ModelSpec
from planner.canonical import content_sha256
from planner.plan_reading import read_json, record_from_json
from policies.errors import InputError

SCHEMA = "echelon/checkpoint/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds: steps done, model, text, and the layers with trained weights."""

    step: int
    model_sha256: str
    text_sha256: str
    layers: tuple[int, ...]
    schema: str = SCHEMA


def model_sha256(spec: ModelSpec) -> str:
    """Hash of everything that decides names and shapes of trained weights, and what they start from."""
    fields = asdict(spec)
    for free in ("sequence_tokens", "adapter_dropout"):
        del fields[free]
    return content_sha256(fields)


class Checkpoints:
    """The checkpoints of one replica, in a folder that all its hosts see."""

    def __init__(self, folder: Path, spec: ModelSpec, text_sha256: str) -> None:
        self.folder, self.text_sha256 = folder, text_sha256
        self.sha256 = model_sha256(spec)
        self.trained = (
            tuple(range(1, spec.num_layers - 1)) if not spec.full else tuple(range(spec.num_layers))
        )

    def write_layers(self, step: int, states: Mapping[int, LayerState]) -> None:
        """Write this rank's layers where the checkpoint will be.

        Raises:
            ExecutorFailedError: `disk-full`.
        """
        partial = self._partial(step)
        with full_disk_named(partial):
            partial.mkdir(parents=True, exist_ok=True)
            for layer_i, state in states.items():
                path = partial / _layer_file(layer_i)
                save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
                _flush(path)

    def finish(self, step: int, keep: int) -> Path:
        """Give the checkpoint its name once all ranks have written; only the newest `keep` stay.

        Raises:
            InputError: `checkpoint-not-shared` when layers of other hosts can't be seen here.
        """
        partial, final = self._partial(step), self.folder / checkpoint_name(step)
        missing = [i for i in self.trained if not (partial / _layer_file(i)).is_file()]
        if missing:
            raise InputError(
                "checkpoint-not-shared",
                f"layers {', '.join(map(str, missing))} of step {step} are not in {partial}",
                hint="put the run folder on a file system that all hosts of the replica share",
            )
        manifest = Manifest(
            step=step, model_sha256=self.sha256, text_sha256=self.text_sha256, layers=self.trained
        )
        with full_disk_named(partial):
            path = partial / MANIFEST
            path.write_text(json.dumps(asdict(manifest), sort_keys=True) + "\n", encoding="utf-8")
            _flush(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        for old in self.found()[:-keep] if keep > 0 else ():
            shutil.rmtree(self.folder / checkpoint_name(old), ignore_errors=True)
        return final

    def found(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return checkpoint_steps(self.folder)

    def discard_partial(self) -> None:
        """Remove what an ended run left half-written."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def read(self, step: int, layers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """States of those of the layers that have trained weights.

        Raises:
            InputError: `checkpoint-of-another-model`, `checkpoint-of-another-text`, `checkpoint-damaged`.
        """
        folder = self.folder / checkpoint_name(step)
        manifest = record_from_json(Manifest, read_json(folder / MANIFEST), place=str(folder / MANIFEST))
        if manifest.model_sha256 != self.sha256:
            raise InputError(
                "checkpoint-of-another-model",
                f"{folder} was written for a model, adapter or seed of hash {manifest.model_sha256[:16]}…, "
                f"this job's is {self.sha256[:16]}…",
                hint="name a new run folder, or launch the job that the checkpoint belongs to",
            )
        if manifest.text_sha256 != self.text_sha256:
            raise InputError(
                "checkpoint-of-another-text",
                f"{folder} was trained on text of hash {manifest.text_sha256[:16]}…, "
                f"this job's is {self.text_sha256[:16]}…",
                hint="bring the data files back to what they were, or name a new run folder",
            )
        try:
            return {i: load_file(folder / _layer_file(i)) for i in layers if i in manifest.layers}
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                "checkpoint-damaged",
                f"{folder} can't be read: {error}",
                hint="remove this folder: the checkpoint before it is used then",
            ) from error

    def _partial(self, step: int) -> Path:
        return self.folder / f".{checkpoint_name(step)}"


def _layer_file(layer_i: int) -> str:
    return f"layer-{layer_i:04d}.safetensors"


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
