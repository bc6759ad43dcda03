"""Innermost loops of the label search for one replica: fronts of chains with true device counts.

A front is layers [0, b) of a chain, whose last stage lies in site s. Device counts are packed into words,
one field per capacity row with a spare bit on top: (a | spare bits) - b keeps all spare bits exactly when no
field of b is larger than that of a.

Legend: see single_arrays.py; M candidates of one state; `range_2BS` first label and number of labels.
"""

from __future__ import annotations

import numpy as np

from planner.solve.jit import compiled
from planner.solve.single_arrays import (
    BEFORE,
    BORDER,
    COST,
    ENTRY,
    FILL,
    KEY,
    PEAK,
    SITE,
    SYNC,
    Costs,
    Fronts,
    Room,
    View,
)
from planner.solve.tables import FloatArray, IntArray


@compiled
def rules_out(kept: Fronts, z: int, found: Fronts, m: int, guard_X: IntArray) -> bool:
    """Whether front z, with any chain behind it, is no slower and takes no more than front m would."""
    later = max(0.0, kept.figure_ZF[z, PEAK] - found.figure_ZF[m, PEAK])
    later += max(0.0, kept.figure_ZF[z, SYNC] - found.figure_ZF[m, SYNC])
    if kept.figure_ZF[z, FILL] + later > found.figure_ZF[m, FILL]:
        return False
    for x in range(guard_X.size):
        if ((found.used_ZX[m, x] | guard_X[x]) - kept.used_ZX[z, x]) & guard_X[x] != guard_X[x]:
            return False
    return True


@compiled
def copy_front(source: Fronts, m: int, target: Fronts, z: int) -> None:
    """Front m of one store becomes front z of another."""
    for f in range(source.figure_ZF.shape[1]):
        target.figure_ZF[z, f] = source.figure_ZF[m, f]
    for x in range(source.used_ZX.shape[1]):
        target.used_ZX[z, x] = source.used_ZX[m, x]
    for i in range(source.origin_ZI.shape[1]):
        target.origin_ZI[z, i] = source.origin_ZI[m, i]


@compiled
def sink(heap_M: IntArray, num: int, at: int, figure_MF: FloatArray) -> None:
    """Restores the heap, least key first, below a place; equal keys go by position."""
    moving = heap_M[at]
    while True:
        child = 2 * at + 1
        if child >= num:
            break
        left, right = heap_M[child], heap_M[child + 1] if child + 1 < num else heap_M[child]
        if (figure_MF[right, KEY], right) < (figure_MF[left, KEY], left):
            child, left = child + 1, right
        if (figure_MF[moving, KEY], moving) <= (figure_MF[left, KEY], left):
            break
        heap_M[at] = left
        at = child
    heap_M[at] = moving


