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
    appraise,
    charge,
    entry_at,
    fill_hops,
    is_real,
    keep,
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
    cost_TDQG: FloatArray
    used_QG: NDArray[np.bool_]
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
    levels = (paths.num_levels, paths.num_signatures)
    return TrackedScratch(
        budgets=budgets,
        cost_TDQG=np.empty((int(budgets.slot_S.max()) + 1, num_uses, *levels)),
        used_QG=np.empty(levels, dtype=np.bool_),
        stage_QLSU=np.empty((paths.num_stages, num_layers, num_sites, num_budget)),
        onward_QBSU=np.empty((paths.num_stages, num_layers + 1, num_sites, num_budget)),
    )


@compiled
def fill_uses(paths: Paths, scratch: Scratch, tracked: TrackedScratch, upto_s: float, weight: float) -> None:
    """Least cost of every cell; at sites with tracked classes for every use of these."""
    cost_QSG, cost_TDQG = scratch.cost_QSG, tracked.cost_TDQG
    cost_QSG[:] = INF
    cost_TDQG[:] = INF
    for n in range(paths.template_N.size + 1):
        if n == paths.num_spread:
            spread_levels(scratch, tracked)
        if n == paths.template_N.size:
            break
        j, q, s = paths.template_N[n], paths.level_N[n], paths.site_N[n]
        t, d = tracked.budgets.slot_S[s], tracked.budgets.use_J[j]
        if t >= 0 and d < 0:
            continue
        line_G = cost_QSG[q, s] if t < 0 else cost_TDQG[t, d, q]
        for i in range(paths.start_N[n + 1] - paths.start_N[n]):
            e, g = paths.start_N[n] + i, paths.signature_N[n] + i
            if paths.load_E[e] > upto_s:
                break
            line_G[g] = min(line_G[g], scratch.price_J[j] + weight * paths.busy_E[e])
    mark_used(scratch, tracked)


@compiled_part
def spread_levels(scratch: Scratch, tracked: TrackedScratch) -> None:
    """What fits on a level fits on all levels below."""
    cost_QSG, cost_TDQG = scratch.cost_QSG, tracked.cost_TDQG
    num_levels, num_sites, num_signatures = cost_QSG.shape
    num_slots, num_uses = cost_TDQG.shape[:2]
    for q in range(num_levels - 2, -1, -1):
        for g in range(num_signatures):
            for s in range(num_sites):
                cost_QSG[q, s, g] = min(cost_QSG[q, s, g], cost_QSG[q + 1, s, g])
            for t in range(num_slots):
                for d in range(num_uses):
                    cost_TDQG[t, d, q, g] = min(cost_TDQG[t, d, q, g], cost_TDQG[t, d, q + 1, g])


@compiled_part
def mark_used(scratch: Scratch, tracked: TrackedScratch) -> None:
    """Which pairs of level and signature have a cluster at all."""
    cost_QSG, cost_TDQG = scratch.cost_QSG, tracked.cost_TDQG
    num_levels, num_sites, num_signatures = cost_QSG.shape
    num_slots, num_uses = cost_TDQG.shape[:2]
    for q in range(num_levels):
        for g in range(num_signatures):
            used = False
            for s in range(num_sites):
                used = used or cost_QSG[q, s, g] < INF
            for t in range(num_slots):
                for d in range(num_uses):
                    used = used or cost_TDQG[t, d, q, g] < INF
            tracked.used_QG[q, g] = used


@compiled_part
def go_on(paths: Paths, scratch: Scratch, tracked: TrackedScratch, q: int) -> None:
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
                    hop = scratch.hop_IST[paths.run_B[b], s, t]
                    behind = stage_QLSU[q - 1, b, t]
                    if hop == INF or behind[num_budget - 1] == INF:
                        continue
                    for u in range(num_budget):
                        value = hop + behind[u]
                        old = ahead[u] + 0.0  # see `path_kernels.go_on`
                        ahead[u] = value if value < old else old


@compiled_part
def add_stage(
    scratch: Scratch, tracked: TrackedScratch, q: int, cell: tuple[int, int], a: int, stop: int
) -> None:
    """Costs of a stage on layers [a, stop) at every site and budget, q stages behind it.

    `cell` is its in-flight level and signature.
    """
    level, g = cell
    slot_S, step_D, bar_DU = tracked.budgets.slot_S, tracked.budgets.step_D, tracked.budgets.bar_DU
    num_sites, num_budget = tracked.stage_QLSU.shape[2], tracked.stage_QLSU.shape[3]
    for s in range(num_sites):
        ahead, here = tracked.onward_QBSU[q, stop, s], tracked.stage_QLSU[q, a, s]
        if ahead[num_budget - 1] == INF:
            continue
        t = slot_S[s]
        if t < 0:
            cost = scratch.cost_QSG[level, s, g]
            if cost == INF:
                continue
            for u in range(num_budget):
                value = cost + ahead[u]
                old = here[u] + 0.0
                here[u] = value if value < old else old
            continue
        for d in range(step_D.size):
            cost = tracked.cost_TDQG[t, d, level, g]
            if cost == INF:
                continue
            step, bar = step_D[d], bar_DU[d]
            if step >= 0:  # tells the compiler that no index is negative
                for v in range(num_budget - step):
                    u = v + step
                    value = cost + ahead[v] + bar[u]
                    old = here[u] + 0.0
                    here[u] = value if value < old else old


