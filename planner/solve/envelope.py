"""Cuts `theta * w + c >= value` in the plane of fill time w and price c, and the corners they leave.

A path with load above y is worth at most h(w, c, y) = (W / (w + y) + nu) / (c + rho). That falls in w and c
and its level sets are convex, so over the cuts it is largest at a corner of their lower-left border. Turned
round: a corner needs loads of at least `W / (factor * (c + rho) - nu) - w` for its worth to stay within a
factor.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from math import inf

from planner.solve.tracking import Charges


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One cut: `theta * w + c >= value` under `charges`, for all paths with loads up to `upto_s`.

    Paths that use a tracked class more often than it has devices were left out.
    """

    theta: float
    value: float
    charges: Charges
    upto_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """A corner of the border, the least load it needs, and the tangent angle of its worth there."""

    fill_s: float
    price: float
    need_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What turns time and price into worth: tokens per step W, and the replica-count multipliers."""

    tokens: float
    rho: float
    nu: float

    def need_s(self, fill_s: float, price: float, factor: float) -> float:
        """The load above which a path of this fill time and price is worth at most `factor`."""
        margin = factor * (price + self.rho) - self.nu
        return inf if margin <= 0.0 else self.tokens / margin - fill_s

    def worth(self, fill_s: float, price: float, load_s: float) -> float:
        """Worth of a path with these fill seconds, price and load; infinite when it costs nothing."""
        if price + self.rho <= 0.0:
            return inf
        return (self.tokens / (fill_s + load_s) + self.nu) / (price + self.rho)

    def theta(self, corner: Corner, factor: float) -> float:
        """Price per second at which the level set of `factor` passes a corner at the load it needs."""
        return self.tokens / ((corner.fill_s + corner.need_s) ** 2 * factor)


class Envelope:
    """The cuts in force, as the upper envelope of `value - theta * w` over w >= least_w, steepest first."""

    def __init__(self, scale: Scale, least_w: float) -> None:
        self.scale = scale
        self.least_w = least_w
        self.lines: list[Line] = []

    def add(self, line: Line) -> None:
        """One more cut; cuts that bind nowhere any more are forgotten, since cuts only get stronger."""
        insort(self.lines, line, key=lambda one: -one.theta)
        self._tidy()

    def raise_least_w(self, least_w: float) -> None:
        """Paths are known to take at least so long to fill."""
        if least_w > self.least_w:
            self.least_w = least_w
            self._tidy()

    def _tidy(self) -> None:
        """Keep the lines that are on top somewhere right of `least_w`."""
        kept: list[Line] = []
        begins: list[float] = []
        for line in self.lines:
            begin = self.least_w
            while kept:
                top = kept[-1]
                if top.theta == line.theta:
                    crossing = -inf if line.value >= top.value else inf
                else:
                    crossing = (top.value - line.value) / (top.theta - line.theta)
                if crossing > begins[-1]:
                    begin = max(self.least_w, crossing)
                    break
                kept.pop()
                begins.pop()
            if begin < inf:
                kept.append(line)
                begins.append(begin)
        self.lines = kept

    def worst(self, factor: float) -> Corner:
        """The corner that needs the largest load."""
        return worst_corner(self.lines, self.least_w, self.scale, factor)

    def few(self, factor: float, from_s: float) -> tuple[Line, ...]:
        """A few of the cuts that suffice to keep loads above `from_s` within the factor."""
        chosen: list[Line] = [self.lines[-1]]
        while len(chosen) < len(self.lines):
            corner = worst_corner(chosen, self.least_w, self.scale, factor)
            if corner.need_s <= from_s:
                break
            best = max(self.lines, key=lambda line: line.value - line.theta * corner.fill_s)
            if best in chosen:
                break
            insort(chosen, best, key=lambda one: -one.theta)
        return tuple(chosen)

    def nearest(self, theta: float) -> Line | None:
        """The cut of the closest angle, the one on price alone left out."""
        return min(
            (line for line in self.lines if line.theta > 0.0),
            key=lambda line: max(line.theta, theta) / min(line.theta, theta),
            default=None,
        )


def worst_corner(lines: list[Line], least_w: float, scale: Scale, factor: float) -> Corner:
    """The corner of the largest need among envelope lines, steepest first."""
    best: Corner | None = None
    for i, line in enumerate(lines):
        if i == 0:
            w = least_w
        else:
            before = lines[i - 1]
            w = max(least_w, (before.value - line.value) / (before.theta - line.theta))
        price = max(0.0, line.value - line.theta * w)
        need_s = scale.need_s(w, price, factor)
        if best is None or need_s > best.need_s:
            best = Corner(fill_s=w, price=price, need_s=need_s)
    assert best is not None
    last = lines[-1]
    if last.theta > 0.0:  # nothing bounds the price on the right
        w = max(least_w, last.value / last.theta)
        need_s = scale.need_s(w, 0.0, factor)
        if need_s > best.need_s:
            best = Corner(fill_s=w, price=0.0, need_s=need_s)
    return best
