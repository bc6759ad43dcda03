"""Repeats a search: no real replica with its load in a box takes less than the seconds stated for the box.

Chains grow backwards from the loss head with true device counts. One is dropped when no front can bring its
step time below the stated seconds: fronts are bounded by the relaxed path problem under the box's charges
(docs/certificate.md, kind `dual`), which no real replica can profit from. Of two chains with equal devices,
layer and site the slower is dropped. Legend: see planner/check/columns.py; N chains, M columns of one
position, Q stages left - 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.check.columns import FloatArray, IntArray, ModeColumns
from planner.check.report import REL_TOLERANCE
from planner.problem import BoundaryProblem

MAX_CHAINS = 3_000_000
CHUNK = 1_000_000


class TooManyChainsError(Exception):
    """More chains than the referee is ready to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """What a path pays beside its seconds: `visit_C` and `once_C` per device, the credit taken back."""

    visit_C: FloatArray
    once_C: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """Columns of one position in the chain, by the layer they end at; `first_L` says where each begins."""

    start_M: IntArray
    site_M: IntArray
    template_M: IntArray
    busy_s_M: FloatArray
    sync_s_M: FloatArray
    charge_M: FloatArray
    first_L: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chains:
    """Chains that hold layers [start, L)."""

    start_N: IntArray
    site_N: IntArray
    used_NC: IntArray
    fill_s_N: FloatArray
    peak_s_N: FloatArray
    sync_s_N: FloatArray
    charge_N: FloatArray

    def take(self, chosen_N: IntArray) -> _Chains:
        return _Chains(**{name: getattr(self, name)[chosen_N] for name in self.__slots__})

    @property
    def step_s_N(self) -> FloatArray:
        return self.fill_s_N + self.peak_s_N + self.sync_s_N


