"""The JSON Schema of a profile, written by hand: `costmodels.profile_io` reads and writes the format."""

from __future__ import annotations

from typing import Any

_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number", "minimum": 0}}
_TABLE: dict[str, Any] = {"type": "array", "items": _NUMBERS}
_ORIGIN: dict[str, Any] = {
    "type": "object",
    "description": "Where a figure comes from.",
    "properties": {"kind": {"enum": ["measured", "declared", "assumed"]}, "note": {"type": "string"}},
    "required": ["kind"],
    "additionalProperties": False,
}


def _closed(properties: dict[str, Any], description: str) -> dict[str, Any]:
    """A mapping with exactly these keys."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


_TIMES = _closed(
    {
        "micro_batch_sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "forward_s_ML": _TABLE,
        "backward_s_ML": _TABLE,
        "update_s_ML": _TABLE,
        "origin": _ORIGIN,
    },
    "Seconds per micro-batch size (rows) and layer (columns); update_s_ML is one optimiser call.",
)
_SIZE_COLUMNS = ("params_L", "weight_bytes_L", "activation_bytes_L", "input_bytes_L", "output_bytes_L")
_SIZES = _closed(
    dict.fromkeys(_SIZE_COLUMNS, _NUMBERS),
    "Sizes per layer on one of the devices that share it; all but the weights are per sequence.",
)
_CURVE: dict[str, Any] = {
    "gigabytes_per_s": {
        "type": "array",
        "items": {"type": "number"},
        "description": "Polynomial in log2 of the payload in megabytes, highest power first.",
    },
    "ceiling_bytes_per_s": {"type": "number", "exclusiveMinimum": 0},
    "smallest_bytes": {"type": "number", "exclusiveMinimum": 0},
    "latency_s": {"type": "number", "minimum": 0},
    "origin": _ORIGIN,
}


def _by_degree(value: dict[str, Any]) -> dict[str, Any]:
    """A mapping from tensor-parallel degree."""
    return {"type": "object", "propertyNames": {"pattern": "^[1-9][0-9]*$"}, "additionalProperties": value}


def _curves(ends: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": _closed({**ends, **_CURVE}, description)}


_TYPE_NAME = {"type": "string"}

PROFILE_SCHEMA: dict[str, Any] = _closed(
    {
        "schema": {"const": "echelon/profile/1"},
        "model": {"type": "string"},
        "times": {
            "type": "object",
            "description": "By device type, then tensor-parallel degree.",
            "additionalProperties": _by_degree(_TIMES),
        },
        "sizes": _by_degree(_SIZES),
        "outer": _curves({"from": _TYPE_NAME, "to": _TYPE_NAME}, "A link between two hosts."),
        "inner": _curves(
            {"type": _TYPE_NAME, "count": {"type": "integer", "minimum": 1}}, "The link inside a host."
        ),
        "facts": {"type": "object", "description": "What the measurements themselves do not hold."},
    },
    "Measured layer times, sizes and link curves with their provenance.",
)
