"""Shortest replica paths under prices: the relaxed pricing problem of one load box.

A path is a chain of stages from layer 0 to L. Its cost is `a * w + prices of its clusters` with w the fill
time (busy and transfer seconds of one micro-batch through all stages), over columns and links whose load
stays inside the box. The relaxation: a path may use a class more often than it has devices. Visit credits
tighten it: each maximal visit to a site pays `lambda_c` per device of class c used and gets `lambda_c *
N_c` back, which no real replica can profit from.

Costs to go are single precision, which halves the time; `PathDp.value` is lowered by more than the rounding
can have raised it, so that it bounds every path from below.

Legend: E column entries of the box, P distinct cells, Q stages left - 1, S sites, G signatures, L layers, W
interval lengths, B layer borders, J templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from planner.objective import StageChoice
from planner.solve.tables import FloatArray, ModeTables

Float32Array = NDArray[np.float32]

# A path adds at most 3 numbers per stage; 2^-24 is half a unit in the last place of a single.
ROUNDING = 4.0 * 2.0**-24


@dataclass(frozen=True, kw_only=True)
class BoxView:
    """The part of a mode's tables with loads up to `upto_s`; `entry_E` are positions in the tables."""

    tables: ModeTables
    upto_s: float
    entry_E: NDArray[np.int32]
    busy_E: Float32Array
    template_E: NDArray[np.signedinteger]
    cell_P: NDArray[np.int32]
    start_P: NDArray[np.int32]
    window_LW: NDArray[np.int32]
    transfer_BSS: Float32Array

    @property
    def num_bytes(self) -> int:
        """Memory this view takes."""
        arrays = (self.entry_E, self.busy_E, self.template_E, self.cell_P, self.start_P, self.window_LW)
        return sum(array.nbytes for array in arrays) + self.transfer_BSS.nbytes


@dataclass(frozen=True, kw_only=True)
class PathDp:
    """Costs to go. `value` is a lower bound on the cost of any path, infinite when there is none."""

    view: BoxView
    cost_E: Float32Array
    cell_QSG: Float32Array
    stage_QSL: Float32Array
    onward_QSB: Float32Array
    hop_BSS: Float32Array
    total_QS: Float32Array
    value: float


def build_view(tables: ModeTables, upto_s: float) -> BoxView:
    """Filter a mode's tables to the loads of a box."""
    entry_E = np.flatnonzero(tables.load_E <= upto_s).astype(np.int32)
    cell_E = tables.cell_E[entry_E]
    first_E = np.empty(cell_E.size, dtype=bool)
    first_E[:1] = True
    np.not_equal(cell_E[1:], cell_E[:-1], out=first_E[1:])
    start_P = np.flatnonzero(first_E).astype(np.int32)
    cell_P = cell_E[start_P].astype(np.int32)
    num_signatures = len(tables.signatures.intervals)
    present_G = np.zeros(num_signatures + 1, dtype=bool)
    present_G[cell_P % num_signatures] = True
    used_W = np.flatnonzero(present_G[tables.signatures.window_LW].any(axis=0))
    num_lengths = int(used_W[-1]) + 1 if used_W.size else 1
    linked_BSS = np.isfinite(tables.transfer_BSS) & (hop_loads_s(tables) <= upto_s)
    return BoxView(
        tables=tables,
        upto_s=upto_s,
        entry_E=entry_E,
        busy_E=tables.busy_E[entry_E].astype(np.float32),
        template_E=tables.template_E[entry_E],
        cell_P=cell_P,
        start_P=start_P,
        window_LW=np.ascontiguousarray(tables.signatures.window_LW[:, :num_lengths], dtype=np.int32),
        transfer_BSS=np.where(linked_BSS, tables.transfer_BSS, np.inf).astype(np.float32),
    )


