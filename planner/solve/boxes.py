"""Load boxes and the outer approximation of what a replica in them can be worth.

Inside a box (from_s, upto_s] every path has step time T >= w + y > w + from_s, with w its fill time and y
its largest load. Cuts `a*w + b*c >= v` hold for every real path (c is its price). The worth of a path is h
= (tokens_per_step / T + nu) / (c + rho); over the cuts' region h is largest at a vertex of the lower-left
hull, because h decreases in w and c and its level sets are convex.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

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
    """`time_weight * w + price_weight * c >= value` for every real path, under multipliers `usage_2C`."""

    time_weight: float
    price_weight: float
    value: float
    usage_2C: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertex:
    """A corner of the outer approximation and the worth there."""

    worth: float
    fill_s: float
    price: float


@dataclass(slots=True, kw_only=True)
class Box:
    """Loads in (from_s, upto_s] of one mode, with what the solver remembers between rounds."""

    table_i: int
    from_s: float
    upto_s: float
    fill_cut: Cut | None = None
    theta: float | None = None
    usage_2C: FloatArray | None = None
    worth: float = inf
    cuts: list[Cut] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxProof:
    """What a certificate states about one box: its loads and the cuts that bound the worth inside."""

    mode_i: int
    from_s: float
    upto_s: float
    cuts: tuple[Cut, ...]


def worth_at(tokens_per_step: float, duals: Duals, from_s: float, fill_s: float, price: float) -> float:
    """H at a point of the (w, c) plane; infinite where nothing bounds it."""
    if fill_s + from_s <= 0.0 or price + duals.rho <= 0.0:
        return inf
    return (tokens_per_step / (fill_s + from_s) + duals.nu) / (price + duals.rho)


def best_vertex(cuts: list[Cut], tokens_per_step: float, duals: Duals, from_s: float) -> Vertex:
    """Where the worth is largest over w >= 0, c >= 0 and the cuts; worth 0 when a cut excludes every path."""
    if any(cut.value == inf for cut in cuts):
        return Vertex(worth=0.0, fill_s=inf, price=inf)
    least_w = max([0.0, *(cut.value / cut.time_weight for cut in cuts if cut.price_weight == 0.0)])
    slanted = [cut for cut in cuts if cut.price_weight > 0.0]
    corners = {least_w}
    for i, one in enumerate(slanted):
        if one.time_weight > 0.0:
            corners.add(one.value / one.time_weight)
        for other in slanted[i + 1 :]:
            slope = one.time_weight * other.price_weight - other.time_weight * one.price_weight
            if slope != 0.0:
                corners.add((one.value * other.price_weight - other.value * one.price_weight) / slope)
    best = Vertex(worth=-1.0, fill_s=least_w, price=0.0)
    for w in corners:
        if w >= least_w:
            price = max([0.0, *((cut.value - cut.time_weight * w) / cut.price_weight for cut in slanted)])
            worth = worth_at(tokens_per_step, duals, from_s, w, price)
            if worth > best.worth:
                best = Vertex(worth=worth, fill_s=w, price=price)
    return best


def tangent(tokens_per_step: float, from_s: float, vertex: Vertex, worth: float) -> float:
    """Price per second at which the level set of `worth` leaves a vertex: -dc/dw = W / (w + y)^2 / h."""
    return tokens_per_step / ((vertex.fill_s + from_s) ** 2 * worth)


def box_edges(least_s: float, most_s: float, ratio: float) -> list[float]:
    """Upper edges of geometric boxes; the first lies just below the least load, the last is infinite."""
    edges = [np.nextafter(least_s, 0.0)]
    while edges[-1] * ratio < most_s:
        edges.append(edges[-1] * ratio)
    return [*edges, inf]
