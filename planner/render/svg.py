"""The picture of a plan: a legend, the coordinator where anything crosses, and one card per boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import inf, log

from planner.render.cards import HUB, card_block
from planner.render.hosts import Scene, make_scene
from planner.render.ink import Block, Point, arrow, line, number, placed, rect, text, titled
from planner.render.legend import legend_block
from planner.render.measure import text_width
from planner.render.palette import SIZES, style_sheet
from planner.render.view import PlanView
from planner.render.words import bound_sentence, count, headline, plain, used_text, value_text

MARGIN_PX = 20.0
EDGE_PX = 1.0
WIDTH_MIN_PX = 600.0
FLUID_MIN_PX = 900.0
COLUMN_GAP_PX = 26.0
GUTTER_PX = 34.0
CARD_GAP_PX = 16.0
HUB_HEIGHT_PX = 30.0
HUB_GAP_PX = 22.0
WIDTHS_PX = (380.0, 460.0, 560.0, 700.0, 860.0, 1060.0, 1300.0)
COLUMNS_MAX = 4
ASPECT = 1.45
CANVAS_MAX_PX = 1680.0
TITLE_LINE_PX = 20.0
# What stands above the cards, roughly: heading, legend, coordinator.
ABOVE_PX = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Cards with their places."""

    cards: tuple[Block, ...]
    spots: tuple[Point, ...]
    column_xs: tuple[float, ...]
    width: float
    height: float


def render_svg(view: PlanView) -> str:
    """The picture as a file of its own, with a heading."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{figure(view, heading=True)}\n'


def figure(view: PlanView, *, heading: bool) -> str:
    """The picture as one `svg` element; without a heading it has no margin either."""
    scene = make_scene(view)
    layout = _layout(scene)
    margin = MARGIN_PX if heading else EDGE_PX
    top, top_width = _heading(view) if heading else (Block(width=0.0, height=0.0), 0.0)
    width = max(layout.width, top_width, WIDTH_MIN_PX)
    legend = legend_block(view, width, large=scene.is_large)
    body = [placed(top, 0.0, 0.0), placed(legend, 0.0, top.height)]
    y = top.height + legend.height + 14.0
    if view.is_crossing:
        body += _crossing(layout, y)
        y += HUB_HEIGHT_PX + HUB_GAP_PX
    for card, (x, card_y) in zip(layout.cards, layout.spots, strict=True):
        body.append(placed(card, x, y + card_y))
    whole = Block(width=width, height=y + layout.height, body=tuple(body))
    return _document(view, whole, margin, in_page=not heading)


def _heading(view: PlanView) -> tuple[Block, float]:
    """What is planned, for which model, and the bound; with the width that it needs."""
    workload = view.inputs.workload
    job = f"{workload.model_name}, {count(workload.num_layers, 'layer')}, job {view.plan.job}"
    title = f"{view.fleet.name}: {headline(view)}"
    lines = [
        f"{job}; objective {view.certificate.objective}, value {value_text(view.certificate)}",
        f"bound: {bound_sentence(view.certificate)}",
    ]
    body = [text(0.0, 16.0, title, "h1")]
    body += [text(0.0, 40.0 + i * TITLE_LINE_PX, words, "body") for i, words in enumerate(lines)]
    width = max(
        text_width(title, SIZES["h1"], bold=True), *(text_width(words, SIZES["body"]) for words in lines)
    )
    height = 40.0 + len(lines) * TITLE_LINE_PX
    return Block(width=width, height=height, body=tuple(body)), width


def _document(view: PlanView, whole: Block, margin: float, *, in_page: bool) -> str:
    width, height = whole.width + 2 * margin, whole.height + 2 * margin
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    fluid = (
        f' style="max-width:100%;min-width:{min(width, FLUID_MIN_PX):.0f}px;height:auto"' if in_page else ""
    )
    title = escape(plain(f"Training topology of fleet {view.fleet.name}: {headline(view)}"), quote=False)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}{fluid} role="img"'
            ' aria-labelledby="picture-title picture-words">',
            f'<title id="picture-title">{title}</title>',
            f'<desc id="picture-words">{escape(description(view), quote=False)}</desc>',
            f"<style>{style_sheet()}{_pointing_css(view)}</style>",
            rect(0, 0, width, height, "page"),
            placed(whole, margin, margin),
            "</svg>",
        )
    )


def description(view: PlanView) -> str:
    """The picture in words, boundary by boundary."""
    parts = [f"{bound_sentence(view.certificate)}."]
    for boundary in view.boundaries:
        replicas = count(len(boundary.replicas), "replica")
        parts.append(
            f"Boundary {boundary.name}: {replicas} over {used_text((boundary,))}"
            f" in {count(len(boundary.sites), 'site')}, {boundary.tokens_per_s:,.0f} tokens/s."
        )
    return plain(" ".join(parts))


def _pointing_css(view: PlanView) -> str:
    """Pointing at a replica's bar leaves only its own devices in full colour, in readers that know `:has`."""
    marks = [
        f"{boundary.index}n{replica.number}" for boundary in view.boundaries for replica in boundary.replicas
    ]
    return "".join(f"svg:has(.s{mark}:hover) .d:not(.d{mark}){{opacity:.18}}" for mark in marks)


