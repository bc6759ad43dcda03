"""Innermost loops of the search for one replica: relaxed shortest paths under usage multipliers.

A path is a chain of stages from layer 0 to L. Its cost is its fill time plus charges for its devices;
`credit_S` is handed back once per visit to a site. Legend: see single_arrays.py; N paths, C device classes.
"""

from __future__ import annotations

import numpy as np

from planner.solve.jit import compiled
from planner.solve.single_arrays import Clusters, Costs, View
from planner.solve.tables import FloatArray, IntArray


@compiled
def charge_entries(view: View, clusters: Clusters, costs: Costs, rate_C: FloatArray) -> None:
    """Charge of every cluster; least cost of every cell with entries, and the entry it comes from."""
    for j in range(costs.charge_J.size):
        charge = 0.0
        for k in range(clusters.first_J[j], clusters.first_J[j + 1]):
            charge += clusters.count_K[k] * rate_C[clusters.class_K[k]]
        costs.charge_J[j] = charge
    cost_X = costs.cost_QSG.reshape(-1)
    entry_X = costs.entry_QSG.reshape(-1)
    for p in range(view.cell_P.size):
        least, at = np.inf, -1
        for e in range(view.first_P[p], view.first_P[p + 1]):
            value = view.fill_E[e] + costs.charge_J[view.template_E[e]]
            if value < least:
                least, at = value, e
        cost_X[view.cell_P[p]] = least
        entry_X[view.cell_P[p]] = at


@compiled
def costs_to_go(view: View, costs: Costs) -> None:
    """Fills `stage_QLS` (from a stage that starts here) and `onward_QSB` (from one that ends here)."""
    stage_QLS, onward_QSB, window_LW = costs.stage_QLS, costs.onward_QSB, view.window_LW
    num_stages, num_layers, num_sites = stage_QLS.shape
    onward_QSB[:] = np.inf
    onward_QSB[0, :, num_layers] = 0.0
    for q in range(num_stages):
        for b in range(1, num_layers if q > 0 else 1):
            for s in range(num_sites):
                least = view.hop_BSS[b, s, s] + stage_QLS[q - 1, b, s]
                for t in range(num_sites):
                    if t != s:
                        onward = view.hop_BSS[b, s, t] - costs.credit_S[t] + stage_QLS[q - 1, b, t]
                        least = min(least, onward)
                onward_QSB[q, s, b] = least
        cost_SG = costs.cost_QSG[min(q, costs.cost_QSG.shape[0] - 1)]
        for s in range(num_sites):
            for a in range(num_layers):
                least = np.inf
                for n in range(min(window_LW.shape[1], num_layers - a)):
                    least = min(least, cost_SG[s, window_LW[a, n]] + onward_QSB[q, s, a + 1 + n])
                stage_QLS[q, a, s] = least


@compiled
def trace_path(view: View, costs: Costs, q: int, s: int, entry_Q: IntArray, border_Q: IntArray) -> None:
    """The least path of `q + 1` stages from site `s`: each stage's entry and where it ends."""
    num_levels, num_sites = costs.cost_QSG.shape[0], costs.credit_S.size
    num_layers, num_lengths = view.window_LW.shape
    a, i = 0, 0
    while True:
        least, stop = np.inf, a + 1
        level = min(q, num_levels - 1)
        for n in range(min(num_lengths, num_layers - a)):
            value = costs.cost_QSG[level, s, view.window_LW[a, n]] + costs.onward_QSB[q, s, a + 1 + n]
            if value < least:
                least, stop = value, a + 1 + n
        entry_Q[i], border_Q[i] = costs.entry_QSG[level, s, view.window_LW[a, stop - a - 1]], stop
        if q == 0:
            return
        least, going = np.inf, s
        for t in range(num_sites):
            back = costs.credit_S[t] if t != s else 0.0
            value = view.hop_BSS[stop, s, t] - back + costs.stage_QLS[q - 1, stop, t]
            if value < least:
                least, going = value, t
        a, s, q, i = stop, going, q - 1, i + 1


@compiled
def relaxed_paths(
    view: View,
    clusters: Clusters,
    costs: Costs,
    rate_C: FloatArray,
    entry_NQ: IntArray,
    border_NQ: IntArray,
    num_N: IntArray,
) -> tuple[float, int]:
    """Least cost of any path (infinite without one), and how many of the best paths were noted.

    At most one path per first site and number of stages, cheapest first, `num_N` stages each. `costs` is left
    filled for the label search.
    """
    charge_entries(view, clusters, costs, rate_C)
    costs_to_go(view, costs)
    num_stages, num_sites = costs.stage_QLS.shape[0], costs.credit_S.size
    taken_QS = np.zeros((num_stages, num_sites), np.bool_)
    value = np.inf
    for n in range(num_N.size):
        least, first_q, first_s = np.inf, -1, -1
        for q in range(num_stages):
            for s in range(num_sites):
                cost = costs.stage_QLS[q, 0, s] - costs.credit_S[s]
                if not taken_QS[q, s] and cost < least:
                    least, first_q, first_s = cost, q, s
        if first_q < 0:
            return value, n
        taken_QS[first_q, first_s] = True
        value = min(value, least)
        trace_path(view, costs, first_q, first_s, entry_NQ[n], border_NQ[n])
        num_N[n] = first_q + 1
    return value, num_N.size
