"""The evidence that goes into a plan, in the form `echelon check` repeats (docs/certificate.md)."""

from __future__ import annotations

from math import isfinite
from typing import Any

from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.certify import Certified


def multipliers(problem: BoundaryProblem, duals: Duals) -> dict[str, Any]:
    """Prices per capacity row and replica-count multipliers."""
    prices = {row.name: float(mu) for row, mu in zip(problem.rows, duals.row_R, strict=True) if mu > 0.0}
    return {"prices": prices, "rho": duals.rho, "nu": duals.nu}


def dual_proof(problem: BoundaryProblem, certified: Certified, bound: float) -> dict[str, Any]:
    """Multipliers, boxes and cuts from which the referee derives the factor and the bound itself."""
    modes: list[dict[str, Any]] = []
    for mode in problem.modes:
        boxes = []
        for box in certified.boxes:
            if box.mode_i != mode.mode_i:
                continue
            cuts = []
            for cut in box.cuts:
                visit = (
                    {}
                    if cut.visit_C is None
                    else {str(c): float(v) for c, v in enumerate(cut.visit_C) if v > 0.0}
                )
                cuts.append({"w": float(cut.time_weight), "c": float(cut.price_weight), "visit": visit})
            boxes.append({"upto_s": float(box.upto_s) if isfinite(box.upto_s) else None, "cuts": cuts})
        modes.append({"mode": mode.mode_i, "boxes": boxes})
    return {
        "kind": "dual",
        **multipliers(problem, certified.duals),
        "factor": certified.factor,
        "bound": bound,
        "modes": modes,
    }
