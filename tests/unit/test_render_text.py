"""Text in 80 columns, the page, the colours, the tracks, and plans that can't be drawn."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plan import Plan, dump_plan
from planner.render.measure import fit, text_width
from planner.render.page import render_html
from planner.render.palette import DARK, LIGHT, Scheme
from planner.render.summary import COLUMNS, summary_text, table
from planner.render.tracks import Port, Wire, assign_tracks, route
from planner.render.view import plan_view, tier_marks
from planner.render.words import bound_sentence, device_ranges, numbers_text
from policies.errors import InputError
from render_plans import drawn_plan, ward_fleet

Cli = Callable[..., Any]
VOID = {"meta", "br", "hr", "img", "link", "input"}
SHA = re.compile(r"\b[0-9a-f]{64}\b")


@pytest.fixture
def plan() -> Plan:
    return drawn_plan(ward_fleet())


class Balance(html.parser.HTMLParser):
    """Whether every tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_text_of_a_plan(plan: Plan, golden: Callable[[str, str], None]) -> None:
    golden("render_wards.txt", summary_text(plan_view(plan)) + "\n")


def test_page_of_a_plan(plan: Plan, golden: Callable[[str, str], None]) -> None:
    page = render_html(plan_view(plan))
    golden("render_wards.html", SHA.sub("<sha256>", page))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.tags.count("table") == 3
    assert "script" not in balance.tags
    assert re.findall(r"url\(|@import|src=|href=", page) == []


@given(columns=st.lists(st.text("abc-/", max_size=60), min_size=8, max_size=8))
def test_tables_keep_to_eighty_columns(columns: list[str]) -> None:
    row = ["0", "[0,100)", columns[0], columns[1], "C", columns[2], "100%", columns[3]]
    heads = ["#", "layers", "site", "devices", "tier", "head", "mem", "strategy"]
    assert max(map(len, table([heads, row]))) <= COLUMNS


def test_tables_shorten_no_more_than_they_must() -> None:
    heads = ["#", "layers", "site", "devices", "tier", "head", "mem", "strategy"]
    row = ["0", "[0,9)", "s" * 30, "d" * 12, "C", "h" * 14, "9%", "tp 2"]
    lines = table([heads, row])
    assert len(lines[1]) > COLUMNS - 5
    assert "d" * 12 in lines[1]
    assert "h" * 14 in lines[1]


def test_long_names_are_shortened_in_the_middle(plan: Plan) -> None:
    name = "a-host-with-a-very-long-name-that-nobody-types-by-hand-" + "x" * 60
    text = dump_plan(plan).replace("vault-1", name)
    documents = json.loads(text)["inputs"]
    assert name in json.dumps(documents)
    fleet = ward_fleet()
    long = replace_names(fleet, "vault-1", name)
    lines = summary_text(plan_view(drawn_plan(long)), every_replica=True).split("\n")
    # A single word longer than a line stays whole where it stands alone: it is a name.
    assert all(len(line) <= COLUMNS or name in line for line in lines)
    assert any("…" in line for line in lines)


def replace_names(fleet: Any, old: str, new: str) -> Any:
    """The fleet with a host under another name."""
    hosts = tuple(replace(h, host_id=h.host_id.replace(old, new)) for h in fleet.hosts)
    devices = tuple(
        replace(d, host_id=d.host_id.replace(old, new), device_id=d.device_id.replace(old, new))
        for d in fleet.devices
    )
    return replace(fleet, hosts=hosts, devices=devices)


def linear(colour: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Linear light of `#rrggbb` (IEC 61966-2-1)."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    a, b = (float(linear(colour) @ np.array([0.2126, 0.7152, 0.0722])) for colour in (one, other))
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_ground(scheme: Scheme) -> None:
    grounds = [scheme.page, scheme.card, scheme.site, scheme.idle]
    pairs = [(scheme.ink, ground) for ground in grounds] + [(scheme.muted, ground) for ground in grounds]
    pairs += [(scheme.ink, colour) for shade in scheme.tiers for colour in (shade.tint, shade.fill)]
    pairs += [(scheme.on_replica, hue) for hue in scheme.replicas]
    assert [pair for pair in pairs if contrast(*pair) < 4.5] == []
    lines = [
        (hue, scheme.site) for hue in (*scheme.replicas, scheme.crossing, *(s.edge for s in scheme.tiers))
    ]
    assert [pair for pair in lines if contrast(*pair) < 3.0] == []


# Linear RGB as seen with a cone missing (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
OKLAB = (
    np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]),
    np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]),
)


