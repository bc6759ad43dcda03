"""One device: a large cell with words, or a small one with its replica's number."""

from __future__ import annotations

from costmodels.units import format_bytes
from planner.render.ink import number, polygon, rect, text, titled
from planner.render.measure import first_that_fits, fit, text_width
from planner.render.palette import SIZES, tier_class
from planner.render.view import IDLE, RUNNING, SPARE, BoundaryView, DeviceView, PlanView
from planner.render.words import count, layers_text, percent, reason_text

LARGE_HEIGHT_PX = 42.0
LARGE_MIN_PX, LARGE_MAX_PX = 78.0, 128.0
SMALL_PX = 18.0
CHIP_PX = 13.0
CORNER_PX = 7.0
NARROW_CORNER_PX = 5.0


def cell_tip(view: PlanView, boundary: BoundaryView, item: DeviceView) -> str:
    """All about a device, for whoever points at it."""
    device = item.device
    lines = [f"{device.device_id}: {device.type_name}, tier {view.fleet.tiers[device.tier_i]}"]
    if item.role != RUNNING:
        return "\n".join(
            [*lines, f"idle: {reason_text(item.reason)}" if item.role == IDLE else reason_text(item.reason)]
        )
    stage = boundary.replicas[item.replica].stages[item.stage].plan
    role = ", its head" if item.is_head else ""
    lines.append(f"replica r{item.replica}, stage {item.stage}{role}, layers {layers_text(stage)}")
    used, limit = format_bytes(item.used_bytes), format_bytes(item.limit_bytes)
    lines.append(f"memory {percent(item.used_frac)}: {used} of {limit}")
    lines.append(f"holds {count(stage.in_flight, 'micro-batch', 'micro-batches')} in flight")
    return "\n".join(lines)


def large_cell(view: PlanView, boundary: BoundaryView, item: DeviceView, width: float) -> str:
    """Tier letter, device type, and a memory bar or the reason for being idle."""
    tier = tier_class(item.device.tier_i)
    height = LARGE_HEIGHT_PX
    body = [_ground(item, tier, width, height, radius=3.0)]
    chip = f"f{tier}" if item.role == RUNNING else f"e{tier}"
    body += [
        rect(4, 4, CHIP_PX, CHIP_PX, chip, radius=2.0),
        text(4 + CHIP_PX / 2, 14.5, view.tier_marks[item.device.tier_i], "small b", anchor="middle"),
        text(21, 14.5, fit(item.device.type_name, width - 32, SIZES["small"]), "small"),
    ]
    if item.role == RUNNING:
        words = percent(item.used_frac)
        bar = width - 12 - text_width("100%", SIZES["small"])
        body += [
            rect(4, 26, bar, 10, f"e{tier}", radius=2.0),
            rect(4, 26, bar * min(item.used_frac, 1.0), 10, f"f{tier}", radius=2.0),
            text(width - 4, 35, words, "small", anchor="end"),
        ]
    elif item.role == SPARE:
        words = "spare"
        bar = width - 14 - text_width(words, SIZES["small"])
        body += [
            rect(4, 26, bar, 10, f"e{tier}", radius=2.0),
            f'<g transform="translate(4 26)">{hatching(tier, bar, 10)}</g>',
            text(width - 4, 35, words, "small", anchor="end"),
        ]
    else:
        body.append(text(4, 35, _idle_words(item, width - 8), "tiny muted"))
    if item.is_head:
        body.append(corner(width, CORNER_PX))
    return titled(cell_tip(view, boundary, item), body, _device_class(boundary, item))


def small_cell(view: PlanView, boundary: BoundaryView, item: DeviceView) -> str:
    """A square filled as high as its memory, with the number of its replica."""
    tier = tier_class(item.device.tier_i)
    size = SMALL_PX
    body = [_ground(item, tier, size, size, radius=1.5)]
    if item.role == SPARE:
        body.append(hatching(tier, size, size))
    if item.role == RUNNING:
        level = (size - 1.0) * min(item.used_frac, 1.0)
        body.append(rect(0.5, size - 0.5 - level, size - 1.0, level, f"f{tier}"))
        words = str(item.replica)
        if text_width(words, SIZES["cell"]) <= size:
            body.append(text(size / 2, 12.6, words, "cell", anchor="middle"))
    if item.is_head:
        body.append(corner(size, NARROW_CORNER_PX))
    return titled(cell_tip(view, boundary, item), body, _device_class(boundary, item))


def large_cell_width(view: PlanView) -> float:
    """Width in which the labels of every device and stage of the plan fit, within limits."""
    names = [text_width(d.device.type_name, SIZES["small"]) + 34 for d in view.devices]
    pills = [
        text_width(pill_words(replica.number, stage.plan.index, layers_text(stage.plan)), SIZES["tiny"]) + 10
        for replica in view.replicas
        for stage in replica.stages
    ]
    return min(max([LARGE_MIN_PX, *names, *pills]), LARGE_MAX_PX)


def pill_words(replica: int, stage: int, layers: str) -> str:
    """The label of a stage below its devices."""
    return f"r{replica}·{stage} {layers}"


def _ground(item: DeviceView, tier: int, width: float, height: float, *, radius: float) -> str:
    return rect(0, 0, width, height, "idle free" if item.role == IDLE else f"t{tier}", radius=radius)


def hatching(tier: int, width: float, height: float) -> str:
    """Slanted lines over a box, drawn one by one: patterns are what SVG programs support least."""
    steps = []
    offset = step = 5.0
    while offset < width + height:
        x0, y0 = (offset, 0.0) if offset <= width else (width, offset - width)
        x1, y1 = (0.0, offset) if offset <= height else (offset - height, height)
        steps.append(f"M{number(x0)} {number(y0)}L{number(x1)} {number(y1)}")
        offset += step
    return f'<path class="hatch k{tier}" d="{"".join(steps)}"/>'


def corner(width: float, size: float) -> str:
    """The mark of a head: a filled corner."""
    return polygon([(width - size, 0.0), (width, 0.0), (width, size)], "ink")


def _idle_words(item: DeviceView, width: float) -> str:
    words = item.reason.replace("-", " ")
    return first_that_fits((words, words.split(" ")[-1]), width, SIZES["tiny"])


def _device_class(boundary: BoundaryView, item: DeviceView) -> str:
    return f"d d{boundary.index}n{item.replica}" if item.role == RUNNING else "d"
