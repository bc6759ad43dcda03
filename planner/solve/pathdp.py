"""The smallest load any replica can have in a mode, whatever the prices.

Legend: E column entries, P distinct cells, Q stages left - 1, S sites, G signatures, L layers, B borders.
"""

from __future__ import annotations

import numpy as np

from planner.solve.tables import FloatArray, ModeTables


def hop_loads_s(tables: ModeTables) -> FloatArray:
    """Load of every link: repeats times its transfer seconds, infinite without a link."""
    finite_BSS = np.isfinite(tables.transfer_BSS)
    loads_BSS = tables.formula.repeats * np.where(finite_BSS, tables.transfer_BSS, 0.0)
    return np.where(finite_BSS, loads_BSS, np.inf)


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