def seen(colour: str, sight: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Oklab coordinates of a colour under a kind of sight."""
    rgb = np.clip(SIGHT[sight] @ linear(colour), 0.0, 1.0)
    return np.asarray(OKLAB[1] @ np.cbrt(OKLAB[0] @ rgb))


@pytest.mark.parametrize("sight", list(SIGHT))
@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_tiers_differ_for_every_eye(scheme: Scheme, sight: str) -> None:
    """In Oklab, where 0.02 is about the least that can be told apart side by side."""
    fills = [seen(shade.fill, sight) for shade in scheme.tiers]
    for i, j in combinations(range(len(fills)), 2):
        least = 0.1 if j < 4 else 0.04
        assert float(np.linalg.norm(fills[i] - fills[j])) > least, (i, j)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=20))
def test_no_two_stretches_of_a_track_touch(ends: list[tuple[float, float]]) -> None:
    spans = [(min(pair), max(pair)) for pair in ends]
    tracks = assign_tracks(spans, 1.0)
    for (one, a), (other, b) in combinations(list(zip(spans, tracks, strict=True)), 2):
        assert a != b or one[1] + 1.0 <= other[0] or other[1] + 1.0 <= one[0]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 400), st.integers(0, 4), st.integers(0, 400)), max_size=12
    )
)
def test_lines_share_no_stretch(ends: list[tuple[int, int, int, int]]) -> None:
    wires = [
        Wire(source=Port(row=a, site=a // 2, x=float(x)), target=Port(row=b, site=b // 2, x=float(y) + 0.5))
        for a, x, b, y in ends
    ]
    routing = route(wires, 5)
    laid: list[tuple[int, int, float, float]] = []
    for wire, found in zip(wires, routing.routes, strict=True):
        s, t = wire.source, wire.target
        assert found.source_track < routing.row_tracks[s.row]
        if wire.is_level:
            laid.append((s.row, found.source_track, min(s.x, t.x), max(s.x, t.x)))
            continue
        assert 0 <= found.side_track < (routing.inner_tracks if wire.is_inner else routing.outer_tracks)
        laid += [(s.row, found.source_track, s.x, 1e9), (t.row, found.target_track, t.x, 1e9)]
    for one, other in combinations(laid, 2):
        assert one[:2] != other[:2] or one[3] < other[2] or other[3] < one[2]


@given(st.text(max_size=40), st.floats(0, 300))
def test_what_fits_is_never_wider_than_its_room(words: str, room: float) -> None:
    short = fit(words, room, 11.0)
    assert text_width(short, 11.0) <= room or short == ""
    assert short == words or short == "" or short.endswith("…")


def test_words() -> None:
    assert tier_marks(("open", "internal")) == ("O", "I")
    assert tier_marks(("open", "official")) == ("1", "2")
    assert numbers_text([0, 1, 2, 5]) == "r0-2, r5"
    assert device_ranges(["n-1/0", "n-1/1", "n-2/0", "n-2/1", "m/7"]) == ["n-[1-2]/[0-1]", "m/7"]


@pytest.mark.parametrize(
    ("objective", "bound", "excess", "words"),
    [
        (
            "tokens",
            110.0,
            0.1,
            "no plan can beat 110 tokens/s, so the best is at most 10.00% faster than this one",
        ),
        ("price", 90.0, 0.1, "no plan can beat 90 USD/h, so this one is at most 10.00% dearer than the best"),
        ("tokens", 100.0, 0.0, "no plan of the candidate list beats 100 tokens/s: this one is the best"),
        ("tokens", None, None, "nothing is proven about better plans"),
    ],
)
def test_bound_in_a_sentence(
    plan: Plan, objective: str, bound: float | None, excess: float | None, words: str
) -> None:
    certificate = replace(plan.certificate, objective=objective, value=100.0, bound=bound, excess_frac=excess)
    assert bound_sentence(certificate) == words


def broken(plan: Plan, **changes: Any) -> Plan:
    """The plan with fields of its first stage changed."""
    boundary = plan.boundaries[0]
    replica = boundary.replicas[0]
    stage = replace(replica.stages[0], **changes)
    replica = replace(replica, stages=(stage, *replica.stages[1:]))
    return replace(plan, boundaries=(replace(boundary, replicas=(replica, *boundary.replicas[1:])),))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"devices": ("nowhere/0",), "head": "nowhere/0"}, "stages[0].devices"),
        ({"devices": ("ward-2/3", "vault-1/1")}, "each device once"),
        ({"devices": ()}, "at least one device"),
        ({"index": 3}, "stages[0].index"),
        ({"layers": (5, 5)}, "stages[0].layers"),
        ({"layers": (0, 900)}, "stages[0].layers"),
        ({"head": "ward-1/0"}, "stages[0].head"),
        ({"memory_bytes": {}}, "memory_bytes"),
        ({"spares": ("vault-1/0",)}, "stages[0].spares"),
        ({"compute_s": -1.0}, "compute_s"),
    ],
)
def test_a_plan_that_does_not_fit_its_fleet_has_no_picture(
    plan: Plan, changes: dict[str, Any], place: str
) -> None:
    with pytest.raises(InputError) as refused:
        plan_view(broken(plan, **changes))
    assert refused.value.code == "plan-misfit"
    assert any(place in f"{fault.place} {fault.limit}" for fault in refused.value.faults)


def test_control_characters_reach_neither_terminal_nor_file(plan: Plan) -> None:
    view = plan_view(replace(plan, job="\x1b[31m<b>&\x00"))
    for words in (summary_text(view), render_html(view)):
        assert "\x1b" not in words
        assert "\x00" not in words
    assert "<b>" not in render_html(view)


def test_show_answers_and_writes(plan: Plan, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(dump_plan(plan), encoding="utf-8")
    shown = cli("show", "plan.json", "--svg", "a.svg", "--html", "a.html")
    assert shown.code == 0
    assert shown.out == summary_text(plan_view(plan)) + "\n"
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == render_html(plan_view(plan))
    data = json.loads(cli("show", "plan.json", "--format", "json").out)["data"]
    assert data["value"] == plan.certificate.value
    assert data["written"] == {}
    stages = [stage for b in data["boundaries"] for r in b["replicas"] for stage in r["stages"]]
    used = {device for stage in stages for device in stage["devices"]}
    idle = {entry["device"] for b in data["boundaries"] for entry in b["idle"]}
    assert used | idle == {device.device_id for device in ward_fleet().devices}
    assert not used & idle


def test_show_refuses_what_is_no_plan(cli: Cli, tmp_path: Path) -> None:
    assert cli("show", "none.json").code == 3
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    refused = cli("show", "plan.json", "--svg", "a.svg")
    assert refused.code == 3
    assert not (tmp_path / "a.svg").exists()
