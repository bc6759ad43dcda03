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
    Devices,
    Scratch,
    appraise,
    charge,
    entry_at,
    fill_cells,
    fill_hops,
    is_real,
    keep,
    run_paths,
)
from planner.solve.paths import Int32Array, Paths
from planner.solve.tables import FloatArray

ARCS_MAX = 400_000
VALUES_MAX = 4_000_000
"""Room for one search; where it does not suffice, fewer paths are looked at."""
NARROWED = 0.05


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


class Net(NamedTuple):
    """Nodes and arcs of the paths that cost no more than a limit; work arrays of one thread.

    Node 0 is the end of the chain, the others are stages to begin (stages behind, site, first layer) and
    stages ended. Arcs `[first_N[n], stop_N[n])` leave node n. Arc a costs `cost_A[a]`, which stands at
    `from_A[a]` among hops (from below -1 backwards) or cells; stages at a site with tracked classes cost
    what stands at `cell_A[a]` by use, -1 for all others. `value_X` is the cost to go by node and budget.
    """

    reach_QSL: FloatArray
    node_QSL: Int32Array
    arrive_SB: FloatArray
    node_SB: Int32Array
    place_N: Int32Array
    first_N: Int32Array
    stop_N: Int32Array
    tail_A: Int32Array
    head_A: Int32Array
    from_A: Int32Array
    cell_A: Int32Array
    cost_A: FloatArray
    value_X: FloatArray


class TrackedScratch(NamedTuple):
    """What a choice of tracked classes needs of its own: see `Budgets`; `cost_TDQG` is what a use costs."""

    budgets: Budgets
    cost_TDQG: FloatArray
    num_budgets: int


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
    num_slots = int(budgets.slot_S.max()) + 1
    return TrackedScratch(
        budgets=budgets,
        cost_TDQG=np.empty((num_slots, num_uses, paths.num_levels, paths.num_signatures)),
        num_budgets=num_budget,
    )


def new_net(paths: Paths) -> Net:
    """Room for the paths of a mode; pages that no search comes to use are never touched."""
    num_sites, num_layers = paths.transfer_BST.shape[1], paths.window_LW.shape[0]
    num_nodes = 2 * paths.num_stages * num_sites * (num_layers + 1) + 1
    return Net(
        reach_QSL=np.empty((paths.num_stages, num_sites, num_layers)),
        node_QSL=np.empty((paths.num_stages, num_sites, num_layers), dtype=np.int32),
        arrive_SB=np.empty((num_sites, num_layers + 1)),
        node_SB=np.empty((num_sites, num_layers + 1), dtype=np.int32),
        place_N=np.empty(num_nodes, dtype=np.int32),
        first_N=np.empty(num_nodes, dtype=np.int32),
        stop_N=np.empty(num_nodes, dtype=np.int32),
        tail_A=np.empty(ARCS_MAX, dtype=np.int32),
        head_A=np.empty(ARCS_MAX, dtype=np.int32),
        from_A=np.empty(ARCS_MAX, dtype=np.int32),
        cell_A=np.empty(ARCS_MAX, dtype=np.int32),
        cost_A=np.empty(ARCS_MAX),
        value_X=np.empty(VALUES_MAX),
    )


@compiled_part
def fill_uses(paths: Paths, scratch: Scratch, tracked: TrackedScratch, upto_s: float, weight: float) -> None:
    """Least cost of every use of tracked classes at the sites that have them."""
    cost_TDQG, budgets = tracked.cost_TDQG, tracked.budgets
    num_slots, num_uses, num_levels, num_signatures = cost_TDQG.shape
    cost_TDQG[:] = INF
    for n in range(paths.template_N.size + 1):
        if n == paths.num_spread:  # what fits on a level fits on all levels below
            for t in range(num_slots):
                for d in range(num_uses):
                    for q in range(num_levels - 2, -1, -1):
                        for g in range(num_signatures):
                            cost_TDQG[t, d, q, g] = min(cost_TDQG[t, d, q, g], cost_TDQG[t, d, q + 1, g])
        if n == paths.template_N.size:
            break
        j, q = paths.template_N[n], paths.level_N[n]
        t, d = budgets.slot_S[paths.site_N[n]], budgets.use_J[j]
        if t < 0 or d < 0:
            continue
        for i in range(paths.start_N[n + 1] - paths.start_N[n]):
            e, g = paths.start_N[n] + i, paths.signature_N[n] + i
            if paths.load_E[e] > upto_s:
                break
            cost = scratch.price_J[j] + weight * paths.busy_E[e]
            cost_TDQG[t, d, q, g] = min(cost_TDQG[t, d, q, g], cost)


