"""Which layers of a stage are recomputed: those the planner priced. No torch here."""

from __future__ import annotations

from dataclasses import replace

from costmodels.chain import LayerChain
from costmodels.settings import AnalyticSettings
from costmodels.sizes import kind_sizes, recompute_order
from costmodels.workload import Workload
from policies.errors import InputError


def recomputed_layers(
    workload: Workload, first: int, stop: int, count: int, *, tp: int = 1
) -> frozenset[int]:
    """The `count` layers of [first, stop) whose recomputation saves most memory per operation.

    Plans say how many layers of a stage are recomputed; kinds are taken in the planner's order, and within
    a kind the earlier layers first. Cut over `tp` devices, some kinds may save nothing and stay out.

    Raises:
        InputError: `too-many-recomputed` when fewer of these layers can be recomputed.
    """
    kinds = LayerChain(workload).kinds
    replicated = AnalyticSettings().replicated_inputs
    order = [
        j
        for j in recompute_order(kinds, workload.job)
        if kind_sizes(kinds[j], workload.job, tp, replicated).saved_bytes > 0.0
    ]
    place_of = {kinds[j]: place for place, j in enumerate(order)}
    kind_of = [replace(layer, kind="") for layer in workload.layers]
    worth = [i for i in range(first, stop) if kind_of[i] in place_of]
    if count > len(worth):
        raise InputError(
            "too-many-recomputed",
            f"{count} layers of [{first}, {stop}) are to be recomputed, {len(worth)} can be",
            hint="solve the plan again",
        )
    worth.sort(key=lambda i: (place_of[kind_of[i]], i))
    return frozenset(worth[:count])
