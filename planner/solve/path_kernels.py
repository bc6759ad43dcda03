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
from planner.solve.jit import compiled, compiled_part
from planner.solve.paths import Int32Array, Paths
from planner.solve.tables import FloatArray

INF = np.inf
NEAR_FRAC = 0.05
"""Paths no dearer than this above the cheapest are looked at too."""
FOUND_MAX = 64


class Scratch(NamedTuple):
    """Work arrays of one thread; the last run's costs to go stay in them for `trace`.

    `price_paths` leaves the usage and visits of the cheapest path in `usage_C` and `visits_S`, and in the
    first elements of `found_IK`, `begin_IK`, `size_I` and `worth_I` the entries, first layers, lengths and
    worth of replicas found. `stage_QSL[q, s, a]` is the cost from a stage on that begins with layer a and has
    q more behind it, `onward_QSB[q, s, b]` of what follows such a stage that ends at border b.
    """

    cost_QSG: FloatArray
    hop_IST: FloatArray
    stage_QSL: FloatArray
    onward_QSB: FloatArray
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
    worth_I: FloatArray


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
    return Scratch(
        cost_QSG=np.empty((paths.num_levels, num_sites, paths.num_signatures)),
        hop_IST=np.empty((paths.from_I.size, num_sites, num_sites)),
        stage_QSL=np.empty((paths.num_stages, num_sites, num_layers)),
        onward_QSB=np.empty((paths.num_stages, num_sites, num_layers + 1)),
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
        worth_I=np.empty(FOUND_MAX),
    )


@compiled_part
def fill_cells(paths: Paths, scratch: Scratch, upto_s: float, weight: float) -> None:
    """Least cost for every (level, site, signature)."""
    cost = scratch.cost_QSG.reshape(-1)
    cost[:] = INF
    add_runs(paths, scratch, (0, paths.num_spread), upto_s, weight)
    width = scratch.cost_QSG.shape[1] * scratch.cost_QSG.shape[2]
    for q in range(paths.num_levels - 2, -1, -1):  # what fits on a level fits on all levels below
        first, above = np.uint64(q * width), np.uint64(width)
        for x in range(first, first + above):
            value, old = cost[x + above], cost[x] + 0.0
            cost[x] = value if value < old else old
    add_runs(paths, scratch, (paths.num_spread, paths.template_N.size), upto_s, weight)


@compiled_part
def add_runs(paths: Paths, scratch: Scratch, which: tuple[int, int], upto_s: float, weight: float) -> None:
    """Enter the part of these runs that the load limit leaves into the cells."""
    cost, price_J = scratch.cost_QSG.reshape(-1), scratch.price_J
    num_sites, num_signatures = scratch.cost_QSG.shape[1], scratch.cost_QSG.shape[2]
    busy_E, load_E, start_N = paths.busy_E, paths.load_E, paths.start_N
    template_N, level_N, site_N, signature_N = (
        paths.template_N,
        paths.level_N,
        paths.site_N,
        paths.signature_N,
    )
    for n in range(which[0], which[1]):
        first, stop = start_N[n], start_N[n + 1]
        if load_E[first] > upto_s:
            break
        while load_E[stop - 1] > upto_s:
            stop -= 1
        price = price_J[template_N[n]]
        x = np.uint64((level_N[n] * num_sites + site_N[n]) * num_signatures + signature_N[n])
        e = np.uint64(first)
        for i in range(np.uint64(stop - first)):
            value = price + weight * busy_E[e + i]
            old = cost[x + i] + 0.0
            cost[x + i] = value if value < old else old


@compiled
def fill_hops(paths: Paths, scratch: Scratch, upto_s: float, weight: float) -> None:
    """Cost of going on from site s to t at a run of borders; entering another site returns its credit."""
    hop = scratch.hop_IST
    for i in range(hop.shape[0]):
        b = paths.from_I[i]
        for s in range(hop.shape[1]):
            for t in range(hop.shape[2]):
                transfer_s = paths.transfer_BST[b, t, s]
                if transfer_s < INF and paths.repeats * transfer_s <= upto_s:
                    hop[i, s, t] = weight * transfer_s - (0.0 if s == t else scratch.credit_S[t])
                else:
                    hop[i, s, t] = INF


