"""What the front of a chain must cost at least: lower bounds that let the exact search drop hopeless labels.

Boxes split replicas by load y and by step time T. In a box with T in (T_lo, T_hi] the speed W / T lies below
its chord alpha - beta T, so  f (c + rho) - nu - W / T >= f (c + rho) - nu - alpha + beta T, which is linear
along the chain. Legend: see planner/check/columns.py; Q stages behind, N labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.chains import Labels
from planner.check.columns import FloatArray, ModeColumns
from planner.check.multipliers import Multipliers
from planner.check.relaxed import BoxPaths, Weights
from planner.problem import BoundaryProblem

LOAD_RATIO = 1.15
STEP_RATIO = 1.4
MAX_BOXES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Replicas with load in (load_lo_s, load_hi_s] and step time up to step_hi_s, and what their fronts cost.

    `offset` + beta * T + f * c is at most the slack of such a replica; `front_QSL` bounds beta * fill + f *
    price of layers [0, a) ahead of a stage at a site with Q stages behind the front.
    """

    load_lo_s: float
    load_hi_s: float
    step_hi_s: float
    beta: float
    offset: float
    front_QSL: FloatArray


@dataclass(slots=True, kw_only=True)
class Completions:
    """The boxes of one mode in which a replica with slack up to `slack_max` may lie."""

    problem: BoundaryProblem
    columns: ModeColumns
    multipliers: Multipliers
    slack_max: float
    boxes: list[Box]

    @property
    def load_max_s(self) -> float:
        """Largest load such a replica can have; negative when there is none."""
        return max((box.load_hi_s for box in self.boxes), default=-1.0)

    def keep(self, labels: Labels, num_stages: int) -> NDArray[np.bool_]:
        """Which labels of this many stages may still become a replica within the slack."""
        price_N = self.multipliers.factor * (labels.usage_NC @ self.multipliers.price_C)
        kept_N = np.zeros(len(labels), dtype=bool)
        peak_s_N = labels.peak_s_N + labels.sync_s_N
        for box in self.boxes:
            step_s_N = labels.fill_s_N + np.maximum(peak_s_N, box.load_lo_s)
            front_N = box.front_QSL[num_stages, labels.site_N, labels.start_N]
            slack_N = box.offset + box.beta * step_s_N + price_N + front_N
            kept_N |= (
                (slack_N <= self.slack_max) & (labels.load_s_N <= box.load_hi_s) & (step_s_N <= box.step_hi_s)
            )
        return kept_N


def completions(
    problem: BoundaryProblem, columns: ModeColumns, multipliers: Multipliers, slack_max: float
) -> Completions | None:
    """Boxes that cover every replica of a mode within the slack; None when they would be too many."""
    boxes: list[Box] = []
    price_J = columns.usage_JC @ multipliers.price_C
    for load_lo_s, load_hi_s in load_ranges(columns):
        paths = BoxPaths(columns, load_hi_s)
        still = Weights(seconds=1.0, price_J=np.zeros(len(price_J)), start_S=np.zeros(len(problem.site_ids)))
        fill_min_s = paths.least(still)
        if fill_min_s == np.inf:
            continue
        step_lo_s = fill_min_s + load_lo_s
        step_hi_s = paths.longest_fill_s + 2.0 * load_hi_s
        for low_s, high_s in _ranges(step_lo_s, max(step_hi_s, step_lo_s), STEP_RATIO):
            alpha, beta = chord(problem.tokens_per_step, low_s, high_s)
            weights = Weights(
                seconds=beta, price_J=multipliers.factor * price_J, start_S=np.zeros(len(problem.site_ids))
            )
            offset = multipliers.factor * multipliers.rho - multipliers.nu - alpha
            # Rounding must never drop a replica that lies exactly on an edge.
            margin = 1e-9 * (abs(alpha) + abs(offset) + slack_max)
            if offset + beta * load_lo_s + paths.least(weights) - margin > slack_max:
                continue
            boxes.append(
                Box(
                    load_lo_s=load_lo_s,
                    load_hi_s=load_hi_s,
                    step_hi_s=high_s * (1.0 + 1e-9),
                    beta=beta,
                    offset=offset - margin,
                    front_QSL=paths.fronts(weights),
                )
            )
            if len(boxes) > MAX_BOXES:
                return None
    return Completions(
        problem=problem, columns=columns, multipliers=multipliers, slack_max=slack_max, boxes=boxes
    )


def chord(tokens: float, low_s: float, high_s: float) -> tuple[float, float]:
    """alpha, beta >= 0 with tokens / T <= alpha - beta T for every T in [low_s, high_s], low_s <= high_s."""
    if low_s <= 0.0:
        return float("inf"), 0.0
    beta = tokens / (low_s * high_s)
    return tokens / low_s + beta * low_s, beta


def load_ranges(columns: ModeColumns) -> Iterator[tuple[float, float]]:
    """Ranges (lo, hi] that hold every load a replica can have; the first one holds zero as well."""
    loads_s = columns.load_s_E
    if not len(loads_s):
        return
    moves_s = columns.formula.repeats * columns.transfer_s_STL[np.isfinite(columns.transfer_s_STL)]
    top_s = max(float(loads_s.max()), float(moves_s.max(initial=0.0)))
    bottom_s = float(loads_s.min())
    yield 0.0, bottom_s
    yield from _ranges(bottom_s, top_s, LOAD_RATIO)


def _ranges(low: float, high: float, ratio: float) -> Iterator[tuple[float, float]]:
    """Ranges from low to high, each at most `ratio` wide; everything at once where low is zero."""
    if low <= 0.0 or high <= low:
        yield low, high
        return
    while low < high:
        upper = min(high, low * ratio)
        yield low, upper
        low = upper
