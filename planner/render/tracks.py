"""Which line runs where: parallel stretches of lines get tracks of their own, so none lies on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FAR_PX = 1e6
CLEARANCE_PX = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Where a line meets a row of hosts from below: the row, its site, and the place along it."""

    row: int
    site: int
    x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A line from one port to another."""

    source: Port
    target: Port

    @property
    def is_level(self) -> bool:
        """Whether both ends meet the same row."""
        return self.source.row == self.target.row

    @property
    def is_inner(self) -> bool:
        """Whether both ends stand in the same site."""
        return self.source.site == self.target.site


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The tracks of a line: below its source row, at the side (-1 for none), below its target row."""

    source_track: int
    side_track: int
    target_track: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Routes of all lines, and how many tracks each channel needs."""

    routes: tuple[Route, ...]
    row_tracks: tuple[int, ...]
    inner_tracks: int
    outer_tracks: int


def assign_tracks(spans: Sequence[tuple[float, float]], clearance: float) -> list[int]:
    """For each span the lowest track where none comes nearer than `clearance`; short spans first."""
    tracks: list[list[tuple[float, float]]] = []
    chosen = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], spans[i])):
        low, high = spans[i]
        track = next(
            (
                t
                for t, taken in enumerate(tracks)
                if all(
                    high + clearance <= other_low or other_high + clearance <= low
                    for other_low, other_high in taken
                )
            ),
            len(tracks),
        )
        if track == len(tracks):
            tracks.append([])
        tracks[track].append(spans[i])
        chosen[i] = track
    return chosen


def route(wires: Sequence[Wire], num_rows: int) -> Routing:
    """Tracks for every line.

    A line between two rows leaves its row to the right, runs along the side (of the site, where both ends
    stand in it) and comes back below the other row.
    """
    row_tracks = [0] * num_rows
    found: dict[tuple[int, bool], int] = {}
    for row in range(num_rows):
        ends = [
            (i, is_source)
            for i, wire in enumerate(wires)
            for is_source in (True, False)
            if (wire.source if is_source else wire.target).row == row
            and not (wire.is_level and not is_source)
        ]
        spans = [_span(wires[i], is_source) for i, is_source in ends]
        for end, track in zip(ends, assign_tracks(spans, CLEARANCE_PX), strict=True):
            found[end] = track
            row_tracks[row] = max(row_tracks[row], track + 1)
    side = _side_tracks(wires)
    routes = tuple(
        Route(
            source_track=found[i, True],
            side_track=side.get(i, -1),
            target_track=found[i, True] if wire.is_level else found[i, False],
        )
        for i, wire in enumerate(wires)
    )
    return Routing(
        routes=routes,
        row_tracks=tuple(row_tracks),
        inner_tracks=max((side[i] + 1 for i in side if wires[i].is_inner), default=0),
        outer_tracks=max((side[i] + 1 for i in side if not wires[i].is_inner), default=0),
    )


def _span(wire: Wire, is_source: bool) -> tuple[float, float]:
    if wire.is_level:
        low, high = sorted((wire.source.x, wire.target.x))
        return (low, high)
    return ((wire.source if is_source else wire.target).x, FAR_PX)


def _side_tracks(wires: Sequence[Wire]) -> dict[int, int]:
    """Tracks at the side; sites are above each other, so those inside different sites share tracks."""
    found: dict[int, int] = {}
    for inner in (True, False):
        chosen = [i for i, wire in enumerate(wires) if not wire.is_level and wire.is_inner == inner]
        spans = []
        for i in chosen:
            low, high = sorted((wires[i].source.row, wires[i].target.row))
            spans.append((float(low), float(high)))
        found |= dict(zip(chosen, assign_tracks(spans, 0.5), strict=True))
    return found
