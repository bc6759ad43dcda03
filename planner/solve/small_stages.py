"""Stages of a small fleet by the devices they take, and bounds on fill times that forget where layers lie.

The state is (stages, site, devices used), so a chain never takes a device twice and every stage has its
true number of micro-batches in flight. What is relaxed is which layers a stage holds: it only pays
`multiplier` per layer less, and gets all of them back at the end, so every multiplier bounds the fill time
of real replicas.

Legend: U device counts, A allowed device counts of a run, J ways to take devices (site and count), G
signatures, P pairs (j, g) that occur (in CountBounds: cells (level, position, j)), X stages (pair and
place), Y stage costs (entry, position in the chain, layers), E table entries, B layer borders, S sites, K
multipliers, Q in-flight levels, H positions in the chain, T templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from planner.solve.columns import Shape
from planner.solve.small_kernels import least_fills, least_rates, stage_costs
from planner.solve.small_lattice import Lattice
from planner.solve.tables import FloatArray, IntArray, ModeTables

ROUGH, ALL = slice(-1, None), slice(None)
SINGLE, LAST, FIRST, MIDDLE = range(4)
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """All stages of a mode by their devices and place, whatever their strategy.

    `entry_E` lists the table entries by pair. Ways are ordered by site, places by stop border.
    """

    tables: ModeTables
    count_J: IntArray
    site_J: IntArray
    entry_E: IntArray
    pair_E: IntArray
    level_E: IntArray
    way_P: IntArray
    pair_X: IntArray
    start_X: IntArray
    stop_X: IntArray

    @property
    def num_layers(self) -> int:
        """Layers of the chain."""
        return int(self.tables.signatures.window_LW.shape[0])


def build_stages(tables: ModeTables, shape: Shape, lattice: Lattice) -> Stages:
    """Group the table entries of a mode; those over a capacity row are left out."""
    num_signatures = len(tables.signatures.intervals)
    way_of: dict[int, tuple[int, int]] = {}
    way_T = np.full(shape.usage_JC.shape[0], -1, dtype=np.int64)
    site_E = tables.cell_E // num_signatures % tables.num_sites
    firsts = np.unique(tables.template_E, return_index=True)
    for template_i, at in zip(firsts[0].tolist(), firsts[1].tolist(), strict=True):
        count = lattice.position(shape.usage_JC[template_i])
        if count < lattice.size:
            way_of[template_i] = (int(site_E[at]), count)
    ways = sorted(set(way_of.values()))
    for template_i, way in way_of.items():
        way_T[template_i] = ways.index(way)
    way_E = way_T[tables.template_E]
    kept_E = np.flatnonzero(way_E >= 0)
    pair_E = way_E[kept_E] * num_signatures + tables.cell_E[kept_E] % num_signatures
    order_E = np.argsort(pair_E, kind="stable")
    entry_E, pair_E = kept_E[order_E], pair_E[order_E]
    pair_P, pair_E = np.unique(pair_E, return_inverse=True)
    way_P, signature_P = pair_P // num_signatures, pair_P % num_signatures
    start_W, length_W = np.nonzero(tables.signatures.window_LW < num_signatures)
    signature_W = tables.signatures.window_LW[start_W, length_W]
    place_W = np.argsort(signature_W, kind="stable")
    from_G = np.searchsorted(signature_W[place_W], np.arange(num_signatures + 1))
    num_P = from_G[signature_P + 1] - from_G[signature_P]
    pair_X = np.repeat(np.arange(pair_P.size), num_P)
    within_X = np.arange(pair_X.size) - np.repeat(np.cumsum(num_P) - num_P, num_P)
    at_X = place_W[from_G[signature_P[pair_X]] + within_X]
    start_X, stop_X = start_W[at_X], start_W[at_X] + length_W[at_X] + 1
    order_X = np.argsort(stop_X, kind="stable")
    return Stages(
        tables=tables,
        count_J=np.array([count for _, count in ways], dtype=np.int64),
        site_J=np.array([site for site, _ in ways], dtype=np.int64),
        entry_E=entry_E,
        pair_E=pair_E,
        level_E=tables.cell_E[entry_E] // (num_signatures * tables.num_sites),
        way_P=way_P,
        pair_X=pair_X[order_X],
        start_X=start_X[order_X],
        stop_X=stop_X[order_X],
    )


class CountBounds:
    """Bounds of one mode by device counts."""

    def __init__(self, stages: Stages, lattice: Lattice) -> None:
        self.stages = stages
        tables = stages.tables
        kind_X = np.where(
            stages.start_X == 0,
            np.where(stages.stop_X == stages.num_layers, SINGLE, FIRST),
            np.where(stages.stop_X == stages.num_layers, LAST, MIDDLE),
        )
        length_X = stages.stop_X - stages.start_X
        size = stages.num_layers + 1
        shape_Y = np.unique((stages.pair_X * 4 + kind_X) * size + length_X)
        from_P = np.searchsorted(shape_Y // (4 * size), np.arange(stages.way_P.size + 1))
        num_E = from_P[stages.pair_E + 1] - from_P[stages.pair_E]
        at_Y = np.repeat(np.arange(stages.entry_E.size), num_E)
        within_Y = np.arange(at_Y.size) - np.repeat(np.cumsum(num_E) - num_E, num_E)
        shape_Y = shape_Y[from_P[stages.pair_E[at_Y]] + within_Y]
        kind_Y = shape_Y // size % 4
        self.num_ways = stages.site_J.size
        cell_Y = (stages.level_E[at_Y] * 4 + kind_Y) * self.num_ways + stages.way_P[stages.pair_E[at_Y]]
        order_Y = np.argsort(cell_Y, kind="stable")
        self._cell_P, self._first_P = np.unique(cell_Y[order_Y], return_index=True)
        entry_Y = stages.entry_E[at_Y[order_Y]]
        self._load_Y = tables.load_E[entry_Y]
        self._fill_Y = tables.formula.fill * tables.busy_E[entry_Y]
        self._length_Y = (shape_Y % size)[order_Y].astype(np.float64)
        first_J = np.flatnonzero(np.diff(stages.site_J, prepend=-1))
        self.first_J, self.present_S = first_J, stages.site_J[first_J]
        inner_BSS = tables.transfer_BSS[1 : stages.num_layers]
        hop_SS = inner_BSS.min(axis=0, initial=np.inf)
        self._linked_SS = np.isfinite(hop_SS)
        self._least_hop_SS = np.where(self._linked_SS, hop_SS, 0.0)
        onto_JU = lattice.sums(stages.count_J, np.arange(lattice.size))
        self._before_UJ = np.full((lattice.size + 1, self.num_ways), -1, dtype=np.int32)
        ways_J1 = np.arange(self.num_ways)[:, None]
        self._before_UJ[onto_JU, ways_J1] = np.arange(lattice.size, dtype=np.int32)
        self._before_UJ = self._before_UJ[: lattice.size]

    def multipliers(self, upto_s: float) -> FloatArray:
        """Seconds of fill per layer worth trying: what layers cost on some ways, and more than any costs."""
        far = 4.0 * upto_s
        if self.stages.tables.formula.fill <= 0.0 or self._fill_Y.size == 0:
            return np.array([far])
        rate_J = least_rates(
            self._fill_Y, self._load_Y, self._length_Y, self._cell_P, self._first_P, upto_s, self.num_ways
        )
        rates = np.sort(rate_J[np.isfinite(rate_J)])
        if rates.size == 0:
            return np.array([far])
        chosen = sorted({float(rates[round(q * (rates.size - 1))]) for q in QUANTILES})
        return np.array([*chosen, far])

    def costs(self, upto_s: float, multiplier_K: FloatArray) -> FloatArray:
        """Least fill time less what layers pay, as (Q, H, J, K); infinite where no stage is in the load."""
        shape = (self.stages.tables.num_levels, 4, self.num_ways)
        cost_XK = stage_costs(
            self._fill_Y,
            self._load_Y,
            self._length_Y,
            self._cell_P,
            self._first_P,
            upto_s,
            multiplier_K,
            prod(shape),
        )
        return cost_XK.reshape(*shape, -1)

    def hops(self, upto_s: float) -> FloatArray:
        """Least fill time of a link from site to site within the load."""
        formula = self.stages.tables.formula
        linked_SS = self._linked_SS & (formula.repeats * self._least_hop_SS <= upto_s)
        hop_SS: FloatArray = np.where(linked_SS, formula.fill * self._least_hop_SS, np.inf)
        return hop_SS

    def least_fill(self, upto_s: float, allowed_A: IntArray, *, rough: bool = False) -> FloatArray:
        """Lower bound on the fill time of replicas on each allowed device count, infinite without one.

        Allowed counts must be closed downwards.
        """
        multiplier_K = self.multipliers(upto_s)[ROUGH if rough else ALL]
        allowed_U = np.zeros(self._before_UJ.shape[0], dtype=np.bool_)
        allowed_U[allowed_A] = True
        done_AK = least_fills(
            self.costs(upto_s, multiplier_K),
            self.hops(upto_s),
            self.stages.site_J,
            self.stages.count_J,
            self._before_UJ,
            allowed_A,
            allowed_U,
            self.stages.tables.num_stages,
        )
        least_A: FloatArray = (done_AK + self.stages.num_layers * multiplier_K).max(axis=1)
        return least_A

    def fronts(
        self, upto_s: float, after_JA: IntArray, target_A: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Multipliers, and the least of (fill of a front less layer payments, less the target of the whole).

        Shape (stages behind the front, K, S, A + 1), S the site of the stage behind it.
        """
        tables = self.stages.tables
        multiplier_K = self.multipliers(upto_s)
        cost_KQHJ = np.moveaxis(self.costs(upto_s, multiplier_K), -1, 0)
        hop_SS = self.hops(upto_s)
        size = target_A.size
        end_A = np.append(-target_A, np.inf)
        front_KSA = np.full((multiplier_K.size, tables.num_sites, size + 1), np.inf)
        fronts = [front_KSA]
        for depth in range(tables.num_stages - 1, 0, -1):
            level = min(depth, tables.num_levels - 1)
            ahead_KJA = front_KSA[:, self.stages.site_J[:, None], after_JA]
            ahead_KJA = ahead_KJA + cost_KQHJ[:, level, MIDDLE, :, None]
            first_KJA = end_A[after_JA][None] + cost_KQHJ[:, level, FIRST, :, None]
            np.minimum(ahead_KJA, first_KJA, out=ahead_KJA)
            site_KSA = np.full((multiplier_K.size, tables.num_sites, size), np.inf)
            site_KSA[:, self.present_S] = np.minimum.reduceat(ahead_KJA, self.first_J, axis=1)
            front_KSA = np.full((multiplier_K.size, tables.num_sites, size + 1), np.inf)
            front_KSA[:, :, :size] = (hop_SS[None, :, :, None] + site_KSA[:, :, None, :]).min(axis=1)
            fronts.append(front_KSA)
        return multiplier_K, np.stack(fronts[::-1])