@compiled_part
def narrow(
    paths: Paths, scratch: Scratch, tracked: TrackedScratch, net: Net, limit: float
) -> tuple[int, int]:
    """Collect the nodes and arcs of paths that cost at most `limit` when nothing is tracked.

    Returns how many; -1 arcs when there is no room for them.
    """
    num_stages, num_sites, _ = scratch.stage_QSL.shape
    net.reach_QSL[:] = INF
    num_nodes, num_arcs = 1, 0
    for q in range(num_stages):
        for s in range(num_sites):
            if (
                -scratch.credit_S[s] + scratch.stage_QSL[q, s, 0] <= limit
                and scratch.stage_QSL[q, s, 0] < INF
            ):
                net.reach_QSL[q, s, 0] = -scratch.credit_S[s]
                net.node_QSL[q, s, 0] = num_nodes
                net.place_N[num_nodes] = s
                num_nodes += 1
    for q in range(num_stages - 1, -1, -1):
        num_nodes, num_arcs = leave_stages(paths, scratch, tracked, net, limit, (q, num_nodes, num_arcs))
        if q > 0 and num_arcs >= 0:
            num_nodes, num_arcs = hop_on(paths, scratch, net, limit, (q, num_nodes, num_arcs))
        if num_arcs < 0 or num_nodes * tracked.num_budgets > VALUES_MAX:
            return num_nodes, -1
    return num_nodes, num_arcs


@compiled_part
def fitting(
    paths: Paths, scratch: Scratch, tracked: TrackedScratch, net: Net, limit: float, relaxed: float
) -> tuple[float, int, int]:
    """The limit, not above the given one, for whose nodes and arcs there is room; and how many these are."""
    num_nodes, num_arcs = narrow(paths, scratch, tracked, net, limit)
    while num_arcs < 0:
        limit = relaxed + NARROWED * abs(relaxed) if limit == INF else relaxed + 0.25 * (limit - relaxed)
        num_nodes, num_arcs = narrow(paths, scratch, tracked, net, limit)
    return limit, num_nodes, num_arcs


@compiled_part
def leave_stages(
    paths: Paths,
    scratch: Scratch,
    tracked: TrackedScratch,
    net: Net,
    limit: float,
    at: tuple[int, int, int],
) -> tuple[int, int]:
    """Arcs of stages with q more behind them; `at` is q and how many nodes and arcs there are."""
    q, num_nodes, num_arcs = at
    num_sites, num_layers = scratch.stage_QSL.shape[1], scratch.stage_QSL.shape[2]
    level, num_uses = min(q, paths.num_levels - 1), tracked.budgets.step_D.size
    cells = paths.num_levels * paths.num_signatures
    net.arrive_SB[:] = INF
    for s in range(num_sites):
        t = tracked.budgets.slot_S[s]
        for a in range(num_layers):
            reach = net.reach_QSL[q, s, a]
            if reach == INF:
                continue
            node = net.node_QSL[q, s, a]
            net.first_N[node] = num_arcs
            for b in range(a + 1 if q > 0 else num_layers, num_layers if q > 0 else num_layers + 1):
                g = paths.window_LW[a, b - a - 1]
                cost = scratch.cost_QSG[level, s, g]
                ahead = scratch.onward_QSB[q, s, b] if q > 0 else 0.0
                if cost == INF or ahead == INF or reach + cost + ahead > limit:
                    continue
                if num_arcs == ARCS_MAX:
                    return num_nodes, -1
                head = 0
                if q > 0:
                    if net.arrive_SB[s, b] == INF:
                        net.node_SB[s, b] = num_nodes
                        net.place_N[num_nodes] = b * num_sites + s
                        num_nodes += 1
                    head = net.node_SB[s, b]
                    net.arrive_SB[s, b] = min(net.arrive_SB[s, b], reach + cost)
                net.tail_A[num_arcs], net.head_A[num_arcs] = node, head
                net.from_A[num_arcs] = (level * num_sites + s) * paths.num_signatures + g
                net.cell_A[num_arcs] = (
                    -1 if t < 0 else t * num_uses * cells + level * paths.num_signatures + g
                )
                num_arcs += 1
            net.stop_N[node] = num_arcs
    return num_nodes, num_arcs


