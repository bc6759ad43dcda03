"""JSON Schemas of the file formats that people write, and of those that programs write."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from planner.plan import Plan
from planner.schema.fleet import FleetShape
from planner.schema.model import ModelShape
from planner.schema.policy import PolicyShape
from planner.schema.profile_shape import PROFILE_SCHEMA
from planner.schema.shape import Shape
from planner.schema.training import TrainingShape

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SHAPES: dict[str, type[Shape]] = {
    "fleet": FleetShape,
    "model": ModelShape,
    "policy": PolicyShape,
    "job": TrainingShape,
}


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a kind of file."""
    if kind == "profile":
        document: dict[str, Any] = PROFILE_SCHEMA
    elif kind == "plan":
        document = _plan_schema()
    else:
        document = _without_nulls(_SHAPES[kind].model_json_schema(by_alias=True, mode="validation"))
    return {"$schema": DIALECT, **document, "title": f"echelon/{kind}/1"}


def _plan_schema() -> dict[str, Any]:
    """The schema of plan.json; the graph's nodes and edges stand under `graph` there."""
    document = TypeAdapter(Plan).json_schema(mode="serialization")
    properties = document["properties"]
    graph = {name: properties.pop(name) for name in ("nodes", "edges")}
    properties["graph"] = {"type": "object", "properties": graph, "required": ["nodes", "edges"]}
    properties["schema"] = {"const": properties["schema"]["default"], "type": "string"}
    document["required"] = sorted(properties)
    return document


def _without_nulls(node: Any) -> Any:
    """The same schema where no key may be null (leaving it out says "default"), without made-up titles."""
    if isinstance(node, list):
        return [_without_nulls(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {
        key: _without_nulls(value)
        for key, value in node.items()
        if not (key == "default" and value is None) and not (key == "title" and isinstance(value, str))
    }
    choices = found.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        del found["anyOf"]
        found = (kept[0] | found) if len(kept) == 1 else ({"anyOf": kept} | found)
    return found
