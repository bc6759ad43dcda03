"""Hosts: a frame with a name and large cells, or groups of equal hosts with small cells.

Hosts don't depend on the arrangement around them, so a `Scene` draws each once for all arrangements tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from planner.render.cells import (
    LARGE_HEIGHT_PX,
    SMALL_PX,
    large_cell,
    large_cell_width,
    pill_words,
    small_cell,
)
from planner.render.ink import Block, Point, extent, flow, rect, text, titled
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES, replica_class, tier_class
from planner.render.view import RUNNING, BoundaryView, DeviceView, HostView, PlanView
from planner.render.words import layers_text

PAD_PX = 6.0
GAP_PX = 5.0
CAPTION_PX = 18.0
PILL_PX = 14.0
PILL_GAP_PX = 4.0
SMALL_GAP_PX = 1.5
SMALL_PAD_PX = 2.5
SMALL_COLUMNS = 8
GROUP_CAPTION_PX = 13.0
GROUP_GAP_PX = 4.0
LARGE_DEVICES_MAX = 72
LARGE_HOST_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A plan with its hosts drawn, by id; `is_large` where cells hold words and chains join stages."""

    view: PlanView
    is_large: bool
    hosts: Mapping[str, Block]


def make_scene(view: PlanView) -> Scene:
    """All hosts drawn, in the style that suits the size of the fleet."""
    large = is_large(view)
    cell_width = large_cell_width(view) if large else 0.0
    hosts = {
        host.host.host_id: large_host(view, boundary, host, cell_width)
        if large
        else _small_host(view, boundary, host)
        for boundary in view.boundaries
        for site in boundary.sites
        for host in site.hosts
    }
    return Scene(view=view, is_large=large, hosts=hosts)


def is_large(view: PlanView) -> bool:
    """Whether the fleet is small enough for large cells with words in them, and for chains between stages."""
    sizes = [len(host.devices) for b in view.boundaries for site in b.sites for host in site.hosts]
    return len(view.devices) <= LARGE_DEVICES_MAX and max(sizes, default=0) <= LARGE_HOST_MAX


def large_host(view: PlanView, boundary: BoundaryView, host: HostView, cell_width: float) -> Block:
    """A host with its name, its devices in one row, and a label under the devices of each stage.

    Anchors `<replica>/<stage>/in` and `.../out` are where a chain enters and leaves the label at its head.
    """
    width = 2 * PAD_PX + len(host.devices) * (cell_width + GAP_PX) - GAP_PX
    runs = stage_runs(host.devices)
    height = CAPTION_PX + LARGE_HEIGHT_PX + (PILL_GAP_PX + PILL_PX if runs else 0.0) + PAD_PX
    name, mark = host.host.host_id, host_mark(boundary, host)
    room = width - 2 * PAD_PX
    words = fit(f"{name} · {mark}" if mark else name, room, SIZES["small"])
    body = [
        rect(0, 0, width, height, host_class(boundary, host), radius=4.0),
        text(PAD_PX, 12, words, "small muted"),
    ]
    anchors: dict[str, Point] = {}
    for i, item in enumerate(host.devices):
        x = PAD_PX + i * (cell_width + GAP_PX)
        cell = large_cell(view, boundary, item, cell_width)
        body.append(f'<g transform="translate({x:g} {CAPTION_PX:g})">{cell}</g>')
    top = CAPTION_PX + LARGE_HEIGHT_PX + PILL_GAP_PX
    for first, members in runs:
        x = PAD_PX + first * (cell_width + GAP_PX)
        span = len(members) * (cell_width + GAP_PX) - GAP_PX
        body.append(_pill(boundary, members[0], x, top, span))
        if any(member.is_head for member in members):
            key = f"{members[0].replica}/{members[0].stage}"
            anchors[f"{key}/in"] = (x + span / 2 - 9, top + PILL_PX)
            anchors[f"{key}/out"] = (x + span / 2 + 9, top + PILL_PX)
    return Block(width=width, height=height, body=tuple(body), anchors=anchors)


def stage_runs(devices: Sequence[DeviceView]) -> list[tuple[int, list[DeviceView]]]:
    """Neighbours that run the same stage, each run with the position of its first device."""
    runs: list[tuple[int, list[DeviceView]]] = []
    for _, group in groupby(enumerate(devices), key=lambda pair: (pair[1].replica, pair[1].stage)):
        members = list(group)
        if members[0][1].role == RUNNING:
            runs.append((members[0][0], [item for _, item in members]))
    return runs


