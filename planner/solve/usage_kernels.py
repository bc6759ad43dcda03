"""Usage multipliers at which known paths cost what is needed, compiled.

Legend: P paths, K multipliers.
"""

from __future__ import annotations

from planner.solve.jit import compiled
from planner.solve.tables import FloatArray

SWEEPS = 40


@compiled
def project(
    start_K: FloatArray,
    slope_PK: FloatArray,
    need_P: FloatArray,
    scale_K: FloatArray,
    push_P: FloatArray,
    out_K: FloatArray,
) -> None:
    """Write into `out_K` the multipliers >= 0 nearest to `start_K` with `slope_p . out >= need_p` for all p.

    Hildreth's method (C. Hildreth, Naval Research Logistics Quarterly 4, 1957) in the metric of `scale_K`,
    cut short after some sweeps: where no multipliers do, a point that comes near. `push_P` is work space.
    """
    for k in range(start_K.size):
        out_K[k] = start_K[k]
    for p in range(push_P.size):
        push_P[p] = 0.0
    for _ in range(SWEEPS):
        worst = 0.0
        for p in range(push_P.size):
            have, norm = 0.0, 0.0
            for k in range(start_K.size):
                slope = slope_PK[p, k]
                have += out_K[k] * slope
                if slope > 0.0 or out_K[k] > 0.0:
                    norm += slope * slope * scale_K[k] * scale_K[k]
            if norm <= 0.0:
                continue
            change = max(-push_P[p], (need_P[p] - have) / norm)
            if change == 0.0:
                continue
            worst = max(worst, abs(need_P[p] - have) / (1e-300 + abs(need_P[p])))
            push_P[p] += change
            for k in range(start_K.size):
                total = start_K[k]
                for other in range(push_P.size):
                    total += push_P[other] * slope_PK[other, k] * scale_K[k] * scale_K[k]
                out_K[k] = max(0.0, total)
        if worst < 1e-6:
            return
