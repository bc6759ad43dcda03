"""The picture: nothing covers anything, nothing is cut, every device is there; same plan, same bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.fleet import Fleet, Host, Link, Site
from planner.examples.bundled import example_folder
from planner.files import load_fleet
from planner.plan import Plan
from planner.render.svg import render_svg
from planner.render.view import plan_view
from render_boxes import NS, boxes, overlapping
from render_plans import device, drawn_plan, ward_fleet

FRAMES = ("card", "site", "host", "aggregator", "standby")
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)


def sound(svg: str) -> None:
    """Every text inside the canvas and apart from the others; frames apart or inside each other."""
    canvas, texts, rects, groups = boxes(svg)
    assert [box for box in texts if not canvas.holds(box)] == []
    assert overlapping(texts) == []
    cut = [(box, words) for box, inner in groups for words in inner if not box.holds(words, 0.6)]
    assert cut == []
    frames = [box for box in rects if set(box.cls.split()) & set(FRAMES)]
    # The legend shows two of the frames without anything in them.
    crossed = [(a, b) for a, b in overlapping(frames, 0.5) if not a.holds(b, 0.6) and not b.holds(a, 0.6)]
    assert crossed == []
    assert [box for box in rects if not canvas.holds(box, 0.6)] == []
    cards = [replace(box, right=box.right + 10, bottom=box.bottom + 10) for box in rects if box.cls == "card"]
    assert overlapping(cards) == [], "cards stand apart"


def assert_all_drawn(svg: str, fleet: Fleet) -> None:
    """Each device has exactly one cell, known by its tooltip."""
    titles = [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{NS}title")]
    cells = Counter(title.split(":")[0] for title in titles)
    assert [item.device_id for item in fleet.devices if cells[item.device_id] != 1] == []


def test_eighteen_devices_are_drawn_large(golden: Callable[[str, str], None]) -> None:
    fleet = ward_fleet()
    svg = render_svg(plan_view(drawn_plan(fleet)))
    sound(svg)
    assert_all_drawn(svg, fleet)
    golden("render_wards.svg", svg)


def test_a_thousand_devices_in_twelve_boundaries_are_drawn_small() -> None:
    fleet = load_fleet(example_folder("thousand") / "fleet.yaml")
    svg = render_svg(plan_view(drawn_plan(fleet, 82)))
    sound(svg)
    assert_all_drawn(svg, fleet)
    assert "coordinator" in svg
    width = float(re.findall(r'viewBox="0 0 ([0-9.]+) ', svg)[0])
    assert width <= 1720, "wider than a screen shows at full size"


def test_a_thousand_devices_in_one_boundary_fit_too() -> None:
    fleet = load_fleet(example_folder("thousand") / "fleet.yaml")
    sites = tuple(
        Site(site_id=s.site_id, boundary_id="all", fabric_bytes_per_s=s.fabric_bytes_per_s)
        for s in fleet.sites
    )
    whole = Fleet(
        name="one", tiers=fleet.tiers, boundaries=("all",), sites=sites, hosts=fleet.hosts,
        devices=fleet.devices, links=fleet.links,
    )  # fmt: skip
    svg = render_svg(plan_view(drawn_plan(whole, 82, stages_max=8)))
    sound(svg)
    assert "more links not drawn" in svg


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Fleets of any shape and with long names, large and small."""
    boundaries = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    sites: list[Site] = []
    hosts: list[Host] = []
    devices = []
    kinds = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    tiers = draw(st.lists(NAMES, min_size=1, max_size=9, unique=True))
    for b, boundary in enumerate(boundaries):
        for s in range(draw(st.integers(1, 4))):
            site_id = f"{draw(NAMES)}-{b}{s}"
            rate = draw(st.sampled_from((1e8, 1.25e9, 50e9)))
            sites.append(Site(site_id=site_id, boundary_id=boundary, fabric_bytes_per_s=rate))
            for h in range(draw(st.integers(1, 4))):
                host_id = f"{draw(NAMES)}-{b}{s}{h}"
                hosts.append(Host(host_id=host_id, site_id=site_id, link_bytes_per_s=64e9))
                for slot in range(draw(st.sampled_from((1, 2, 4, 8, 11)))):
                    tier_i = draw(st.integers(0, len(tiers) - 1))
                    devices.append(device(host_id, slot, draw(st.sampled_from(kinds)), tier_i))
    ids = [site.site_id for site in sites]
    links = [
        Link(source_site_id=a, target_site_id=b, bytes_per_s=draw(st.sampled_from((1e7, 1.25e9, 1e10))))
        for a in ids
        for b in ids
        if a != b and draw(st.booleans())
    ]
    return Fleet(
        name=draw(NAMES), tiers=tuple(tiers), boundaries=tuple(boundaries), sites=tuple(sites),
        hosts=tuple(hosts), devices=tuple(devices), links=tuple(links),
    )  # fmt: skip


@settings(max_examples=15)
@given(fleet=fleets(), stages_max=st.integers(1, 6), num_layers=st.integers(1, 130), skip=st.booleans())
def test_any_fleet_is_drawn_without_overlaps(
    fleet: Fleet, stages_max: int, num_layers: int, skip: bool
) -> None:
    without = fleet.boundaries[:1] if skip else ()
    plan = drawn_plan(fleet, num_layers, stages_max=stages_max, without=without)
    svg = render_svg(plan_view(plan))
    sound(svg)
    assert_all_drawn(svg, fleet)
    assert svg == render_svg(plan_view(plan))


def test_the_smallest_boundaries_have_room_for_their_words() -> None:
    names = ("a", "b", "c")
    fleet = Fleet(
        name="tiny", tiers=("open",), boundaries=names,
        sites=tuple(Site(site_id=f"{n}s", boundary_id=n, fabric_bytes_per_s=1e9) for n in names),
        hosts=tuple(Host(host_id=f"{n}h", site_id=f"{n}s", link_bytes_per_s=1e9) for n in names),
        devices=tuple(device(f"{n}h", i, "T4", 0) for n in names for i in range(2)),
    )  # fmt: skip
    svg = render_svg(plan_view(drawn_plan(fleet, 3)))
    sound(svg)
    assert_all_drawn(svg, fleet)
    sound(render_svg(plan_view(drawn_plan(fleet, 3, without=names))))


def test_names_are_text_and_never_markup(ward_plan: Plan) -> None:
    svg = render_svg(plan_view(replace(ward_plan, job="<rect/>&amp;\"'")))
    assert any("<rect/>&amp;" in (element.text or "") for element in ElementTree.fromstring(svg).iter())


def test_roles_and_slow_links_are_told_without_colour(ward_plan: Plan) -> None:
    svg = render_svg(plan_view(ward_plan))
    assert (
        svg.count('class="hatch')
        == sum(e.reason == "pooled-spare" for e in ward_plan.boundaries[0].excluded) + 1
    )
    assert 'class="link slow"' in svg
    marks = {box.words for box in boxes(svg)[1]}
    assert {"G", "I", "C", "r0", "spare", "10 Gbit/s", "1 Gbit/s"} <= marks


def test_nothing_in_the_picture_asks_for_anything_outside(ward_plan: Plan) -> None:
    svg = render_svg(plan_view(ward_plan))
    assert re.findall(r"<script|@import|@font-face|url\(|href|https?://(?!www\.w3\.org/2000/svg)", svg) == []


@pytest.fixture
def ward_plan() -> Plan:
    return drawn_plan(ward_fleet())
