"""Links between the sites of a boundary, as brackets beside them: thick is fast, dashed is slow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import log10

from costmodels.fleet import Link
from costmodels.units import format_bits_per_s, format_seconds
from planner.render.ink import line, text, titled
from planner.render.measure import text_width
from planner.render.palette import SIZES
from planner.render.tracks import assign_tracks
from planner.render.view import BoundaryView, PlanView

SLOW_BYTES_PER_S = 5e9 / 8.0
TRACK_PX = 15.0
TAP_PX = 9.0
BRACKETS_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Sites (positions from top to bottom) that one line joins, all pairs at the same figures."""

    sites: tuple[int, ...]
    label: str
    tip: str
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Brackets with their tracks, counted from the sites outwards, and how many did not find room."""

    brackets: tuple[Bracket, ...]
    tracks: tuple[int, ...]
    num_left_out: int

    @property
    def width(self) -> float:
        """Pixels the margin takes."""
        return (max(self.tracks) + 1) * TRACK_PX + TAP_PX if self.tracks else 0.0


def link_margin(view: PlanView, boundary: BoundaryView) -> Margin:
    """The brackets of a boundary; one stands for all its pairs of sites where their figures are equal."""
    order = {site.site.site_id: i for i, site in enumerate(boundary.sites)}
    pairs: dict[tuple[Link | None, Link | None], list[tuple[int, int]]] = defaultdict(list)
    by_ends = view.fleet.link_by_ends
    for a, b in combinations(order, 2):
        down, up = by_ends.get((a, b)), by_ends.get((b, a))
        if down is not None or up is not None:
            pairs[_figures(down), _figures(up)].append((order[a], order[b]))
    brackets: list[Bracket] = []
    for (down, up), joined in pairs.items():
        sites = sorted({i for pair in joined for i in pair})
        whole = len(joined) == len(sites) * (len(sites) - 1) // 2 and down == up
        groups = [tuple(sites)] if whole else [tuple(sorted(pair)) for pair in joined]
        brackets += [_bracket(boundary, group, down, up) for group in groups]
    brackets.sort(key=lambda bracket: (-bracket.bytes_per_s, bracket.sites))
    kept = brackets[:BRACKETS_MAX]
    tracks = assign_tracks([(float(b.sites[0]), float(b.sites[-1])) for b in kept], 0.1)
    return Margin(brackets=tuple(kept), tracks=tuple(tracks), num_left_out=len(brackets) - len(kept))


def _figures(link: Link | None) -> Link | None:
    """A link without its ends, so that equal ones compare equal."""
    if link is None:
        return None
    return Link(source_site_id="", target_site_id="", bytes_per_s=link.bytes_per_s, latency_s=link.latency_s)


def _bracket(boundary: BoundaryView, sites: tuple[int, ...], down: Link | None, up: Link | None) -> Bracket:
    names = [boundary.sites[i].site.site_id for i in sites]
    rates = [link.bytes_per_s for link in (down, up) if link is not None]
    label = format_bits_per_s(min(rates))
    ways = f"{' - '.join(names)}: {link_text(down)}"
    if down != up:
        label = " / ".join(
            "none" if link is None else format_bits_per_s(link.bytes_per_s) for link in (down, up)
        )
        ways = f"{names[0]} to {names[1]}: {link_text(down)}\n{names[1]} to {names[0]}: {link_text(up)}"
    return Bracket(sites=sites, label=label, tip=ways, bytes_per_s=min(rates))


def link_text(link: Link | None) -> str:
    """Rate and latency of a link in words."""
    if link is None:
        return "no link"
    return f"{format_bits_per_s(link.bytes_per_s)}, {format_seconds(link.latency_s)}"


def link_width_px(bytes_per_s: float) -> float:
    """Stroke width: one pixel up to 1 Gbit/s, one more for each factor of ten, at most four."""
    return min(4.0, 1.0 + max(0.0, log10(max(bytes_per_s, 1.0) * 8.0 / 1e9)))


def is_slow(bytes_per_s: float) -> bool:
    """Whether a link is drawn dashed."""
    return bytes_per_s < SLOW_BYTES_PER_S


def draw_margin(margin: Margin, spans_by_site: Sequence[tuple[float, float]], right: float) -> list[str]:
    """The brackets left of `right`, where the sites begin; `spans_by_site` are their tops and bottoms."""
    drawn: list[str] = []
    taps = _tap_heights(margin, spans_by_site)
    for k, (bracket, track) in enumerate(zip(margin.brackets, margin.tracks, strict=True)):
        x = right - TAP_PX - track * TRACK_PX - TRACK_PX / 2
        drawn.append(_draw_bracket(bracket, [taps[k, site] for site in bracket.sites], x, right))
    return drawn


def _tap_heights(
    margin: Margin, spans_by_site: Sequence[tuple[float, float]]
) -> Mapping[tuple[int, int], float]:
    """Where each bracket meets each of its sites: spread over the site, those from above higher up."""
    heights: dict[tuple[int, int], float] = {}
    for site, (top, bottom) in enumerate(spans_by_site):
        met = [k for k, bracket in enumerate(margin.brackets) if site in bracket.sites]
        met.sort(key=lambda k: (_side(margin.brackets[k], site), margin.tracks[k]))
        for i, k in enumerate(met):
            heights[k, site] = top + (bottom - top) * (i + 1) / (len(met) + 1)
    return heights


def _side(bracket: Bracket, site: int) -> int:
    """0 for lines that come from above, 1 for lines through, 2 for lines that go down."""
    return 0 if bracket.sites[-1] == site else 2 if bracket.sites[0] == site else 1


def _draw_bracket(bracket: Bracket, heights: Sequence[float], x: float, right: float) -> str:
    label_px = text_width(bracket.label, SIZES["tiny"]) + 8
    top, bottom = heights[0], heights[-1]
    # The label stands in the longest free stretch between two taps, where it interrupts the line.
    low, high = max(pairwise(heights), key=lambda pair: pair[1] - pair[0])
    middle = (low + high) / 2
    cls = "link slow" if is_slow(bracket.bytes_per_s) else "link"
    width = f"stroke-width:{link_width_px(bracket.bytes_per_s):.1f}"
    parts: list[str] = []
    if label_px <= high - low - 4:
        parts.append(line([(right, top), (x, top), (x, middle - label_px / 2)], cls))
        parts.append(line([(x, middle + label_px / 2), (x, bottom), (right, bottom)], cls))
        parts.append(text(x + 3.2, middle, bracket.label, "tiny", anchor="middle", turn=True))
    else:
        parts.append(line([(right, top), (x, top), (x, bottom), (right, bottom)], cls))
    parts += [line([(x, y), (right, y)], cls) for y in heights[1:-1]]
    return f'<g style="{width}">{titled(bracket.tip, parts)}</g>'
