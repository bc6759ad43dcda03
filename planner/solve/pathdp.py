"""Shortest replica paths under prices: the relaxed pricing problem of one load box.

A path is a chain of stages from layer 0 to L. Its cost is `a * w + prices of its clusters` with w the fill time
(busy and transfer seconds of one micro-batch through all stages), over columns and links whose load stays inside
the box. The relaxation: a path may use a class more often than it has devices. Visit credits tighten it: each
maximal visit to a site pays `lambda_c` per device of class c used and gets `lambda_c * N_c` back, which no real
replica can profit from.

Legend: E column entries of the box, P distinct cells, Q stages left - 1, S sites, G signatures, L layers, W interval
lengths, J templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from planner.objective import StageChoice
from planner.solve.tables import FloatArray, IntArray, ModeTables


@dataclass(frozen=True, kw_only=True)
class BoxView:
    """The part of a mode's tables whose load does not pass `upto_s`."""

    tables: ModeTables
    upto_s: float
    busy_E: FloatArray
    load_E: FloatArray
    template_E: NDArray[np.int32]
    cell_P: IntArray
    start_P: IntArray
    window_LW: IntArray
    transfer_BSS: FloatArray
    linked_BSS: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PathDp:
    """Costs to go. `value` is the least cost of any path, infinite when there is none."""

    view: BoxView
    cost_E: FloatArray
    cell_QSG: FloatArray
    stage_QSL: FloatArray
    onward_QSB: FloatArray
    hop_BSS: FloatArray
    total_QS: FloatArray

    @property
    def value(self) -> float:
        """Least cost over all paths."""
        return float(self.total_QS.min())


def build_view(tables: ModeTables, upto_s: float) -> BoxView:
    """Filter a mode's tables to the loads of a box."""
    inside_E = np.flatnonzero(tables.load_E <= upto_s)
    cell_E = tables.cell_E[inside_E]
    start_P = np.flatnonzero(np.diff(cell_E, prepend=-1)).astype(np.int64)
    cell_P = cell_E[start_P]
    num_signatures = len(tables.signatures.intervals)
    present_G = np.zeros(num_signatures + 1, dtype=bool)
    present_G[np.unique(cell_P % num_signatures)] = True
    used_W = np.flatnonzero(present_G[tables.signatures.window_LW].any(axis=0))
    num_lengths = int(used_W[-1]) + 1 if used_W.size else 1
    linked_BSS = np.isfinite(tables.transfer_BSS) & (tables.formula.repeats * tables.transfer_BSS <= upto_s)
    return BoxView(
        tables=tables,
        upto_s=upto_s,
        busy_E=tables.busy_E[inside_E],
        load_E=tables.load_E[inside_E],
        template_E=tables.template_E[inside_E],
        cell_P=cell_P,
        start_P=start_P,
        window_LW=np.ascontiguousarray(tables.signatures.window_LW[:, :num_lengths]),
        transfer_BSS=np.where(linked_BSS, tables.transfer_BSS, 0.0),
        linked_BSS=linked_BSS,
    )


