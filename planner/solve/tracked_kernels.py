"""Shortest replica paths that count the devices of a few classes exactly, compiled.

As `path_kernels`, with the state extended by the devices of the tracked classes that the rest of the path may
still take: no path uses such a class more often than it has devices, so the least cost lies nearer to that of
a real replica. Other classes stay with their usage multipliers.

Legend: see path_kernels.py; U budgets (devices left per tracked class, mixed radix, all of them last), D
distinct uses of tracked classes by a cluster (0 is none), T sites with tracked classes, I tracked classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.solve.jit import compiled, compiled_part
from planner.solve.path_kernels import (
    INF,
    NEAR_FRAC,
    Devices,
    Scratch,
    charge,
    fill_hops,
    is_real,
    measure,
    spread_levels,
)
from planner.solve.paths import Int32Array, Paths
from planner.solve.tables import FloatArray


class Budgets(NamedTuple):
    """What cluster use means for a choice of tracked classes.

    Cluster j makes use `use_J[j]` of the tracked classes, -1 when of more than there are. Use d leaves
    `u - step_D[d]` of budget u; `bar_DU` is infinite where u doesn't suffice. `slot_S` is -1 for sites
    without tracked classes.
    """

    use_J: Int32Array
    step_D: NDArray[np.int64]
    bar_DU: FloatArray
    slot_S: Int32Array


class TrackedScratch(NamedTuple):
    """Work arrays of one thread for one choice of tracked classes; see `Budgets`."""

    budgets: Budgets
    cost_THD: FloatArray
    entry_THD: Int32Array
    stage_QLSU: FloatArray
    onward_QBSU: FloatArray


def num_budgets(devices: Devices, tracked: Sequence[int]) -> int:
    """Budgets that tracking these classes tells apart."""
    return int(np.prod([devices.devices_C[c] + 1.0 for c in tracked]))


def build_budgets(devices: Devices, tracked: Sequence[int]) -> Budgets:
    """Budgets and uses of the tracked classes."""
    most_I = np.array([int(devices.devices_C[c]) for c in tracked], dtype=np.int64)
    radix_I = np.cumprod([1, *(most_I[::-1] + 1)])[:-1][::-1]
    num_templates, num_parts = devices.site_J.size, np.diff(devices.part_J)
    template_U = np.repeat(np.arange(num_templates), num_parts)
    used_JI = np.zeros((num_templates, most_I.size), dtype=np.int64)
    for i, c in enumerate(tracked):
        of_class = devices.class_U == c
        np.add.at(used_JI[:, i], template_U[of_class], devices.count_U[of_class].astype(np.int64))
    fits_J = np.all(used_JI <= most_I, axis=1)
    step_J = used_JI @ radix_I
    step_D = np.unique(np.append(step_J[fits_J], 0))
    use_J = np.where(fits_J, np.searchsorted(step_D, step_J), -1)
    budget_UI = np.arange(int(np.prod(most_I + 1)))[:, None] // radix_I % (most_I + 1)
    used_DI = step_D[:, None] // radix_I % (most_I + 1)
    suffices_DU = np.all(budget_UI[None, :, :] >= used_DI[:, None, :], axis=2)
    slot_S = np.full(int(max(devices.site_C.max(), devices.site_J.max(initial=0))) + 1, -1, dtype=np.int32)
    sites = sorted({int(devices.site_C[c]) for c in tracked})
    slot_S[sites] = np.arange(len(sites))
    return Budgets(
        use_J=use_J.astype(np.int32),
        step_D=step_D.astype(np.int64),
        bar_DU=np.where(suffices_DU, 0.0, INF),
        slot_S=slot_S,
    )


def new_tracked(paths: Paths, devices: Devices, tracked: Sequence[int]) -> TrackedScratch:
    """Work arrays for a mode and the classes to track."""
    budgets = build_budgets(devices, tracked)
    num_uses, num_budget = budgets.bar_DU.shape
    num_sites, num_layers = paths.transfer_BST.shape[1], paths.window_LW.shape[0]
    cells = (int(budgets.slot_S.max()) + 1, paths.num_levels * paths.num_signatures, num_uses)
    return TrackedScratch(
        budgets=budgets,
        cost_THD=np.empty(cells),
        entry_THD=np.empty(cells, dtype=np.int32),
        stage_QLSU=np.empty((paths.num_stages, num_layers, num_sites, num_budget)),
        onward_QBSU=np.empty((paths.num_stages, num_layers + 1, num_sites, num_budget)),
    )


@compiled
def fill_uses(paths: Paths, scratch: Scratch, tracked: TrackedScratch, upto_s: float, weight: float) -> None:
    """Least cost and its entry for every cell; at sites with tracked classes for every use of these."""
    cost, entry = scratch.cost_X, scratch.entry_X
    cost_THD, entry_THD = tracked.cost_THD, tracked.entry_THD
    num_sites, width = scratch.credit_S.size, cost.size // paths.num_levels
    for i in range(cost.size):
        cost[i] = INF
        entry[i] = -1
    for t in range(cost_THD.shape[0]):
        for h in range(cost_THD.shape[1]):
            for d in range(cost_THD.shape[2]):
                cost_THD[t, h, d] = INF
                entry_THD[t, h, d] = -1
    for p in range(paths.cell_P.size + 1):
        if p == paths.num_spread:
            spread_levels(paths, scratch, width)
            spread_uses(paths, tracked)
        if p == paths.cell_P.size:
            break
        x = paths.cell_P[p]
        h = x // num_sites
        t = tracked.budgets.slot_S[x % num_sites]
        for e in range(paths.start_P[p], paths.start_P[p + 1]):
            if paths.load_E[e] > upto_s:
                break
            value = scratch.price_J[paths.template_E[e]] + weight * paths.busy_E[e]
            if t < 0:
                if value < cost[x]:
                    cost[x] = value
                    entry[x] = e
            else:
                d = tracked.budgets.use_J[paths.template_E[e]]
                if d >= 0 and value < cost_THD[t, h, d]:
                    cost_THD[t, h, d] = value
                    entry_THD[t, h, d] = e
    for h in range(scratch.used_H.size):
        used = False
        for x in range(h * num_sites, (h + 1) * num_sites):
            used = used or cost[x] < INF
        for t in range(cost_THD.shape[0]):
            for d in range(cost_THD.shape[2]):
                used = used or cost_THD[t, h, d] < INF
        scratch.used_H[h] = used


@compiled_part
def spread_uses(paths: Paths, tracked: TrackedScratch) -> None:
    """What fits on a level fits on all levels below."""
    cost, entry = tracked.cost_THD, tracked.entry_THD
    width = paths.num_signatures
    for t in range(cost.shape[0]):
        for h in range((paths.num_levels - 1) * width - 1, -1, -1):
            for d in range(cost.shape[2]):
                if cost[t, h + width, d] < cost[t, h, d]:
                    cost[t, h, d] = cost[t, h + width, d]
                    entry[t, h, d] = entry[t, h + width, d]


@compiled_part
def go_on(scratch: Scratch, tracked: TrackedScratch, q: int) -> None:
    """Costs to go after a stage with q more stages behind it."""
    stage_QLSU, onward_QBSU = tracked.stage_QLSU, tracked.onward_QBSU
    num_borders, num_sites, num_budget = onward_QBSU.shape[1], onward_QBSU.shape[2], onward_QBSU.shape[3]
    for b in range(num_borders):
        start = 0.0 if q == 0 and b == num_borders - 1 else INF
        for s in range(num_sites):
            ahead = onward_QBSU[q, b, s]
            for u in range(num_budget):
                ahead[u] = start
            if q > 0 and 0 < b < num_borders - 1:
                for t in range(num_sites):
                    hop = scratch.hop_BST[b, t, s]
                    behind = stage_QLSU[q - 1, b, t]
                    if hop == INF or behind[num_budget - 1] == INF:
                        continue
                    for u in range(num_budget):
                        value = hop + behind[u]
                        ahead[u] = value if value < ahead[u] else ahead[u]


@compiled_part
def add_stage(scratch: Scratch, tracked: TrackedScratch, q: int, a: int, h: int, stop: int) -> None:
    """Costs of a stage on layers [a, stop) at every site and budget, q stages behind it."""
    slot_S, step_D, bar_DU = tracked.budgets.slot_S, tracked.budgets.step_D, tracked.budgets.bar_DU
    num_sites, num_budget = tracked.stage_QLSU.shape[2], tracked.stage_QLSU.shape[3]
    for s in range(num_sites):
        ahead, here = tracked.onward_QBSU[q, stop, s], tracked.stage_QLSU[q, a, s]
        if ahead[num_budget - 1] == INF:
            continue
        t = slot_S[s]
        if t < 0:
            cost = scratch.cost_X[h * num_sites + s]
            if cost == INF:
                continue
            for u in range(num_budget):
                value = cost + ahead[u]
                here[u] = value if value < here[u] else here[u]
            continue
        for d in range(step_D.size):
            cost = tracked.cost_THD[t, h, d]
            if cost == INF:
                continue
            step, bar = step_D[d], bar_DU[d]
            if step >= 0:  # tells the compiler that no index is negative
                for v in range(num_budget - step):
                    u = v + step
                    value = cost + ahead[v] + bar[u]
                    here[u] = value if value < here[u] else here[u]


@compiled
def run_stages(paths: Paths, scratch: Scratch, tracked: TrackedScratch) -> float:
    """Fill the costs to go; comes back with the least cost of any path, infinite when there is none."""
    num_stages, num_layers, num_sites, num_budget = tracked.stage_QLSU.shape
    least = INF
    for q in range(num_stages):
        go_on(scratch, tracked, q)
        level_h = min(q, paths.num_levels - 1) * paths.num_signatures
        for a in range(num_layers):
            for s in range(num_sites):
                for u in range(num_budget):
                    tracked.stage_QLSU[q, a, s, u] = INF
            for n in range(num_layers - a if q > 0 else 1):
                length = n + 1 if q > 0 else num_layers - a
                h = level_h + paths.window_LW[a, length - 1]
                if scratch.used_H[h]:
                    add_stage(scratch, tracked, q, a, h, a + length)
        for s in range(num_sites):
            least = min(least, tracked.stage_QLSU[q, 0, s, num_budget - 1] - scratch.credit_S[s])
    return least


@compiled_part
def trace_tracked(paths: Paths, scratch: Scratch, tracked: TrackedScratch, q: int, s: int) -> int:
    """The least path from site s with q + 1 stages: its entries and first layers; returns how many stages."""
    stage_QLSU, onward_QBSU = tracked.stage_QLSU, tracked.onward_QBSU
    step_D, bar_DU = tracked.budgets.step_D, tracked.budgets.bar_DU
    num_layers, num_sites, num_budget = stage_QLSU.shape[1], stage_QLSU.shape[2], stage_QLSU.shape[3]
    layer, k, u = 0, 0, num_budget - 1
    while True:
        level_h = min(q, paths.num_levels - 1) * paths.num_signatures
        t = tracked.budgets.slot_S[s]
        best, stop, at, left = INF, -1, -1, -1
        for length in range(1, num_layers - layer + 1):
            h = level_h + paths.window_LW[layer, length - 1]
            for d in range(1 if t < 0 else step_D.size):
                if bar_DU[d, u] == INF:
                    continue
                v = u - step_D[d]
                cost = scratch.cost_X[h * num_sites + s] if t < 0 else tracked.cost_THD[t, h, d]
                value = cost + onward_QBSU[q, layer + length, s, v]
                if value < best:
                    best, stop, left = value, layer + length, v
                    at = scratch.entry_X[h * num_sites + s] if t < 0 else tracked.entry_THD[t, h, d]
        scratch.entry_K[k] = at
        scratch.start_K[k] = layer
        k += 1
        if q == 0:
            return k
        least, then = INF, -1
        for other in range(num_sites):
            value = scratch.hop_BST[stop, other, s] + stage_QLSU[q - 1, stop, other, left]
            if value < least:
                least, then = value, other
        s, layer, u, q = then, stop, left, q - 1


@compiled
def pick(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    tracked: TrackedScratch,
    limit: float,
    price_C: FloatArray,
    rho: float,
    nu: float,
    tokens: float,
    worth_min: float,
) -> tuple[float, float, float, bool, int, float]:
    """Measure the cheapest path, keep the real replicas among those of at most `limit`; see `price_paths`."""
    num_stages, _, num_sites, num_budget = tracked.stage_QLSU.shape
    best_turn, least = -1, INF
    for turn in range(num_stages * num_sites):
        q, s = turn // num_sites, turn % num_sites
        cost = tracked.stage_QLSU[q, 0, s, num_budget - 1] - scratch.credit_S[s]
        if cost < least:
            least, best_turn = cost, turn
    num_found, best_worth, fill_s, price, load_s, real = 0, 0.0, INF, INF, INF, False
    # the cheapest path comes last, so that its usage and visits are the ones left behind
    for i in range(num_stages * num_sites + 1):
        is_last = i == num_stages * num_sites
        turn = best_turn if is_last else i
        q, s = turn // num_sites, turn % num_sites
        cost = tracked.stage_QLSU[q, 0, s, num_budget - 1] - scratch.credit_S[s]
        if cost > limit and not is_last:
            continue
        size = trace_tracked(paths, scratch, tracked, q, s)
        fill_s, load_s, step_s = measure(paths, devices, scratch, size)
        price = 0.0
        for c in range(scratch.usage_C.size):
            price += price_C[c] * scratch.usage_C[c]
        worth = INF if price + rho <= 0.0 else (tokens / step_s + nu) / (price + rho)
        if is_last or worth >= worth_min:
            real = is_real(devices, scratch)
        if not is_last and worth >= worth_min and real and num_found < scratch.size_I.size:
            best_worth = max(best_worth, worth)
            for k in range(size):
                scratch.found_IK[num_found, k] = scratch.entry_K[k]
                scratch.begin_IK[num_found, k] = scratch.start_K[k]
            scratch.size_I[num_found] = size
            num_found += 1
    return fill_s, price, load_s, real, num_found, best_worth


def price_tracked(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    tracked: TrackedScratch,
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
    """As `price_paths`, over paths that use no tracked class more often than it has devices.

    Not compiled itself: one function around all others would be compiled a second time with them.
    """
    weight = time_weight * paths.fill
    once = charge(devices, scratch, price_C, price_weight, usage_2C)
    fill_uses(paths, scratch, tracked, upto_s, weight)
    fill_hops(paths, scratch, upto_s, weight)
    value = run_stages(paths, scratch, tracked)
    if value == INF:
        return INF, INF, INF, INF, False, 0, 0.0
    limit = value + NEAR_FRAC * abs(value)
    picked = pick(paths, devices, scratch, tracked, limit, price_C, rho, nu, tokens, worth_min)
    return (value - once - 1e-11 * (abs(value) + once), *picked)
