"""A model file in its shape into a layer chain: from a bundled name, a config or explicit layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodels.model import build_workload, read_architecture, workload_from_layers
from costmodels.workload import Job, Recipe, Workload
from planner.faults import nearest, show
from planner.schema.job_build import build_job, build_targets
from planner.schema.layers_build import PlacedTier, build_layers
from planner.schema.model import ModelShape
from planner.schema.reading import read_document
from planner.schema.source import KeyPath, Source
from policies.errors import Fault, InputError

CONFIG_COUNT_MAX = 10_000
BUNDLED_MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"

# Core names of what the cost models check, and the keys under which people write it.
_FILE_KEYS = {
    "adapter_rank": "rank",
    "sequence_tokens": "sequence",
    "forward_flops_per_token": "flops",
    "activation_bytes_per_token": "activation",
    "input_bytes_per_token": "input",
    "output_bytes_per_token": "output",
    "transient_bytes_per_token": "transient",
    "num_collectives": "collectives",
}
_CONFIG_COUNTS = frozenset({"num_hidden_layers", "n_layer", "num_experts", "num_local_experts"})
_PLACE_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model file in core types.

    `layer_tiers` are the tiers written at explicit layers, with the place of each in the file.
    `sync_copies_given` says whether the file itself fixes the copies that the boundary plane keeps.
    """

    workload: Workload
    layer_tiers: tuple[PlacedTier, ...] = ()
    sync_copies_given: bool = False


def bundled_architectures() -> tuple[str, ...]:
    """Names that `architecture` accepts."""
    return tuple(sorted(path.stem for path in BUNDLED_MODELS.glob("*.json")))


def build_model(shape: ModelShape, source: Source) -> tuple[BuiltModel | None, list[Fault]]:
    """The model in core types, or every fault of it."""
    faults: list[Fault] = []
    ways = [name for name in ("architecture", "config", "layers") if getattr(shape, name) is not None]
    if len(ways) != 1:
        value = " and ".join(f"`{way}`" for way in ways) or "none of them"
        faults.append(source.fault((), "exactly one of `architecture`, `config`, `layers`", value=value))
    job = build_job(shape, source, faults)
    targets = build_targets(shape.job, source, faults)
    name = shape.name or shape.architecture or "model"
    given = shape.job.sync_copies is not None
    tiers: tuple[PlacedTier, ...] = ()
    build: Callable[[], Workload]
    if shape.layers is not None:
        specs, tiers = build_layers(shape.layers, shape.job, source, faults)
        place = _places_in_layers(shape, source)

        def build() -> Workload:
            return workload_from_layers(name, specs, job)
    else:
        config = _config(shape, source, faults)
        place = _places_in_config(source, config)
        faults += _size_faults(config) if config is not None else []

        def build() -> Workload:
            content = config.data if config is not None else {}
            workload = build_workload(read_architecture(content), job, name, targets=targets)
            return replace(workload, recipe=_recipe(content, shape, job, targets))

    if faults:
        return None, faults
    try:
        return BuiltModel(workload=build(), layer_tiers=tiers, sync_copies_given=given), []
    except InputError as error:
        listed = error.faults or (Fault(place="", value=error.message, limit="", hint=error.hint),)
        return None, [replace(fault, place=place(_path_of(fault.place))) for fault in listed]


def _recipe(content: Mapping[str, Any], shape: ModelShape, job: Job, targets: Sequence[str]) -> Recipe:
    """What an executor builds the model from; the text is the same for the same configuration."""
    return Recipe(
        config_json=json.dumps(content, sort_keys=True, separators=(",", ":")),
        optimiser=shape.job.optimiser,
        adapter_targets=() if job.full else tuple(targets),
    )


def _config(shape: ModelShape, source: Source, faults: list[Fault]) -> Source | None:
    """The transformers config: bundled, inline, or in a file named relative to the model file."""
    if isinstance(shape.config, dict):
        lines = {path[1:]: line for path, line in source.line_of.items() if path[:1] == ("config",)}
        return Source(name=source.name, data=shape.config, line_of=lines)
    if shape.architecture is not None:
        known = bundled_architectures()
        if shape.architecture not in known:
            hint = nearest(shape.architecture, known)
            faults.append(source.fault(("architecture",), "a bundled architecture", hint=hint))
            return None
        return read_document(BUNDLED_MODELS / f"{shape.architecture}.json", nulls=True)[0]
    if shape.config is None:
        return None
    path = Path(source.name).parent / shape.config
    try:
        config, found = read_document(path, nulls=True)
    except InputError as error:
        faults += (_named(fault, path, source) for fault in error.faults)
        return None
    faults += found
    return config


def _named(fault: Fault, path: Path, source: Source) -> Fault:
    """A fault of the config file; one of the file as a whole is told where the model file names it."""
    if fault.place != str(path):
        return replace(fault, hint=fault.hint or f"named at {source.place(('config',))}")
    value = f"{show(str(path))}: {fault.value}"
    hint = "the path is relative to the model file's folder"
    return replace(fault, place=source.place(("config",)), value=value, hint=hint)


def _size_faults(config: Source) -> list[Fault]:
    """Counts no model has: the chain is written out, so a billion layers would fill the memory."""
    return [
        config.fault((key,), f"at most {CONFIG_COUNT_MAX:,}")
        for key, value in config.data.items()
        if key in _CONFIG_COUNTS and isinstance(value, int) and value > CONFIG_COUNT_MAX
    ]


def _places_in_layers(shape: ModelShape, source: Source) -> Callable[[KeyPath], str]:
    """Where the user wrote what the cost models call `layers[7].params`: `repeat` shifts positions."""
    written = [i for i, layer in enumerate(shape.layers or ()) for _ in range(layer.repeat)]

    def place(path: KeyPath) -> str:
        if path[:1] == ("layers",) and len(path) > 1 and isinstance(path[1], int) and path[1] < len(written):
            path = ("layers", written[path[1]], *path[2:])
        return source.place(path)

    return place


def _places_in_config(source: Source, config: Source | None) -> Callable[[KeyPath], str]:
    """Job settings stand in the model file, everything else in the config."""

    def place(path: KeyPath) -> str:
        if path[:1] == ("job",) or config is None:
            return source.place(path)
        return config.place(path[1:] if path[:1] == ("config",) else path)

    return place


def _path_of(place: str) -> KeyPath:
    """`layers[7].forward_flops_per_token` as `('layers', 7, 'flops')`."""
    parts = (
        int(match[1]) if match[1] is not None else match[2].strip() for match in _PLACE_PART.finditer(place)
    )
    return tuple(_FILE_KEYS.get(part, part) if isinstance(part, str) else part for part in parts)
