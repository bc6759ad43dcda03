"""In which order layers are recomputed: a plan says how many of a stage, and everyone must mean the same."""

from __future__ import annotations

from dataclasses import replace

from costmodels.chain import LayerChain
from costmodels.settings import AnalyticSettings
from costmodels.sizes import kind_sizes, recompute_order
from costmodels.workload import Workload


def recompute_sequence(workload: Workload, *, tp: int = 1) -> tuple[int, ...]:
    """All layers worth recomputing, best first: by kind in the order of `recompute_order`, then by position.

    Cut over `tp` devices, some kinds may save nothing and stay out. Empty when the job doesn't allow it.
    """
    kinds = LayerChain(workload).kinds
    replicated = AnalyticSettings().replicated_inputs
    order = [
        j
        for j in recompute_order(kinds, workload.job)
        if kind_sizes(kinds[j], workload.job, tp, replicated).saved_bytes > 0.0
    ]
    place_of = {kinds[j]: place for place, j in enumerate(order)}
    kind_L = [replace(layer, kind="") for layer in workload.layers]
    worth = [i for i, kind in enumerate(kind_L) if kind in place_of]
    return tuple(sorted(worth, key=lambda i: (place_of[kind_L[i]], i)))
