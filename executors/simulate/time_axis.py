"""Seconds to pixels, with round ticks in one unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, log10

from planner.render.ink import line, rect, text
from planner.render.measure import text_width
from planner.render.palette import SIZES

AXIS_HEIGHT_PX = 20.0
TICKS_WANTED = 8
_LARGE_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))
_SMALL_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
# Round numbers of minutes and hours; days and what is below a minute go by ones, twos and fives.
_ROUND = {"min": (1.0, 2.0, 5.0, 10.0, 15.0, 30.0), "h": (1.0, 2.0, 3.0, 6.0, 12.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAxis:
    """Pixels from `left_px`, `width_px` of them for `end_s` seconds."""

    left_px: float
    width_px: float
    end_s: float

    def x(self, time_s: float) -> float:
        """Where a time lies."""
        return self.left_px + self.width_px * (time_s / self.end_s if self.end_s > 0.0 else 0.0)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """(seconds, label) of the ticks, 0 included; a label never runs into the next one."""
        unit, unit_s = self._unit()
        step = _round_step(self.end_s / unit_s / TICKS_WANTED, unit)
        if self.end_s <= 0.0 or step <= 0.0:
            return ((0.0, "0 s"),)
        number = floor(self.end_s / unit_s / step + 1e-9)
        return tuple((i * step * unit_s, f"{i * step:.6g} {unit}") for i in range(number + 1))

    def _unit(self) -> tuple[str, float]:
        for unit, unit_s in _LARGE_UNITS:
            if self.end_s >= 3.0 * unit_s:
                return unit, unit_s
        for unit, unit_s in _SMALL_UNITS:
            if self.end_s >= unit_s:
                return unit, unit_s
        return _SMALL_UNITS[-1]

    def grid(self, top: float, bottom: float) -> Iterator[str]:
        """Fine lines at the ticks."""
        for time_s, _ in self.ticks:
            yield rect(self.x(time_s) - 0.25, top, 0.5, bottom - top, "tap")

    def labels(self, top: float) -> Iterator[str]:
        """The axis itself, below its rows: a line, ticks and their labels."""
        end_px = self.left_px + self.width_px
        yield line([(self.left_px, top), (end_px, top)], "link")
        free_px = -1e9
        for time_s, words in self.ticks:
            x, half = self.x(time_s), text_width(words, SIZES["tiny"]) / 2.0
            yield line([(x, top), (x, top + 4)], "link")
            if x - half > free_px and x + half <= end_px + 24:
                yield text(x, top + 14, words, "tiny muted", anchor="middle")
                free_px = x + half + 4


def _round_step(wanted: float, unit: str) -> float:
    """The smallest round number of units that is not below `wanted`."""
    if wanted <= 0.0:
        return 0.0
    for step in _ROUND.get(unit, ()):
        if step >= wanted:
            return step
    scale = 10.0 ** floor(log10(wanted))
    return next(step * scale for step in (1.0, 2.0, 5.0, 10.0) if step * scale >= wanted * (1.0 - 1e-9))