def _layout(scene: Scene) -> Layout:
    """The arrangement, over widths and numbers of columns, whose proportions come nearest to a screen's."""
    best: tuple[float, Layout] | None = None
    for width in WIDTHS_PX:
        cards = [card_block(scene, boundary, width) for boundary in scene.view.boundaries]
        card_px = max(card.width for card in cards)
        for num_columns in range(1, min(COLUMNS_MAX, len(cards)) + 1):
            total = _total_width(scene.view, card_px, num_columns)
            if total > CANVAS_MAX_PX and best is not None:
                continue
            heights = _columns([card.height for card in cards], num_columns)[1]
            score = abs(log(total / (max(heights) + ABOVE_PX) / ASPECT))
            if best is None or score < best[0] - 1e-9:
                best = (score, _arranged(scene, width, card_px, num_columns))
    if best is None:
        raise ValueError("a fleet without boundaries has no picture")
    return best[1]


def _total_width(view: PlanView, card_px: float, num_columns: int) -> float:
    lead = GUTTER_PX if view.is_crossing else 0.0
    gap = max(COLUMN_GAP_PX, lead)
    return lead + num_columns * card_px + (num_columns - 1) * gap


def _arranged(scene: Scene, width: float, card_px: float, num_columns: int) -> Layout:
    view = scene.view
    cards = [card_block(scene, boundary, width, stretch=card_px) for boundary in view.boundaries]
    columns, heights = _columns([card.height for card in cards], num_columns)
    lead = GUTTER_PX if view.is_crossing else 0.0
    step = card_px + max(COLUMN_GAP_PX, lead)
    spots = tuple((lead + column * step, top) for column, top in columns)
    return Layout(
        cards=tuple(cards),
        spots=spots,
        column_xs=tuple(lead + column * step for column in range(num_columns)),
        width=_total_width(view, card_px, num_columns),
        height=max(heights),
    )


def _columns(heights: Sequence[float], num_columns: int) -> tuple[list[tuple[int, float]], list[float]]:
    """(column, top) of each card and the height of every column.

    Cards keep their order, down one column after the other; cuts are those with the lowest highest column.
    """
    total = len(heights)
    # lowest[k][n]: the highest of k columns with the first n cards, and the first card of the last column.
    lowest: list[list[tuple[float, int]]] = [[(0.0 if n == 0 else inf, 0) for n in range(total + 1)]]
    for _ in range(num_columns):
        lowest.append(
            [
                min((max(lowest[-1][first][0], _stack(heights[first:n])), first) for first in range(n + 1))
                for n in range(total + 1)
            ]
        )
    spots: list[tuple[int, float]] = []
    column_heights: list[float] = []
    end = total
    for column in reversed(range(num_columns)):
        first = lowest[column + 1][end][1]
        tops = [(column, _stack([*heights[first:i], 0.0])) for i in range(first, end)]
        spots = tops + spots
        column_heights.insert(0, _stack(heights[first:end]))
        end = first
    return spots, column_heights


def _stack(heights: Sequence[float]) -> float:
    """Height of cards above each other."""
    return sum(heights) + CARD_GAP_PX * max(0, len(heights) - 1)


def _crossing(layout: Layout, top: float) -> list[str]:
    """The coordinator above the cards, with a pair of lines down every column to its aggregators."""
    left, width = 0.0, layout.width
    words = "coordinator: one aggregated delta per boundary and window comes in, the global state goes out"
    if text_width(words, SIZES["body"]) > width - 20:
        words = "coordinator: aggregated deltas in, global state out"
    body = [
        rect(left, top, width, HUB_HEIGHT_PX, "hub", radius=8.0),
        text(left + 12, top + 19, words, "body"),
    ]
    under = top + HUB_HEIGHT_PX
    begin = under + HUB_GAP_PX
    for column_x in layout.column_xs:
        hubs = [
            begin + y + card.anchors[HUB][1]
            for card, (x, y) in zip(layout.cards, layout.spots, strict=True)
            if x == column_x
        ]
        if not hubs:
            continue
        edge = left + column_x
        up_x, down_x = edge - 20.0, edge - 12.0
        lines = arrow([(edge, max(hubs) - 3), (up_x, max(hubs) - 3), (up_x, under)], "wire", "wiretip")
        lines += [line([(edge, hub - 3), (up_x, hub - 3)], "wire") for hub in hubs if hub < max(hubs)]
        lines.append(line([(down_x, under), (down_x, max(hubs) + 1)], "wire down"))
        for hub in hubs:
            lines += arrow([(down_x, hub + 3), (edge, hub + 3)], "wire down", "wiretip")
        tip = "what crosses boundaries: aggregated deltas to the coordinator, the global state back"
        body.append(titled(tip, lines))
    return body