@compiled
def run_stages(paths: Paths, scratch: Scratch, tracked: TrackedScratch) -> float:
    """Fill the costs to go; comes back with the least cost of any path, infinite when there is none."""
    num_stages, num_layers, num_sites, num_budget = tracked.stage_QLSU.shape
    least = INF
    for q in range(num_stages):
        go_on(paths, scratch, tracked, q)
        level = min(q, paths.num_levels - 1)
        for a in range(num_layers):
            for s in range(num_sites):
                for u in range(num_budget):
                    tracked.stage_QLSU[q, a, s, u] = INF
            for n in range(num_layers - a if q > 0 else 1):
                length = n + 1 if q > 0 else num_layers - a
                g = paths.window_LW[a, length - 1]
                if tracked.used_QG[level, g]:
                    add_stage(scratch, tracked, q, (level, g), a, a + length)
        for s in range(num_sites):
            least = min(least, tracked.stage_QLSU[q, 0, s, num_budget - 1] - scratch.credit_S[s])
    return least


@compiled_part
def trace_tracked(
    paths: Paths,
    scratch: Scratch,
    tracked: TrackedScratch,
    start: tuple[int, int],
    upto_s: float,
    weight: float,
) -> int:
    """The least path from `start`, stages behind the first and site; see `trace`."""
    stage_QLSU, onward_QBSU = tracked.stage_QLSU, tracked.onward_QBSU
    step_D, bar_DU = tracked.budgets.step_D, tracked.budgets.bar_DU
    num_layers, num_sites, num_budget = stage_QLSU.shape[1], stage_QLSU.shape[2], stage_QLSU.shape[3]
    layer, k, u = 0, 0, num_budget - 1
    q, s = start
    while True:
        level = min(q, paths.num_levels - 1)
        t = tracked.budgets.slot_S[s]
        best, stop, use, left = INF, num_layers, 0, u
        for length in range(1, num_layers - layer + 1):
            g = paths.window_LW[layer, length - 1]
            for d in range(1 if t < 0 else step_D.size):
                if bar_DU[d, u] == INF:
                    continue
                v = u - step_D[d]
                cost = scratch.cost_QSG[level, s, g] if t < 0 else tracked.cost_TDQG[t, d, level, g]
                value = cost + onward_QBSU[q, layer + length, s, v]
                if value < best:
                    best, stop, use, left = value, layer + length, d, v
        at = (level, s, paths.window_LW[layer, stop - layer - 1])
        use = -1 if t < 0 else use
        scratch.entry_K[k] = entry_at(paths, scratch, at, upto_s, weight, use, tracked.budgets.use_J)
        scratch.start_K[k] = layer
        k += 1
        if q == 0:
            return k
        least, then, i = INF, -1, paths.run_B[stop]
        for other in range(num_sites):
            value = scratch.hop_IST[i, s, other] + stage_QLSU[q - 1, stop, other, left]
            if value < least:
                least, then = value, other
        s, layer, u, q = then, stop, left, q - 1


@compiled
def pick(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    tracked: TrackedScratch,
    limits: tuple[float, float, float],
    price_C: FloatArray,
    rho: float,
    nu: float,
    tokens: float,
    worth_min: float,
) -> tuple[float, float, float, bool, int, float]:
    """Measure the cheapest path, keep the real replicas among those near it; see `price_paths`.

    `limits` are the cost up to which paths are looked at, the load limit and the weight of busy seconds.
    """
    near, upto_s, weight = limits
    num_stages, _, num_sites, num_budget = tracked.stage_QLSU.shape
    num_found, best_worth, best_turn, least = 0, 0.0, -1, INF
    for turn in range(num_stages * num_sites):
        q, s = turn // num_sites, turn % num_sites
        cost = tracked.stage_QLSU[q, 0, s, num_budget - 1] - scratch.credit_S[s]
        if cost < least:
            least, best_turn = cost, turn
        if cost <= near:
            size = trace_tracked(paths, scratch, tracked, (q, s), upto_s, weight)
            _, _, _, worth = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
            if worth >= worth_min and num_found < scratch.size_I.size and is_real(devices, scratch):
                keep(scratch, num_found, size, worth)
                num_found += 1
                best_worth = max(best_worth, worth)
    # the cheapest path comes last, so that its usage and visits are the ones left behind
    start = (best_turn // num_sites, best_turn % num_sites)
    size = trace_tracked(paths, scratch, tracked, start, upto_s, weight)
    fill_s, price, load_s, _ = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
    return fill_s, price, load_s, is_real(devices, scratch), num_found, best_worth


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
    limits = (value + NEAR_FRAC * abs(value), upto_s, weight)
    picked = pick(paths, devices, scratch, tracked, limits, price_C, rho, nu, tokens, worth_min)
    return (value - once - 1e-11 * (abs(value) + once), *picked)