@compiled_part
def run_paths(paths: Paths, scratch: Scratch, upto_s: float, time_weight: float) -> float:
    """Fill the costs to go; comes back with the least cost of any path, infinite when there is none."""
    weight = time_weight * paths.fill
    fill_cells(paths, scratch, upto_s, weight)
    fill_hops(paths, scratch, upto_s, weight)
    stage_QSL = scratch.stage_QSL
    num_stages, num_sites, _ = stage_QSL.shape
    least, low = INF, 0
    for q in range(num_stages):
        if q > 0:
            go_on(paths, scratch, q, low)
        add_stage(paths, scratch, q, low)
        low = lowest(stage_QSL[q])
        for s in range(num_sites):
            least = min(least, stage_QSL[q, s, 0] - scratch.credit_S[s])
    return least


@compiled_part
def lowest(stage_SL: FloatArray) -> int:
    """The first layer that a stage with so many behind it can begin with at all."""
    for a in range(stage_SL.shape[1]):
        for s in range(stage_SL.shape[0]):
            if stage_SL[s, a] < INF:
                return a
    return int(stage_SL.shape[1])


@compiled_part
def go_on(paths: Paths, scratch: Scratch, q: int, low: int) -> None:
    """Costs to go after a stage with q more behind it, of which the next begins with layer `low` at least."""
    hop_IST, from_I, upto_I = scratch.hop_IST, paths.from_I, paths.upto_I
    num_sites = scratch.credit_S.size
    for s in range(num_sites):
        ahead = scratch.onward_QSB[q, s]
        ahead[:] = INF
        for i in range(from_I.size):
            first, stop = (
                np.uint64(max(low, from_I[i])),
                np.uint64(upto_I[i]),
            )  # unsigned: no index is wrapped
            for t in range(num_sites):
                hop = hop_IST[i, s, t]
                if hop < INF:
                    behind = scratch.stage_QSL[q - 1, t]
                    for b in range(first, stop):
                        value = hop + behind[b]
                        old = ahead[b] + 0.0  # keeps the compiler from storing under a mask, far slower
                        ahead[b] = value if value < old else old


@compiled_part
def add_stage(paths: Paths, scratch: Scratch, q: int, low: int) -> None:
    """Costs to go from the beginning of a stage on, q stages behind it; see `go_on`."""
    windows_L, from_W, upto_W, signature_W = paths.windows_L, paths.from_W, paths.upto_W, paths.signature_W
    level = min(q, paths.num_levels - 1)
    for s in range(scratch.credit_S.size):
        cost, here, ahead = scratch.cost_QSG[level, s], scratch.stage_QSL[q, s], scratch.onward_QSB[q, s]
        if q == 0:
            for a in range(here.size):
                here[a] = cost[paths.last_L[a]]
            continue
        here[:] = INF
        most = 0
        for g in range(paths.num_signatures):
            if cost[g] < INF and paths.length_G[g] > most:
                most = paths.length_G[g]
        for length in range(1, min(most + 1, here.size)):
            shift = np.uint64(length)
            for w in range(windows_L[length], windows_L[length + 1]):
                price = cost[signature_W[w]]
                if price < INF:
                    for a in range(np.uint64(max(low - length, from_W[w])), np.uint64(upto_W[w])):
                        value = price + ahead[a + shift]
                        old = here[a] + 0.0
                        here[a] = value if value < old else old


