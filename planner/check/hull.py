"""The largest ratio speed/price over a polyhedron of (seconds, price) points that cuts leave possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Every path obeys `w_weight * w + c_weight * c >= least`."""

    w_weight: float
    c_weight: float
    least: float


def largest_ratio(
    cuts: Sequence[Cut],
    *,
    tokens_per_step: float,
    seconds_min: float,
    fill_max_s: float,
    rho: float,
    nu: float,
) -> float:
    """Maximum of (W / (w + seconds_min) + nu) / (c + rho) over 0 <= w <= fill_max_s, c >= 0 and all cuts.

    The ratio falls in both arguments and its level sets {ratio <= f} are convex, so along the lower-left
    border of the (convex) region it is largest at a corner. The border is c(w) = max(0, steepest cuts), for w
    at or beyond the largest w that a cut without price forces. Every crossing of two of its lines is tried,
    and its end; a crossing that is no corner still is a point of the border, so trying it does no harm.
    Infinite where c + rho can be zero.
    """
    w_min = max(
        [0.0, *(cut.least / cut.w_weight for cut in cuts if cut.c_weight == 0.0 and cut.w_weight > 0.0)]
    )
    w_max = max(w_min, fill_max_s)
    lines = [(0.0, 0.0)]
    lines += [(cut.least / cut.c_weight, cut.w_weight / cut.c_weight) for cut in cuts if cut.c_weight > 0.0]
    trials = [w_min, w_max]
    for i, (height, slope) in enumerate(lines):
        for other_height, other_slope in lines[:i]:
            if slope != other_slope:
                w = (height - other_height) / (slope - other_slope)
                if w_min < w < w_max:
                    trials.append(w)
    best = 0.0
    for w in trials:
        c = max(height - slope * w if slope else height for height, slope in lines)
        best = max(best, _ratio(w + seconds_min, c + rho, tokens_per_step, nu))
    return best


def _ratio(seconds: float, price: float, tokens_per_step: float, nu: float) -> float:
    if seconds <= 0.0 or price <= 0.0:
        return float("inf")
    return (tokens_per_step / seconds + nu) / price
