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
    lowest,
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
    stage_QSLU: FloatArray
    onward_QSBU: FloatArray


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
        stage_QSLU=np.empty((paths.num_stages, num_sites, num_layers, num_budget)),
        onward_QSBU=np.empty((paths.num_stages, num_sites, num_layers + 1, num_budget)),
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
def go_on(paths: Paths, scratch: Scratch, tracked: TrackedScratch, q: int, low: int) -> None:
    """Costs to go after a stage with q more behind it, of which the next begins with layer `low` at least.

    Four sites ahead at a time. Offsets are unsigned and arrays flat, since views of arrays are counted and
    signed indices may be negative.
    """
    _, num_sites, num_borders, num_budget = tracked.onward_QSBU.shape
    num_layers, num_here = num_borders - 1, np.uint64(num_budget)
    ahead, behind = tracked.onward_QSBU[q].reshape(-1), tracked.stage_QSLU[max(q - 1, 0)].reshape(-1)
    ahead[:] = INF
    if q == 0:
        tracked.onward_QSBU[0, :, num_layers] = 0.0
        return
    for s in range(num_sites):
        for b in range(max(1, low), num_layers):
            i = paths.run_B[b]
            y = np.uint64((s * num_borders + b) * num_budget)
            for t in range(0, num_sites, 4):
                t1, t2, t3 = min(t + 1, num_sites - 1), min(t + 2, num_sites - 1), min(t + 3, num_sites - 1)
                hop, hop1 = scratch.hop_IST[i, s, t], scratch.hop_IST[i, s, t1]
                hop2, hop3 = scratch.hop_IST[i, s, t2], scratch.hop_IST[i, s, t3]
                if min(min(hop, hop1), min(hop2, hop3)) == INF:
                    continue
                x, x1 = (
                    np.uint64((t * num_layers + b) * num_budget),
                    np.uint64((t1 * num_layers + b) * num_budget),
                )
                x2, x3 = (
                    np.uint64((t2 * num_layers + b) * num_budget),
                    np.uint64((t3 * num_layers + b) * num_budget),
                )
                for u in range(num_here):
                    least = min(hop + behind[x + u], hop1 + behind[x1 + u])
                    other = min(hop2 + behind[x2 + u], hop3 + behind[x3 + u])
                    # 0.0: see `path_kernels.go_on`
                    ahead[y + u] = min(ahead[y + u] + 0.0, min(least, other))


@compiled_part
def longest(paths: Paths, scratch: Scratch, tracked: TrackedScratch, level: int, s: int) -> int:
    """The most layers that a cluster takes on a level at a site."""
    most, t = 0, tracked.budgets.slot_S[s]
    for g in range(paths.num_signatures):
        if paths.length_G[g] > most:
            finite = scratch.cost_QSG[level, s, g] < INF
            for d in range(0 if t < 0 else tracked.cost_TDQG.shape[1]):
                finite = finite or tracked.cost_TDQG[t, d, level, g] < INF
            if finite:
                most = paths.length_G[g]
    return most


@compiled_part
def add_stage(paths: Paths, scratch: Scratch, tracked: TrackedScratch, q: int, low: int) -> None:
    """Costs to go from the beginning of a stage on, q more behind it, four lengths at a time; see `go_on`."""
    slot_S, step_D, bar_DU = tracked.budgets.slot_S, tracked.budgets.step_D, tracked.budgets.bar_DU
    window_LW, cost_QSG, cost_TDQG = paths.window_LW, scratch.cost_QSG, tracked.cost_TDQG
    _, num_sites, num_layers, num_budget = tracked.stage_QSLU.shape
    here, ahead = tracked.stage_QSLU[q].reshape(-1), tracked.onward_QSBU[q].reshape(-1)
    level = min(q, paths.num_levels - 1)
    here[:] = INF
    for s in range(num_sites):
        t = slot_S[s]
        most = longest(paths, scratch, tracked, level, s)
        for a in range(max(0, low - most), num_layers):
            stop = num_layers if q == 0 else min(a + most, num_layers - 1)
            for b in range(max(low, a + 1), stop + 1, 4):
                b1, b2, b3 = min(b + 1, stop), min(b + 2, stop), min(b + 3, stop)
                g, g1 = window_LW[a, b - a - 1], window_LW[a, b1 - a - 1]
                g2, g3 = window_LW[a, b2 - a - 1], window_LW[a, b3 - a - 1]
                base = s * (num_layers + 1)
                x, x1 = np.uint64((base + b) * num_budget), np.uint64((base + b1) * num_budget)
                x2, x3 = np.uint64((base + b2) * num_budget), np.uint64((base + b3) * num_budget)
                for d in range(1 if t < 0 else step_D.size):
                    if t < 0:
                        cost, cost1 = cost_QSG[level, s, g], cost_QSG[level, s, g1]
                        cost2, cost3 = cost_QSG[level, s, g2], cost_QSG[level, s, g3]
                    else:
                        cost, cost1 = cost_TDQG[t, d, level, g], cost_TDQG[t, d, level, g1]
                        cost2, cost3 = cost_TDQG[t, d, level, g2], cost_TDQG[t, d, level, g3]
                    if min(min(cost, cost1), min(cost2, cost3)) == INF:
                        continue
                    step = np.uint64(step_D[d])
                    y = np.uint64((s * num_layers + a) * num_budget) + step
                    for v in range(np.uint64(num_budget) - step):
                        least = min(cost + ahead[x + v], cost1 + ahead[x1 + v])
                        other = min(cost2 + ahead[x2 + v], cost3 + ahead[x3 + v])
                        here[y + v] = min(here[y + v] + 0.0, min(least, other) + bar_DU[d, step + v])


@compiled
def run_stages(paths: Paths, scratch: Scratch, tracked: TrackedScratch) -> float:
    """Fill the costs to go; comes back with the least cost of any path, infinite when there is none."""
    num_stages, num_sites, num_layers, num_budget = tracked.stage_QSLU.shape
    least, low = INF, num_layers
    for q in range(num_stages):
        go_on(paths, scratch, tracked, q, low)
        add_stage(paths, scratch, tracked, q, low)
        low = lowest(tracked.stage_QSLU[q, :, :, num_budget - 1])
        for s in range(num_sites):
            least = min(least, tracked.stage_QSLU[q, s, 0, num_budget - 1] - scratch.credit_S[s])
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
    stage_QSLU, onward_QSBU = tracked.stage_QSLU, tracked.onward_QSBU
    step_D, bar_DU = tracked.budgets.step_D, tracked.budgets.bar_DU
    _, num_sites, num_layers, num_budget = stage_QSLU.shape
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
                value = cost + onward_QSBU[q, s, layer + length, v]
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
            value = scratch.hop_IST[i, s, other] + stage_QSLU[q - 1, other, stop, left]
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
    num_stages, num_sites, _, num_budget = tracked.stage_QSLU.shape
    num_found, best_worth, best_turn, least = 0, 0.0, -1, INF
    for turn in range(num_stages * num_sites):
        q, s = turn // num_sites, turn % num_sites
        cost = tracked.stage_QSLU[q, s, 0, num_budget - 1] - scratch.credit_S[s]
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
