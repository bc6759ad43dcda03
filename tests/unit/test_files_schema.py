"""The JSON Schemas are frozen, name every key that files use, and follow what the reader accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.examples.bundled import STARTER, example_folder, example_names
from planner.schema.json_schema import json_schema
from planner.schema.reading import read_document

BUNDLED = ("fleet", "model", "policy")
WRITTEN = (*BUNDLED, "job")
KINDS = (*WRITTEN, "profile", "plan")


def shapes_inside(schema: Any, root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema itself and what its references and choices lead to."""
    if "$ref" in schema:
        yield from shapes_inside(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    yield schema
    for choice in schema.get("anyOf", ()):
        yield from shapes_inside(choice, root)


def unknown_keys(value: Any, schema: Any, root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Places in a document that its schema does not describe."""
    shapes = list(shapes_inside(schema, root))
    if isinstance(value, list):
        items = [shape["items"] for shape in shapes if "items" in shape]
        for item in value:
            yield from unknown_keys(item, items[0], root, f"{path}[]") if items else iter([path])
    elif isinstance(value, dict):
        properties = {key: inner for shape in shapes for key, inner in shape.get("properties", {}).items()}
        is_open = any("patternProperties" in shape for shape in shapes) or any(
            shape.get("additionalProperties", shape.get("type") != "object") for shape in shapes
        )
        for key, inner in value.items():
            if key in properties:
                yield from unknown_keys(inner, properties[key], root, f"{path}.{key}")
            elif not is_open:
                yield f"{path}.{key}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plan"])
def test_schemas_are_frozen(kind: str, golden: Callable[[str, str], None]) -> None:
    golden(f"schema_{kind}.json", json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("name", [*example_names(), STARTER])
@pytest.mark.parametrize("kind", BUNDLED)
def test_schemas_describe_every_key_of_the_examples(kind: str, name: str) -> None:
    source, faults = read_document(example_folder(name) / f"{kind}.yaml")
    schema = json_schema(kind)
    assert not faults
    assert not list(unknown_keys(source.data, schema, schema))
    assert list(unknown_keys({**source.data, "typo": 1}, schema, schema)) == [".typo"]


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_name_themselves_and_refer_only_to_themselves(kind: str) -> None:
    schema = json_schema(kind)
    text = json.dumps(schema)
    assert schema["title"] == f"echelon/{kind}/1"
    assert schema["properties"]["schema"]["const"] == f"echelon/{kind}/1"
    assert all(f'"{name}":' in text for name in {part.split('"')[0] for part in text.split("#/$defs/")[1:]})
    if kind in WRITTEN:
        assert '"null"' not in text, "a key without a value is refused"


def test_the_plan_schema_keeps_its_graph_together() -> None:
    properties = json_schema("plan")["properties"]
    assert {"certificate", "boundaries", "inputs", "graph"} <= set(properties)
    assert not {"nodes", "edges"} & set(properties)


def keys_inside(node: Any) -> Iterator[str]:
    """Every key that a schema describes, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", {})
        for inner in node.values():
            yield from keys_inside(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from keys_inside(inner)


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_manual_explains_every_key(kind: str, root: Path) -> None:
    manual = (root / "docs" / "formats.md").read_text(encoding="utf-8")
    manual = re.sub(r"^```.*?^```", "", manual, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`[^`]+`", manual))))
    assert not set(keys_inside(json_schema(kind))) - words
