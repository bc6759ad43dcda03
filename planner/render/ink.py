"""SVG elements as text, and blocks of them that know their size. Classes carry all colour (see palette)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import hypot

from planner.render.words import plain

Point = tuple[float, float]
CORNER_PX = 4.0
HEAD_PX = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A finished part of the picture in coordinates of its own, from (0, 0) to (width, height).

    `anchors` are points that lines may start from or end at, by name.
    """

    width: float
    height: float
    body: tuple[str, ...] = ()
    anchors: Mapping[str, Point] = field(default_factory=dict)


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def attributes(cls: str, **values: float) -> str:
    """Class and coordinates of an element."""
    listed = "".join(f' {name}="{number(value)}"' for name, value in values.items())
    return f' class="{cls}"{listed}'


def rect(x: float, y: float, width: float, height: float, cls: str, *, radius: float = 0.0) -> str:
    """A rectangle, with rounded corners where `radius` is given."""
    corners = {"rx": radius} if radius else {}
    return f"<rect{attributes(cls, x=x, y=y, width=width, height=height, **corners)}/>"


def text(x: float, y: float, words: str, cls: str, *, anchor: str = "", turn: bool = False) -> str:
    """A text on its base line; `anchor` is middle or end; `turn` writes it upwards."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    where += f' transform="rotate(-90 {number(x)} {number(y)})"' if turn else ""
    return f"<text{attributes(cls, x=x, y=y)}{where}>{escape(plain(words), quote=False)}</text>"


def titled(tip: str, body: Iterable[str], cls: str = "") -> str:
    """Elements with a tooltip."""
    name = f' class="{cls}"' if cls else ""
    lines = "\n".join(plain(line) for line in tip.split("\n"))
    return f"<g{name}><title>{escape(lines, quote=False)}</title>{''.join(body)}</g>"


def placed(block: Block, x: float, y: float) -> str:
    """A block moved to (x, y)."""
    return f'<g transform="translate({number(x)} {number(y)})">{"".join(block.body)}</g>'


def moved(anchors: Mapping[str, Point], x: float, y: float) -> dict[str, Point]:
    """Anchors of a block that was placed at (x, y)."""
    return {name: (px + x, py + y) for name, (px, py) in anchors.items()}


def line(points: Sequence[Point], cls: str) -> str:
    """A line through points, with rounded bends."""
    return f'<path class="{cls}" d="{_rounded(points)}"/>'


def arrow(points: Sequence[Point], cls: str, tip_cls: str, *, halo: str = "") -> list[str]:
    """A line with an arrow head at its end; `halo` is the class of a wider line beneath it."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = hypot(x1 - x0, y1 - y0) or 1.0
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    base = (x1 - ux * HEAD_PX, y1 - uy * HEAD_PX)
    half = HEAD_PX * 0.6
    corners = [
        (x1, y1),
        (base[0] - uy * half, base[1] + ux * half),
        (base[0] + uy * half, base[1] - ux * half),
    ]
    shaft = [*points[:-1], base]
    drawn = [line(shaft, halo)] if halo else []
    return [*drawn, line(shaft, cls), polygon(corners, tip_cls)]


def polygon(corners: Sequence[Point], cls: str) -> str:
    """A filled shape."""
    listed = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
    return f'<polygon class="{cls}" points="{listed}"/>'


def _rounded(points: Sequence[Point]) -> str:
    """Path data with each bend cut by a small curve."""
    steps = [f"M{number(points[0][0])} {number(points[0][1])}"]
    for before, (bend, after) in zip(points, pairwise(points[1:]), strict=False):
        near, far = _towards(bend, before), _towards(bend, after)
        steps.append(
            f"L{number(near[0])} {number(near[1])}"
            f"Q{number(bend[0])} {number(bend[1])} {number(far[0])} {number(far[1])}"
        )
    steps.append(f"L{number(points[-1][0])} {number(points[-1][1])}")
    return "".join(steps)


def _towards(start: Point, goal: Point) -> Point:
    length = hypot(goal[0] - start[0], goal[1] - start[1])
    share = min(CORNER_PX, length / 2.0) / length if length else 0.0
    return (start[0] + (goal[0] - start[0]) * share, start[1] + (goal[1] - start[1]) * share)


def flow(sizes: Sequence[tuple[float, float]], width: float, gap_x: float, gap_y: float) -> list[Point]:
    """Where boxes go that are set like words in lines of a width; lines are as high as their highest box."""
    spots: list[Point] = []
    x = y = row_height = 0.0
    for box_width, box_height in sizes:
        if x > 0.0 and x + box_width > width:
            x, y, row_height = 0.0, y + row_height + gap_y, 0.0
        spots.append((x, y))
        x += box_width + gap_x
        row_height = max(row_height, box_height)
    return spots


def extent(spots: Sequence[Point], sizes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Width and height of what `flow` set."""
    pairs = list(zip(spots, sizes, strict=True))
    return (
        max((x + width for (x, _), (width, _) in pairs), default=0.0),
        max((y + height for (_, y), (_, height) in pairs), default=0.0),
    )


def natural(items: Iterable[str]) -> list[str]:
    """Texts in the order people expect of numbered names."""
    return sorted(items, key=lambda item: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", item)])
