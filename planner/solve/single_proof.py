"""Boxes of loads as a proof of kind `dual`: all prices zero, rho the value (docs/certificate.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from planner.problem import BoundaryProblem
from planner.solve.tables import FloatArray

FRONTS_STATED = 20_000
"""The referee searches through some thousand fronts per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBox:
    """Loads in (from_s, upto_s] take at least `fill_s` under the usage multipliers `usage_2C`.

    A search with true device counts has shown that no replica in the box takes less than `searched_s`; the
    certificate states it where `num_fronts` is so small that the referee repeats the search in good time.
    """

    from_s: float
    upto_s: float
    fill_s: float
    usage_2C: FloatArray
    searched_s: float = 0.0
    num_fronts: int = 0

    @property
    def multiplied_s(self) -> float:
        """No replica in the box is quicker, as the multipliers show."""
        return self.from_s + self.fill_s

    @property
    def states_search(self) -> bool:
        """Whether the certificate states the search."""
        return self.searched_s > self.multiplied_s and self.num_fronts <= FRONTS_STATED

    @property
    def step_s(self) -> float:
        """No replica in the box is quicker, as the certificate shows."""
        return self.searched_s if self.states_search else self.multiplied_s


def box_proof(
    problem: BoundaryProblem, boxes: Mapping[int, Sequence[LoadBox]], value: float, bound: float
) -> dict[str, Any]:
    """The proof that no replica passes `bound`, boxes by mode; a mode without any has no replica at all."""
    whole: dict[str, Any] = {"upto_s": None, "cuts": []}
    modes = []
    for mode in problem.modes:
        ordered = sorted(boxes.get(mode.mode_i, ()), key=lambda box: box.upto_s)
        modes.append({"mode": mode.mode_i, "boxes": [_stated(box) for box in ordered] or [whole]})
    return {
        "kind": "dual",
        "prices": {},
        "rho": value,
        "nu": 0.0,
        "factor": bound / value,
        "bound": bound,
        "modes": modes,
    }


def _stated(box: LoadBox) -> dict[str, Any]:
    visit, once = ({str(c): float(x) for c, x in enumerate(row) if x > 0.0} for row in box.usage_2C)
    cut = {"w": 1.0, "c": 0.0, "visit": visit, "once": once}
    stated = {"upto_s": float(box.upto_s) if isfinite(box.upto_s) else None, "cuts": [cut]}
    return stated | ({"searched_s": float(box.searched_s)} if box.states_search else {})
