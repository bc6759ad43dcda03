"""Dividing one shared amount among boundaries: what each could make of a share, and the best division.

A boundary's best value as a function of its share x never exceeds any of its cuts base + slope x, which
proofs at other shares gave. The sum of the least cuts is concave, so at the best division every boundary has
the same slope (the multiplier of the shared limit), found by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.objective import Replica

BISECTIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`value(x) <= base + slope x`; `multipliers` are those of its proof, scaled to factor one."""

    base: float
    slope: float
    multipliers: Mapping[str, Any] = field(default_factory=dict)

    def at(self, share: float) -> float:
        """The cut's height."""
        return self.base + self.slope * share


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Replicas a boundary could run: what they use of the shared amount, and their value (more is better)."""

    used: float
    value: float
    replicas: tuple[Replica, ...] = ()


@dataclass(slots=True, kw_only=True)
class Side:
    """One boundary: its cuts, its options, and the least and largest sensible share.

    `ray` added to any cut, any number of times, leaves it sound: what a boundary owns is limited, whatever
    the shared limit costs.
    """

    least: float
    most: float
    cuts: list[Cut] = field(default_factory=list)
    options: list[Option] = field(default_factory=list)
    ray: Cut | None = None

    def height(self, share: float) -> float:
        """The least cut at a share."""
        return min((cut.at(share) for cut in self.cuts), default=0.0)

    def share_at(self, multiplier: float) -> float:
        """The share at which one more unit is worth the multiplier; the larger one where several are."""
        points = {self.least, self.most}
        for i, one in enumerate(self.cuts):
            for other in self.cuts[:i]:
                if one.slope != other.slope:
                    points.add((other.base - one.base) / (one.slope - other.slope))
        inside = [x for x in points if self.least <= x <= self.most]
        return max(inside, key=lambda x: (round(self.height(x) - multiplier * x, 9), x))


def divide(sides: Sequence[Side], amount: float) -> tuple[list[float], float]:
    """Shares that add up to at most `amount` with the largest sum of heights, and the multiplier.

    `amount` is at least the sum of the least shares.
    """
    slopes = [cut.slope for side in sides for cut in side.cuts]
    low, high = min([0.0, *slopes]) - 1.0, max([0.0, *slopes]) + 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        if sum(side.share_at(middle) for side in sides) > amount:
            low = middle
        else:
            high = middle
    fewer = [side.share_at(high) for side in sides]
    more = [max(side.share_at(low), x) for side, x in zip(sides, fewer, strict=True)]
    left = amount - sum(fewer)
    gaps = [b - a for a, b in zip(fewer, more, strict=True)]
    part = min(1.0, max(0.0, left) / sum(gaps)) if sum(gaps) > 0.0 else 0.0
    return [a + part * gap for a, gap in zip(fewer, gaps, strict=True)], high


def choose(sides: Sequence[Side], amount: float) -> tuple[Option, ...] | None:
    """One option per boundary with the largest sum of values within `amount`; None when none is within it.

    Sums that use no less and are worth no more than another are dropped on the way, which loses nothing.
    """
    slack = 1e-9 * max(1.0, abs(amount))
    reached: list[tuple[float, float, tuple[Option, ...]]] = [(0.0, 0.0, ())]
    for side in sides:
        grown = [
            (used + option.used, value + option.value, (*chosen, option))
            for used, value, chosen in reached
            for option in side.options
        ]
        grown.sort(key=lambda item: (item[0], -item[1]))
        reached = []
        for item in grown:
            if not reached or item[1] > reached[-1][1]:
                reached.append(item)
    within = [item for item in reached if item[0] <= amount + slack]
    return max(within, key=lambda item: item[1])[2] if within else None


def mix_at(side: Side, slope: float, *, upwards: bool) -> Cut | None:
    """The lowest cut of this slope: one there is, a mean of two, or one turned by the ray; or None.

    Weighted sums of sound multipliers are sound. A cut flatter than asked for will do with a ceiling
    (`upwards` False), a steeper one with a target (`upwards` True); the ray turns a cut the other way.
    """
    cuts, ray = side.cuts, side.ray
    found = [cut for cut in cuts if (cut.slope >= slope if upwards else cut.slope <= slope)]
    for steep in (cut for cut in cuts if cut.slope > slope):
        for flat in (cut for cut in cuts if cut.slope < slope):
            part = (slope - flat.slope) / (steep.slope - flat.slope)
            found.append(_sum(steep, part, flat, 1.0 - part))
    if ray is not None:
        turned = [(cut, (slope - cut.slope) / ray.slope) for cut in cuts]
        found += [_sum(cut, 1.0, ray, times) for cut, times in turned if times > 0.0]
    return min(found, key=lambda cut: (cut.base, cut.slope), default=None)


def _sum(one: Cut, first: float, other: Cut, second: float) -> Cut:
    """The sum of two cuts with these weights; rounding never makes a multiplier negative."""

    def of(a: float, b: float) -> float:
        return max(0.0, first * a + second * b)

    mine, its = one.multipliers, other.multipliers
    names = sorted({*mine["prices"], *its["prices"]})
    return Cut(
        base=first * one.base + second * other.base,
        slope=of(one.slope, other.slope),
        multipliers={
            "prices": {n: of(mine["prices"].get(n, 0.0), its["prices"].get(n, 0.0)) for n in names},
            "rho": of(mine["rho"], its["rho"]),
            "nu": of(mine["nu"], its["nu"]),
        },
    )


def common_cuts(sides: Sequence[Side], amount: float, *, upwards: bool) -> list[Cut] | None:
    """One cut per boundary, all priced alike, that together prove the most; None without such cuts.

    The sum of the bases plus slope * amount is convex in the slope, with its least value at the slope of some
    cut.
    """
    best: tuple[float, list[Cut]] | None = None
    for slope in sorted({cut.slope for side in sides for cut in side.cuts}):
        mixed = [mix_at(side, slope, upwards=upwards) for side in sides]
        cuts = [cut for cut in mixed if cut is not None]
        if len(cuts) == len(sides):
            total = sum(cut.base for cut in cuts) + slope * amount
            if best is None or total < best[0]:
                best = (total, cuts)
    return None if best is None else best[1]
