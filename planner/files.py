"""Files people write into core types. Every fault of every file is collected and told at once.

The shapes of the files are in `planner/schema`, which alone imports pydantic and yaml; docs/formats.md
describes them. Nothing here writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from costmodels.fleet import Fleet
from costmodels.workload import Workload
from planner.agreement import (
    Disagreement,
    joint_disagreements,
    policy_disagreements,
    rate_disagreements,
)
from planner.canonical import Inputs, canonical, inputs_from_canonical
from planner.faults import refused
from planner.schema.fleet import FleetShape
from planner.schema.fleet_build import build_fleet
from planner.schema.layers_build import PlacedTier
from planner.schema.model import ModelShape
from planner.schema.model_build import BuiltModel, build_model
from planner.schema.policy import PolicyShape, build_policy
from planner.schema.reading import read_document, read_text
from planner.schema.shape import Shape, read_shape
from planner.schema.source import KeyPath, Source
from planner.schema.training import TrainingShape, build_training
from planner.training import TrainingJob
from policies.errors import Fault, InputError
from policies.policy import Policy

__all__ = [
    "Inputs",
    "canonical",
    "inputs_from_canonical",
    "load_fleet",
    "load_inputs",
    "load_model",
    "load_policy",
    "load_training_job",
    "read_text",
]

T = TypeVar("T")
S = TypeVar("S", bound=Shape)

_KIND_OF_SHAPE: dict[type[Shape], str] = {
    FleetShape: "fleet",
    ModelShape: "model",
    PolicyShape: "policy",
    TrainingShape: "job",
}
# Where the user writes what the core type calls differently.
_POLICY_PLACES: dict[str, KeyPath] = {
    "tokens_tier": ("see", "tokens"),
    "labels_tier": ("see", "labels"),
    "activations_tier": ("see", "activations"),
    "weights_tier": ("see", "weights"),
    "min_cohort": ("cohort", "min"),
    "drop_tolerance": ("cohort", "drop_tolerance"),
    "usd_per_hour_max": ("price_max",),
}


@dataclass(slots=True, kw_only=True)
class _Loaded:
    """One file: its source, where it could be read, what it became, where it is sound, and its faults."""

    source: Source | None = None
    value: Any = None
    faults: list[Fault] = field(default_factory=list)


def load_fleet(path: Path | str) -> Fleet:
    """The fleet in a file.

    Raises:
        InputError: `bad-input` with every fault of the file.
    """
    fleet: Fleet = _sound(_load_fleet(Path(path)))
    return fleet


def load_model(path: Path | str) -> Workload:
    """The model and job in a file. Tiers written at explicit layers need a fleet: `load_inputs` reads them.

    Raises:
        InputError: `bad-input` with every fault of the file.
    """
    built: BuiltModel = _sound(_load_model(Path(path)))
    return built.workload


def load_policy(path: Path | str | None) -> Policy:
    """The policy in a file, or the default policy for None.

    Raises:
        InputError: `bad-input` with every fault of the file.
    """
    if path is None:
        return Policy()
    policy: Policy = _sound(_load_policy(Path(path)))
    return policy


def load_training_job(path: Path | str) -> TrainingJob:
    """The training job in a file, its paths absolute. Whether they exist is for the hosts that read them.

    Raises:
        InputError: `bad-input` with every fault of the file.
    """
    training: TrainingJob = _sound(_load(Path(path), TrainingShape, build_training))
    return training


def load_inputs(
    fleet_path: Path | str, model_path: Path | str, policy_path: Path | str | None = None
) -> Inputs:
    """Fleet, model and policy, checked against each other.

    Tiers written at the model's explicit layers are added to the policy's `layer_tiers`. The copies of
    trained weights that the boundary plane keeps are left out where only one boundary takes part, unless the
    model file fixes their number.

    Raises:
        InputError: `bad-input` with every fault of all files.
    """
    fleet, model = _load_fleet(Path(fleet_path)), _load_model(Path(model_path))
    policy = _Loaded(value=Policy()) if policy_path is None else _load_policy(Path(policy_path))
    workload = None if model.value is None else model.value.workload
    tiers = () if model.value is None else model.value.layer_tiers
    faults = [*fleet.faults, *model.faults, *policy.faults]
    if policy.value is not None:
        found = joint_disagreements(policy.value, fleet.value, workload)
        faults += _policy_faults(found, policy.source, policy.value)
    if fleet.value is not None and model.source is not None:
        faults += _tier_faults(tiers, fleet.value, model.source)
        faults += _rate_faults(fleet.value, workload, model.source)
    if faults:
        raise refused(faults)
    policy_found = replace(
        policy.value, layer_tiers=(*policy.value.layer_tiers, *(rule for rule, _ in tiers))
    )
    return Inputs(
        fleet=fleet.value,
        workload=_with_sync_copies(model.value, fleet.value, policy_found),
        policy=policy_found,
    )


def _with_sync_copies(built: BuiltModel, fleet: Fleet, policy: Policy) -> Workload:
    """The workload without the boundary plane's copies where nothing crosses a boundary."""
    participating = policy.boundaries if policy.boundaries is not None else fleet.boundaries
    if built.sync_copies_given or len(participating) > 1:
        return built.workload
    return replace(built.workload, job=replace(built.workload.job, sync_copies_bytes_per_param=0.0))


