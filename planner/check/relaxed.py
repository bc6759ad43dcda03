"""The relaxed path problem the referee repeats: cheapest chain of stages, devices counted too often or not.

Legend: see planner/check/columns.py; G groups of entries with equal site, position and kind; H tracked
classes, U stocks of them (devices a rest of the chain may take; the last is all there are).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.check.columns import FloatArray, IntArray, ModeColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Charges of a path: `seconds` per second of fill, `price_J` per cluster, `start_S` per site visit."""

    seconds: float
    price_J: FloatArray
    start_S: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Stocks:
    """Devices of some classes that a path may take: `need_JH` by a cluster, `limit_H` in all."""

    need_JH: IntArray
    limit_H: IntArray

    @property
    def size(self) -> int:
        """How many stocks there are to tell apart."""
        return int(np.prod(self.limit_H + 1))

    def moves(self) -> list[tuple[IntArray, IntArray, IntArray]]:
        """Per distinct need: its clusters, the stocks it can be met from, and what is left of them."""
        shape = tuple((self.limit_H + 1).tolist())
        stock_UH = np.stack(np.unravel_index(np.arange(self.size), shape), axis=1)
        found = []
        for need_H in np.unique(self.need_JH, axis=0):
            from_U = np.flatnonzero((stock_UH >= need_H).all(axis=1))
            if len(from_U):
                left_U = np.ravel_multi_index(tuple((stock_UH[from_U] - need_H).T), shape)
                clusters = np.flatnonzero((self.need_JH == need_H).all(axis=1))
                found.append((clusters, from_U, left_U))
        return found