def run_path_dp(view: BoxView, time_weight: float, price_J: FloatArray, credit_S: FloatArray) -> PathDp:
    """Costs to go for `time_weight` per second of fill time and a price per candidate cluster.

    `credit_S` is handed back once per visit to a site.
    """
    tables = view.tables
    fill = time_weight * tables.formula.fill
    num_sites, num_layers = tables.num_sites, view.window_LW.shape[0]
    num_signatures = len(tables.signatures.intervals)
    cost_E = price_J[view.template_E]
    if fill > 0.0:
        cost_E += fill * view.busy_E
    cell_QSG = np.full((tables.num_levels, num_sites, num_signatures + 1), np.inf)
    if view.cell_P.size:
        flat = (view.cell_P // num_signatures) * (num_signatures + 1) + view.cell_P % num_signatures
        cell_QSG.reshape(-1)[flat] = np.minimum.reduceat(cost_E, view.start_P)
    hop_BSS = np.where(view.linked_BSS, fill * view.transfer_BSS, np.inf)
    hop_BSS -= credit_S[None, None, :] * (1.0 - np.eye(num_sites))[None, :, :]
    stage_QSL = np.empty((tables.num_stages, num_sites, num_layers))
    onward_QSB = np.full((tables.num_stages, num_sites, num_layers + 1), np.inf)
    onward_QSB[0, :, num_layers] = 0.0
    for q in range(tables.num_stages):
        if q > 0:
            arrive_BS = stage_QSL[q - 1].T
            onward_QSB[q, :, :num_layers] = (hop_BSS[:num_layers] + arrive_BS[:, None, :]).min(axis=2).T
        stage_QSL[q] = _extend(cell_QSG[min(q, tables.num_levels - 1)], onward_QSB[q], view.window_LW)
    return PathDp(
        view=view,
        cost_E=cost_E,
        cell_QSG=cell_QSG,
        stage_QSL=stage_QSL,
        onward_QSB=onward_QSB,
        hop_BSS=hop_BSS,
        total_QS=stage_QSL[:, :, 0] - credit_S[None, :],
    )


def _extend(cell_SG: FloatArray, onward_SB: FloatArray, window_LW: IntArray) -> FloatArray:
    """Least cost of a stage starting at each layer plus what follows it."""
    num_sites, num_layers = cell_SG.shape[0], window_LW.shape[0]
    num_lengths = window_LW.shape[1]
    padded = np.full((num_sites, num_layers + num_lengths + 1), np.inf)
    padded[:, : num_layers + 1] = onward_SB
    after_SLW = as_strided(
        padded[:, 1:],
        shape=(num_sites, num_layers, num_lengths),
        strides=(padded.strides[0], padded.strides[1], padded.strides[1]),
        writeable=False,
    )
    total_SLW = np.take(cell_SG, window_LW, axis=1)
    total_SLW += after_SLW
    least_SL: FloatArray = total_SLW.min(axis=2)
    return least_SL


def trace_entries(dp: PathDp, stages_left_i: int, site_i: int) -> list[tuple[StageChoice, int]]:
    """Stages of the least path that starts in `site_i` with `stages_left_i + 1` stages, each with its entry."""
    view, tables = dp.view, dp.view.tables
    num_signatures = len(tables.signatures.intervals)
    num_layers = view.window_LW.shape[0]
    stages: list[tuple[StageChoice, int]] = []
    q, s, layer = stages_left_i, site_i, 0
    while True:
        level = min(q, tables.num_levels - 1)
        lengths = min(view.window_LW.shape[1], num_layers - layer)
        cost_W = dp.cell_QSG[level, s, view.window_LW[layer, :lengths]]
        stop = layer + 1 + int(np.argmin(cost_W + dp.onward_QSB[q, s, layer + 1 : layer + 1 + lengths]))
        signature = int(view.window_LW[layer, stop - layer - 1])
        p = int(np.searchsorted(view.cell_P, (level * tables.num_sites + s) * num_signatures + signature))
        end = int(view.start_P[p + 1]) if p + 1 < view.start_P.size else view.busy_E.size
        start = int(view.start_P[p])
        entry = start + int(np.argmin(dp.cost_E[start:end]))
        stages.append((StageChoice(template_i=int(view.template_E[entry]), start=layer, stop=stop), entry))
        if q == 0:
            return stages
        s = int(np.argmin(dp.hop_BSS[stop, s] + dp.stage_QSL[q - 1, :, stop]))
        q, layer = q - 1, stop


def best_starts(dp: PathDp, limit: int, within: float) -> Sequence[tuple[int, int]]:
    """(stages left - 1, site) of the cheapest path from each start site, cheapest first, at most `within` above."""
    best_q_S = dp.total_QS.argmin(axis=0)
    value_S = dp.total_QS[best_q_S, np.arange(dp.total_QS.shape[1])]
    order = np.argsort(value_S, kind="stable")[:limit]
    top = value_S[order[0]] + within
    return [(int(best_q_S[s]), int(s)) for s in order if np.isfinite(value_S[s]) and value_S[s] <= top]


def least_load(tables: ModeTables) -> float:
    """The smallest load under which any path exists at all; infinite when no replica can be formed."""
    num_signatures = len(tables.signatures.intervals)
    num_sites, num_layers = tables.num_sites, tables.signatures.window_LW.shape[0]
    cell_QSG = np.full((tables.num_levels, num_sites, num_signatures + 1), np.inf)
    if tables.cell_E.size:
        start_P = np.flatnonzero(np.diff(tables.cell_E, prepend=-1))
        cell_P = tables.cell_E[start_P]
        flat = (cell_P // num_signatures) * (num_signatures + 1) + cell_P % num_signatures
        cell_QSG.reshape(-1)[flat] = np.minimum.reduceat(tables.load_E, start_P)
    hop_BSS = tables.formula.repeats * tables.transfer_BSS
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
        hops = np.maximum(hop_BSS[:num_layers], stage_SL.T[:, None, :]).min(axis=2).T
        onward_SB = np.full((num_sites, num_layers + 1), np.inf)
        onward_SB[:, :num_layers] = hops
    return best