def _pill(boundary: BoundaryView, item: DeviceView, x: float, y: float, width: float) -> str:
    stage = boundary.replicas[item.replica].stages[item.stage]
    words = pill_words(item.replica, item.stage, layers_text(stage.plan))
    hue = replica_class(item.replica)
    shown = fit(words, width - 6, SIZES["tiny"])
    body = [
        rect(x, y, width, PILL_PX, f"p{hue}", radius=3.0),
        text(x + width / 2, y + 10.4, shown, "tiny badge", anchor="middle"),
    ]
    where = f"layers {layers_text(stage.plan)} on {stage.devices_text}"
    tip = f"replica r{item.replica}, stage {item.stage}: {where}"
    return titled(tip, body)


def host_mark(boundary: BoundaryView, host: HostView) -> str:
    """`aggregator` or `standby` for the hosts of the boundary's aggregator, else nothing."""
    aggregator = {} if boundary.plan is None else boundary.plan.aggregator
    if aggregator.get("host") == host.host.host_id:
        return "aggregator"
    return "standby" if aggregator.get("standby") == host.host.host_id else ""


def host_class(boundary: BoundaryView, host: HostView) -> str:
    """The frame of a host; heavy for the aggregator's, where the boundary sends anything at all."""
    return host_mark(boundary, host) or "host"


Kinds = tuple[tuple[str, int, int], ...]


def host_kinds(host: HostView) -> Kinds:
    """(device type, tier, number) of what stands in a host."""
    kinds = Counter((item.device.type_name, item.device.tier_i) for item in host.devices)
    return tuple((name, tier_i, number) for (name, tier_i), number in kinds.items())


def host_groups(scene: Scene, hosts: Sequence[HostView], width: float) -> list[Block]:
    """Equal neighbours of a site as one block each: type and tier letter above, hosts as small frames."""
    return [_group_block(scene, kinds, list(group), width) for kinds, group in groupby(hosts, key=host_kinds)]


def _group_block(scene: Scene, kinds: Kinds, hosts: Sequence[HostView], width: float) -> Block:
    words = " + ".join(f"{number} × {name}" for name, _, number in kinds)
    marks = "".join(dict.fromkeys(scene.view.tier_marks[tier_i] for _, tier_i, _ in kinds))
    if len(hosts) > 1:
        words = f"{len(hosts)} hosts, each {words}"
    blocks = [scene.hosts[host.host.host_id] for host in hosts]
    sizes = [(block.width, block.height) for block in blocks]
    spots = flow(sizes, width, GROUP_GAP_PX, GROUP_GAP_PX)
    grid_width, grid_height = extent(spots, sizes)
    chip = f"f{tier_class(kinds[0][1])}"
    chip_width = max(11.0, text_width(marks, SIZES["cell"], bold=True) + 4)
    shown = fit(words, width - chip_width - 4, SIZES["tiny"])
    body = [
        rect(0, 0, chip_width, 11, chip, radius=2.0),
        text(chip_width / 2, 8.8, marks, "cell b", anchor="middle"),
        text(chip_width + 4, 9, shown, "tiny muted"),
    ]
    for block, (x, y) in zip(blocks, spots, strict=True):
        body.append(f'<g transform="translate({x:g} {y + GROUP_CAPTION_PX:g})">{"".join(block.body)}</g>')
    caption_width = chip_width + 4 + text_width(shown, SIZES["tiny"])
    return Block(
        width=max(grid_width, caption_width), height=GROUP_CAPTION_PX + grid_height, body=tuple(body)
    )


def _small_host(view: PlanView, boundary: BoundaryView, host: HostView) -> Block:
    step = SMALL_PX + SMALL_GAP_PX
    columns = min(len(host.devices), SMALL_COLUMNS)
    rows = -(-len(host.devices) // SMALL_COLUMNS)
    width = 2 * SMALL_PAD_PX + columns * step - SMALL_GAP_PX
    height = 2 * SMALL_PAD_PX + rows * step - SMALL_GAP_PX
    body = [rect(0, 0, width, height, host_class(boundary, host), radius=2.0)]
    for i, item in enumerate(host.devices):
        row, column = divmod(i, SMALL_COLUMNS)
        x, y = SMALL_PAD_PX + column * step, SMALL_PAD_PX + row * step
        body.append(f'<g transform="translate({x:g} {y:g})">{small_cell(view, boundary, item)}</g>')
    return Block(width=width, height=height, body=tuple(body))