def hop_loads_s(tables: ModeTables) -> FloatArray:
    """Load of every link: repeats times its transfer seconds, infinite without a link."""
    finite_BSS = np.isfinite(tables.transfer_BSS)
    loads_BSS = tables.formula.repeats * np.where(finite_BSS, tables.transfer_BSS, 0.0)
    return np.where(finite_BSS, loads_BSS, np.inf)


def run_path_dp(view: BoxView, time_weight: float, price_J: FloatArray, credit_S: FloatArray) -> PathDp:
    """Costs to go for `time_weight` per second of fill time and a price per candidate cluster.

    `credit_S` is handed back once per visit to a site.
    """
    tables = view.tables
    fill = np.float32(time_weight * tables.formula.fill)
    num_stages, num_sites = tables.num_stages, tables.num_sites
    num_layers, num_lengths = view.window_LW.shape
    cost_E = price_J.astype(np.float32).take(view.template_E)
    if fill > 0.0:
        cost_E += fill * view.busy_E
    cell_QSG = _cells(view, cost_E)
    hop_BSS = _hops(view, fill, credit_S)
    padded_QSB = np.full((num_stages, num_sites, num_layers + 1 + num_lengths), np.inf, dtype=np.float32)
    padded_QSB[0, :, num_layers] = 0.0
    after_QSLW = as_strided(
        padded_QSB[:, :, 1:],
        shape=(num_stages, num_sites, num_layers, num_lengths),
        strides=(*padded_QSB.strides, padded_QSB.strides[2]),
        writeable=False,
    )
    stage_QSL = np.empty((num_stages, num_sites, num_layers), dtype=np.float32)
    total_SLW = np.empty((num_sites, num_layers, num_lengths), dtype=np.float32)
    for q in range(num_stages):
        if q > 0:
            arrive_BS = np.ascontiguousarray(stage_QSL[q - 1].T)
            padded_QSB[q, :, :num_layers] = (hop_BSS + arrive_BS[:, None, :]).min(axis=2).T
        np.take(cell_QSG[min(q, tables.num_levels - 1)], view.window_LW, axis=1, out=total_SLW, mode="clip")
        np.add(total_SLW, after_QSLW[q], out=total_SLW)
        total_SLW.min(axis=2, out=stage_QSL[q])
    total_QS = stage_QSL[:, :, 0] - credit_S.astype(np.float32)[None, :]
    least = float(total_QS.min())
    spread = abs(least) + 2.0 * num_stages * float(credit_S.sum())
    return PathDp(
        view=view,
        cost_E=cost_E,
        cell_QSG=cell_QSG,
        stage_QSL=stage_QSL,
        onward_QSB=padded_QSB,
        hop_BSS=hop_BSS,
        total_QS=total_QS,
        value=least - ROUNDING * 3 * num_stages * spread if isfinite(least) else least,
    )


def _cells(view: BoxView, cost_E: Float32Array) -> Float32Array:
    """Least cost per (level, site, signature); one more signature, infinite, stands for no interval."""
    tables = view.tables
    num_signatures = len(tables.signatures.intervals)
    cell_QSG = np.full((tables.num_levels, tables.num_sites, num_signatures + 1), np.inf, dtype=np.float32)
    if view.cell_P.size:
        flat_P = view.cell_P + view.cell_P // num_signatures
        cell_QSG.reshape(-1)[flat_P] = np.minimum.reduceat(cost_E, view.start_P)
    return cell_QSG


def _hops(view: BoxView, fill: np.float32, credit_S: FloatArray) -> Float32Array:
    """Cost of going on from site s to t at each inner border; entering another site returns its credit."""
    num_layers = view.window_LW.shape[0]
    transfer_BSS = view.transfer_BSS[:num_layers]
    if fill > 0.0:
        hop_BSS = fill * transfer_BSS
    else:
        hop_BSS = np.where(np.isfinite(transfer_BSS), np.float32(0.0), np.float32(np.inf))
    if credit_S.any():
        num_sites = credit_S.size
        hop_BSS -= (credit_S[None, :] * (1.0 - np.eye(num_sites))).astype(np.float32)
    return hop_BSS