def _load_fleet(path: Path) -> _Loaded:
    return _load(path, FleetShape, build_fleet)


def _load_model(path: Path) -> _Loaded:
    return _load(path, ModelShape, build_model)


def _load_policy(path: Path) -> _Loaded:
    def build(shape: PolicyShape, source: Source) -> tuple[Policy | None, list[Fault]]:
        policy = build_policy(shape)
        faults = _policy_faults(policy_disagreements(policy), source, policy)
        return (None if faults else policy), faults

    return _load(path, PolicyShape, build)


def _load(path: Path, shape: type[S], build: Callable[[S, Source], tuple[Any, list[Fault]]]) -> _Loaded:
    """One file: read, put in shape, turned into core types; each step needs the one before to succeed."""
    try:
        source, faults = read_document(path)
    except InputError as error:
        return _Loaded(faults=list(error.faults))
    version = _version_faults(source, _KIND_OF_SHAPE[shape])
    if version:
        return _Loaded(source=source, faults=[*version, *faults])
    found, shape_faults = read_shape(shape, source)
    faults += shape_faults
    if found is None:
        return _Loaded(source=source, faults=faults)
    value, build_faults = build(found, source)
    faults += build_faults
    return _Loaded(source=source, value=None if faults else value, faults=faults)


def _version_faults(source: Source, kind: str) -> list[Fault]:
    """Whether the file is of this kind and version; if not, its other faults mean nothing."""
    expected = f"echelon/{kind}/1"
    found = source.data.get("schema")
    if found == expected:
        return []
    hint = f"the first line of a {kind} file is `schema: {expected}`"
    if isinstance(found, str) and found.startswith("echelon/"):
        other = found.split("/")[1]
        if other != kind and other in _KIND_OF_SHAPE.values():
            order = "" if "job" in (kind, other) else "; the order is FLEET MODEL [POLICY]"
            hint = f"this is a {other} file{order}"
        elif other == kind:
            hint = f"this release reads version 1 of {kind} files"
    value = None if "schema" in source.data else "missing"
    return [source.fault(("schema",), f"`{expected}`", value=value, hint=hint)]


def _policy_faults(found: Iterable[Disagreement], source: Source | None, policy: Policy) -> list[Fault]:
    """Disagreements at the places of the policy file."""
    faults: list[Fault] = []
    for item in found:
        path: KeyPath = (*_POLICY_PLACES.get(str(item.path[0]), item.path[:1]), *item.path[1:])
        if item.path[0] in {"audit_keys", "sync"} and len(item.path) > 1:
            path = (item.path[0], getattr(policy, str(item.path[0]))[item.path[1]][0])
        where = source.place(path) if source is not None else f"default policy: {path[0]}"
        faults.append(Fault(place=where, value=item.value, limit=item.limit, hint=item.hint))
    return faults


def _tier_faults(tiers: Iterable[PlacedTier], fleet: Fleet, source: Source) -> list[Fault]:
    """Tiers of explicit layers that the fleet does not have."""
    known = ", ".join(f"`{tier}`" for tier in fleet.tiers)
    return [
        source.fault(path, "a tier of the fleet", hint=f"known: {known}")
        for rule, path in tiers
        if rule.tier not in fleet.tiers
    ]


def _rate_faults(fleet: Fleet, workload: Workload | None, source: Source) -> list[Fault]:
    """Devices that can't compute in the job's dtype, told where the model file chooses it."""
    found = () if workload is None else rate_disagreements(fleet, workload)
    return [source.fault(item.path, item.limit, value=item.value, hint=item.hint) for item in found]


def _sound(loaded: _Loaded) -> Any:
    if loaded.faults:
        raise refused(loaded.faults)
    return loaded.value
