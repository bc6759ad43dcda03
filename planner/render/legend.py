"""What the marks mean; only marks that the picture uses."""

from __future__ import annotations

from collections.abc import Iterator

from planner.render.cells import SMALL_PX, corner, hatching
from planner.render.ink import Block, arrow, extent, flow, line, placed, polygon, rect, text
from planner.render.links import SLOW_BYTES_PER_S, link_margin, link_width_px
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES, tier_class
from planner.render.view import IDLE, RUNNING, SPARE, PlanView

ROW_PX = 22.0
GAP_PX = 18.0
MARK_PX = 14.0
WORDS_MAX_PX = 360.0


def legend_block(view: PlanView, width: float, *, large: bool) -> Block:
    """Marks with their meaning, set in lines of `width` pixels."""
    items = list(_items(view, large=large))
    sizes = [(item.width, ROW_PX) for item in items]
    spots = flow(sizes, width, GAP_PX, 0.0)
    used, height = extent(spots, sizes)
    body = tuple(placed(item, x, y) for item, (x, y) in zip(items, spots, strict=True))
    return Block(width=used, height=height, body=body)


def _items(view: PlanView, *, large: bool) -> Iterator[Block]:
    roles = {item.role for item in view.devices}
    last = len(view.fleet.tiers) - 1
    for tier_i, (mark, name) in enumerate(zip(view.tier_marks, view.fleet.tiers, strict=True)):
        edge = " (lowest tier)" if tier_i == 0 and last else " (highest)" if tier_i == last and last else ""
        tier = tier_class(tier_i)
        chip = [
            rect(0, 4, MARK_PX, MARK_PX, f"f{tier} k{tier}", radius=2.0),
            text(MARK_PX / 2, 14.8, mark, "small b", anchor="middle"),
        ]
        yield _item(chip, MARK_PX, f"{name}{edge}")
    if RUNNING in roles:
        yield from _running_items(large=large)
    if SPARE in roles:
        yield _item(
            [f'<g transform="translate(0 2)">{"".join(_square("t0", hatch=True))}</g>'], SMALL_PX, "spare"
        )
    if IDLE in roles:
        idle = rect(0, 2, SMALL_PX, SMALL_PX, "idle free", radius=1.5)
        yield _item([idle], SMALL_PX, "idle (reason on pointing)")
    yield from _line_items(view, large=large)


def _square(cls: str, *, hatch: bool = False) -> list[str]:
    square = [rect(0, 0, SMALL_PX, SMALL_PX, cls, radius=1.5)]
    return [*square, hatching(0, SMALL_PX, SMALL_PX)] if hatch else square


def _running_items(*, large: bool) -> Iterator[Block]:
    if large:
        bar = [rect(0, 6, 34, 10, "e0", radius=2.0), rect(0, 6, 22, 10, "f0", radius=2.0)]
        yield _item(bar, 34, "memory used, % of the usable")
    else:
        cell = [
            rect(0, 2, SMALL_PX, SMALL_PX, "t0", radius=1.5),
            rect(0.5, 10, SMALL_PX - 1, 9.5, "f0"),
            text(SMALL_PX / 2, 14.6, "7", "cell", anchor="middle"),
        ]
        yield _item(cell, SMALL_PX, "device of replica 7, filled as high as its memory")
    head = [f'<g transform="translate(0 2)">{"".join(_square("t0"))}{corner(SMALL_PX, 6.0)}</g>']
    yield _item(head, SMALL_PX, "head of its stage")
    if large:
        pill = [
            rect(0, 4, 66, 14, "p0", radius=3.0),
            text(33, 14.4, "r0·1 [10,17)", "tiny badge", anchor="middle"),
        ]
        yield _item(pill, 66, "replica · stage [first layer, end)")
        yield _item(arrow([(0, 11), (26, 11)], "edge r0", "p0"), 26, "next stage")
    strip = [polygon([(0, 3), (22, 3), (26, 8.5), (22, 14), (0, 14)], "f0 k0"), rect(0, 16, 16, 2, "busy")]
    yield _item(strip, 26, "stage; line below: busy, of the slowest")


def _line_items(view: PlanView, *, large: bool) -> Iterator[Block]:
    if any(
        boundary.plan is not None and boundary.plan.aggregator.get("host") for boundary in view.boundaries
    ):
        frame = [rect(1, 3, 24, 16, "aggregator", radius=3.0)]
        yield _item(frame, 26, "aggregator's host")
        if any(b.plan is not None and b.plan.aggregator.get("standby") for b in view.boundaries):
            yield _item([rect(1, 3, 24, 16, "standby", radius=3.0)], 26, "its standby")
    rates = {
        bracket.bytes_per_s
        for boundary in view.boundaries
        for bracket in link_margin(view, boundary).brackets
    }
    if rates:
        slow = any(rate < SLOW_BYTES_PER_S for rate in rates)
        strokes = [
            f'<g style="stroke-width:{link_width_px(1e10):.1f}">{line([(0, 11), (26, 11)], "link")}</g>'
        ]
        yield _item(strokes, 26, "link between sites, thicker is faster")
        if slow:
            yield _item([line([(0, 11), (26, 11)], "link slow")], 26, "link below 5 Gbit/s")
    if view.is_crossing:
        yield _item(arrow([(0, 11), (26, 11)], "wire", "wiretip"), 26, "aggregated delta, crosses")
        yield _item(arrow([(0, 11), (26, 11)], "wire down", "wiretip"), 26, "global state, comes back")


def _item(mark: list[str], mark_width: float, words: str) -> Block:
    shown = fit(words, WORDS_MAX_PX, SIZES["small"])
    body = (*mark, text(mark_width + 6, 15, shown, "small"))
    return Block(width=mark_width + 6 + text_width(shown, SIZES["small"]), height=ROW_PX, body=body)
