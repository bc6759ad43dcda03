"""Shortest replica paths under prices, compiled: the relaxed pricing problem for loads up to a limit.

A path is a chain of stages from layer 0 to L. Its cost is `time_weight * w + prices of its clusters`, w being
the fill time, over clusters and links whose load stays within `upto_s`. The relaxation: a path may use a
class more often than it has devices. Each maximal visit to a site gets that site's credit back.

Legend: E entries, P cells with entries, X dense cells, H pairs of level and signature, J templates, Q stages
left - 1 (cells: in-flight level), S and T sites, G signatures, L layers, B layer borders, C device classes, R
capacity rows, U parts of clusters, Y entries of rows, K stages of a path, I found replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.problem import BoundaryProblem
from planner.solve.columns import Shape
from planner.solve.jit import compiled
from planner.solve.paths import Int32Array, Paths
from planner.solve.tables import FloatArray

INF = np.inf
NEAR_FRAC = 0.05
"""Paths no dearer than this above the cheapest are looked at too."""
FOUND_MAX = 64


class Scratch(NamedTuple):
    """Work arrays of one thread; the last run's costs to go stay in them for `trace`.

    `price_paths` leaves the usage and visits of the cheapest path in `usage_C` and `visits_S`, and in the
    first elements of `found_IK`, `begin_IK` and `size_I` the entries, first layers and lengths of replicas
    found.
    """

    cost_X: FloatArray
    entry_X: Int32Array
    used_H: NDArray[np.bool_]
    hop_BST: FloatArray
    stage_QLS: FloatArray
    onward_QBS: FloatArray
    price_J: FloatArray
    credit_S: FloatArray
    usage_C: FloatArray
    used_R: FloatArray
    visits_S: FloatArray
    entry_K: Int32Array
    start_K: Int32Array
    found_IK: Int32Array
    begin_IK: Int32Array
    size_I: Int32Array


class Devices(NamedTuple):
    """What the kernels know of classes and clusters.

    Cluster j takes `count_U[u]` devices of class `class_U[u]` for u in `[part_J[j], part_J[j + 1])`; a device
    of class c weighs `weight_Y[y]` in capacity row `row_Y[y]` for y in `[rows_C[c], rows_C[c + 1])`.
    """

    part_J: Int32Array
    class_U: Int32Array
    count_U: FloatArray
    site_J: Int32Array
    site_C: Int32Array
    devices_C: FloatArray
    rows_C: Int32Array
    row_Y: Int32Array
    weight_Y: FloatArray
    limit_R: FloatArray


def build_devices(problem: BoundaryProblem, shape: Shape) -> Devices:
    """Sparse usage and capacity of a boundary."""
    no_numbers = np.zeros(0)
    used_J = [np.flatnonzero(usage_C) for usage_C in shape.usage_JC]
    rows_C = [np.flatnonzero(shape.coefficient_RC[:, c]) for c in range(shape.devices_C.size)]
    return Devices(
        part_J=_offsets(used_J),
        class_U=_joined(used_J),
        count_U=np.concatenate([no_numbers, *(shape.usage_JC[j, used] for j, used in enumerate(used_J))]),
        site_J=np.array([t.site_i for t in problem.templates], dtype=np.int32),
        site_C=shape.site_C.astype(np.int32),
        devices_C=shape.devices_C.astype(np.float64),
        rows_C=_offsets(rows_C),
        row_Y=_joined(rows_C),
        weight_Y=np.concatenate(
            [no_numbers, *(shape.coefficient_RC[rows, c] for c, rows in enumerate(rows_C))]
        ),
        limit_R=shape.limit_R.astype(np.float64),
    )


def _offsets(lists: Sequence[NDArray[np.intp]]) -> Int32Array:
    return np.cumsum([0, *(part.size for part in lists)]).astype(np.int32)


def _joined(lists: Sequence[NDArray[np.intp]]) -> Int32Array:
    return np.concatenate([np.zeros(0, dtype=np.intp), *lists]).astype(np.int32)


def new_scratch(paths: Paths, devices: Devices) -> Scratch:
    """Work arrays that fit a mode."""
    num_sites, num_layers = paths.transfer_BST.shape[1], paths.window_LW.shape[0]
    num_cells = paths.num_levels * num_sites * paths.num_signatures
    return Scratch(
        cost_X=np.empty(num_cells),
        entry_X=np.empty(num_cells, dtype=np.int32),
        used_H=np.empty(paths.num_levels * paths.num_signatures, dtype=np.bool_),
        hop_BST=np.empty((num_layers + 1, num_sites, num_sites)),
        stage_QLS=np.empty((paths.num_stages, num_layers, num_sites)),
        onward_QBS=np.empty((paths.num_stages, num_layers + 1, num_sites)),
        price_J=np.empty(devices.site_J.size),
        credit_S=np.empty(num_sites),
        usage_C=np.empty(devices.devices_C.size),
        used_R=np.empty(devices.limit_R.size),
        visits_S=np.empty(num_sites),
        entry_K=np.empty(paths.num_stages, dtype=np.int32),
        start_K=np.empty(paths.num_stages, dtype=np.int32),
        found_IK=np.empty((FOUND_MAX, paths.num_stages), dtype=np.int32),
        begin_IK=np.empty((FOUND_MAX, paths.num_stages), dtype=np.int32),
        size_I=np.empty(FOUND_MAX, dtype=np.int32),
    )


@compiled
def fill_cells(paths: Paths, scratch: Scratch, upto_s: float, weight: float) -> None:
    """Least cost and its entry for every (level, signature, site)."""
    cost, entry = scratch.cost_X, scratch.entry_X
    width = cost.size // paths.num_levels
    for i in range(cost.size):
        cost[i] = INF
        entry[i] = -1
    for p in range(paths.cell_P.size):
        if p == paths.num_spread:
            spread_levels(paths, scratch, width)
        best, at = INF, -1
        for e in range(paths.start_P[p], paths.start_P[p + 1]):
            if paths.load_E[e] > upto_s:
                break
            value = scratch.price_J[paths.template_E[e]] + weight * paths.busy_E[e]
            if value < best:
                best, at = value, e
        x = paths.cell_P[p]
        if best < cost[x]:
            cost[x] = best
            entry[x] = at
    if paths.cell_P.size == paths.num_spread:
        spread_levels(paths, scratch, width)
    num_sites = scratch.credit_S.size
    for h in range(scratch.used_H.size):
        scratch.used_H[h] = False
        for x in range(h * num_sites, (h + 1) * num_sites):
            if cost[x] < INF:
                scratch.used_H[h] = True


@compiled
def spread_levels(paths: Paths, scratch: Scratch, width: int) -> None:
    """What fits on a level fits on all levels below."""
    cost, entry = scratch.cost_X, scratch.entry_X
    for i in range((paths.num_levels - 1) * width - 1, -1, -1):
        if cost[i + width] < cost[i]:
            cost[i] = cost[i + width]
            entry[i] = entry[i + width]


@compiled
def fill_hops(paths: Paths, scratch: Scratch, upto_s: float, weight: float) -> None:
    """Cost of going on from site s to t at a border; entering another site returns its credit."""
    hop = scratch.hop_BST
    for b in range(hop.shape[0]):
        for t in range(hop.shape[1]):
            for s in range(hop.shape[2]):
                transfer_s = paths.transfer_BST[b, t, s]
                if transfer_s < INF and paths.repeats * transfer_s <= upto_s:
                    hop[b, t, s] = weight * transfer_s - (0.0 if s == t else scratch.credit_S[t])
                else:
                    hop[b, t, s] = INF


@compiled
def run_paths(paths: Paths, scratch: Scratch, upto_s: float, time_weight: float) -> float:
    """Fill the costs to go; comes back with the least cost of any path, infinite when there is none."""
    weight = time_weight * paths.fill
    fill_cells(paths, scratch, upto_s, weight)
    fill_hops(paths, scratch, upto_s, weight)
    stage_QLS, onward_QBS = scratch.stage_QLS, scratch.onward_QBS
    num_stages, num_layers, num_sites = stage_QLS.shape
    least = INF
    for q in range(num_stages):
        for b in range(num_layers + 1):
            ahead = onward_QBS[q, b]
            for s in range(num_sites):
                ahead[s] = 0.0 if q == 0 and b == num_layers else INF
            if q > 0 and 0 < b < num_layers:
                for t in range(num_sites):
                    leg, behind = scratch.hop_BST[b, t], stage_QLS[q - 1, b, t]
                    for s in range(num_sites):
                        value = leg[s] + behind
                        ahead[s] = value if value < ahead[s] else ahead[s]
        level_h = min(q, paths.num_levels - 1) * paths.num_signatures
        for a in range(num_layers):
            here = stage_QLS[q, a]
            for s in range(num_sites):
                here[s] = INF
            for n in range(num_layers - a if q > 0 else 1):
                length = n + 1 if q > 0 else num_layers - a
                h = level_h + paths.window_LW[a, length - 1]
                if scratch.used_H[h]:
                    ahead = onward_QBS[q, a + length]
                    x = h * num_sites
                    for s in range(num_sites):
                        value = scratch.cost_X[x + s] + ahead[s]
                        here[s] = value if value < here[s] else here[s]
        for s in range(num_sites):
            least = min(least, stage_QLS[q, 0, s] - scratch.credit_S[s])
    return least


@compiled
def trace(paths: Paths, scratch: Scratch, q: int, s: int) -> int:
    """Write down the least path from site s with q + 1 stages: entries and first layers. Returns how many."""
    num_layers, num_sites = scratch.stage_QLS.shape[1], scratch.stage_QLS.shape[2]
    layer, k = 0, 0
    while True:
        level_h = min(q, paths.num_levels - 1) * paths.num_signatures
        best, stop, at = INF, -1, -1
        for length in range(1, num_layers - layer + 1):
            x = (level_h + paths.window_LW[layer, length - 1]) * num_sites + s
            value = scratch.cost_X[x] + scratch.onward_QBS[q, layer + length, s]
            if value < best:
                best, stop, at = value, layer + length, x
        scratch.entry_K[k] = scratch.entry_X[at]
        scratch.start_K[k] = layer
        k += 1
        if q == 0:
            return k
        least, then = INF, -1
        for t in range(num_sites):
            value = scratch.hop_BST[stop, t, s] + scratch.stage_QLS[q - 1, stop, t]
            if value < least:
                least, then = value, t
        s, layer, q = then, stop, q - 1


@compiled
def measure(paths: Paths, devices: Devices, scratch: Scratch, num_stages: int) -> tuple[float, float, float]:
    """Fill seconds, load and step seconds of the traced path; fills its usage and the visits to each site."""
    usage_C, visits_S = scratch.usage_C, scratch.visits_S
    for c in range(usage_C.size):
        usage_C[c] = 0.0
    for s in range(visits_S.size):
        visits_S[s] = 0.0
    total_s, slowest_s, load_s, sync_s = 0.0, 0.0, 0.0, 0.0
    before = -1
    for k in range(num_stages):
        e = scratch.entry_K[k]
        j = paths.template_E[e]
        site = devices.site_J[j]
        for u in range(devices.part_J[j], devices.part_J[j + 1]):
            usage_C[devices.class_U[u]] += devices.count_U[u]
        if site != before:
            visits_S[site] += 1.0
        if k > 0:
            transfer_s = paths.transfer_BST[scratch.start_K[k], site, before]
            total_s += transfer_s
            slowest_s = max(slowest_s, transfer_s)
            load_s = max(load_s, paths.repeats * transfer_s)
        busy_s = paths.busy_E[e]
        total_s += busy_s
        slowest_s = max(slowest_s, busy_s)
        load_s = max(load_s, paths.load_E[e])
        sync_s = max(sync_s, paths.load_E[e] - paths.repeats * busy_s)
        before = site
    fill_s = paths.fill * total_s
    step_s = fill_s + paths.repeats * slowest_s + (sync_s if paths.sync else 0.0)
    return fill_s, load_s, step_s


@compiled
def is_real(devices: Devices, scratch: Scratch) -> bool:
    """Whether the capacity rows allow one replica of the measured usage."""
    used_R = scratch.used_R
    for r in range(used_R.size):
        used_R[r] = 0.0
    for c in range(scratch.usage_C.size):
        if scratch.usage_C[c] > 0.0:
            for y in range(devices.rows_C[c], devices.rows_C[c + 1]):
                used_R[devices.row_Y[y]] += devices.weight_Y[y] * scratch.usage_C[c]
    too_much = False
    for r in range(used_R.size):
        too_much = too_much or used_R[r] > devices.limit_R[r] * (1.0 + 1e-12) + 1e-9
    return not too_much


@compiled
def charge(
    devices: Devices, scratch: Scratch, price_C: FloatArray, price_weight: float, usage_2C: FloatArray
) -> float:
    """Set cluster prices and site credits under usage multipliers; returns what every path gets back once."""
    once = 0.0
    for s in range(scratch.credit_S.size):
        scratch.credit_S[s] = 0.0
    for c in range(devices.devices_C.size):
        once += usage_2C[1, c] * devices.devices_C[c]
        scratch.credit_S[devices.site_C[c]] += usage_2C[0, c] * devices.devices_C[c]
    for j in range(scratch.price_J.size):
        total = 0.0
        for u in range(devices.part_J[j], devices.part_J[j + 1]):
            c = devices.class_U[u]
            total += devices.count_U[u] * (price_weight * price_C[c] + usage_2C[0, c] + usage_2C[1, c])
            if devices.count_U[u] > devices.devices_C[c]:  # when part of the fleet is spoken for
                total = INF
        scratch.price_J[j] = total
    return once


@compiled
def price_paths(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    upto_s: float,
    time_weight: float,
    price_weight: float,
    usage_2C: FloatArray,
    price_C: FloatArray,
    rho: float,
    nu: float,
    tokens: float,
    worth_min: float,
) -> tuple[float, float, float, float, bool, int, float]:
    """Least cost of a path under prices and usage multipliers, and the real replicas among the best paths.

    Returns that cost, a lower bound for every real path; fill seconds, price and load of the cheapest path,
    and whether it is real; how many replicas of at least `worth_min` were found, one per start site and count
    of stages at most; and the largest worth among them. The cost is infinite when there is no path.
    """
    once = charge(devices, scratch, price_C, price_weight, usage_2C)
    value = run_paths(paths, scratch, upto_s, time_weight)
    if value == INF:
        return INF, INF, INF, INF, False, 0, 0.0
    stage_QLS = scratch.stage_QLS
    num_stages, num_sites = stage_QLS.shape[0], stage_QLS.shape[2]
    best_q, best_s, least = -1, -1, INF
    for q in range(num_stages):
        for s in range(num_sites):
            if stage_QLS[q, 0, s] - scratch.credit_S[s] < least:
                least, best_q, best_s = stage_QLS[q, 0, s] - scratch.credit_S[s], q, s
    num_found, best_worth, fill_s, price, load_s, real = 0, 0.0, INF, INF, INF, False
    limit = value + NEAR_FRAC * abs(value)
    # the cheapest path comes last, so that its usage and visits are the ones left behind
    for turn in range(num_stages * num_sites + 1):
        q, s = turn // num_sites, turn % num_sites
        if turn == num_stages * num_sites:
            q, s = best_q, best_s
        elif stage_QLS[q, 0, s] - scratch.credit_S[s] > limit:
            continue
        size = trace(paths, scratch, q, s)
        fill_s, load_s, step_s = measure(paths, devices, scratch, size)
        price = 0.0
        for c in range(scratch.usage_C.size):
            price += price_C[c] * scratch.usage_C[c]
        worth = INF if price + rho <= 0.0 else (tokens / step_s + nu) / (price + rho)
        is_last = turn == num_stages * num_sites
        if is_last or worth >= worth_min:
            real = is_real(devices, scratch)
        if not is_last and worth >= worth_min and real and num_found < scratch.size_I.size:
            best_worth = max(best_worth, worth)
            for k in range(size):
                scratch.found_IK[num_found, k] = scratch.entry_K[k]
                scratch.begin_IK[num_found, k] = scratch.start_K[k]
            scratch.size_I[num_found] = size
            num_found += 1
    value -= once + 1e-11 * (abs(value) + once)
    return value, fill_s, price, load_s, real, num_found, best_worth