def trace_entries(dp: PathDp, stages_left_i: int, site_i: int) -> list[tuple[StageChoice, int]]:
    """The least path from `site_i` with `stages_left_i + 1` stages: each stage with its table entry."""
    view, tables = dp.view, dp.view.tables
    num_signatures = len(tables.signatures.intervals)
    num_layers = view.window_LW.shape[0]
    stages: list[tuple[StageChoice, int]] = []
    q, s, layer = stages_left_i, site_i, 0
    while True:
        level = min(q, tables.num_levels - 1)
        lengths = min(view.window_LW.shape[1], num_layers - layer)
        cost_W = dp.cell_QSG[level, s, view.window_LW[layer, :lengths]]
        cost_W += dp.onward_QSB[q, s, layer + 1 : layer + 1 + lengths]
        stop = layer + 1 + int(cost_W.argmin())
        signature = int(view.window_LW[layer, stop - layer - 1])
        p = int(view.cell_P.searchsorted((level * tables.num_sites + s) * num_signatures + signature))
        start = int(view.start_P[p])
        end = int(view.start_P[p + 1]) if p + 1 < view.start_P.size else view.busy_E.size
        at = start + int(dp.cost_E[start:end].argmin())
        stages.append(
            (StageChoice(template_i=int(view.template_E[at]), start=layer, stop=stop), int(view.entry_E[at]))
        )
        if q == 0:
            return stages
        s = int((dp.hop_BSS[stop, s] + dp.stage_QSL[q - 1, :, stop]).argmin())
        q, layer = q - 1, stop


def best_starts(dp: PathDp, limit: int, within_frac: float) -> Sequence[tuple[int, int]]:
    """(stages left - 1, site) of the cheapest path from each start site, cheapest first.

    At most `limit`, none dearer than `within_frac` above the first.
    """
    best_q_S = dp.total_QS.argmin(axis=0)
    value_S = dp.total_QS[best_q_S, np.arange(dp.total_QS.shape[1])]
    order = value_S.argsort(kind="stable")[:limit]
    top = value_S[order[0]] + within_frac * abs(value_S[order[0]])
    return [(int(best_q_S[s]), int(s)) for s in order if isfinite(value_S[s]) and value_S[s] <= top]


def least_load(tables: ModeTables) -> float:
    """The smallest load under which any path exists at all; infinite when no replica can be formed."""
    num_signatures = len(tables.signatures.intervals)
    num_sites, num_layers = tables.num_sites, tables.signatures.window_LW.shape[0]
    cell_QSG = np.full((tables.num_levels, num_sites, num_signatures + 1), np.inf)
    if tables.cell_E.size:
        start_P = np.flatnonzero(np.diff(tables.cell_E, prepend=-1))
        cell_P = tables.cell_E[start_P]
        flat_P = cell_P + cell_P // num_signatures
        cell_QSG.reshape(-1)[flat_P] = np.minimum.reduceat(tables.load_E, start_P)
    hop_BSS = hop_loads_s(tables)[:num_layers]
    onward_SB = np.full((num_sites, num_layers + 1), np.inf)
    onward_SB[:, num_layers] = 0.0
    best = np.inf
    for q in range(tables.num_stages):
        stage_SL = np.full((num_sites, num_layers), np.inf)
        cell_SG = cell_QSG[min(q, tables.num_levels - 1)]
        for layer in range(num_layers):
            window = tables.signatures.window_LW[layer, : num_layers - layer]
            stage_SL[:, layer] = np.maximum(cell_SG[:, window], onward_SB[:, layer + 1 :]).min(axis=1)
        best = min(best, float(stage_SL[:, 0].min()))
        onward_SB = np.full((num_sites, num_layers + 1), np.inf)
        onward_SB[:, :num_layers] = np.maximum(hop_BSS, stage_SL.T[:, None, :]).min(axis=2).T
    return best