class BoxPaths:
    """Paths whose stages and links are all busy at most `upto_s` per step."""

    def __init__(self, columns: ModeColumns, upto_s: float) -> None:
        self._columns = columns
        self._num_layers = columns.transfer_s_STL.shape[2] - 1
        chosen_E = np.flatnonzero(columns.load_s_E <= upto_s)
        num_kinds = len(columns.kinds.first)
        group_E = (columns.site_E[chosen_E] * columns.num_left + columns.left_E[chosen_E]) * num_kinds
        group_E += columns.kind_E[chosen_E]
        self._first_G = np.flatnonzero(np.diff(group_E, prepend=-1))
        self._group_G = group_E[self._first_G]
        self._busy_s_E = columns.busy_s_E[chosen_E]
        self._template_E = columns.template_E[chosen_E]
        used_K = np.zeros(num_kinds, dtype=bool)
        used_K[columns.kind_E[chosen_E]] = True
        at_I = np.flatnonzero(used_K[columns.kinds.kind_I])
        self._kind_I = columns.kinds.kind_I[at_I]
        self._stop_I = columns.kinds.stop_I[at_I]
        start_I = columns.kinds.start_I[at_I]
        self._starts_I: IntArray = start_I
        self._first_I: IntArray = np.flatnonzero(np.diff(start_I, prepend=-1))
        self._start_I: IntArray = start_I[self._first_I]
        allowed_STL = columns.formula.repeats * np.where(
            np.isfinite(columns.transfer_s_STL), columns.transfer_s_STL, 0.0
        )
        self._closed_STL = ~np.isfinite(columns.transfer_s_STL) | (allowed_STL > upto_s)

    @property
    def longest_fill_s(self) -> float:
        """No path takes longer to fill: so many stages and links, each as slow as the slowest allowed."""
        columns = self._columns
        moves_s = columns.transfer_s_STL[~self._closed_STL]
        slowest_s = float(self._busy_s_E.max(initial=0.0)) + float(moves_s.max(initial=0.0))
        num_stages = min(columns.mode.max_stages, self._num_layers)
        return float(columns.formula.fill * num_stages * slowest_s)

    def least(self, weights: Weights) -> float:
        """Smallest charge of any path; infinite when there is no path at all.

        Backwards over stages: V(q, s, a) covers layers [a, L) with q stages, the first of them at site s.
        V(q, s, a) = min over b, clusters at s of charge + U(q-1, s, b);
        U(q, s, b) = min over t of transfer(s, t, b) + [t != s] start(t) + V(q, t, b); U(0, s, L) = 0.
        """
        if not len(self._group_G):
            return float("inf")
        charge_SQK = self._stage_charges(weights)
        move_STL = self._move_charges(weights)
        num_sites = charge_SQK.shape[0]
        after_SL = np.full((num_sites, self._num_layers + 1), np.inf)
        after_SL[:, self._num_layers] = 0.0
        least = float("inf")
        for left in range(1, self._columns.mode.max_stages + 1):
            position = min(left, self._columns.num_left) - 1
            total_SI = charge_SQK[:, position, self._kind_I] + after_SL[:, self._stop_I]
            from_SL = np.full((num_sites, self._num_layers + 1), np.inf)
            from_SL[:, self._start_I] = np.minimum.reduceat(total_SI, self._first_I, axis=1)
            least = min(least, float((from_SL[:, 0] + weights.start_S).min()))
            after_SL = (move_STL + from_SL[None, :, :]).min(axis=1)
            if not np.isfinite(after_SL).any():
                break
        return least

    def least_stocked(self, weights: Weights, stocks: Stocks) -> float:
        """As `least`, over paths that take no more devices than the stocks hold.

        V(q, s, a, u) is the least charge when at most u is taken: the cluster's need comes off u, the rest of
        the chain has what is left.
        """
        if not len(self._group_G):
            return float("inf")
        moves = stocks.moves()
        charge_MSQK = [self._stage_charges(weights, clusters) for clusters, _, _ in moves]
        move_STL = self._move_charges(weights)
        num_sites, num_borders = len(weights.start_S), self._num_layers + 1
        after_SUL = np.full((num_sites, stocks.size, num_borders), np.inf)
        after_SUL[:, :, self._num_layers] = 0.0
        least = float("inf")
        for left in range(1, self._columns.mode.max_stages + 1):
            position = min(left, self._columns.num_left) - 1
            from_SUL = np.full_like(after_SUL, np.inf)
            for charge_SQK, (_, from_U, left_U) in zip(charge_MSQK, moves, strict=True):
                for s in np.flatnonzero(np.isfinite(charge_SQK[:, position]).any(axis=1)):
                    kind_K = np.isfinite(charge_SQK[s, position])
                    at_I = np.flatnonzero(kind_K[self._kind_I])
                    starts_I, stop_I = self._starts_I[at_I], self._stop_I[at_I]
                    first_I = np.flatnonzero(np.diff(starts_I, prepend=-1))
                    total_UI = after_SUL[s][left_U][:, stop_I] + charge_SQK[s, position, self._kind_I[at_I]]
                    best_UI = np.minimum.reduceat(total_UI, first_I, axis=1)
                    here = np.ix_(from_U, starts_I[first_I])
                    from_SUL[s][here] = np.minimum(from_SUL[s][here], best_UI)
            least = min(least, float((from_SUL[:, -1, 0] + weights.start_S).min()))
            after_SUL = np.stack([(move_TL[:, None] + from_SUL).min(axis=0) for move_TL in move_STL])
            if not np.isfinite(after_SUL).any():
                break
        return least

    def fronts(self, weights: Weights) -> FloatArray:
        """Smallest charge of layers [0, a) ahead of a stage at a site, by the stages behind that front.

        P(q, s, a) = min over t, a' of transfer(t, s, a) + charge(t, q stages behind, [a', a)) + P(q + 1, t,
        a'); P(q, s, 0) = 0. Visits are not charged. Infinite where no front fits.
        """
        charge_SQK, move_STL = self._stage_charges(weights), self._move_charges(weights)
        num_sites, num_stages = charge_SQK.shape[0], self._columns.mode.max_stages
        order_I = np.argsort(self._stop_I, kind="stable")
        start_I = self._starts_I[order_I]
        kind_I, stop_I = self._kind_I[order_I], self._stop_I[order_I]
        first_I = np.flatnonzero(np.diff(stop_I, prepend=-1))
        front_QSL = np.full((num_stages + 1, num_sites, self._num_layers + 1), np.inf)
        front_QSL[:, :, 0] = 0.0
        for behind in range(num_stages - 1, 0, -1):
            position = min(behind, self._columns.num_left - 1)
            total_SI = charge_SQK[:, position, kind_I] + front_QSL[behind + 1][:, start_I]
            up_to_SL = np.full((num_sites, self._num_layers + 1), np.inf)
            up_to_SL[:, stop_I[first_I]] = np.minimum.reduceat(total_SI, first_I, axis=1)
            front_QSL[behind, :, 1:] = (move_STL + up_to_SL[:, None, :]).min(axis=0)[:, 1:]
        return front_QSL

    def _stage_charges(self, weights: Weights, clusters: IntArray | None = None) -> FloatArray:
        """Cheapest cluster, of those given, per site, position and interval kind."""
        columns = self._columns
        shape = (weights.start_S.shape[0], columns.num_left, len(columns.kinds.first))
        charge_E = weights.price_J[self._template_E] + weights.seconds * columns.formula.fill * self._busy_s_E
        if clusters is not None:
            charge_E = np.where(np.isin(self._template_E, clusters), charge_E, np.inf)
        charge = np.full(int(np.prod(shape)), np.inf)
        charge[self._group_G] = np.minimum.reduceat(charge_E, self._first_G)
        return charge.reshape(shape)

    def _move_charges(self, weights: Weights) -> FloatArray:
        """Charge of a transfer at each border, with the start of a visit when the site changes."""
        columns = self._columns
        seconds_STL = np.where(self._closed_STL, 0.0, columns.transfer_s_STL)
        move_STL = weights.seconds * columns.formula.fill * seconds_STL
        num_sites = len(weights.start_S)
        move_STL += np.where(np.eye(num_sites, dtype=bool), 0.0, weights.start_S[None, :])[:, :, None]
        move_STL[self._closed_STL] = np.inf
        return move_STL
