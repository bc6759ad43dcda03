"""Load boxes and the outer approximation of what a replica in them can be worth.

Inside a box (from_s, upto_s] every path has step time T >= w + y > w + from_s, with w its fill time and y
its largest load. Cuts `a*w + b*c >= v` hold for every real path (c is its price). The worth of a path is h
= (tokens_per_step / T + nu) / (c + rho); over the cuts' region h is largest at a vertex of the lower-left
hull, because h decreases in w and c and its level sets are convex.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.solve.tables import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Duals:
    """Multipliers: `row_R` per capacity row, `rho` for the most replicas, `nu` for the fewest. All >= 0."""

    row_R: FloatArray
    rho: float
    nu: float
    price_C: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """`time_weight * w + price_weight * c >= value` for every real path, under multipliers `usage_2C`.

    It takes for granted that no path uses a class of `tracked` more often than it has devices.
    """

    time_weight: float
    price_weight: float
    value: float
    usage_2C: FloatArray | None
    tracked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxProof:
    """What a certificate states about one box: its loads and the cuts that bound the worth inside."""

    mode_i: int
    from_s: float
    upto_s: float
    cuts: tuple[Cut, ...]
