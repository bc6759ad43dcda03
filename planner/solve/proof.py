"""The evidence that goes into a plan, in the form `echelon check` repeats (docs/certificate.md)."""

from __future__ import annotations

from math import isfinite
from typing import Any

from planner.problem import BoundaryProblem
from planner.solve.boxes import BoxProof, Cut, Duals
from planner.solve.sweeper import Certified
from planner.solve.tables import FloatArray


def multipliers(problem: BoundaryProblem, duals: Duals) -> dict[str, Any]:
    """Prices per capacity row and replica-count multipliers."""
    prices = {row.name: float(mu) for row, mu in zip(problem.rows, duals.row_R, strict=True) if mu > 0.0}
    return {"prices": prices, "rho": duals.rho, "nu": duals.nu}


def dual_proof(problem: BoundaryProblem, certified: Certified, bound: float) -> dict[str, Any]:
    """Multipliers, boxes and cuts from which the referee derives the factor and the bound itself."""
    modes = [
        {"mode": mode.mode_i, "boxes": [_box(box) for box in certified.boxes if box.mode_i == mode.mode_i]}
        for mode in problem.modes
    ]
    return {
        "kind": "dual",
        **multipliers(problem, certified.duals),
        "factor": certified.factor,
        "bound": bound,
        "modes": modes,
    }


def _box(box: BoxProof) -> dict[str, Any]:
    upto_s = float(box.upto_s) if isfinite(box.upto_s) else None
    return {"upto_s": upto_s, "cuts": [_cut(cut) for cut in box.cuts]}


def _cut(cut: Cut) -> dict[str, Any]:
    """Weights, the positive usage multipliers by class, and the tracked classes if any."""
    visit: dict[str, float] = {}
    once: dict[str, float] = {}
    if cut.usage_2C is not None:
        visit, once = _positive(cut.usage_2C[0]), _positive(cut.usage_2C[1])
    weights = {"w": float(cut.time_weight), "c": float(cut.price_weight), "visit": visit, "once": once}
    return {**weights, "tracked": list(cut.tracked)} if cut.tracked else weights


def _positive(values_C: FloatArray) -> dict[str, float]:
    return {str(c): float(value) for c, value in enumerate(values_C) if value > 0.0}
