"""A mode's tables laid out for the path kernels: entries without repetition over in-flight levels.

Most clusters cost the same on every in-flight level they fit on, from none waiting up to some most. Such an
entry is kept once, at that most level; the rest, which only a cost model of its own mind makes, stay level by
level.

Legend: E entries, P cells with entries, N runs of equal windows, J templates, Q in-flight levels, S sites, G
signatures, L layers, B layer borders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.problem import BoundaryProblem
from planner.solve.tables import FloatArray, ModeTables

Int32Array = NDArray[np.int32]


class Paths(NamedTuple):
    """What the shortest-path kernels read.

    Entries `[start_P[p], start_P[p+1])`, by load, belong to cell `cell_P[p]` = (level, signature, site).
    The first `num_spread` cells hold on all levels up to their own, the others on their own level only.
    `transfer_BST[b, t, s]` is what crossing border b from site s to site t takes.
    """

    busy_E: FloatArray
    load_E: FloatArray
    template_E: Int32Array
    cell_P: Int32Array
    start_P: Int32Array
    num_spread: int
    window_LW: Int32Array
    transfer_BST: FloatArray
    num_levels: int
    num_stages: int
    num_signatures: int
    fill: float
    repeats: float
    sync: bool


def device_groups(problem: BoundaryProblem) -> NDArray[np.int64]:
    """The number of every candidate cluster's set of devices, which strategies on the same devices share."""
    seen: dict[tuple[object, ...], int] = {}
    return np.array(
        [seen.setdefault((t.site_i, t.usage), len(seen)) for t in problem.templates], dtype=np.int64
    )


def build_paths(tables: ModeTables, group_J: NDArray[np.int64]) -> Paths:
    """Lay out one mode; `group_J` tells which clusters take the same devices."""
    num_sites, num_signatures = tables.num_sites, len(tables.signatures.intervals)
    level_E, place_E = np.divmod(tables.cell_E, num_sites * num_signatures)
    site_E, signature_E = np.divmod(place_E, num_signatures)
    cell_E = (level_E * num_signatures + signature_E) * num_sites + site_E
    kept_E, single_E = _split(tables, level_E, place_E, group_J)
    kept_E = kept_E[np.lexsort((tables.load_E[kept_E], cell_E[kept_E]))]
    single_E = single_E[np.lexsort((tables.load_E[single_E], cell_E[single_E]))]
    entries = np.concatenate([kept_E, single_E])
    spread_starts = _starts(cell_E[kept_E])
    start_P = np.concatenate([spread_starts, _starts(cell_E[single_E]) + kept_E.size])
    return Paths(
        busy_E=np.ascontiguousarray(tables.busy_E[entries]),
        load_E=np.ascontiguousarray(tables.load_E[entries]),
        template_E=tables.template_E[entries].astype(np.int32),
        cell_P=cell_E[entries[start_P]].astype(np.int32),
        start_P=np.append(start_P, entries.size).astype(np.int32),
        num_spread=int(spread_starts.size),
        window_LW=np.ascontiguousarray(tables.signatures.window_LW, dtype=np.int32),
        transfer_BST=np.ascontiguousarray(tables.transfer_BSS.transpose(0, 2, 1)),
        num_levels=tables.num_levels,
        num_stages=tables.num_stages,
        num_signatures=num_signatures,
        fill=float(tables.formula.fill),
        repeats=float(tables.formula.repeats),
        sync=bool(tables.formula.sync),
    )


def _starts(cell_E: NDArray[np.integer]) -> NDArray[np.int64]:
    """Positions where another cell begins."""
    return np.flatnonzero(np.diff(cell_E, prepend=-1))


def _split(
    tables: ModeTables, level_E: NDArray[np.int64], place_E: NDArray[np.int64], group_J: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Entries that stand for all levels up to their own, and entries that stand for their own level only.

    A strategy that costs the same on levels a to b also stands for the levels below a when another on the
    same devices covers those and is nowhere dearer: there it is never chosen.
    """
    if place_E.size == 0:
        return place_E, place_E
    num_places = int(place_E.max()) + 1
    who_E = tables.template_E.astype(np.int64) * num_places + place_E
    order = np.lexsort((level_E, who_E))
    who, level = who_E[order], level_E[order]
    busy, load = tables.busy_E[order], tables.load_E[order]
    goes_on = np.zeros(who.size, dtype=bool)
    goes_on[1:] = (
        (who[1:] == who[:-1])
        & (level[1:] == level[:-1] + 1)
        & (busy[1:] == busy[:-1])
        & (load[1:] == load[:-1])
    )
    head = np.flatnonzero(~goes_on)
    tail = np.append(head[1:], who.size) - 1
    low, high = level[head], level[tail]
    devices = group_J[tables.template_E[order[head]]] * num_places + place_E[order[head]]
    line = np.lexsort((busy[head], low, devices))
    spread = _covered(devices[line], low[line], high[line], busy[head][line], load[head][line])
    kept = tail[line[spread]]
    single = [np.arange(head[i], tail[i] + 1) for i in line[~spread]]
    singles = np.concatenate(single) if single else np.zeros(0, dtype=np.int64)
    return np.sort(order[kept]), np.sort(order[singles])


def _covered(
    devices_I: NDArray[np.int64],
    low_I: NDArray[np.int64],
    high_I: NDArray[np.int64],
    busy_I: FloatArray,
    load_I: FloatArray,
) -> NDArray[np.bool_]:
    """Which ranges of levels may be taken to begin at the lowest; ordered by devices, then lowest level."""
    spread_I: NDArray[np.bool_] = low_I == 0
    while True:
        more_I = np.zeros_like(spread_I)
        more_I[1:] = (
            ~spread_I[1:]
            & spread_I[:-1]
            & (devices_I[1:] == devices_I[:-1])
            & (high_I[:-1] >= low_I[1:] - 1)
            & (busy_I[:-1] <= busy_I[1:])
            & (load_I[:-1] <= load_I[1:])
        )
        if not more_I.any():
            return spread_I
        spread_I |= more_I
