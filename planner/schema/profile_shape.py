"""The JSON Schema of a profile, written by hand: `costmodels.profile_io` reads and writes the format."""

from __future__ import annotations

from typing import Any

from costmodels.workload import DTYPE_BYTES

_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number", "minimum": 0}}
_TABLE: dict[str, Any] = {"type": "array", "items": _NUMBERS}
_ORIGIN: dict[str, Any] = {
    "type": "object",
    "description": "Where a figure comes from.",
    "properties": {"kind": {"enum": ["measured", "declared", "assumed"]}, "note": {"type": "string"}},
    "required": ["kind"],
    "additionalProperties": False,
}


def _closed(
    properties: dict[str, Any], description: str, optional: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A mapping with exactly these keys, and perhaps the optional ones."""
    return {
        "type": "object",
        "description": description,
        "properties": properties | (optional or {}),
        "required": sorted(properties),
        "additionalProperties": False,
    }


def _amount(description: str) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "description": description}


def _switch(description: str) -> dict[str, Any]:
    return {"type": "boolean", "description": description}


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
    {
        "trainable_params_L": _NUMBERS | {"description": "Weights that get gradients; all where left out."},
        "working_bytes_L": _NUMBERS
        | {"description": "Held beside what is kept while the layer runs forward or backward."},
    },
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
_TIMED = {
    "seconds_at": {
        "type": "array",
        "description": "Bytes and seconds of each timed payload, bytes ascending; counts before the curve.",
        "items": {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0},
            "minItems": 2,
            "maxItems": 2,
        },
    }
}
_ORIGINS = {"type": "object", "description": "By the name of the figure.", "additionalProperties": _ORIGIN}
_FACTS = _closed(
    {
        "gradient_bytes_per_param": _amount("Gradient of one trained weight."),
        "optimiser_bytes_per_param": _amount("Optimiser state of one trained weight."),
        "update_traffic_bytes_per_param": _amount("Bytes the optimiser moves for one trained weight."),
        "overhead_bytes": _amount("Held on a device before the first weight."),
        "memory_bytes_per_s": {"type": "number", "exclusiveMinimum": 0},
    },
    "What the measurements themselves do not hold.",
    {
        "scatter_border": _switch("Whether a tensor group sends disjoint parts of a border's tensor."),
        "fused_update": _switch("One optimiser call per stage, or one per layer."),
        "tied_bytes": _amount("Gradient of the weight that first and last layer share, per rank."),
        "tied_params": _amount("Weights listed in both the first and the last layer that are held once."),
        "origins": _ORIGINS,
    },
)
_JOB = _closed(
    {
        "dtype": {"enum": sorted(DTYPE_BYTES)},
        "sequence_tokens": {"type": "integer", "minimum": 1},
        "adapter_rank": {"type": "integer", "minimum": 0, "description": "0 is full fine-tuning."},
    },
    "The job that was measured; without it, one of full fine-tuning.",
)
_EXECUTOR = _closed(
    {},
    "What an executor adds to its layers, and what of it can be priced.",
    {
        "blocking_transfers": _switch("Whether both stages at a border wait while a tensor crosses it."),
        "step_overhead_s": _amount("Once per step, outside layers and optimiser."),
        "micro_batch_overhead_s": _amount("Per stage and micro-batch, outside the layers."),
        "overhead_bytes": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "Held by a process before the first weight; null: as in facts.",
        },
        "activation_factor": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "Bytes held for each byte of activations; 1 where left out.",
        },
        "zero_levels": {"type": "array", "items": {"enum": [0, 1, 2, 3]}, "minItems": 1},
        "unequal_shares": _switch("Whether the ranks of a stage may get different shares of a micro-batch."),
        "recompute": _switch("Whether layers may be recomputed."),
        "origins": _ORIGINS,
    },
)


def _by_degree(value: dict[str, Any]) -> dict[str, Any]:
    """A mapping from tensor-parallel degree."""
    return {"type": "object", "propertyNames": {"pattern": "^[1-9][0-9]*$"}, "additionalProperties": value}


def _curves(ends: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": _closed({**ends, **_CURVE}, description, _TIMED)}


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
        "facts": _FACTS,
    },
    "Measured layer times, sizes and link curves with their provenance.",
    {
        "job": _JOB,
        "executors": {"type": "object", "description": "By name.", "additionalProperties": _EXECUTOR},
    },
)
