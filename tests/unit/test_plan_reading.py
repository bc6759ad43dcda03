"""plan.json is read strictly: what was written comes back, every structural fault is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import plan_reading
from planner.plan import (
    BoundaryPlan,
    Certificate,
    Excluded,
    Failover,
    GraphEdge,
    GraphNode,
    Plan,
    ReplicaPlan,
    StagePlan,
    dump_plan,
    read_plan,
)
from planner.plan_reading import parse_json, plan_from_json, read_json
from policies.errors import Fault, InputError


def example() -> Plan:
    """A small plan with every kind of record in it."""
    stage = StagePlan(
        index=0,
        layers=(0, 4),
        devices=("a", "b"),
        dp=2,
        tp=1,
        zero=1,
        micro_batch_shares=(1, 1),
        ranks=(("a",), ("b",)),
        recompute=0,
        in_flight=1,
        head="a",
        spares=(),
        memory_bytes={"a": {"weights": 5.0, "limit": 9.0}, "b": {"weights": 5.0, "limit": 9.0}},
        compute_s=0.25,
        comm_s=0.0,
        sync_s=1e-3,
        transfer_s=0.0,
    )
    replica = ReplicaPlan(
        id="r0",
        executor="torch",
        tokens_per_s=12.5,
        step_time_s=2.0,
        micro_batches=4,
        micro_batch_size=2,
        stages=(stage,),
        tied_layers=((0, 3),),
    )
    return Plan(
        inputs=({"kind": "fleet", "content": {"name": "x"}, "sha256": "0"},),
        job="job",
        tokens_per_step=25,
        settings={"objective": "tokens", "rule": None},
        certificate=Certificate(
            objective="tokens",
            value=12.5,
            bound=13.0,
            excess_frac=0.04,
            covers="candidates",
            stop="limits",
            proof={"b": {"kind": "dual", "factor": 1.5}},
            seed=0,
            versions={"numpy": "2"},
            limits={"deadline_s": 60.0},
        ),
        boundaries=(
            BoundaryPlan(
                name="b",
                aggregator={"host": "h", "standby": None},
                replicas=(replica,),
                excluded=(Excluded(device="c", reason="not-needed"),),
                failover=(Failover(devices=("a",), replica="r0", replacement=replica, tokens_per_s=12.5),),
            ),
        ),
        nodes=(GraphNode(id="n", kind="stage", boundary="b"),),
        edges=(GraphEdge(source="n", target="n", kind="collective", crossing=False),),
    )


def as_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(dump_plan(example()))
    return data


def faults_of(data: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        plan_from_json(data)
    assert caught.value.exit_code == 3
    assert caught.value.code == "bad-plan-file"
    return [fault.place for fault in caught.value.faults]


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(dump_plan(example()), encoding="utf-8")
    assert read_plan(path) == example()
    assert dump_plan(read_plan(path)) == dump_plan(example())


def test_a_plan_without_bound_comes_back() -> None:
    data = as_data()
    data["certificate"].update(bound=None, excess_frac=None)
    assert plan_from_json(data).certificate.bound is None


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown field": (lambda d: d.update(surprise=1), "'surprise'"),
    "missing field": (lambda d: d.pop("job"), "job"),
    "text for number": (lambda d: d["certificate"].update(value="12"), "certificate.value"),
    "true for number": (lambda d: d["certificate"].update(value=True), "certificate.value"),
    "number for text": (lambda d: d.update(job=3), "job"),
    "fraction for count": (
        lambda d: d["boundaries"][0]["replicas"][0].update(micro_batches=2.5),
        "replicas[0].micro_batches",
    ),
    "true for count": (lambda d: d["certificate"].update(seed=False), "certificate.seed"),
    "three layers ends": (
        lambda d: d["boundaries"][0]["replicas"][0]["stages"][0].update(layers=[0, 1, 2]),
        "stages[0].layers",
    ),
    "object for list": (lambda d: d.update(boundaries={}), "boundaries"),
    "list for object": (lambda d: d.update(settings=[]), "settings"),
    "null record": (lambda d: d["boundaries"].append(None), "boundaries[1]"),
    "bytes as text": (
        lambda d: d["boundaries"][0]["replicas"][0]["stages"][0]["memory_bytes"]["a"].update(weights="5"),
        "memory_bytes['a']['weights']",
    ),
    "number as host": (lambda d: d["boundaries"][0]["aggregator"].update(host=1), "aggregator['host']"),
    "no graph": (lambda d: d.pop("graph"), "graph"),
    "nodes outside": (lambda d: d.update(nodes=[]), "nodes"),
    "bad edge": (lambda d: d["graph"]["edges"][0].update(crossing=0), "graph.edges[0].crossing"),
    "inside failover": (
        lambda d: d["boundaries"][0]["failover"][0]["replacement"].pop("executor"),
        "failover[0].replacement.executor",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_structural_fault_has_its_place(name: str) -> None:
    change, place = WRONG[name]
    data = as_data()
    change(data)
    assert any(place in found for found in faults_of(data))


def test_all_faults_are_listed_at_once() -> None:
    data = as_data()
    data["job"] = 1
    data["tokens_per_step"] = "many"
    data["graph"]["nodes"][0]["kind"] = None
    assert len(faults_of(data)) == 3


@pytest.mark.parametrize("schema", [None, "echelon/plan/2", ["echelon/plan/1"]])
def test_another_schema_is_refused(schema: Any) -> None:
    assert faults_of({**as_data(), "schema": schema}) == ["plan.json: schema"]


@pytest.mark.parametrize("value", [None, 1, [], "plan"])
def test_what_is_no_object_is_refused(value: Any) -> None:
    assert faults_of(value) == ["plan.json"]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": ' + "9" * 30 + "}",
        '{"a": ' + "9" * 9000 + "}",
        '{"a": 18446744073709551616}',
        "[" * 65 + "]" * 65,
        "[" * 200_000 + "]" * 200_000,
        "{",
        "",
        '{"a": 01}',
        '{"a": "\x00"}',
    ],
)
def test_json_that_is_not_plain_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text.encode(), place="p")
    assert caught.value.code == "bad-plan-file"
    assert len(caught.value.faults) == 1


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError):
        parse_json(b'{"a": "\xff"}', place="p")


def test_deep_but_allowed_nesting_is_read() -> None:
    assert parse_json(b"[" * 60 + b"]" * 60, place="p") is not None


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError) as caught:
            read_json(path)
        assert caught.value.exit_code == 3
    large = tmp_path / "large.json"
    large.write_text('{"a": 1}', encoding="utf-8")
    assert read_json(large) == {"a": 1}
    monkeypatch.setattr(plan_reading, "MAX_FILE_BYTES", 4)
    with pytest.raises(InputError):
        read_json(large)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place] if place else []
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            found += _places(item, (*place, key))
    return found


PLACES = _places(as_data())


@given(st.sampled_from(PLACES), JSON_VALUES)
def test_anything_anywhere_is_read_or_refused_but_never_crashes(place: tuple[Any, ...], value: Any) -> None:
    data = deepcopy(as_data())
    owner: Any = data
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    faults: tuple[Fault, ...] = ()
    plan: Plan | None = None
    try:
        plan = plan_from_json(data)
    except InputError as error:
        faults = error.faults
    assert (plan is None) == bool(faults)