@compiled_part
def hop_on(
    paths: Paths, scratch: Scratch, net: Net, limit: float, at: tuple[int, int, int]
) -> tuple[int, int]:
    """Arcs from ended stages to those that follow; see `leave_stages`."""
    q, num_nodes, num_arcs = at
    num_sites, num_layers = scratch.stage_QSL.shape[1], scratch.stage_QSL.shape[2]
    for s in range(num_sites):
        for b in range(1, num_layers):
            reach = net.arrive_SB[s, b]
            if reach == INF:
                continue
            node, i = net.node_SB[s, b], paths.run_B[b]
            net.first_N[node] = num_arcs
            for t in range(num_sites):
                hop, ahead = scratch.hop_IST[i, s, t], scratch.stage_QSL[q - 1, t, b]
                if hop == INF or ahead == INF or reach + hop + ahead > limit:
                    continue
                if num_arcs == ARCS_MAX:
                    return num_nodes, -1
                if net.reach_QSL[q - 1, t, b] == INF:
                    net.node_QSL[q - 1, t, b] = num_nodes
                    net.place_N[num_nodes] = b * num_sites + t
                    num_nodes += 1
                net.reach_QSL[q - 1, t, b] = min(net.reach_QSL[q - 1, t, b], reach + hop)
                net.tail_A[num_arcs], net.head_A[num_arcs] = node, net.node_QSL[q - 1, t, b]
                net.from_A[num_arcs], net.cell_A[num_arcs] = -2 - (i * num_sites + s) * num_sites - t, -1
                num_arcs += 1
            net.stop_N[node] = num_arcs
    return num_nodes, num_arcs


@compiled_part
def settle_costs(scratch: Scratch, tracked: TrackedScratch, net: Net, num_nodes: int, num_arcs: int) -> None:
    """Costs to go of all nodes by budget: arcs backwards, each after all that follow its head.

    Offsets are unsigned and arrays flat: views of arrays are counted, and signed indices may be negative.
    """
    value_X, cost_X, bar_DU = net.value_X, tracked.cost_TDQG.reshape(-1), tracked.budgets.bar_DU
    num_budget = np.uint64(tracked.num_budgets)
    num_uses = tracked.budgets.step_D.size
    cells = tracked.cost_TDQG.shape[2] * tracked.cost_TDQG.shape[3]
    cost_QSG, hop_IST = scratch.cost_QSG.reshape(-1), scratch.hop_IST.reshape(-1)
    for k in range(num_arcs):
        x = net.from_A[k]
        net.cost_A[k] = cost_QSG[x] if x >= 0 else hop_IST[-2 - x]
    value_X[: tracked.num_budgets] = 0.0
    value_X[tracked.num_budgets : num_nodes * tracked.num_budgets] = INF
    for k in range(num_arcs - 1, -1, -1):
        x, y = np.uint64(net.tail_A[k]) * num_budget, np.uint64(net.head_A[k]) * num_budget
        cell = net.cell_A[k]
        if cell < 0:
            cost = net.cost_A[k]
            for u in range(num_budget):
                value_X[x + u] = min(value_X[x + u] + 0.0, cost + value_X[y + u])  # 0.0: see `go_on`
            continue
        for d in range(num_uses):
            cost = cost_X[cell + d * cells]
            if cost < INF:
                step = np.uint64(tracked.budgets.step_D[d])
                for v in range(num_budget - step):
                    value = cost + value_X[y + v] + bar_DU[d, step + v]
                    value_X[x + step + v] = min(value_X[x + step + v] + 0.0, value)


@compiled_part
def trace_tracked(
    paths: Paths,
    scratch: Scratch,
    tracked: TrackedScratch,
    net: Net,
    start: tuple[int, int],
    upto_s: float,
    weight: float,
) -> int:
    """The least path from `start`, stages behind the first and site; see `trace`."""
    cost_X, budgets, num_sites = tracked.cost_TDQG.reshape(-1), tracked.budgets, scratch.credit_S.size
    cells = tracked.cost_TDQG.shape[2] * tracked.cost_TDQG.shape[3]
    num_budget, num_layers = tracked.num_budgets, scratch.stage_QSL.shape[2]
    q, k, u = start[0], 0, num_budget - 1
    node = net.node_QSL[q, start[1], 0]
    while True:
        layer, s = net.place_N[node] // num_sites, net.place_N[node] % num_sites
        best, then, use, left = INF, -1, -1, u
        for arc in range(net.first_N[node], net.stop_N[node]):
            head, cell = net.head_A[arc] * num_budget, net.cell_A[arc]
            if cell < 0 and net.cost_A[arc] + net.value_X[head + u] < best:
                best, then, left = net.cost_A[arc] + net.value_X[head + u], net.head_A[arc], u
            for d in range(0 if cell < 0 else budgets.step_D.size):
                v = u - budgets.step_D[d]
                if budgets.bar_DU[d, u] == 0.0 and cost_X[cell + d * cells] + net.value_X[head + v] < best:
                    best = cost_X[cell + d * cells] + net.value_X[head + v]
                    then, use, left = net.head_A[arc], d, v
        stop = num_layers if then == 0 else net.place_N[then] // num_sites
        at = (min(q, paths.num_levels - 1), s, paths.window_LW[layer, stop - layer - 1])
        scratch.entry_K[k] = entry_at(paths, scratch, at, upto_s, weight, use, budgets.use_J)
        scratch.start_K[k] = layer
        k += 1
        if then == 0:
            return k
        ended, least, u = then, INF, left
        for arc in range(net.first_N[ended], net.stop_N[ended]):
            value = net.cost_A[arc] + net.value_X[net.head_A[arc] * num_budget + u]
            if value < least:
                least, node = value, net.head_A[arc]
        q -= 1


