"""The shape of a policy file and its way to the core type."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from planner.schema.shape import Name, Shape, UsdPerHour
from policies.policy import LayerTier, Policy, SpareKind, SpareRule, SpillOver

SETTING_CHARACTERS_MAX = 200

PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[0-9a-f]{64}$")]


def _setting(value: Any) -> str:
    """A setting as the policy carries it: JSON spelling for booleans and numbers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= SETTING_CHARACTERS_MAX:
        return value
    limit = f"a text of 1 to {SETTING_CHARACTERS_MAX} characters, a finite number, true or false"
    raise PydanticCustomError("setting", "not a setting", {"limit": limit, "hint": ""})


Setting = Annotated[str, BeforeValidator(_setting, json_schema_input_type=str | int | float | bool)]


class SeeShape(Shape):
    """The lowest tier that may see each kind of content; the fleet's lowest tier where nothing is said."""

    tokens: Name | None = None
    labels: Name | None = None
    activations: Name | None = None
    weights: Name | None = None


class LayerTierShape(Shape):
    """Layers [start, stop) only on devices cleared for `tier`."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
    tier: Name


class CohortShape(Shape):
    """How many participants an aggregate needs, and how many may drop out of it."""

    min: Annotated[int, Field(ge=3, le=10_000)] = 3
    drop_tolerance: Annotated[int, Field(ge=0, le=10_000)] = 1


class SparesShape(Shape):
    """Devices held back for failures."""

    kind: Literal["none", "pooled", "dedicated"]
    per_pool: Annotated[int, Field(ge=1, le=10_000)] = 1
    pool_min_devices: Annotated[int, Field(ge=1, le=10_000)] = 4


class SpillOverShape(Shape):
    """Owners whose devices are used only when the others do not suffice."""

    owners: Annotated[list[Name], Field(min_length=1)]
    tokens_per_s_below: Annotated[float, Field(gt=0)] | None = None


class PolicyShape(Shape):
    """A policy file."""

    schema_version: Literal["echelon/policy/1"] = Field(alias="schema")
    name: Name = "default"
    see: SeeShape = SeeShape()
    layer_tiers: list[LayerTierShape] = Field(default_factory=list)
    cohort: CohortShape = CohortShape()
    boundaries: Annotated[list[Name], Field(min_length=1)] | None = None
    accept_two_boundaries: bool = False
    spares: SparesShape | None = None
    spill_over: SpillOverShape | None = None
    price_max: UsdPerHour | None = None
    speed_ratio_max: Annotated[float, Field(ge=1)] | None = None
    replicas_max: Annotated[int, Field(ge=1, le=100_000)] | None = None
    sync: dict[Name, Setting] = Field(default_factory=dict)
    audit_keys: dict[Name, PublicKey] = Field(default_factory=dict)


def build_policy(shape: PolicyShape) -> Policy:
    """The policy in core types."""
    spares = shape.spares
    spill = shape.spill_over
    return Policy(
        name=shape.name,
        tokens_tier=shape.see.tokens,
        labels_tier=shape.see.labels,
        activations_tier=shape.see.activations,
        weights_tier=shape.see.weights,
        layer_tiers=tuple(
            LayerTier(start=rule.layers[0], stop=rule.layers[1], tier=rule.tier) for rule in shape.layer_tiers
        ),
        min_cohort=shape.cohort.min,
        drop_tolerance=shape.cohort.drop_tolerance,
        boundaries=None if shape.boundaries is None else tuple(shape.boundaries),
        accept_two_boundaries=shape.accept_two_boundaries,
        spares=SpareRule()
        if spares is None
        else SpareRule(
            kind=SpareKind(spares.kind), per_pool=spares.per_pool, pool_min_devices=spares.pool_min_devices
        ),
        spill_over=None
        if spill is None
        else SpillOver(owners=tuple(spill.owners), tokens_per_s_below=spill.tokens_per_s_below),
        usd_per_hour_max=shape.price_max,
        speed_ratio_max=shape.speed_ratio_max,
        replicas_max=shape.replicas_max,
        sync=tuple(sorted(shape.sync.items())),
        audit_keys=tuple(sorted(shape.audit_keys.items())),
    )
