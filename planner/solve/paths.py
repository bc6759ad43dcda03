"""A mode's tables laid out for the path kernels: runs of entries, without repetition over in-flight levels.

Most clusters cost the same on every in-flight level they fit on, from none waiting up to some most. Such an
entry is kept once, at that most level; the rest, which only a cost model of its own mind makes, stay level by
level. Entries of one cluster and level on signatures that follow each other, of rising load, make a run:
what a load limit leaves of it is its beginning, and the kernels work through it without a branch.

Legend: E entries, N runs of entries, W runs of windows, I runs of borders, J templates, Q in-flight levels, S
sites, G signatures, L layers, B layer borders, X cells.
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

    Run n holds entries `[start_N[n], start_N[n + 1])` of cluster `template_N[n]` at site `site_N[n]`, on
    level `level_N[n]` and signatures from `signature_N[n]` on. The first `num_spread` runs, with the first
    `num_spread_entries` entries, hold on all levels up to their own, the others on their own level only;
    either part is sorted by least load. `cell_entry_E[cell_start_X[x]:cell_start_X[x + 1]]` are the entries
    of cell x = (level, site, signature).

    `length_G[g]` is the most layers of a window of signature g. Windows of n layers that start in
    `[from_W[w], upto_W[w])` have signature `signature_W[w]`, for w in `[windows_L[n], windows_L[n + 1])`;
    windows up to the last layer stand in `last_L` by first layer. All borders in `[from_I[i], upto_I[i])`
    have the same transfer seconds, `run_B[b]` is the run of a border; `transfer_BST[b, t, s]` is what
    crossing border b from site s to site t takes.
    """

    busy_E: FloatArray
    load_E: FloatArray
    template_E: Int32Array
    start_N: Int32Array
    template_N: Int32Array
    level_N: Int32Array
    site_N: Int32Array
    signature_N: Int32Array
    num_spread: int
    num_spread_entries: int
    cell_start_X: Int32Array
    cell_entry_E: Int32Array
    window_LW: Int32Array
    length_G: Int32Array
    windows_L: Int32Array
    from_W: Int32Array
    upto_W: Int32Array
    signature_W: Int32Array
    last_L: Int32Array
    from_I: Int32Array
    upto_I: Int32Array
    run_B: Int32Array
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
    num_signatures = len(tables.signatures.intervals)
    level_E, place_E = np.divmod(tables.cell_E, tables.num_sites * num_signatures)
    kept_E, single_E = _split(tables, level_E, place_E, group_J)
    parts = [_runs(tables, part_E, level_E, place_E % num_signatures) for part_E in (kept_E, single_E)]
    entries, start_N = _concatenated(parts)
    head_N = entries[start_N[:-1]]
    cell_E = tables.cell_E[entries]
    cells = np.arange(tables.num_cells + 1)
    by_cell_E = np.argsort(cell_E, kind="stable")
    window_LW = np.ascontiguousarray(tables.signatures.window_LW, dtype=np.int32)
    windows = _window_runs(window_LW)
    borders = _border_runs(tables.transfer_BSS)
    return Paths(
        busy_E=np.ascontiguousarray(tables.busy_E[entries]),
        load_E=np.ascontiguousarray(tables.load_E[entries]),
        template_E=tables.template_E[entries].astype(np.int32),
        start_N=start_N.astype(np.int32),
        template_N=tables.template_E[head_N].astype(np.int32),
        level_N=level_E[head_N].astype(np.int32),
        site_N=(place_E // num_signatures)[head_N].astype(np.int32),
        signature_N=(place_E % num_signatures)[head_N].astype(np.int32),
        num_spread=parts[0][1].size,
        num_spread_entries=kept_E.size,
        cell_start_X=np.searchsorted(cell_E[by_cell_E], cells).astype(np.int32),
        cell_entry_E=by_cell_E.astype(np.int32),
        window_LW=window_LW,
        length_G=_longest(window_LW, num_signatures),
        windows_L=windows[0],
        from_W=windows[1],
        upto_W=windows[2],
        signature_W=windows[3],
        last_L=window_LW[np.arange(len(window_LW)), np.arange(len(window_LW))[::-1]].copy(),
        from_I=borders[0],
        upto_I=borders[1],
        run_B=borders[2],
        transfer_BST=np.ascontiguousarray(tables.transfer_BSS.transpose(0, 2, 1)),
        num_levels=tables.num_levels,
        num_stages=tables.num_stages,
        num_signatures=num_signatures,
        fill=float(tables.formula.fill),
        repeats=float(tables.formula.repeats),
        sync=bool(tables.formula.sync),
    )


def _runs(
    tables: ModeTables, entries: NDArray[np.int64], level_E: NDArray[np.int64], signature_E: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The entries in order of runs, runs by least load, and where each run begins."""
    order = np.lexsort((signature_E[entries], level_E[entries], tables.template_E[entries]))
    line = entries[order]
    template, load = tables.template_E[line], tables.load_E[line]
    begins = np.ones(line.size, dtype=bool)
    begins[1:] = (
        (template[1:] != template[:-1])
        | (level_E[line[1:]] != level_E[line[:-1]])
        | (signature_E[line[1:]] != signature_E[line[:-1]] + 1)
        | (load[1:] < load[:-1])
    )
    head = np.flatnonzero(begins)
    size = np.diff(np.append(head, line.size))
    run_order = np.argsort(load[head], kind="stable")
    run_of = np.repeat(np.argsort(run_order, kind="stable"), size)
    sizes = size[run_order]
    return line[np.argsort(run_of, kind="stable")], np.cumsum(sizes) - sizes


def _concatenated(
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Entries of all parts, and where each run begins, the end of the last added."""
    entries = np.concatenate([line for line, _ in parts])
    before = np.cumsum([0, *(line.size for line, _ in parts)])
    starts = [start + first for (_, start), first in zip(parts, before, strict=False)]
    return entries, np.append(np.concatenate(starts), entries.size)


def _window_runs(window_LW: Int32Array) -> tuple[Int32Array, Int32Array, Int32Array, Int32Array]:
    """By length, the runs of windows of equal signature that end before the last layer."""
    num_layers = len(window_LW)
    windows, first, stop, signature = [0, 0], [], [], []
    for length in range(1, num_layers):
        line = window_LW[: num_layers - length, length - 1]
        begins = np.flatnonzero(np.diff(line, prepend=-1))
        first += begins.tolist()
        stop += [*begins[1:].tolist(), line.size]
        signature += line[begins].tolist()
        windows.append(len(first))
    return _int32(windows), _int32(first), _int32(stop), _int32(signature)


def _longest(window_LW: Int32Array, num_signatures: int) -> Int32Array:
    """The most layers of a window of each signature."""
    length_G = np.zeros(num_signatures + 1, dtype=np.int32)  # the last stands for windows past the end
    for length in range(1, len(window_LW) + 1):
        length_G[window_LW[:, length - 1]] = length
    return length_G[:num_signatures].copy()


def _border_runs(transfer_BSS: FloatArray) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Runs of inner borders of equal transfer seconds, and the run of each border."""
    num_borders = len(transfer_BSS)
    run_B = np.zeros(num_borders, dtype=np.int32)
    first: list[int] = []
    for b in range(1, num_borders - 1):
        if not first or not np.array_equal(transfer_BSS[b], transfer_BSS[first[-1]]):
            first.append(b)
        run_B[b] = len(first) - 1
    return _int32(first), _int32([*first[1:], num_borders - 1][: len(first)]), run_B


def _int32(values: list[int]) -> Int32Array:
    return np.array(values, dtype=np.int32)


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
