"""What the search for one replica knows of a mode: tables up to a load, and device counts in packed words.

Legend: see single_arrays.py; C device classes, R capacity rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np

from planner.problem import BoundaryProblem
from planner.solve.columns import Shape
from planner.solve.pathdp import hop_loads_s
from planner.solve.single_arrays import Clusters, Costs, Room, View
from planner.solve.tables import FloatArray, IntArray, ModeTables

EDGE = 1.0 - 1e-9
WORD_BITS = 62
FIELD_BITS = 24


@dataclass(frozen=True, kw_only=True)
class SingleMode:
    """One mode's tables with the arrays that do not depend on the load; `loads` in rising order."""

    tables: ModeTables
    hop_load_BSS: FloatArray
    loads: FloatArray
    costs: Costs

    def top_load_s(self, upto_s: float) -> float:
        """The largest load within a limit; 0 without any."""
        at = int(self.loads.searchsorted(upto_s, side="right"))
        return float(self.loads[at - 1]) if at else 0.0

    def edge_s(self, above_s: float) -> float:
        """The highest edge that parts the same loads as `above_s` does, with a margin for rounding."""
        at = int(self.loads.searchsorted(above_s, side="right"))
        return max(above_s, float(self.loads[at]) * EDGE) if at < self.loads.size else above_s

    def view(self, upto_s: float) -> View:
        """Entries and links with loads up to `upto_s`."""
        tables = self.tables
        entry_E = np.flatnonzero(tables.load_E <= upto_s)
        num_signatures = len(tables.signatures.intervals)
        cell_E = tables.cell_E[entry_E]
        first_P = np.flatnonzero(np.diff(cell_E, prepend=-1))
        cell_P = cell_E[first_P]
        present_G = np.zeros(num_signatures + 1, dtype=bool)
        present_G[cell_P % num_signatures] = True
        used_W = np.flatnonzero(present_G[tables.signatures.window_LW].any(axis=0))
        num_lengths = int(used_W[-1]) + 1 if used_W.size else 1
        slot_QSG = np.full(self.costs.cost_QSG.shape, -1, dtype=np.int64)
        flat_P = cell_P + cell_P // num_signatures
        slot_QSG.reshape(-1)[flat_P] = np.arange(flat_P.size)
        self.costs.cost_QSG[:] = np.inf
        fill = tables.formula.fill
        open_BSS = np.isfinite(tables.transfer_BSS) & (self.hop_load_BSS <= upto_s)
        hop_BSS = np.where(open_BSS, fill * tables.transfer_BSS, np.inf)
        return View(
            fill_E=fill * tables.busy_E[entry_E],
            load_E=tables.load_E[entry_E],
            template_E=tables.template_E[entry_E].astype(np.int64),
            first_P=np.append(first_P, entry_E.size),
            cell_P=flat_P,
            slot_QSG=slot_QSG,
            window_LW=np.ascontiguousarray(tables.signatures.window_LW[:, :num_lengths]),
            hop_BSS=hop_BSS,
            load_per_fill=tables.formula.repeats / fill,
        )


def single_mode(tables: ModeTables, num_templates: int) -> SingleMode:
    """A mode ready for views; its cost arrays serve one view at a time."""
    num_stages, num_sites = tables.num_stages, tables.num_sites
    num_layers = tables.signatures.window_LW.shape[0]
    cells = (tables.num_levels, num_sites, len(tables.signatures.intervals) + 1)
    hop_load_BSS = hop_loads_s(tables)
    linked_loads = hop_load_BSS[np.isfinite(hop_load_BSS)]
    return SingleMode(
        tables=tables,
        hop_load_BSS=hop_load_BSS,
        loads=np.unique(np.concatenate([tables.load_E, linked_loads])),
        costs=Costs(
            charge_J=np.zeros(num_templates),
            credit_S=np.zeros(num_sites),
            cost_QSG=np.full(cells, np.inf),
            entry_QSG=np.full(cells, -1, dtype=np.int64),
            stage_QLS=np.full((num_stages, num_layers, num_sites), np.inf),
            onward_QSB=np.full((num_stages, num_sites, num_layers + 1), np.inf),
        ),
    )


def cluster_counts(problem: BoundaryProblem) -> Clusters:
    """Devices of each class that each candidate cluster takes."""
    pairs = [pair for template in problem.templates for pair in template.usage]
    sizes = [len(template.usage) for template in problem.templates]
    return Clusters(
        first_J=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        class_K=np.array([class_i for class_i, _ in pairs], dtype=np.int64),
        count_K=np.array([count for _, count in pairs], dtype=np.int64),
    )


def pack_rows(shape: Shape) -> Room:
    """Capacity rows as bit fields; fractions are rounded up, so that there is never too much room."""
    used_JR, limit_R = _whole_rows(shape)
    num_words, at = 1, 0
    words: list[tuple[int, int, int]] = []
    for limit in limit_R:
        bits = int(limit).bit_length() + 1
        if at + bits > WORD_BITS:
            num_words, at = num_words + 1, 0
        words.append((num_words - 1, at, bits))
        at += bits
    used_JX = np.zeros((used_JR.shape[0], num_words), dtype=np.int64)
    limit_X, guard_X = np.zeros(num_words, dtype=np.int64), np.zeros(num_words, dtype=np.int64)
    for r, (word, shift, bits) in enumerate(words):
        # A cluster beyond the limit must stay beyond it, but its field must not spill over.
        most = min(int(limit_R[r]) + 1, (1 << bits) - 1)
        used_JX[:, word] += np.minimum(used_JR[:, r], most) << shift
        limit_X[word] += int(limit_R[r]) << shift
        guard_X[word] += 1 << (shift + bits - 1)
    return Room(used_JX=used_JX, limit_X=limit_X, guard_X=guard_X)


def _whole_rows(shape: Shape) -> tuple[IntArray, IntArray]:
    """Use per cluster and limit of every row in whole numbers; a row with fractions is scaled first."""
    used_JR = np.zeros((shape.usage_JC.shape[0], shape.limit_R.size), dtype=np.int64)
    limit_R = np.zeros(shape.limit_R.size, dtype=np.int64)
    for r, limit in enumerate(shape.limit_R):
        weight_C = shape.coefficient_RC[r]
        whole = bool(np.all(weight_C == np.round(weight_C)))
        scale = 1.0 if whole or limit <= 0.0 else (1 << FIELD_BITS) / limit
        used_J = shape.usage_JC @ weight_C * scale
        used_JR[:, r] = np.ceil(np.minimum(used_J - 1e-9 * np.abs(used_J), 1 << (FIELD_BITS + 1)))
        limit_R[r] = max(0, floor(limit * scale * (1.0 + 1e-12) + 1e-9))
    return used_JR, limit_R
