"""The shape of a fleet file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from planner.hostnames import PATTERN_LIMIT, PatternError, expand_pattern
from planner.schema.shape import (
    Bytes,
    BytesPerS,
    FlopPerS,
    Fraction,
    Latency,
    Name,
    Seconds,
    Shape,
    UsdPerHour,
)

Dtype = Literal["bf16", "fp16", "fp32"]

_SHORT_GROUP = re.compile(r"(?:([0-9]{1,6})\s*[x×]\s*)?(\S.*)")
_GROUP_LIMIT = "a count and a type such as '4 x A100-80GB', a mapping, or a list of them"


def _host_names(pattern: str) -> str:
    try:
        expand_pattern(pattern)
    except PatternError as error:
        context = {"limit": PATTERN_LIMIT, "reason": str(error)}
        raise PydanticCustomError("pattern", "no pattern", context) from None
    return pattern


def _named(value: Any) -> Any:
    """A plain name as the mapping it is short for."""
    return {"name": value} if isinstance(value, str) else value


def _device_groups(value: Any) -> Any:
    """`4 x A100-80GB` and single mappings as the list they are short for."""
    items = value if isinstance(value, list) else [value]
    return [_device_group(item) for item in items]


def _device_group(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    match = _SHORT_GROUP.fullmatch(item.strip())
    if match is None:
        raise PydanticCustomError("devices", "not a device group", {"limit": _GROUP_LIMIT, "hint": ""})
    return {"type": match[2]} if match[1] is None else {"type": match[2], "count": int(match[1])}


TypeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}$")]


class BoundaryShape(Shape):
    """An administrative domain. `owner` is the owner of its hosts that name none."""

    name: Name
    owner: Name | None = None


class SiteShape(Shape):
    """Hosts with one uniform fabric; `fabric` and `latency` hold between two of its hosts."""

    name: Name
    boundary: Name
    fabric: BytesPerS
    latency: Latency = 0.0


class DeviceGroupShape(Shape):
    """Equal devices of a host. What is left out comes from the catalog or from the host."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    type: TypeName
    memory: Bytes | None = None
    rate: Annotated[dict[Dtype, FlopPerS], Field(min_length=1)] | None = None
    memory_bandwidth: BytesPerS | None = None
    tier: Name | None = None
    price: UsdPerHour | None = None
    mtbf: Seconds | None = None
    owner: Name | None = None


Devices = Annotated[
    list[DeviceGroupShape],
    BeforeValidator(
        _device_groups, json_schema_input_type=str | DeviceGroupShape | list[str | DeviceGroupShape]
    ),
    Field(min_length=1),
]


class HostShape(Shape):
    """One host, or many equal ones under a pattern; `price` and `mtbf` per device, `link` inside the host."""

    name: Annotated[str, AfterValidator(_host_names)]
    site: Name
    devices: Devices
    tier: Name | None = None
    price: UsdPerHour | None = None
    mtbf: Seconds | None = None
    owner: Name | None = None
    link: BytesPerS | None = None
    link_latency: Latency | None = None


class LinkShape(Shape):
    """A connection between two sites: both ways with `between`, one way with `from` and `to`."""

    between: Annotated[list[Name], Field(min_length=2, max_length=2)] | None = None
    source: Name | None = Field(default=None, alias="from")
    target: Name | None = Field(default=None, alias="to")
    bandwidth: BytesPerS
    latency: Latency = 0.0


class PathShape(Shape):
    """What holds for every pair of sites that has no link of its own."""

    bandwidth: BytesPerS
    latency: Latency = 0.0


class WanShape(Shape):
    """Defaults for pairs of sites: `inside` one boundary and `across` two."""

    inside: PathShape | None = None
    across: PathShape | None = None


class FleetShape(Shape):
    """A fleet file."""

    schema_version: Literal["echelon/fleet/1"] = Field(alias="schema")
    name: Name = "fleet"
    tiers: Annotated[list[Name], Field(min_length=1, max_length=64)]
    boundaries: Annotated[
        list[Annotated[BoundaryShape, BeforeValidator(_named, json_schema_input_type=str | BoundaryShape)]],
        Field(min_length=1),
    ]
    # `wan` defaults are written out for every pair of sites, in the plan too.
    sites: Annotated[list[SiteShape], Field(min_length=1, max_length=256)]
    hosts: Annotated[list[HostShape], Field(min_length=1)]
    links: list[LinkShape] = Field(default_factory=list)
    wan: WanShape = WanShape()
    memory_reserve: Fraction = 0.06
