"""The trace and the Gantt chart: everything is in them once, nothing covers anything."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_cases import two_site_fleet, two_site_plan

from executors.simulate.chrome_trace import render_trace
from executors.simulate.gantt import render_gantt
from executors.simulate.options import Loss, SimulationOptions, Transfers, WindowRule
from executors.simulate.result import SimulationResult
from executors.simulate.simulator import simulate_plan
from executors.simulate.time_axis import TimeAxis
from render_boxes import boxes, overlapping


@pytest.fixture(scope="module")
def eventful() -> SimulationResult:
    """Two replicas with windows, checkpoints and a loss."""
    plan = two_site_plan(two_site_fleet(2, spares=2), 2)
    device = plan.boundaries[0].replicas[0].stages[0].devices[0]
    options = SimulationOptions(
        num_steps=5,
        losses=(Loss(name=device, step=3),),
        checkpoint_every=2,
        checkpoint_s=0.5,
        detect_s=1.0,
        restart_s=2.0,
        window=WindowRule(num_steps=2, exchange_s=0.5),
    )
    return simulate_plan(plan, options)


@pytest.fixture(scope="module")
def plain() -> SimulationResult:
    """One step of one replica, with blocking transfers."""
    plan = two_site_plan(two_site_fleet(1, spares=0), 1, failover=False)
    return simulate_plan(plan, SimulationOptions(num_steps=1, transfers=Transfers.BLOCKING))


@pytest.fixture(scope="module")
def crowded() -> SimulationResult:
    """Sixty-four micro-batches, a loss, and no link that others use."""
    plan = two_site_plan(two_site_fleet(1, spares=1), 1, sequences=64)
    device = plan.boundaries[0].replicas[0].stages[0].devices[0]
    return simulate_plan(plan, SimulationOptions(num_steps=3, losses=(Loss(name=device, step=1),)))


def events_of(result: SimulationResult) -> list[dict[str, Any]]:
    document = json.loads(render_trace(result).text)
    assert document["displayTimeUnit"] == "ms"
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


@pytest.mark.parametrize("name", ["eventful", "plain", "crowded"])
def test_the_trace_is_what_chrome_reads(name: str, request: pytest.FixtureRequest) -> None:
    result: SimulationResult = request.getfixturevalue(name)
    events = events_of(result)
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["dur"] >= 0.0
            rows.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert set(rows) <= named
    for spans in rows.values():
        ordered = sorted(spans)
        assert all(a[1] <= b[0] + 0.0021 for a, b in pairwise(ordered)), "one thing at a time in each row"


@pytest.mark.parametrize("name", ["eventful", "crowded"])
def test_the_trace_holds_every_pass_up_to_the_cut(name: str, request: pytest.FixtureRequest) -> None:
    eventful: SimulationResult = request.getfixturevalue(name)
    events = [e for e in events_of(eventful) if e["ph"] == "X"]
    for pid, replica in enumerate(eventful.replicas):
        own = [e for e in events if e["pid"] == pid]
        assert sum(e["cat"] in ("step", "lost", "repeated") for e in own) == len(replica.steps)
        whole = [r for r in replica.steps if not r.lost]
        passes = [e for e in own if e["cat"] == "forward"]
        count = replica.chains[0].setup.num_micro_batches
        stages = sum(len(replica.chains[r.chain_i].setup.stages) for r in whole)
        assert len(passes) >= count * stages
        last_us = max(e["ts"] + e["dur"] for e in own)
        assert last_us == pytest.approx(replica.end_s * 1e6, abs=1.0)
    (cut,) = [r for r in eventful.replicas[0].steps if r.lost]
    under_way = [
        e for e in events if e["pid"] == 0 and e["tid"] > 0 and cut.start_s * 1e6 <= e["ts"] < cut.end_s * 1e6
    ]
    assert under_way
    assert all(e["ts"] + e["dur"] <= cut.end_s * 1e6 + 0.01 for e in under_way)


def test_a_long_trace_keeps_all_steps_but_not_all_passes(eventful: SimulationResult) -> None:
    trace = render_trace(eventful, events_max=300)
    assert 1 <= trace.num_steps_detailed < trace.num_steps == sum(len(r.steps) for r in eventful.replicas)
    events = json.loads(trace.text)["traceEvents"]
    assert sum(e.get("cat") in ("step", "lost", "repeated") for e in events) == trace.num_steps


@pytest.mark.parametrize("name", ["eventful", "plain", "crowded"])
def test_nothing_in_the_gantt_chart_is_covered_or_cut(name: str, request: pytest.FixtureRequest) -> None:
    result: SimulationResult = request.getfixturevalue(name)
    svg = render_gantt(result, "two-sites: a replay")
    canvas, texts, rects, groups = boxes(svg)
    assert [box for box in texts if not canvas.holds(box)] == []
    assert [box for box in rects if not canvas.holds(box, 0.6)] == []
    assert overlapping(texts) == []
    assert [(box, words) for box, inner in groups for words in inner if not box.holds(words, 0.6)] == []
    assert svg == render_gantt(result, "two-sites: a replay")


def test_the_gantt_chart_explains_the_marks_it_uses_and_no_others(
    eventful: SimulationResult, plain: SimulationResult
) -> None:
    both = [
        " ".join(e.text or "" for e in ElementTree.fromstring(render_gantt(r, "x")).iter() if e.text)
        for r in (eventful, plain)
    ]
    for words in ("step cut off", "step done again", "restart", "checkpoint", "window's exchange", "loss"):
        assert words in both[0]
        assert words not in both[1]
    assert "tokens/s simulated" in both[0]
    assert "after its loss" in both[0]


def test_names_are_text_and_never_markup(plain: SimulationResult) -> None:
    svg = render_gantt(plain, "<rect/>&amp;")
    assert any("<rect/>&amp;" in (e.text or "") for e in ElementTree.fromstring(svg).iter())


@given(end_s=st.floats(1e-9, 1e9))
def test_axes_have_round_ticks_in_one_unit_that_fit(end_s: float) -> None:
    axis = TimeAxis(left_px=100.0, width_px=1000.0, end_s=end_s)
    ticks = axis.ticks
    assert 2 <= len(ticks) <= 21
    assert len({words.split()[1] for _, words in ticks}) == 1
    assert all(100.0 <= axis.x(time_s) <= 1100.5 for time_s, _ in ticks)
    assert ticks[0][0] == 0.0


@given(width_px=st.floats(20.0, 400.0), end_s=st.floats(1e-6, 1e6))
def test_labels_of_an_axis_never_meet(width_px: float, end_s: float) -> None:
    axis = TimeAxis(left_px=50.0, width_px=width_px, end_s=end_s)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="500" height="40">{"".join(axis.labels(5.0))}</svg>'
    _, texts, _, _ = boxes(svg)
    assert texts
    assert overlapping(texts) == []
