"""The map of one boundary: sites above each other, hosts inside, links at the left, chains between stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from costmodels.units import format_bits_per_s, format_seconds
from planner.render.hosts import Scene, host_groups
from planner.render.ink import Block, Point, arrow, extent, flow, moved, placed, rect, text, titled
from planner.render.links import Margin, draw_margin, link_margin, link_text
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES, replica_class
from planner.render.tracks import Port, Routing, Wire, route
from planner.render.view import BoundaryView, PlanView, SiteView

PAD_PX = 9.0
HEADER_PX = 20.0
SITE_GAP_PX = 10.0
HOST_GAP_PX = 8.0
GROUP_GAP_X_PX, GROUP_GAP_Y_PX = 12.0, 7.0
TRACK_PX = 6.0
CHANNEL_TOP_PX = 6.0
CHANNEL_PAD_PX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hosts of one site beside each other, each with its place along the row."""

    site: int
    blocks: tuple[Block, ...]
    xs: tuple[float, ...]

    @property
    def height(self) -> float:
        """The highest of its hosts."""
        return max(block.height for block in self.blocks)

    @property
    def width(self) -> float:
        """To the end of the last host."""
        return self.xs[-1] + self.blocks[-1].width


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A step from one stage of a replica to the next, as a line between two rows."""

    boundary: int
    replica: int
    tip: str
    wire: Wire


def map_block(scene: Scene, boundary: BoundaryView, width: float, *, stretch: float = 0.0) -> Block:
    """The sites of a boundary on about `width` pixels, at least `stretch`; large cells get chains."""
    margin = link_margin(scene.view, boundary)
    if not scene.is_large:
        return _small_map(scene, boundary, width, margin, stretch)
    rows = _rows(scene, boundary, width)
    chains = _chains(scene.view, boundary, rows)
    routing = route([chain.wire for chain in chains], len(rows))
    return _stacked(boundary, rows, chains, routing, margin, stretch)


def site_words(site: SiteView) -> str:
    """What joins the hosts of a site."""
    return f"{format_bits_per_s(site.site.fabric_bytes_per_s)}, {format_seconds(site.site.fabric_latency_s)}"


def _small_map(scene: Scene, boundary: BoundaryView, width: float, margin: Margin, stretch: float) -> Block:
    inner = width - 2 * PAD_PX - margin.width
    tops: list[tuple[float, float]] = []
    contents: list[tuple[list[Block], list[Point], tuple[float, float]]] = []
    y = 0.0
    for site in boundary.sites:
        blocks = host_groups(scene, site.hosts, inner)
        sizes = [(block.width, block.height) for block in blocks]
        spots = flow(sizes, inner, GROUP_GAP_X_PX, GROUP_GAP_Y_PX)
        size = extent(spots, sizes)
        contents.append((blocks, spots, size))
        height = HEADER_PX + size[1] + PAD_PX
        tops.append((y, y + height))
        y += height + SITE_GAP_PX / 2
    used = max((size[0] for _, _, size in contents), default=0.0)
    frame = max(max(used, _header_width(boundary)) + 2 * PAD_PX, stretch - margin.width)
    body: list[str] = []
    for site, (top, bottom), (blocks, spots, _) in zip(boundary.sites, tops, contents, strict=True):
        body += _site_frame(site, margin.width, top, frame, bottom - top)
        for block, (bx, by) in zip(blocks, spots, strict=True):
            body.append(placed(block, margin.width + PAD_PX + bx, top + HEADER_PX + by))
    body += draw_margin(margin, tops, margin.width)
    return Block(width=margin.width + frame, height=max(0.0, y - SITE_GAP_PX / 2), body=tuple(body))


def _header_width(boundary: BoundaryView) -> float:
    return max(
        (
            text_width(site.site.site_id, SIZES["small"], bold=True)
            + text_width(site_words(site), SIZES["tiny"])
            + 8
            for site in boundary.sites
        ),
        default=0.0,
    )


def _site_frame(site: SiteView, x: float, y: float, width: float, height: float) -> list[str]:
    name = fit(site.site.site_id, width - 2 * PAD_PX, SIZES["small"], bold=True)
    after = x + PAD_PX + text_width(name, SIZES["small"], bold=True) + 6
    words = fit(site_words(site), x + width - PAD_PX - after, SIZES["tiny"])
    label = [text(x + PAD_PX, y + 14, name, "small b"), text(after, y + 14, words, "tiny muted")]
    tip = f"site {site.site.site_id}: hosts joined at {site_words(site)}"
    return [rect(x, y, width, height, "site", radius=5.0), titled(tip, label)]


def _rows(scene: Scene, boundary: BoundaryView, width: float) -> list[Row]:
    rows: list[Row] = []
    for site_i, site in enumerate(boundary.sites):
        blocks = [scene.hosts[host.host.host_id] for host in site.hosts]
        spots = flow([(block.width, block.height) for block in blocks], width, HOST_GAP_PX, 1.0)
        for y in dict.fromkeys(y for _, y in spots):
            members = [i for i, spot in enumerate(spots) if spot[1] == y]
            rows.append(
                Row(
                    site=site_i,
                    blocks=tuple(blocks[i] for i in members),
                    xs=tuple(spots[i][0] for i in members),
                )
            )
    return rows


def _chains(view: PlanView, boundary: BoundaryView, rows: Sequence[Row]) -> list[Chain]:
    """One chain for each pair of neighbouring stages."""
    ports: dict[str, Port] = {}
    for row_i, row in enumerate(rows):
        for block, x in zip(row.blocks, row.xs, strict=True):
            for name, (px, _) in moved(block.anchors, x, 0.0).items():
                ports[name] = Port(row=row_i, site=row.site, x=px)
    chains = []
    for replica in boundary.replicas:
        for before, after in pairwise(replica.stages):
            source = ports[f"{replica.number}/{before.plan.index}/out"]
            target = ports[f"{replica.number}/{after.plan.index}/in"]
            link = view.fleet.link_by_ends.get((before.site_id, after.site_id))
            tip = (
                f"r{replica.number}: stage {before.plan.index} ({before.site_id}) to stage {after.plan.index}"
                f" ({after.site_id})\nover {link_text(link)}: {format_seconds(before.plan.transfer_s)}"
                " per micro-batch, there and back"
            )
            wire = Wire(source=source, target=target)
            chains.append(Chain(boundary=boundary.index, replica=replica.number, tip=tip, wire=wire))
    return chains


def _stacked(
    boundary: BoundaryView,
    rows: Sequence[Row],
    chains: Sequence[Chain],
    routing: Routing,
    margin: Margin,
    stretch: float,
) -> Block:
    """Sites above each other, with room for the lines below every row and at the side."""
    inner = max(max((row.width for row in rows), default=0.0), _header_width(boundary))
    lane = routing.inner_tracks * TRACK_PX + (CHANNEL_PAD_PX if routing.inner_tracks else 0.0)
    side = routing.outer_tracks * TRACK_PX + (2 * CHANNEL_PAD_PX if routing.outer_tracks else 0.0)
    frame = max(inner + lane + 2 * PAD_PX, stretch - margin.width - side)
    body: list[str] = []
    spans: list[tuple[float, float]] = []
    channel_tops: list[float] = []
    hosts: list[str] = []
    y = 0.0
    for site_i, site in enumerate(boundary.sites):
        top = y
        y += HEADER_PX
        for row_i, row in enumerate(rows):
            if row.site == site_i:
                hosts += [
                    placed(b, margin.width + PAD_PX + x, y) for b, x in zip(row.blocks, row.xs, strict=True)
                ]
                channel_tops.append(y + row.height)
                tracks = routing.row_tracks[row_i]
                y += row.height + (CHANNEL_TOP_PX + tracks * TRACK_PX + 2.0 if tracks else PAD_PX - 1.0)
        body += _site_frame(site, margin.width, top, frame, y - top)
        spans.append((top, y))
        y += SITE_GAP_PX
    left = margin.width + PAD_PX
    # The lane inside a site follows its hosts, the one outside follows the frames.
    sides = (left + inner + CHANNEL_PAD_PX, margin.width + frame + CHANNEL_PAD_PX)
    body += hosts
    body += draw_margin(margin, spans, margin.width)
    body += _draw_chains(chains, routing, left, channel_tops, sides)
    return Block(width=margin.width + frame + side, height=max(0.0, y - SITE_GAP_PX), body=tuple(body))


def _draw_chains(
    chains: Sequence[Chain],
    routing: Routing,
    left: float,
    channel_tops: Sequence[float],
    sides: tuple[float, float],
) -> list[str]:
    drawn: list[str] = []
    # Labels of stages end this far above the bottom of their host.
    lift = 6.0
    for chain, found in zip(chains, routing.routes, strict=True):
        source, target = chain.wire.source, chain.wire.target
        y0, y1 = channel_tops[source.row], channel_tops[target.row]
        low0 = y0 + CHANNEL_TOP_PX + found.source_track * TRACK_PX
        low1 = y1 + CHANNEL_TOP_PX + found.target_track * TRACK_PX
        points = [(left + source.x, y0 - lift), (left + source.x, low0)]
        if found.side_track >= 0:
            x = sides[0 if chain.wire.is_inner else 1] + found.side_track * TRACK_PX
            points += [(x, low0), (x, low1)]
        points += [(left + target.x, low1), (left + target.x, y1 - lift)]
        hue = replica_class(chain.replica)
        parts = arrow(points, f"edge r{hue}", f"p{hue}", halo="halo")
        drawn.append(titled(chain.tip, parts, f"d d{chain.boundary}n{chain.replica}"))
    return drawn
