"""Recent paths of a sweep, and the usage multipliers and tracked classes that would make them dear enough.

Legend: see sweep.py; P paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from planner.solve.tables import FloatArray
from planner.solve.tracking import Charges, without
from planner.solve.usage_kernels import project

BUNDLE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The cheapest path of a run; `value` is a lower bound on the cost of every real path."""

    value: float
    fill_s: float
    price: float
    load_s: float
    real: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a cut reaches under charges for devices."""

    value: float
    charges: Charges


class Bundle:
    """Recent paths, each linear in the usage multipliers."""

    def __init__(self, num_multipliers: int) -> None:
        self.slope_PK = np.zeros((BUNDLE, num_multipliers))
        self.fill_P = np.zeros(BUNDLE)
        self.price_P = np.zeros(BUNDLE)
        self.load_P = np.full(BUNDLE, inf)
        self._push_P = np.zeros(BUNDLE)
        self._next = 0

    def add(self, priced: Priced, slope_K: FloatArray) -> None:
        """Remember a path; the oldest makes room."""
        p = self._next
        self.slope_PK[p] = slope_K
        self.fill_P[p], self.price_P[p], self.load_P[p] = priced.fill_s, priced.price, priced.load_s
        self._next = (p + 1) % BUNDLE

    def blocking_P(self, cut: Reached, theta: float, wanted: float, upto_s: float) -> NDArray[np.bool_]:
        """Which remembered paths within the cut's limits keep it below `wanted` at its multipliers."""
        cost_P = theta * self.fill_P + self.price_P + self.slope_PK @ cut.charges.usage_2C.reshape(-1)
        return (cost_P < wanted) & self.allowed_P(cut.charges.tracked, upto_s)

    def allowed_P(self, tracked: Sequence[int], upto_s: float) -> NDArray[np.bool_]:
        """Paths within the load limit that use no tracked class too often."""
        once_PC = self.slope_PK[:, self.slope_PK.shape[1] // 2 :]
        mask_P: NDArray[np.bool_] = (self.load_P <= upto_s) & np.all(once_PC[:, list(tracked)] <= 0.0, axis=1)
        return mask_P

    def propose(
        self, cut: Reached, theta: float, level: float, upto_s: float, scale_K: FloatArray
    ) -> Charges:
        """Charges near those of the cut at which each remembered path costs `level`, or nearly so."""
        start_2C, tracked = cut.charges.usage_2C, cut.charges.tracked
        need_P = np.where(self.allowed_P(tracked, upto_s), level - theta * self.fill_P - self.price_P, -inf)
        out_K = np.empty(start_2C.size)
        if tracked:
            scale_K = without(scale_K.reshape(start_2C.shape), tracked).reshape(-1)
        project(start_2C.reshape(-1), self.slope_PK, need_P, scale_K, self._push_P, out_K)
        return cut.charges.at(out_K.reshape(start_2C.shape))
