"""Where everything in an SVG lies, so that tests can ask what covers what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from planner.render.measure import text_width
from planner.render.palette import SIZES

NS = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """An element's extent on the canvas; `words` is its text, else empty."""

    cls: str
    words: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box, slack: float = 0.0) -> bool:
        """Whether the two share more than `slack` pixels both ways."""
        return (
            min(self.right, other.right) - max(self.left, other.left) > slack
            and min(self.bottom, other.bottom) - max(self.top, other.top) > slack
        )

    def holds(self, other: Box, slack: float = 0.0) -> bool:
        """Whether the other lies inside, up to `slack` pixels."""
        return (
            other.left >= self.left - slack
            and other.top >= self.top - slack
            and other.right <= self.right + slack
            and other.bottom <= self.bottom + slack
        )


def boxes(svg: str) -> tuple[Box, list[Box], list[Box], list[tuple[Box, list[Box]]]]:
    """The canvas, all texts, all rectangles, and each titled group's rectangle with the group's texts."""
    root = ElementTree.fromstring(svg)
    canvas = Box(
        cls="",
        words="",
        left=0.0,
        top=0.0,
        right=float(root.get("width", "0")),
        bottom=float(root.get("height", "0")),
    )
    texts: list[Box] = []
    rects: list[Box] = []
    groups: list[tuple[Box, list[Box]]] = []
    for element, x, y in _walk(root, 0.0, 0.0):
        if element.tag == f"{NS}text":
            texts.append(_text_box(element, x, y))
        elif element.tag == f"{NS}rect":
            rects.append(_rect_box(element, x, y))
        elif [child.tag for child in element[:2]] == [f"{NS}title", f"{NS}rect"]:
            inner = [_text_box(e, x, y) for e in element if e.tag == f"{NS}text"]
            groups.append((_rect_box(element[1], x, y), inner))
    return canvas, texts, rects, groups


def overlapping(items: Sequence[Box], slack: float = 0.0) -> list[tuple[Box, Box]]:
    """Pairs that share area, found by sweeping from top to bottom."""
    found: list[tuple[Box, Box]] = []
    active: list[Box] = []
    for box in sorted(items, key=lambda box: box.top):
        active = [other for other in active if other.bottom > box.top]
        found += [(other, box) for other in active if box.meets(other, slack)]
        active.append(box)
    return found


def _walk(
    element: ElementTree.Element, x: float, y: float
) -> Iterator[tuple[ElementTree.Element, float, float]]:
    transform = element.get("transform", "")
    if transform.startswith("translate("):
        dx, dy = (float(part) for part in transform[10:-1].split())
        x, y = x + dx, y + dy
    yield element, x, y
    for child in element:
        yield from _walk(child, x, y)


def _rect_box(element: ElementTree.Element, x: float, y: float) -> Box:
    left, top = x + float(element.get("x", "0")), y + float(element.get("y", "0"))
    return Box(
        cls=element.get("class", ""),
        words="",
        left=left,
        top=top,
        right=left + float(element.get("width", "0")),
        bottom=top + float(element.get("height", "0")),
    )


def _text_box(element: ElementTree.Element, x: float, y: float) -> Box:
    words = element.text or ""
    classes = element.get("class", "").split()
    size = next(SIZES[name] for name in classes if name in SIZES)
    width = text_width(words, size, bold=bool({"b", "h1", "h2"} & set(classes)))
    px, py = x + float(element.get("x", "0")), y + float(element.get("y", "0"))
    lead = {"middle": width / 2, "end": width}.get(element.get("text-anchor", ""), 0.0)
    rise, drop = size * 0.74, size * 0.2
    if "rotate" in element.get("transform", ""):
        spot = (px - rise, py - width + lead, px + drop, py + lead)
    else:
        spot = (px - lead, py - rise, px - lead + width, py + drop)
    return Box(
        cls=element.get("class", ""), words=words, left=spot[0], top=spot[1], right=spot[2], bottom=spot[3]
    )