@compiled_part
def entry_at(
    paths: Paths,
    scratch: Scratch,
    at: tuple[int, int, int],
    upto_s: float,
    weight: float,
    use: int,
    use_J: Int32Array,
) -> int:
    """The entry behind the least cost of a cell (level, site, signature).

    With `use` not below 0 only among clusters that make this use of tracked classes.
    """
    level, site, signature = at
    num_sites, num_signatures = scratch.cost_QSG.shape[1], scratch.cost_QSG.shape[2]
    best, found = INF, -1
    for q in range(level, paths.num_levels):
        x = (q * num_sites + site) * num_signatures + signature
        for i in range(paths.cell_start_X[x], paths.cell_start_X[x + 1]):
            e = paths.cell_entry_E[i]
            j = paths.template_E[e]
            if paths.load_E[e] > upto_s or (use >= 0 and use_J[j] != use):
                continue
            if q > level and e >= paths.num_spread_entries:
                continue
            value = scratch.price_J[j] + weight * paths.busy_E[e]
            if value < best:
                best, found = value, e
    return found


@compiled_part
def trace(paths: Paths, scratch: Scratch, q: int, s: int, upto_s: float, weight: float) -> int:
    """Write down the least path from site s with q + 1 stages: entries and first layers. Returns how many."""
    num_sites, num_layers = scratch.stage_QSL.shape[1], scratch.stage_QSL.shape[2]
    layer, k = 0, 0
    while True:
        level = min(q, paths.num_levels - 1)
        cost, ahead = scratch.cost_QSG[level, s], scratch.onward_QSB[q, s]
        best, stop = INF, num_layers
        for length in range(1, num_layers - layer if q > 0 else 0):
            value = cost[paths.window_LW[layer, length - 1]] + ahead[layer + length]
            if value < best:
                best, stop = value, layer + length
        at = (level, s, paths.window_LW[layer, stop - layer - 1])
        scratch.entry_K[k] = entry_at(paths, scratch, at, upto_s, weight, -1, paths.last_L)
        scratch.start_K[k] = layer
        k += 1
        if q == 0:
            return k
        least, then, i = INF, -1, paths.run_B[stop]
        for t in range(num_sites):
            value = scratch.hop_IST[i, s, t] + scratch.stage_QSL[q - 1, t, stop]
            if value < least:
                least, then = value, t
        s, layer, q = then, stop, q - 1


@compiled_part
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


@compiled_part
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


@compiled_part
def appraise(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    size: int,
    price_C: FloatArray,
    rho: float,
    nu: float,
    tokens: float,
) -> tuple[float, float, float, float]:
    """Fill seconds, price, load and worth of the traced path."""
    fill_s, load_s, step_s = measure(paths, devices, scratch, size)
    price = 0.0
    for c in range(scratch.usage_C.size):
        price += price_C[c] * scratch.usage_C[c]
    worth = INF if price + rho <= 0.0 else (tokens / step_s + nu) / (price + rho)
    return fill_s, price, load_s, worth


@compiled_part
def keep(scratch: Scratch, i: int, size: int, worth: float) -> None:
    """Note the traced path as the replica found i-th."""
    for k in range(size):
        scratch.found_IK[i, k] = scratch.entry_K[k]
        scratch.begin_IK[i, k] = scratch.start_K[k]
    scratch.size_I[i] = size
    scratch.worth_I[i] = worth


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
    weight = time_weight * paths.fill
    stage_QSL = scratch.stage_QSL
    num_stages, num_sites, _ = stage_QSL.shape
    num_found, best_worth, best_turn, least = 0, 0.0, -1, INF
    limit = value + NEAR_FRAC * abs(value)
    for turn in range(num_stages * num_sites):
        q, s = turn // num_sites, turn % num_sites
        cost = stage_QSL[q, s, 0] - scratch.credit_S[s]
        if cost < least:
            least, best_turn = cost, turn
        if cost <= limit:
            size = trace(paths, scratch, q, s, upto_s, weight)
            _, _, _, worth = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
            if worth >= worth_min and num_found < scratch.size_I.size and is_real(devices, scratch):
                keep(scratch, num_found, size, worth)
                num_found += 1
                best_worth = max(best_worth, worth)
    # the cheapest path comes last, so that its usage and visits are the ones left behind
    size = trace(paths, scratch, best_turn // num_sites, best_turn % num_sites, upto_s, weight)
    fill_s, price, load_s, _ = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
    real = is_real(devices, scratch)
    value -= once + 1e-11 * (abs(value) + once)
    return value, fill_s, price, load_s, real, num_found, best_worth