class BoxSearch:
    """All chains of one mode with loads up to `upto_s` that may take less than `step_s`."""

    def __init__(
        self,
        problem: BoundaryProblem,
        columns: ModeColumns,
        charges: Charges,
        above_s: float,
        upto_s: float,
        step_s: float,
    ) -> None:
        self._columns = columns
        self._above_s = above_s
        available_C = np.array([c.num_devices for c in problem.classes], dtype=np.float64)
        self._start_S = np.zeros(len(problem.site_ids))
        np.subtract.at(self._start_S, columns.site_C, charges.visit_C * available_C)
        self._price_J = columns.usage_JC @ (charges.visit_C + charges.once_C)
        back = float(charges.once_C @ available_C)
        # Rounding must never drop a chain that lies on the edge.
        scale = float((charges.visit_C + charges.once_C) @ available_C) * columns.mode.max_stages
        self._limit_s = step_s + back
        self._margin_s = REL_TOLERANCE * 1e-3 * (step_s + scale)
        self._step_s = step_s * (1.0 - REL_TOLERANCE)
        self._num_layers = columns.transfer_s_STL.shape[2] - 1
        repeats, seconds_STL = columns.formula.repeats, columns.transfer_s_STL
        finite_STL = np.where(np.isfinite(seconds_STL), seconds_STL, 0.0)
        closed_STL = ~np.isfinite(seconds_STL) | (repeats * finite_STL > upto_s)
        self._move_STL = np.where(closed_STL, np.inf, columns.formula.fill * seconds_STL)
        self._rows_RC = np.zeros((len(problem.rows), len(problem.classes)))
        for r, row in enumerate(problem.rows):
            for class_i, coefficient in row.coefficients:
                self._rows_RC[r, class_i] += coefficient
        self._limit_R = np.array([row.limit * (1.0 + 1e-9) for row in problem.rows])
        self._num_stages = min(columns.mode.max_stages, self._num_layers)
        self._stages = [self._at_position(left, upto_s) for left in range(columns.num_left)]
        self._front_QSL = self._fronts()

    def finds_none(self) -> bool:
        """Whether no real chain beats the stated seconds.

        Raises:
            TooManyChainsError: the search would grow too large.
        """
        chains = _Chains(
            start_N=np.array([self._num_layers]),
            site_N=np.array([-1]),
            used_NC=np.zeros((1, self._rows_RC.shape[1]), dtype=np.int64),
            fill_s_N=np.zeros(1),
            peak_s_N=np.zeros(1),
            sync_s_N=np.zeros(1),
            charge_N=np.zeros(1),
        )
        for q in range(self._num_stages):
            parts = list(self._longer(chains, q))
            if not parts:
                return True
            chains = _undominated(
                _Chains(
                    **{
                        name: np.concatenate([getattr(part, name) for part in parts])
                        for name in _Chains.__slots__
                    }
                )
            )
            done_N = chains.start_N == 0
            if bool(np.any(chains.step_s_N[done_N] < self._step_s)):
                return False
            chains = chains.take(np.flatnonzero(~done_N))
            if not len(chains.start_N):
                return True
            if len(chains.start_N) > MAX_CHAINS:
                raise TooManyChainsError(f"at most {MAX_CHAINS} chains")
        return True

    def _longer(self, chains: _Chains, q: int) -> Iterator[_Chains]:
        """Chains with one more stage in front, group by group of equal layer and site."""
        key_N = chains.start_N * (len(self._start_S) + 1) + chains.site_N + 1
        order_N = np.argsort(key_N, kind="stable")
        found = 0
        for members_N in np.split(order_N, np.flatnonzero(np.diff(key_N[order_N])) + 1):
            stop, site = int(chains.start_N[members_N[0]]), int(chains.site_N[members_N[0]])
            stages = self._stages[min(q, self._columns.num_left - 1)]
            m = np.arange(stages.first_L[stop], stages.first_L[stop + 1])
            move_M, start = np.zeros(m.size), 0.0
            if site >= 0:
                move_M = self._move_STL[stages.site_M[m], site, stop]
                start = self._start_S[site]
            before_M = stages.charge_M[m] + move_M + np.where(stages.site_M[m] != site, start, 0.0)
            rest_M = before_M + self._front_QSL[q, stages.site_M[m], stages.start_M[m]]
            least_s = float((chains.charge_N[members_N]).min()) + self._above_s
            keep = np.flatnonzero(rest_M + least_s < self._limit_s + self._margin_s)
            if not keep.size:
                continue
            step = max(1, CHUNK // keep.size)
            for at in range(0, members_N.size, step):
                part = self._crossed(
                    chains,
                    members_N[at : at + step],
                    stages,
                    m[keep],
                    move_M[keep],
                    before_M[keep],
                    rest_M[keep],
                )
                found += part.start_N.size
                if found > 2 * MAX_CHAINS:
                    raise TooManyChainsError(f"at most {MAX_CHAINS} chains")
                if part.start_N.size:
                    yield part

    def _crossed(
        self,
        chains: _Chains,
        members_N: IntArray,
        stages: _Stages,
        m_M: IntArray,
        move_M: FloatArray,
        before_M: FloatArray,
        rest_M: FloatArray,
    ) -> _Chains:
        """Every chain with every column in front that may still beat the stated seconds on real devices."""
        repeats, fill = self._columns.formula.repeats, self._columns.formula.fill
        own_M = repeats * np.maximum(stages.busy_s_M[m_M], move_M / fill)
        peak_NM = np.maximum(chains.peak_s_N[members_N, None], own_M[None, :])
        sync_NM = np.maximum(chains.sync_s_N[members_N, None], stages.sync_s_M[m_M][None, :])
        bound_NM = chains.charge_N[members_N, None] + rest_M[None, :]
        bound_NM = bound_NM + np.maximum(self._above_s, peak_NM + sync_NM)
        n, i = np.nonzero(bound_NM < self._limit_s + self._margin_s)
        of_N, of_M = members_N[n], m_M[i]
        used_NC = chains.used_NC[of_N] + self._columns.usage_JC[stages.template_M[of_M]]
        fits = (used_NC @ self._rows_RC.T <= self._limit_R).all(axis=1)
        n, i, of_N, of_M, used_NC = n[fits], i[fits], of_N[fits], of_M[fits], used_NC[fits]
        return _Chains(
            start_N=stages.start_M[of_M],
            site_N=stages.site_M[of_M],
            used_NC=used_NC,
            fill_s_N=chains.fill_s_N[of_N] + fill * stages.busy_s_M[of_M] + move_M[i],
            peak_s_N=peak_NM[n, i],
            sync_s_N=sync_NM[n, i],
            charge_N=chains.charge_N[of_N] + before_M[i],
        )

    def _at_position(self, left: int, upto_s: float) -> _Stages:
        """Columns with `left + 1` micro-batches in flight and loads up to the box's limit."""
        columns, kinds = self._columns, self._columns.kinds
        of_E = np.flatnonzero((columns.left_E == left) & (columns.load_s_E <= upto_s))
        order_E = of_E[np.argsort(columns.kind_E[of_E], kind="stable")]
        first_K = np.searchsorted(columns.kind_E[order_E], np.arange(len(kinds.first) + 1))
        num_I = np.diff(first_K)[kinds.kind_I]
        i_M = np.repeat(np.arange(kinds.kind_I.size), num_I)
        within_M = np.arange(i_M.size) - np.repeat(np.cumsum(num_I) - num_I, num_I)
        e_M = order_E[first_K[kinds.kind_I[i_M]] + within_M]
        sort_M = np.argsort(kinds.stop_I[i_M], kind="stable")
        i_M, e_M = i_M[sort_M], e_M[sort_M]
        return _Stages(
            start_M=kinds.start_I[i_M],
            site_M=columns.site_E[e_M],
            template_M=columns.template_E[e_M],
            busy_s_M=columns.busy_s_E[e_M],
            sync_s_M=columns.sync_s_E[e_M],
            charge_M=columns.formula.fill * columns.busy_s_E[e_M] + self._price_J[columns.template_E[e_M]],
            first_L=np.searchsorted(kinds.stop_I[i_M], np.arange(self._num_layers + 2)),
        )

    def _fronts(self) -> FloatArray:
        """Least charge of layers [0, a) ahead of a stage at a site with q stages behind it.

        P(q, s, 0) = start(s); P(q, s, a) = min over t, a' of move(t, s, a) + [t != s] start(s) + charge(t,
        [a', a)) + P(q + 1, t, a').
        """
        num_sites = len(self._start_S)
        front_QSL = np.full((self._num_stages + 1, num_sites, self._num_layers + 1), np.inf)
        front_QSL[:, :, 0] = self._start_S
        changed_TS = np.where(np.eye(num_sites, dtype=bool), 0.0, self._start_S[None, :])
        for q in range(self._num_stages - 2, -1, -1):
            stages = self._stages[min(q + 1, self._columns.num_left - 1)]
            upto_LT = np.full((self._num_layers + 1, num_sites), np.inf)
            stop_M = np.repeat(np.arange(self._num_layers + 1), np.diff(stages.first_L))
            total_M = stages.charge_M + front_QSL[q + 1, stages.site_M, stages.start_M]
            np.minimum.at(upto_LT, (stop_M, stages.site_M), total_M)
            for a in range(1, self._num_layers):
                move_TS = self._move_STL[:, :, a] + changed_TS
                front_QSL[q, :, a] = (upto_LT[a][:, None] + move_TS).min(axis=0)
        return front_QSL


def _undominated(chains: _Chains) -> _Chains:
    """Chains that the quickest one with the same devices, layer and site leaves open.

    A rules out B when w_A - w_B + max(0, z_A - z_B) + max(0, g_A - g_B) <= 0 (fill, peak, sync): with any
    front A is no slower, and both have the same fronts.
    """
    key_NK = np.column_stack([chains.start_N, chains.site_N, chains.used_NC]).astype(np.int32)
    key_N = np.ascontiguousarray(key_NK).view([("", np.int32)] * key_NK.shape[1]).ravel()
    _, group_N = np.unique(key_N, return_inverse=True)
    order_N = np.lexsort((chains.step_s_N, group_N))
    new_N = np.append(True, np.diff(group_N[order_N]) != 0)
    best_N = order_N[np.flatnonzero(new_N)[np.cumsum(new_N) - 1]]
    behind_N = chains.fill_s_N[best_N] - chains.fill_s_N[order_N]
    behind_N += np.maximum(0.0, chains.peak_s_N[best_N] - chains.peak_s_N[order_N])
    behind_N += np.maximum(0.0, chains.sync_s_N[best_N] - chains.sync_s_N[order_N])
    return chains.take(order_N[new_N | (behind_N > 0.0)])
