"""One boundary as a card: its name and figures, the map of its sites, and its replicas as bars."""

from __future__ import annotations

from costmodels.units import format_bits_per_s
from planner.render.hosts import Scene
from planner.render.ink import Block, extent, flow, placed, rect, text
from planner.render.links import link_margin
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES
from planner.render.sites import map_block
from planner.render.strips import strips_block
from planner.render.view import BoundaryView, PlanView
from planner.render.words import count, plain, used_text

PAD_PX = 12.0
NAME_PX = 24.0
LINE_PX = 15.0
PART_GAP_PX = 12.0
WIDTH_MIN_PX = 340.0
HUB = "hub"


def card_block(scene: Scene, boundary: BoundaryView, width: float, *, stretch: float = 0.0) -> Block:
    """A boundary on about `width` pixels, at least `stretch`; lines from the coordinator meet it at HUB."""
    inner = map_block(scene, boundary, width, stretch=max(stretch, WIDTH_MIN_PX) - 2 * PAD_PX)
    content = inner.width
    body: list[str] = []
    y = PAD_PX
    name = fit(plain(boundary.name), content, SIZES["h2"], bold=True)
    body.append(text(PAD_PX, y + 13, name, "h2"))
    after = text_width(name, SIZES["h2"], bold=True) + 10
    facts, facts_height = _flowing(_facts(boundary), content - after, "small muted")
    body += [placed(facts, PAD_PX + after, y)]
    y += max(NAME_PX, facts_height + 9)
    hub_y = y - 4.0
    service = _service(scene.view, boundary)
    if service:
        lines, height = _flowing(service, content, "small")
        hub_y = y + 6.0
        body.append(placed(lines, PAD_PX, y - 3))
        y += height + 5
    body.append(placed(inner, PAD_PX, y))
    y += inner.height
    strips = strips_block(scene.view, boundary, content, large=scene.is_large)
    if strips.height:
        y += PART_GAP_PX
        body.append(placed(strips, PAD_PX, y))
        y += strips.height
    y += PAD_PX
    width = content + 2 * PAD_PX
    frame = rect(0, 0, width, y, "card", radius=8.0)
    return Block(width=width, height=y, body=(frame, *body), anchors={HUB: (0.0, hub_y)})


def _flowing(words: list[str], width: float, cls: str) -> tuple[Block, float]:
    """Short texts one after the other, in as many lines as they need."""
    size = SIZES[cls.split(" ")[0]]
    shown = [fit(word, width, size) for word in words]
    sizes = [(text_width(word, size), LINE_PX) for word in shown]
    spots = flow(sizes, width, 10.0, 0.0)
    body = [text(x, y + 12, word, cls) for word, (x, y) in zip(shown, spots, strict=True)]
    used, height = extent(spots, sizes)
    return Block(width=used, height=height, body=tuple(body)), height


def _facts(boundary: BoundaryView) -> list[str]:
    if boundary.plan is None:
        return ["takes no part in this plan"]
    facts = [
        count(len(boundary.replicas), "replica"),
        used_text((boundary,)),
        f"{boundary.tokens_per_s:,.0f} tokens/s",
    ]
    return [*facts, f"{boundary.usd_per_hour:,.2f} USD/h"] if boundary.usd_per_hour > 0.0 else facts


def _service(view: PlanView, boundary: BoundaryView) -> list[str]:
    """Who aggregates, who stands by, and how fast the boundary reaches the others."""
    if boundary.plan is None:
        return []
    names = boundary.plan.aggregator
    words = [f"aggregator {names['host']}"] if names.get("host") else []
    words += [f"standby {names['standby']}"] if names.get("standby") else []
    if view.is_crossing:
        words.append(f"to other boundaries {outward_text(view, boundary)}")
    left_out = link_margin(view, boundary).num_left_out
    return [*words, f"{left_out} more links not drawn"] if left_out else words


def outward_text(view: PlanView, boundary: BoundaryView) -> str:
    """Rates of the links from a boundary's sites to those of other boundaries."""
    own = {site.site.site_id for site in boundary.sites}
    rates = [
        link.bytes_per_s
        for link in view.fleet.links
        if link.source_site_id in own and link.target_site_id not in own
    ]
    if not rates:
        return "no link"
    low, high = format_bits_per_s(min(rates)), format_bits_per_s(max(rates))
    return low if low == high else f"{low} to {high}"