@compiled_part
def start_cost(scratch: Scratch, tracked: TrackedScratch, net: Net, q: int, s: int) -> float:
    """Cost of the cheapest path that begins at site s and has q more stages behind its first."""
    if net.reach_QSL[q, s, 0] == INF:
        return INF
    return float(net.value_X[(net.node_QSL[q, s, 0] + 1) * tracked.num_budgets - 1] - scratch.credit_S[s])


@compiled
def price_tracked(
    paths: Paths,
    devices: Devices,
    scratch: Scratch,
    tracked: TrackedScratch,
    net: Net,
    upto_s: float,
    time_weight: float,
    price_weight: float,
    usage_2C: FloatArray,
    price_C: FloatArray,
    rho: float,
    nu: float,
    tokens: float,
    worth_min: float,
    guide_2C: FloatArray,
    enough: float,
) -> tuple[float, float, float, float, bool, int, float]:
    """As `price_paths`, over paths that use no tracked class more often than it has devices.

    Costs are looked for up to `enough` only: that is returned where no path costs less. Arcs whose cheapest
    path costs more under multipliers `guide_2C` when nothing is tracked are left out first; these may charge
    more for tracked classes, since that makes no path dearer that keeps to the devices there are.
    """
    weight = time_weight * paths.fill
    guided = charge(devices, scratch, price_C, price_weight, guide_2C)
    relaxed = run_paths(paths, scratch, upto_s, time_weight)
    if relaxed == INF:
        return INF, INF, INF, INF, False, 0, 0.0
    most = max(relaxed, enough + guided)
    limit, num_nodes, num_arcs = fitting(paths, scratch, tracked, net, most, relaxed)
    once = charge(devices, scratch, price_C, price_weight, usage_2C)
    fill_cells(paths, scratch, upto_s, weight)
    fill_hops(paths, scratch, upto_s, weight)
    fill_uses(paths, scratch, tracked, upto_s, weight)
    settle_costs(scratch, tracked, net, num_nodes, num_arcs)
    num_stages, num_sites, _ = scratch.stage_QSL.shape
    num_found, best_worth, best_turn, least = 0, 0.0, -1, INF
    for turn in range(num_stages * num_sites):
        q, s = turn // num_sites, turn % num_sites
        cost = start_cost(scratch, tracked, net, q, s)
        best_turn, least = (turn, cost) if cost < least else (best_turn, least)
        if cost < INF:
            size = trace_tracked(paths, scratch, tracked, net, (q, s), upto_s, weight)
            _, _, _, worth = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
            if worth >= worth_min and num_found < scratch.size_I.size and is_real(devices, scratch):
                keep(scratch, num_found, size, worth)
                num_found += 1
                best_worth = max(best_worth, worth)
    if least == INF and limit == INF:
        return INF, INF, INF, INF, False, 0, 0.0
    value = max(relaxed - guided, min(least - once, limit - guided))
    value -= 1e-11 * (abs(value) + once + guided)
    if least == INF:
        return value, INF, INF, INF, False, num_found, best_worth
    # the cheapest path comes last, so that its usage and visits are the ones left behind
    q, s = best_turn // num_sites, best_turn % num_sites
    size = trace_tracked(paths, scratch, tracked, net, (q, s), upto_s, weight)
    fill_s, price, load_s, _ = appraise(paths, devices, scratch, size, price_C, rho, nu, tokens)
    return value, fill_s, price, load_s, is_real(devices, scratch), num_found, best_worth