@compiled
def settle(
    num: int, found: Fronts, width: int, compared: int, at: int, guard_X: IntArray, kept: Fronts
) -> tuple[int, float]:
    """Keeps, from position `at`, the best `width` candidates of a state that none before rules out.

    Returns where the next label goes, and the least key of a candidate that was dropped for want of width.
    """
    heap_M = np.arange(num)
    for i in range(num // 2 - 1, -1, -1):
        sink(heap_M, num, i, found.figure_ZF)
    first = at
    while num > 0:
        m = heap_M[0]
        num -= 1
        heap_M[0] = heap_M[num]
        sink(heap_M, num, 0, found.figure_ZF)
        beaten = False
        for z in range(first, min(at, first + compared)):
            if rules_out(kept, z, found, m, guard_X):
                beaten = True
                break
        if beaten:
            continue
        if at - first >= width or at >= kept.figure_ZF.shape[0]:
            return at, found.figure_ZF[m, KEY]
        copy_front(found, m, kept, at)
        at += 1
    return at, np.inf


@compiled
def middle_key(figure_MF: FloatArray) -> float:
    """The median key, by quickselect."""
    keys = figure_MF[:, KEY].copy()
    low, high, wanted = 0, keys.size - 1, keys.size // 2
    while low < high:
        pivot, i, j = keys[(low + high) // 2], low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i, j = i + 1, j - 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return float(keys[wanted])


@compiled
def halve(found: Fronts) -> tuple[int, float]:
    """Keeps the better half of a full buffer; how many, and the least key given up."""
    middle = middle_key(found.figure_ZF)
    num = 0
    for m in range(found.figure_ZF.shape[0]):
        if found.figure_ZF[m, KEY] < middle:
            copy_front(found, m, found, num)
            num += 1
    return num, middle


@compiled
def add_stages(
    view: View,
    costs: Costs,
    room: Room,
    before: Fronts,
    z: int,
    hop: float,
    back: float,
    p: int,
    limit: float,
    from_s: float,
    found: Fronts,
    num: int,
) -> int:
    """Every entry of cell p behind front z (or at the start), as long as its key stays below `limit`."""
    cost, fill, peak, sync = hop - back, hop, view.load_per_fill * hop, 0.0
    if z >= 0:
        cost += before.figure_ZF[z, COST]
        fill += before.figure_ZF[z, FILL]
        peak = max(peak, before.figure_ZF[z, PEAK])
        sync = before.figure_ZF[z, SYNC]
    for e in range(view.first_P[p], view.first_P[p + 1]):
        j = view.template_E[e]
        own = view.load_per_fill * view.fill_E[e]
        cost_e = cost + view.fill_E[e] + costs.charge_J[j]
        peak_e, sync_e = max(peak, own), max(sync, view.load_E[e] - own)
        key = cost_e + max(from_s, peak_e + sync_e)
        if key >= limit:
            continue
        fits = True
        for x in range(room.guard_X.size):
            used = room.used_JX[j, x] + (before.used_ZX[z, x] if z >= 0 else 0)
            if ((room.limit_X[x] | room.guard_X[x]) - used) & room.guard_X[x] != room.guard_X[x]:
                fits = False
                break
            found.used_ZX[num, x] = used
        if fits:
            figure_F, origin_I = found.figure_ZF[num], found.origin_ZI[num]
            figure_F[COST], figure_F[FILL], figure_F[KEY] = cost_e, fill + view.fill_E[e], key
            figure_F[PEAK], figure_F[SYNC] = peak_e, sync_e
            origin_I[BEFORE], origin_I[ENTRY] = z, e
            num += 1
    return num


@compiled
def fronts_of_state(
    q: int,
    b: int,
    s: int,
    view: View,
    costs: Costs,
    room: Room,
    from_s: float,
    below_s: float,
    range_2BS: IntArray,
    before: Fronts,
    found: Fronts,
) -> tuple[int, float]:
    """All fronts that end at border b in site s with q stages to come and may still end below `below_s`.

    Returns their number and the least key of those that did not fit the buffer.
    """
    cost_G = costs.cost_QSG[min(q, costs.cost_QSG.shape[0] - 1), s]
    limit = below_s - costs.onward_QSB[q, s, b]
    num, dropped = 0, np.inf
    for a in range(max(0, b - view.window_LW.shape[1]), b):
        signature = view.window_LW[a, b - a - 1]
        if cost_G[signature] == np.inf:
            continue
        p = view.slot_QSG[min(q, view.slot_QSG.shape[0] - 1), s, signature]
        wide = view.first_P[p + 1] - view.first_P[p]
        for r in range(costs.credit_S.size if a > 0 else 1):
            first, last, hop, back = -1, 0, 0.0, costs.credit_S[s]
            if a > 0:
                first, hop = range_2BS[0, a, r], view.hop_BSS[a, r, s]
                last = first + range_2BS[1, a, r]
                back = costs.credit_S[s] if r != s else 0.0
                if hop == np.inf:
                    continue
            for z in range(first, last):
                key = before.figure_ZF[z, KEY] if z >= 0 else from_s
                if key + hop - back + cost_G[signature] >= limit:
                    break
                if num + wide > found.figure_ZF.shape[0]:
                    num, least = halve(found)
                    dropped = min(dropped, least)
                num = add_stages(view, costs, room, before, z, hop, back, p, limit, from_s, found, num)
    return num, dropped


@compiled
def extend_labels(
    q: int,
    view: View,
    costs: Costs,
    room: Room,
    from_s: float,
    below_s: float,
    width: int,
    compared: int,
    range_2BS: IntArray,
    next_2BS: IntArray,
    at: int,
    kept: Fronts,
    found: Fronts,
) -> tuple[int, float]:
    """Adds a stage with `q` stages after it to every front in `range_2BS`; their places go into `next_2BS`.

    Loads lie above `from_s`. Returns the next free position, and the least step time (with multipliers) of
    any chain through a front that was dropped for want of width.
    """
    num_layers, num_sites = view.window_LW.shape[0], costs.credit_S.size
    dropped = np.inf
    next_2BS[:] = 0
    for b in range(num_layers if q == 0 else 1, num_layers + 1 if q == 0 else num_layers):
        for s in range(num_sites):
            rest = costs.onward_QSB[q, s, b]
            if rest == np.inf:
                continue
            num, least = fronts_of_state(q, b, s, view, costs, room, from_s, below_s, range_2BS, kept, found)
            dropped = min(dropped, least + rest)
            if num == 0:
                continue
            for m in range(num):
                found.origin_ZI[m, BORDER], found.origin_ZI[m, SITE] = b, s
            next_2BS[0, b, s] = at
            at, least = settle(num, found, width, compared, at, room.guard_X, kept)
            dropped = min(dropped, least + rest)
            next_2BS[1, b, s] = at - next_2BS[0, b, s]
    return at, dropped
