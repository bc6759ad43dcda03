"""Each replica as a bar of its stages, as long as their layers, in the order a micro-batch meets them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from costmodels.units import format_seconds
from planner.render.ink import Block, placed, polygon, rect, text, titled
from planner.render.measure import first_that_fits, text_width
from planner.render.palette import SIZES, replica_class, tier_class
from planner.render.view import BoundaryView, PlanView, ReplicaView, StageView
from planner.render.words import alike, layers_text, numbers_text, percent, strategy_text

TITLE_PX = 18.0
LARGE_BAR_PX, LARGE_ROW_PX = 20.0, 30.0
SMALL_BAR_PX, SMALL_ROW_PX = 13.0, 19.0
BUSY_PX = 2.0
NOTCH_PX = 4.0
GAP_PX = 8.0
COLUMN_GAP_PX = 24.0
COLUMN_MIN_PX = 460.0
_MEMORY_IN_NAME = re.compile(r"-\d+GB$")


def strips_block(view: PlanView, boundary: BoundaryView, width: float, *, large: bool) -> Block:
    """All replicas of a boundary; in small type equal ones share a bar."""
    groups = [(replica,) for replica in boundary.replicas] if large else alike(boundary.replicas)
    if not groups:
        return Block(width=0.0, height=0.0)
    columns = 1 if large else max(1, min(int((width + COLUMN_GAP_PX) // COLUMN_MIN_PX), len(groups)))
    column_px = (width + COLUMN_GAP_PX) / columns - COLUMN_GAP_PX
    rows = -(-len(groups) // columns)
    row_px = LARGE_ROW_PX if large else SMALL_ROW_PX
    labels = [_label(group) for group in groups]
    speeds = [_speed(group) for group in groups]
    size = SIZES["small" if large else "tiny"]
    before = max(text_width(label, size, bold=True) for label in labels) + GAP_PX + (8 if large else 0)
    after = max(text_width(speed, size) for speed in speeds) + GAP_PX
    body = [text(0, 11, "replicas: stages in order, as long as their layers", "tiny muted")]
    for i, group in enumerate(groups):
        column, row = divmod(i, rows)
        strip = _strip(view, boundary, group, (before, column_px - before - after, after), large=large)
        body.append(placed(strip, column * (column_px + COLUMN_GAP_PX), TITLE_PX + row * row_px))
    return Block(width=width, height=TITLE_PX + rows * row_px - (4 if large else 3), body=tuple(body))


def _label(group: Sequence[ReplicaView]) -> str:
    numbers = numbers_text([replica.number for replica in group])
    return numbers if len(numbers) <= 14 else f"r{group[0].number} and {len(group) - 1} more"


def _speed(group: Sequence[ReplicaView]) -> str:
    speed = f"{group[0].plan.tokens_per_s:,.0f} tok/s"
    return f"{len(group)} × {speed}" if len(group) > 1 else speed


def _strip(
    view: PlanView,
    boundary: BoundaryView,
    group: Sequence[ReplicaView],
    widths: tuple[float, float, float],
    *,
    large: bool,
) -> Block:
    """One bar with its label before it and its speed after it."""
    before, bar_px, after = widths
    replica = group[0]
    height = LARGE_BAR_PX if large else SMALL_BAR_PX
    base = height / 2 + (4.0 if large else 3.4)
    cls = "small" if large else "tiny"
    label = _label(group)
    body: list[str] = []
    if large:
        hue = replica_class(replica.number)
        label_px = text_width(label, SIZES[cls], bold=True) + 8
        body += [
            rect(0, 2, label_px, height - 4, f"p{hue}", radius=3.0),
            text(label_px / 2, base, label, f"{cls} b badge", anchor="middle"),
        ]
    else:
        body.append(text(0, base, label, f"{cls} b"))
    body.append(text(before + bar_px + after, base, _speed(group), cls, anchor="end"))
    per_layer = bar_px / view.inputs.workload.num_layers
    for i, stage in enumerate(replica.stages):
        first, end = stage.plan.layers
        x = before + first * per_layer
        body.append(_segment(view, replica, stage, (x, (end - first) * per_layer, height), i == 0))
    marks = " ".join(f"s{boundary.index}n{item.number}" for item in group)
    return Block(width=before + bar_px + after, height=height, body=(f'<g class="s {marks}">', *body, "</g>"))


def _segment(
    view: PlanView, replica: ReplicaView, stage: StageView, box: tuple[float, float, float], is_first: bool
) -> str:
    """A stage: pointing on to the next, with words where there is room, and how busy it is below."""
    x, width, height = box
    tier = tier_class(stage.tier_i)
    notch = min(NOTCH_PX, width / 3)
    right = x + width - 1.0
    corners = [(x, 0.0), (right - notch, 0.0), (right, height / 2), (right - notch, height), (x, height)]
    if not is_first:
        corners.append((x + notch, height / 2))
    mark = view.tier_marks[stage.tier_i]
    room = width - 3 * notch
    large = height >= LARGE_BAR_PX
    words = first_that_fits(_wordings(stage, mark), room, SIZES["small" if large else "cell"])
    busy = stage.busy_s / replica.slowest_s if replica.slowest_s > 0.0 else 0.0
    body = [polygon(corners, f"f{tier} k{tier}")]
    if words:
        middle = x + (width + notch) / 2 if not is_first else x + width / 2 - notch / 2
        base = height / 2 + (4.0 if large else 3.2)
        body.append(text(middle, base, words, "small" if large else "cell", anchor="middle"))
    body.append(rect(x, height + 1.0, max(0.0, (width - 1.0)) * busy, BUSY_PX, "busy"))
    return titled(_tip(view, stage, busy), body)


def _wordings(stage: StageView, mark: str) -> tuple[str, ...]:
    """What may stand in a stage, longest first."""
    layers, devices = layers_text(stage.plan), stage.devices_text
    tight = "+".join(f"{number}×{name}" for name, number in stage.kinds)
    short = "+".join(f"{number}×{_MEMORY_IN_NAME.sub('', name)}" for name, number in stage.kinds)
    return (
        f"{mark} · {layers} {devices} · {stage.site_id}",
        f"{mark} · {layers} {devices}",
        f"{mark} · {devices}",
        f"{mark} {tight}",
        f"{mark} {short}",
        mark,
    )


def _tip(view: PlanView, stage: StageView, busy: float) -> str:
    plan = stage.plan
    return "\n".join(
        (
            f"stage {plan.index}: layers {layers_text(plan)} on {stage.devices_text} in {stage.site_id}",
            f"tier {view.fleet.tiers[stage.tier_i]}, {strategy_text(plan)}, head {plan.head}",
            f"busy {format_seconds(stage.busy_s)} per micro-batch, {percent(busy)} of the slowest stage",
            f"memory {percent(stage.used_frac)} of the fullest device",
        )
    )
