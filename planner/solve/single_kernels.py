"""Innermost loops of the search for one replica: relaxed shortest paths and the raising of usage multipliers.

A path is a chain of stages from layer 0 to L. Prices charge devices, `credit_S` is handed back once per visit
to a site. Costs to go run over (stages left, site, layer).

Legend: E table entries of a load box, P cells with entries, J candidate clusters, K usage pairs of clusters,
Q stages left - 1, S sites, G layer signatures (the last one, always infinite, stands for none), L layers, W
interval lengths, B layer borders, C device classes.
"""

from __future__ import annotations

import numpy as np

from planner.solve.jit import compiled
from planner.solve.tables import FloatArray, IntArray


@compiled
def charge_clusters(first_J: IntArray, class_K: IntArray, count_K: IntArray, rate_C: FloatArray, price_J: FloatArray) -> None:
    """Price of every cluster: devices it takes times what one costs."""
    for j in range(price_J.size):
        price = 0.0
        for k in range(first_J[j], first_J[j + 1]):
            price += count_K[k] * rate_C[class_K[k]]
        price_J[j] = price


@compiled
def cheapest_entries(
    busy_E: FloatArray,
    template_E: IntArray,
    first_P: IntArray,
    cell_P: IntArray,
    price_J: FloatArray,
    cost_QSG: FloatArray,
    entry_QSG: IntArray,
) -> None:
    """Least cost of every cell with entries, and the entry it comes from; other cells stay as they are."""
    cost = cost_QSG.reshape(-1)
    entry = entry_QSG.reshape(-1)
    for p in range(cell_P.size):
        least, at = np.inf, -1
        for e in range(first_P[p], first_P[p + 1]):
            value = busy_E[e] + price_J[template_E[e]]
            if value < least:
                least, at = value, e
        cost[cell_P[p]] = least
        entry[cell_P[p]] = at


@compiled
def costs_to_go(
    cost_QSG: FloatArray, window_LW: IntArray, hop_BSS: FloatArray, credit_S: FloatArray, stage_QLS: FloatArray, onward_QSB: FloatArray
) -> None:
    """Fills `stage_QLS` (a stage starts here) and `onward_QSB` (the stages before have covered up to here)."""
    num_stages, num_layers, num_sites = stage_QLS.shape
    num_levels = cost_QSG.shape[0]
    num_lengths = window_LW.shape[1]
    stage_QLS[:] = np.inf
    onward_QSB[:] = np.inf
    for q in range(num_stages):
        level = min(q, num_levels - 1)
        if q == 0:
            onward_QSB[0, :, num_layers] = 0.0
        else:
            for b in range(1, num_layers):
                for s in range(num_sites):
                    least = hop_BSS[b, s, s] + stage_QLS[q - 1, b, s]
                    for t in range(num_sites):
                        if t != s:
                            least = min(least, hop_BSS[b, s, t] - credit_S[t] + stage_QLS[q - 1, b, t])
                    onward_QSB[q, s, b] = least
        for s in range(num_sites):
            for a in range(num_layers):
                least = np.inf
                for n in range(min(num_lengths, num_layers - a)):
                    value = cost_QSG[level, s, window_LW[a, n]] + onward_QSB[q, s, a + 1 + n]
                    least = min(least, value)
                stage_QLS[q, a, s] = least


@compiled
def trace_path(
    q: int,
    s: int,
    cost_QSG: FloatArray,
    window_LW: IntArray,
    hop_BSS: FloatArray,
    credit_S: FloatArray,
    stage_QLS: FloatArray,
    onward_QSB: FloatArray,
    stop_Q: IntArray,
    site_Q: IntArray,
) -> None:
    """The least path of `q + 1` stages from site `s`: where each stage ends and which site it is in."""
    num_layers, num_sites = stage_QLS.shape[1], stage_QLS.shape[2]
    num_lengths, num_levels = window_LW.shape[1], cost_QSG.shape[0]
    a, i = 0, 0
    while True:
        least, stop = np.inf, a + 1
        for n in range(min(num_lengths, num_layers - a)):
            value = cost_QSG[min(q, num_levels - 1), s, window_LW[a, n]] + onward_QSB[q, s, a + 1 + n]
            if value < least:
                least, stop = value, a + 1 + n
        site_Q[i], stop_Q[i] = s, stop
        if q == 0:
            return
        least, going = np.inf, s
        for t in range(num_sites):
            value = hop_BSS[stop, s, t] + stage_QLS[q - 1, stop, t] - (credit_S[t] if t != s else 0.0)
            if value < least:
                least, going = value, t
        a, s, q, i = stop, going, q - 1, i + 1


@compiled
def usage_of_path(
    num: int,
    stop_Q: IntArray,
    site_Q: IntArray,
    entry_QSG: IntArray,
    window_LW: IntArray,
    template_E: IntArray,
    first_J: IntArray,
    class_K: IntArray,
    count_K: IntArray,
    entry_Q: IntArray,
    used_C: IntArray,
    visits_S: IntArray,
) -> None:
    """Devices a traced path takes and visits it pays to each site; notes the entry of each stage."""
    used_C[:] = 0
    visits_S[:] = 0
    a = 0
    for i in range(num):
        level = min(num - 1 - i, entry_QSG.shape[0] - 1)
        e = entry_QSG[level, site_Q[i], window_LW[a, stop_Q[i] - a - 1]]
        entry_Q[i] = e
        j = template_E[e]
        for k in range(first_J[j], first_J[j + 1]):
            used_C[class_K[k]] += count_K[k]
        if i == 0 or site_Q[i] != site_Q[i - 1]:
            visits_S[site_Q[i]] += 1
        a = stop_Q[i]
