"""Innermost loops of the exact way for small fleets, compiled.

Legend: see planner.solve.small_stages and planner.solve.small_lattice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.solve.jit import compiled
from planner.solve.tables import FloatArray, IntArray

PositionArray = NDArray[np.int32]


@compiled
def least_rates(
    fill_Y: FloatArray,
    load_Y: FloatArray,
    length_Y: FloatArray,
    cell_P: IntArray,
    first_P: IntArray,
    upto_s: float,
    num_ways: int,
) -> FloatArray:
    """Least fill time per layer on each way, among stages with a load up to `upto_s`."""
    rate_J = np.full(num_ways, np.inf)
    for p in range(cell_P.size):
        stop = first_P[p + 1] if p + 1 < cell_P.size else fill_Y.size
        way = cell_P[p] % num_ways
        for y in range(first_P[p], stop):
            if load_Y[y] <= upto_s:
                rate_J[way] = min(rate_J[way], fill_Y[y] / length_Y[y])
    return rate_J


@compiled
def stage_costs(
    fill_Y: FloatArray,
    load_Y: FloatArray,
    length_Y: FloatArray,
    cell_P: IntArray,
    first_P: IntArray,
    upto_s: float,
    multiplier_K: FloatArray,
    num_cells: int,
) -> FloatArray:
    """Least fill time less what layers pay, per cell and multiplier; infinite without a stage."""
    num_K = multiplier_K.size
    cost_XK = np.full((num_cells, num_K), np.inf)
    for p in range(cell_P.size):
        stop = first_P[p + 1] if p + 1 < cell_P.size else fill_Y.size
        for y in range(first_P[p], stop):
            if load_Y[y] <= upto_s:
                for k in range(num_K):
                    cost = fill_Y[y] - multiplier_K[k] * length_Y[y]
                    if cost < cost_XK[cell_P[p], k]:
                        cost_XK[cell_P[p], k] = cost
    return cost_XK


@compiled
def step_back(
    behind_USK: FloatArray,
    onward_USK: FloatArray,
    hop_SS: FloatArray,
    allowed_A: IntArray,
    live_U: NDArray[np.bool_],
) -> bool:
    """Least cost of going on from each site, and on which counts that is possible; False when on none."""
    num_sites, num_K = hop_SS.shape[0], behind_USK.shape[2]
    any_live = False
    for u in allowed_A:
        live_U[u] = False
        for s in range(num_sites):
            for k in range(num_K):
                onward_USK[u, s, k] = np.inf
            for t in range(num_sites):
                if behind_USK[u, t, num_K - 1] < np.inf and hop_SS[s, t] < np.inf:
                    live_U[u] = True
                    for k in range(num_K):
                        ahead = behind_USK[u, t, k] + hop_SS[s, t]
                        if ahead < onward_USK[u, s, k]:
                            onward_USK[u, s, k] = ahead
        any_live = any_live or live_U[u]
    return any_live


@compiled
def least_fills(
    cost_QHJK: FloatArray,
    hop_SS: FloatArray,
    site_J: IntArray,
    count_J: IntArray,
    before_UJ: PositionArray,
    allowed_A: IntArray,
    allowed_U: NDArray[np.bool_],
    num_stages: int,
) -> FloatArray:
    """Least cost of chains on exactly the allowed device counts, under each multiplier; shape (A, K).

    `before_UJ` is the count that a way leads from, -1 without one. Allowed counts are closed downwards.
    Places are numbered as in planner.solve.small_stages: single, last, first, middle.
    """
    num_levels, _, num_ways, num_K = cost_QHJK.shape
    num_sites, num_U = hop_SS.shape[0], before_UJ.shape[0]
    done_UK = np.empty((num_U, num_K))
    behind_USK = np.empty((num_U, num_sites, num_K))
    onward_USK = np.empty((num_U, num_sites, num_K))
    live_U = np.zeros(num_U, dtype=np.bool_)
    for u in allowed_A:
        for k in range(num_K):
            done_UK[u, k] = np.inf
            for s in range(num_sites):
                behind_USK[u, s, k] = np.inf
    for j in range(num_ways):
        u, s = count_J[j], site_J[j]
        if allowed_U[u]:
            for k in range(num_K):
                done_UK[u, k] = min(done_UK[u, k], cost_QHJK[0, 0, j, k])
                behind_USK[u, s, k] = min(behind_USK[u, s, k], cost_QHJK[0, 1, j, k])
    for depth in range(1, num_stages):
        level = min(depth, num_levels - 1)
        if not step_back(behind_USK, onward_USK, hop_SS, allowed_A, live_U):
            break
        for u in allowed_A:
            for s in range(num_sites):
                for k in range(num_K):
                    behind_USK[u, s, k] = np.inf
            for j in range(num_ways):
                v = before_UJ[u, j]
                if v >= 0 and live_U[v]:
                    s = site_J[j]
                    if cost_QHJK[level, 2, j, num_K - 1] < np.inf:
                        for k in range(num_K):
                            cost = onward_USK[v, s, k] + cost_QHJK[level, 2, j, k]
                            if cost < done_UK[u, k]:
                                done_UK[u, k] = cost
                    if cost_QHJK[level, 3, j, num_K - 1] < np.inf:
                        for k in range(num_K):
                            cost = onward_USK[v, s, k] + cost_QHJK[level, 3, j, k]
                            if cost < behind_USK[u, s, k]:
                                behind_USK[u, s, k] = cost
    return done_UK[allowed_A]


@compiled
def below(wanted_U: NDArray[np.bool_], order_U: IntArray, more_UC: PositionArray) -> NDArray[np.bool_]:
    """Counts with no more devices than some wanted one; `more_UC` is the count with one more of a class."""
    below_U = np.zeros(wanted_U.size + 1, dtype=np.bool_)
    for u in order_U:
        below_U[u] = wanted_U[u]
        for v in more_UC[u]:
            below_U[u] |= below_U[v]
    return below_U[:-1]


@compiled
def packings(
    order_U: IntArray,
    code_U: IntArray,
    position: PositionArray,
    column_M: IntArray,
    worth_M: FloatArray,
    end_K: FloatArray,
    bounded: bool,
) -> FloatArray:
    """Most that more replicas can add to k replicas on the devices of each count; shape (U + 1, K).

    `order_U` lists the counts allowed, those of most devices first. `end_K` is 0 where k replicas may be the
    last, else -inf. Without a limit the last k stands for that many or more; `bounded` takes no more there.
    """
    size, num_K = code_U.size, end_K.size
    go_UK = np.full((size + 1, num_K), -np.inf)
    allowed_U = np.zeros(size + 1, dtype=np.bool_)
    for u in order_U:
        allowed_U[u] = True
        for k in range(num_K):
            go_UK[u, k] = end_K[k]
        for m in range(column_M.size):
            v = position[code_U[u] + code_U[column_M[m]]]
            if allowed_U[v]:
                for k in range(num_K):
                    following = min(k + 1, num_K - 1)
                    if k < following or not bounded:
                        go_UK[u, k] = max(go_UK[u, k], worth_M[m] + go_UK[v, following])
    return go_UK
