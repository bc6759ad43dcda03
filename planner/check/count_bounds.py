"""How long chains take at least on given device counts, when it is forgotten which layers a stage holds.

Going backwards from the loss head, a state is (stages behind, site, devices used), so nothing is used twice
and every stage has its true micro-batches in flight. A stage is charged its fill time less `charge` seconds
per layer; since all L layers are held exactly once, charge * L more makes a lower bound on the fill time of
every real replica, whatever the charge >= 0 is. A charge beyond all costs tells where no chain has enough
layers.

Legend: see planner/check/columns.py; W ways to take devices (site and counts), Q positions from the end, H
places in the chain, Y stages that differ in position, place, way, layers or seconds, B load ranges, M
charges, X = (B, M) flattened, N device counts of a grid (one axis per class).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.columns import FloatArray, IntArray, ModeColumns

WHOLE, LAST, FIRST, INNER = range(4)
QUANTILES = (0.1, 0.5, 0.9)
NUM_CHARGES = len(QUANTILES) + 1
FAR = 4.0


@dataclass(frozen=True, kw_only=True)
class Charged:
    """Costs of stages and moves under the charges of several load ranges."""

    load_hi_B: FloatArray
    charge_BM: FloatArray
    stage_QHWX: FloatArray
    move_STX: FloatArray


class CountBounds:
    """Bounds of one mode over a grid of device counts."""

    def __init__(self, columns: ModeColumns) -> None:
        self._columns = columns
        self.num_layers = columns.transfer_s_STL.shape[2] - 1
        self.num_stages = max(1, min(columns.mode.max_stages, self.num_layers))
        site_E = columns.site_E
        ways = np.unique(np.column_stack((site_E, columns.usage_JC[columns.template_E])), axis=0)
        if not len(site_E):
            ways = np.zeros((0, 1 + columns.usage_JC.shape[1]), dtype=np.int64)
        self.site_W: IntArray = ways[:, 0]
        self.usage_WC: IntArray = ways[:, 1:]
        way_J = self._ways_of(columns)
        kept_E = _leading(columns, way_J[columns.template_E])
        place_P, length_P, from_K = self._places()
        kind_E = columns.kind_E[kept_E]
        num_E = from_K[kind_E + 1] - from_K[kind_E]
        of_Y = np.repeat(np.arange(len(kept_E)), num_E)
        at_Y = np.arange(len(of_Y)) - np.repeat(np.cumsum(num_E) - num_E, num_E) + from_K[kind_E[of_Y]]
        entry_Y = kept_E[of_Y]
        cell_Y = (columns.left_E[entry_Y] * 4 + place_P[at_Y]) * len(ways) + way_J[
            columns.template_E[entry_Y]
        ]
        order_Y = np.argsort(cell_Y, kind="stable")
        entry_Y, cell_Y = entry_Y[order_Y], cell_Y[order_Y]
        self._first_Y = np.flatnonzero(np.diff(cell_Y, prepend=-1))
        self._cell_Y = cell_Y[self._first_Y]
        self._load_s_Y = columns.load_s_E[entry_Y]
        self._fill_s_Y = columns.formula.fill * columns.busy_s_E[entry_Y]
        self._length_Y = length_P[at_Y[order_Y]].astype(np.float64)

    def _ways_of(self, columns: ModeColumns) -> IntArray:
        position = {
            (int(s), *map(int, u)): w for w, (s, u) in enumerate(zip(self.site_W, self.usage_WC, strict=True))
        }
        way_J = np.full(len(columns.usage_JC), -1, dtype=np.int64)
        firsts = np.unique(columns.template_E, return_index=True)
        for template_i, at in zip(*firsts, strict=True):
            way_J[template_i] = position[(int(columns.site_E[at]), *map(int, columns.usage_JC[template_i]))]
        return way_J

    def _places(self) -> tuple[IntArray, IntArray, IntArray]:
        """Places and lengths that the intervals of each kind have, by kind."""
        kinds = self._columns.kinds
        at_end_I = kinds.stop_I == self.num_layers
        place_I = np.where(
            kinds.start_I == 0, np.where(at_end_I, WHOLE, FIRST), np.where(at_end_I, LAST, INNER)
        )
        rows = np.unique(np.column_stack((kinds.kind_I, place_I, kinds.stop_I - kinds.start_I)), axis=0)
        return rows[:, 1], rows[:, 2], np.searchsorted(rows[:, 0], np.arange(len(kinds.first) + 1))

    def charged(self, load_hi_B: FloatArray, *, rough: bool = False) -> Charged:
        """Cheapest stage per position, place and way with a load within each range, under charges to fit.

        `rough` leaves all charges but the highest to others.
        """
        columns = self._columns
        first = NUM_CHARGES - 1 if rough else 0
        charge_BM = np.array([self._charges(float(load_hi_s))[first:] for load_hi_s in load_hi_B])
        shape = (columns.num_left * 4 * len(self.site_W), *charge_BM.shape)
        stage = np.full(shape, np.inf)
        move_STBM = np.full((*columns.transfer_s_STL.shape[:2], *charge_BM.shape), np.inf)
        inner_STL = columns.transfer_s_STL[:, :, 1 : self.num_layers]
        linked_STL = np.isfinite(inner_STL)
        for b, load_hi_s in enumerate(load_hi_B):
            fill_s_Y = np.where(self._load_s_Y <= load_hi_s, self._fill_s_Y, np.inf)
            for m, charge in enumerate(charge_BM[b]):
                if len(self._first_Y):
                    cost_Y = fill_s_Y - charge * self._length_Y
                    stage[self._cell_Y, b, m] = np.minimum.reduceat(cost_Y, self._first_Y)
            open_STL = linked_STL & (
                columns.formula.repeats * np.where(linked_STL, inner_STL, 0.0) <= load_hi_s
            )
            if inner_STL.shape[2]:
                move_s_STL = np.where(
                    open_STL, columns.formula.fill * np.where(open_STL, inner_STL, 0.0), np.inf
                )
                move_STBM[:, :, b, :] = move_s_STL.min(axis=2)[:, :, None]
        return Charged(
            load_hi_B=load_hi_B,
            charge_BM=charge_BM,
            stage_QHWX=stage.reshape(columns.num_left, 4, len(self.site_W), -1),
            move_STX=move_STBM.reshape(*move_STBM.shape[:2], -1),
        )

    def _charges(self, load_hi_s: float) -> list[float]:
        """Seconds per layer: what layers cost at best on some ways, and more than any of them costs."""
        far = FAR * load_hi_s
        inside_Y = self._load_s_Y <= load_hi_s
        rate_Y = np.where(inside_Y, self._fill_s_Y / np.maximum(self._length_Y, 1.0), np.inf)
        if not len(rate_Y):
            return [far] * NUM_CHARGES
        rate_W = np.full(len(self.site_W), np.inf)
        cheapest = np.minimum.reduceat(rate_Y, self._first_Y)
        np.minimum.at(rate_W, self._cell_Y % len(self.site_W), cheapest)
        rates = rate_W[np.isfinite(rate_W)]
        if not len(rates):
            return [far] * NUM_CHARGES
        return [*np.quantile(rates, QUANTILES, method="nearest").tolist(), far]

    def least_fill(self, charged: Charged, shape: tuple[int, ...]) -> FloatArray:
        """Lower bounds on the fill time of replicas on exactly these device counts; shape (*N, B).

        F(0, s, n) is one stage with the loss head; F(q, s, n) = min over ways at s of the stage + min over t
        of move(s, t) + F(q - 1, t, n - used).
        """
        stage_QHWX, move_STX = charged.stage_QHWX, charged.move_STX
        open_QHW: NDArray[np.bool_] = np.asarray(np.isfinite(stage_QHWX).any(axis=-1))
        num_sites, num_X = move_STX.shape[0], move_STX.shape[2]
        done_NX = np.full((*shape, num_X), np.inf)
        behind_SNX = np.full((num_sites, *shape, num_X), np.inf)
        ways = self._within(shape)
        for w, site_i, onto, _ in ways:
            there = (site_i, *(at.start for at in onto))
            np.minimum(behind_SNX[there], stage_QHWX[0, LAST, w], out=behind_SNX[there])
            np.minimum(done_NX[there[1:]], stage_QHWX[0, WHOLE, w], out=done_NX[there[1:]])
        for behind in range(1, self.num_stages):
            position = min(behind, self._columns.num_left - 1)
            ahead_SNX = _nearest(behind_SNX, move_STX)
            if not np.isfinite(ahead_SNX).any():
                break
            behind_SNX = np.full_like(ahead_SNX, np.inf)
            for w, site_i, onto, source in ways:
                from_NX = ahead_SNX[site_i][source]
                for there_NX, place in ((done_NX[onto], FIRST), (behind_SNX[site_i][onto], INNER)):
                    if open_QHW[position, place, w]:
                        np.minimum(there_NX, from_NX + stage_QHWX[position, place, w], out=there_NX)
        charge_BM = charged.charge_BM
        least_NBM = done_NX.reshape(*shape, *charge_BM.shape) + self.num_layers * charge_BM
        least_NB: FloatArray = least_NBM.max(axis=-1)
        return least_NB

    def fronts(self, charged: Charged, step_s_NB: FloatArray) -> FloatArray:
        """Least of a front's charged fill time less the step time to stay below on all devices together.

        Shape (Q, S, *N, X): for stages behind the front, site and devices of the stages behind.
        G(q, s, n) = min over ways, at t, of move(t, s) + stage + (G(q + 1, t, n + used), or minus the step
        time on n + used where the stage is the first one). `step_s_NB` is -inf where nothing counts.
        """
        stage_QHWX, move_STX = charged.stage_QHWX, charged.move_STX
        open_QHW: NDArray[np.bool_] = np.asarray(np.isfinite(stage_QHWX).any(axis=-1))
        shape, num_sites = step_s_NB.shape[:-1], move_STX.shape[0]
        end_NX = np.repeat(-step_s_NB, charged.charge_BM.shape[1], axis=-1)
        front_QSNX = np.full((self.num_stages + 1, num_sites, *end_NX.shape), np.inf)
        ways = self._within(shape)
        for behind in range(self.num_stages - 1, 0, -1):
            position = min(behind, self._columns.num_left - 1)
            ahead_SNX = np.full((num_sites, *end_NX.shape), np.inf)
            for w, site_i, onto, source in ways:
                there_NX = ahead_SNX[site_i][source]
                for from_NX, place in ((end_NX[onto], FIRST), (front_QSNX[behind + 1, site_i][onto], INNER)):
                    if open_QHW[position, place, w]:
                        np.minimum(there_NX, from_NX + stage_QHWX[position, place, w], out=there_NX)
            front_QSNX[behind] = _nearest(ahead_SNX, move_STX.transpose(1, 0, 2))
        return front_QSNX

    def _within(self, shape: tuple[int, ...]) -> list[tuple[int, int, tuple[slice, ...], tuple[slice, ...]]]:
        """Ways that fit a grid of this shape, with site, and where counts end up and come from."""
        found = []
        for w, (site_i, usage_C) in enumerate(zip(self.site_W.tolist(), self.usage_WC.tolist(), strict=True)):
            if all(used < size for used, size in zip(usage_C, shape, strict=True)):
                onto = tuple(slice(used, None) for used in usage_C)
                source = tuple(slice(0, size - used) for used, size in zip(usage_C, shape, strict=True))
                found.append((w, site_i, onto, source))
        return found


def _nearest(at_SNX: FloatArray, move_STX: FloatArray) -> FloatArray:
    """Least of a move from each site to any other one and what stands there; last axes alike."""
    least_SNX = np.full_like(at_SNX, np.inf)
    moved_NX = np.empty_like(at_SNX[0])
    for s, t in zip(*np.nonzero(np.isfinite(move_STX).any(axis=-1)), strict=True):
        np.add(at_SNX[t], move_STX[s, t], out=moved_NX)
        np.minimum(least_SNX[s], moved_NX, out=least_SNX[s])
    return least_SNX


def _leading(columns: ModeColumns, way_E: IntArray) -> IntArray:
    """Entries less those that the one of least load on the same devices and layers matches in busy time."""
    if not len(way_E):
        return np.zeros(0, dtype=np.int64)
    cells = (way_E, columns.left_E, columns.kind_E)
    order_E = np.lexsort((columns.busy_s_E, columns.load_s_E, *cells))
    new_E = np.ones(len(order_E), dtype=bool)
    new_E[1:] = np.any([np.diff(cell[order_E]) != 0 for cell in cells], axis=0)
    leader_E = order_E[np.flatnonzero(new_E)[np.cumsum(new_E) - 1]]
    kept_E: IntArray = np.sort(order_E[new_E | (columns.busy_s_E[order_E] < columns.busy_s_E[leader_E])])
    return kept_E
