"""The canonical form is exact both ways, needs the standard library alone, and refuses bad edits."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.workload import Job, LayerSpec, Workload
from planner.canonical import (
    Inputs,
    canonical,
    canonical_json,
    content_sha256,
    input_documents,
    inputs_from_canonical,
    inputs_from_documents,
)
from planner.examples.bundled import example_folder, example_names
from planner.files import load_inputs
from policies.errors import InputError
from policies.policy import LayerTier, Policy, SpareKind, SpareRule, SpillOver

ROOT = Path(__file__).resolve().parents[2]
GOOD = ROOT / "tests" / "corpus" / "good"
POSITIVE = st.floats(min_value=1e-12, max_value=1e30, allow_nan=False) | st.integers(1, 10**15)


@cache
def small_inputs() -> Inputs:
    return load_inputs(GOOD / "fleet.yaml", GOOD / "model.yaml", GOOD / "policy.yaml")


@st.composite
def any_inputs(draw: Callable[..., Any]) -> Inputs:
    """Small but otherwise arbitrary inputs, ints in float fields included."""
    tiers = ("low", "high")[: draw(st.integers(1, 2))]
    sites = tuple(
        Site(site_id=f"s{i}", boundary_id=f"b{i % 2}", fabric_bytes_per_s=draw(POSITIVE)) for i in range(3)
    )
    hosts = tuple(Host(host_id=f"h{i}", site_id=f"s{i}", link_bytes_per_s=draw(POSITIVE)) for i in range(3))
    devices = tuple(
        Device(
            device_id=f"h{i}/0",
            host_id=f"h{i}",
            type_name=draw(st.sampled_from(["A100-80GB", "ünïcode", "x" * 40])),
            memory_bytes=draw(POSITIVE),
            flop_per_s=(("bf16", draw(POSITIVE)), ("fp32", draw(POSITIVE)))[: draw(st.integers(1, 2))],
            memory_bytes_per_s=draw(POSITIVE),
            tier_i=draw(st.integers(0, len(tiers) - 1)),
            mtbf_s=draw(st.none() | POSITIVE),
            owner=draw(st.sampled_from(["", "me"])),
        )
        for i in range(3)
    )
    links = (Link(source_site_id="s0", target_site_id="s1", bytes_per_s=draw(POSITIVE)),)
    layer = LayerSpec(
        kind="block",
        params=draw(st.integers(1, 10**13)),
        trainable_params=draw(st.integers(0, 1)),
        forward_flops_per_token=draw(POSITIVE),
        activation_bytes_per_token=draw(POSITIVE),
        input_bytes_per_token=draw(POSITIVE),
        output_bytes_per_token=0,
    )
    policy = Policy(
        tokens_tier=draw(st.none() | st.sampled_from(tiers)),
        layer_tiers=(LayerTier(start=0, stop=draw(st.integers(1, 3)), tier=tiers[0]),),
        boundaries=draw(st.none() | st.just(("b0",))),
        spares=SpareRule(kind=draw(st.sampled_from(list(SpareKind)))),
        spill_over=draw(st.none() | st.just(SpillOver(owners=("me",), tokens_per_s_below=3)))
        if any(device.owner for device in devices)
        else None,
        usd_per_hour_max=draw(st.none() | POSITIVE),
        sync=(("method", "diloco"),),
    )
    return Inputs(
        fleet=Fleet(
            name="f",
            tiers=tiers,
            boundaries=("b0", "b1"),
            sites=sites,
            hosts=hosts,
            devices=devices,
            links=links,
        ),
        workload=Workload(
            model_name="m",
            layers=(layer, layer, replace(layer, kind="head", tied_to=0, shared_params=layer.params)),
            job=Job(),
        ),
        policy=policy,
    )


@given(inputs=any_inputs())
def test_round_trip_is_exact(inputs: Inputs) -> None:
    written = canonical_json(canonical(inputs))
    back = inputs_from_canonical(json.loads(written))
    assert back == inputs
    assert canonical_json(canonical(back)) == written
    assert inputs_from_documents(json.loads(json.dumps(input_documents(inputs)))) == inputs


@pytest.mark.parametrize("name", example_names())
def test_examples_round_trip(name: str) -> None:
    folder = example_folder(name)
    inputs = load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")
    back = inputs_from_canonical(json.loads(json.dumps(inputs.canonical)))
    assert back == inputs
    assert canonical_json(back.canonical) == canonical_json(inputs.canonical)


def test_an_int_in_a_float_field_has_the_bytes_of_the_float() -> None:
    inputs = small_inputs()
    whole = replace(inputs, fleet=replace(inputs.fleet, memory_reserve_frac=0))
    assert canonical(whole)["fleet"]["memory_reserve_frac"] == 0.0
    assert '"memory_reserve_frac":0.0' in canonical_json(canonical(whole))


def test_canonical_json_is_sorted_tight_and_refuses_what_json_lacks() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'
    assert content_sha256({"b": 1, "a": 2}) == content_sha256({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


REMOVED = object()
# Path, new value, and the place that is told where it differs from the path.
EDITS: list[tuple[str, object, str]] = [
    ("fleet.devices[0].color", "red", ""),
    ("fleet.devices[0].memory_bytes", REMOVED, ""),
    ("policy", REMOVED, ""),
    ("weather", {}, ""),
    ("policy", [], ""),
    ("fleet.sites[0].fabric_bytes_per_s", "fast", ""),
    ("model.layers[1].params", True, ""),
    ("model.layers[1].params", 1.5, ""),
    ("fleet.devices[1].memory_bytes", float("nan"), ""),
    ("fleet.devices[1].memory_bytes", 10**400, ""),
    ("fleet.devices[1].memory_bytes", -1.0, ""),
    ("fleet.devices[1].memory_bytes", 0, ""),
    ("fleet.tiers", None, ""),
    ("fleet.tiers", ["open", "open"], "fleet.tiers[1]"),
    ("fleet.devices[2].host_id", "gone", ""),
    ("fleet.devices[2].device_id", "gpu-01/0", ""),
    ("fleet.links[0].target_site_id", "gone", ""),
    ("fleet.links[0].target_site_id", "hall", "fleet.links[0]"),
    ("fleet.links[2].target_site_id", "annex", "fleet.links[2]"),
    ("fleet.devices[0].tier_i", 2, ""),
    ("fleet.devices[0].tier_i", -1, ""),
    ("fleet.devices[0].origin", "guessed", ""),
    ("fleet.devices[0].flop_per_s", [], ""),
    ("fleet.devices[0].flop_per_s", [["bf16", 1.0, 2.0]], "fleet.devices[0].flop_per_s[0]"),
    ("fleet.devices[0].flop_per_s", [["fp7", 1.0]], "fleet.devices[0].flop_per_s[0]"),
    ("fleet.memory_reserve_frac", 1.0, ""),
    ("model.layers[0].tied_to", 5, ""),
    ("model.layers[5].tied_to", 99, ""),
    ("model.layers[5].tied_to", 5, ""),
    ("model.layers[5].shared_params", 1001, ""),
    ("model.layers[5].shared_params", -1, ""),
    ("model.layers[2].shared_params", 1, ""),
    ("model.layers", [], ""),
    ("model.layers[2].trainable_params", 6000, ""),
    ("model.layers[2].tensor_parallel_max", 0, ""),
    ("model.job.micro_batch_sizes", [3], "model.job.micro_batch_sizes[0]"),
    ("model.job.micro_batch_sizes", [], ""),
    ("model.job.dtype", "fp8", ""),
    ("model.job.sequences_per_step", 0, ""),
    ("policy.spares.kind", "some", ""),
    ("policy.spares.per_pool", 0, ""),
    ("policy.tokens_tier", "gone", ""),
    ("policy.boundaries", ["gone"], "policy.boundaries[0]"),
    ("policy.boundaries", [], ""),
    ("policy.layer_tiers[0].stop", 99, "policy.layer_tiers[0]"),
    ("policy.layer_tiers[0].start", -1, "policy.layer_tiers[0]"),
    ("policy.min_cohort", 0, ""),
    ("policy.drop_tolerance", -1, ""),
    ("policy.speed_ratio_max", 0.5, ""),
    ("policy.replicas_max", 0, ""),
    ("policy.usd_per_hour_max", -1, ""),
    ("policy.spill_over", {"owners": ["gone"]}, "policy.spill_over.owners[0]"),
]


def set_at(content: Any, path: str, value: object) -> None:
    """Put `value` at `fleet.devices[0].color`, or take away what stands there."""
    keys = [int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", path)]
    for key in keys[:-1]:
        content = content[key]
    if value is REMOVED:
        del content[keys[-1]]
    else:
        content[keys[-1]] = value


@pytest.mark.parametrize(("path", "value", "place"), EDITS)
def test_a_badly_edited_plan_is_refused_where_it_was_edited(path: str, value: object, place: str) -> None:
    content = copy.deepcopy(small_inputs().canonical)
    set_at(content, path, value)
    with pytest.raises(InputError) as caught:
        inputs_from_canonical(content)
    assert f"inputs.{place or path}" in [fault.place for fault in caught.value.faults]


def test_all_faults_of_all_parts_come_at_once() -> None:
    content = copy.deepcopy(small_inputs().canonical)
    content["fleet"]["devices"][0]["memory_bytes"] = "much"
    content["model"]["job"]["dtype"] = 7
    content["policy"]["min_cohort"] = None
    with pytest.raises(InputError) as caught:
        inputs_from_canonical(content)
    assert len(caught.value.faults) == 3


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), value=JSON_VALUES)
def test_no_edit_of_one_value_ends_in_anything_but_an_input_error(data: st.DataObject, value: Any) -> None:
    node: Any = (content := copy.deepcopy(small_inputs().canonical))
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = value
            break
        node = node[key]
    with suppress(InputError):
        inputs = inputs_from_canonical(content)
        assert inputs_from_canonical(inputs.canonical) == inputs


def test_documents_with_a_wrong_hash_kind_or_shape_are_refused() -> None:
    documents = [dict(item) for item in input_documents(small_inputs())]
    assert [item["kind"] for item in documents] == ["fleet", "model", "policy"]
    for broken in (
        [{**documents[0], "sha256": "0" * 64}, *documents[1:]],
        [{**documents[0], "kind": "weather"}, *documents[1:]],
        [documents[0], documents[0], documents[2]],
        documents[:2],
        [1, 2, 3],
        {"fleet": 1},
        None,
    ):
        with pytest.raises(InputError):
            inputs_from_documents(broken)
    edited = [{**documents[0], "sha256": "0" * 64}, *documents[1:]]
    assert inputs_from_documents(edited, hashes=False) == small_inputs()


def test_reading_a_plan_needs_neither_pydantic_nor_yaml_nor_numpy() -> None:
    program = (
        "import sys, json; from planner.canonical import inputs_from_canonical;"
        "inputs_from_canonical(json.load(sys.stdin));"
        "print(sorted({'pydantic', 'yaml', 'numpy', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        input=json.dumps(small_inputs().canonical),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
