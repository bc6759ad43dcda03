"""Repeats a closure proof: all replicas a better set could use are found, and no set of them is better.

With multipliers as in planner/check/multipliers.py, s_p = f (mu . n_p + rho) - nu - t_p is the slack of
replica p, and the slacks of a set add up to at most U minus its value, U being the multipliers' bound. If no
slack is negative, a set better than the plan's value v uses only replicas with s_p < U - v. (Price: the same
in units of tokens/s, with f (v - U).) They are enumerated on device counts, so "real" means within every
capacity row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.check.chains import ChainSearch, Labels, joined, usage_codes
from planner.check.columns import ColumnSource, FloatArray, IntArray
from planner.check.completions import completions
from planner.check.multipliers import Multipliers
from planner.check.packing import PackingTooLargeError, Replicas, better_set
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.problem import BoundaryProblem, Mode, ObjectiveKind

MAX_LABELS = 4_000_000


class _TooManyError(Exception):
    """More labels than the referee is ready to hold."""


@dataclass(slots=True, kw_only=True)
class ClosureCheck:
    """One boundary's closure proof. `num_replicas` counts device counts with a replica within the slack."""

    problem: BoundaryProblem
    multipliers: Multipliers
    value: float
    findings: Findings
    place: str
    report: Reporter | None = None
    num_replicas: int = 0

    def run(self) -> bool:
        """Whether the value is proved to be the best one; reasons why not are recorded."""
        slack_max = self._slack_max()
        if not np.isfinite(slack_max):
            self.findings.add("proof-multipliers", self.place, slack_max, "multipliers that bound the value")
            return False
        try:
            replicas = self._replicas(slack_max)
            if replicas is None:
                return False
            self.num_replicas = len(replicas.tokens_per_s_N)
            found = better_set(self.problem, replicas, self.multipliers, self.value, slack_max)
        except (_TooManyError, PackingTooLargeError):
            limit = f"at most {MAX_LABELS} labels"
            self.findings.add("proof-size", self.place, f"slack {slack_max} leaves too many replicas", limit)
            return False
        if found is not None:
            self.findings.add(
                "proof-closure", self.place, f"value {self.value!r}", f"a set worth {found!r} exists"
            )
        return found is None

    def _slack_max(self) -> float:
        """How much slack the replicas of a better set have together, in tokens/s."""
        bound, value = self.multipliers.bound(self.problem), self.value
        gap = bound - value
        if self.problem.objective.kind is ObjectiveKind.PRICE:
            gap = self.multipliers.factor * (value - bound)
        return max(gap, 0.0) + REL_TOLERANCE * (abs(bound) + abs(value))

    def _replicas(self, slack_max: float) -> Replicas | None:
        """The fastest replica per device counts, of those within the slack; None when a slack is negative."""
        source = ColumnSource(self.problem)
        parts: list[Labels] = []
        for mode in self.problem.modes:
            if mode.templates:
                if self.report is not None:
                    self.report(f"{self.problem.name}: enumerating mode {mode.mode_i + 1}")
                parts += self._mode(mode, source, slack_max)
        labels = joined(parts)
        if labels is None:
            return Replicas.none(len(self.problem.classes))
        tokens_per_s_N = self.problem.tokens_per_step / labels.step_s_N
        slack_N = self._slack(labels, tokens_per_s_N)
        worst = float(slack_N.min())
        if worst < -REL_TOLERANCE * float(tokens_per_s_N.max()):
            self.findings.add(
                "proof-factor", f"{self.place}.factor", f"a replica with slack {worst!r}", "slack >= 0"
            )
            return None
        within_N = slack_N <= slack_max
        return _fastest(self.problem, labels.usage_NC[within_N], tokens_per_s_N[within_N])

    def _mode(self, mode: Mode, source: ColumnSource, slack_max: float) -> list[Labels]:
        """Complete chains of one mode that may be within the slack."""
        bounds = completions(self.problem, source.columns(mode), self.multipliers, slack_max)
        if bounds is None:
            raise _TooManyError
        if not bounds.boxes:
            return []
        search = ChainSearch(self.problem, mode, source, bounds.load_max_s)
        complete: list[Labels] = []
        open_labels: Labels | None = None
        for num_stages in range(1, min(mode.max_stages, self.problem.num_layers) + 1):
            pieces = search.first() if open_labels is None else search.longer(open_labels, num_stages - 1)
            kept: list[Labels] = []
            for piece in pieces:
                piece = piece.take(bounds.keep(piece, num_stages))
                piece = piece.take(undominated(self.problem, piece))
                kept.append(piece)
                if sum(map(len, kept)) > MAX_LABELS:
                    raise _TooManyError
            labels = joined(kept)
            if labels is None or not len(labels):
                break
            labels = labels.take(undominated(self.problem, labels))
            done_N = labels.start_N == 0
            complete.append(labels.take(done_N))
            open_labels = labels.take(~done_N)
            if not len(open_labels):
                break
        return complete

    def _slack(self, labels: Labels, tokens_per_s_N: FloatArray) -> FloatArray:
        multipliers = self.multipliers
        price_N = labels.usage_NC @ multipliers.price_C + multipliers.rho
        slack_N: FloatArray = multipliers.factor * price_N - multipliers.nu - tokens_per_s_N
        return slack_N


def undominated(problem: BoundaryProblem, labels: Labels) -> IntArray:
    """Positions of labels that the quickest one with the same devices, layer, site and width leaves open.

    Label A rules out B when, for any front, its step time is no longer: w_A - w_B + max(0, z_A - z_B)
    + max(0, g_A - g_B) <= 0, with w fill, z peak and g sync; for max(z_A, z) - max(z_B, z) <= max(0, z_A -
    z_B). Equal counts of stages behind mean equal micro-batches in flight ahead, so both have the same
    fronts.
    """
    code_N = usage_codes(problem, labels.usage_NC)
    if code_N is None or len(labels) < 2:
        return np.arange(len(labels))
    order_N = np.lexsort((labels.step_s_N, code_N, labels.wide_N, labels.site_N, labels.start_N))
    keys = (labels.start_N, labels.site_N, labels.wide_N, code_N)
    new_N = np.ones(len(labels), dtype=bool)
    new_N[1:] = np.any([np.diff(key[order_N]) != 0 for key in keys], axis=0)
    best_N = order_N[np.flatnonzero(new_N)[np.cumsum(new_N) - 1]]
    behind_s_N = labels.fill_s_N[best_N] - labels.fill_s_N[order_N]
    behind_s_N += np.maximum(0.0, labels.peak_s_N[best_N] - labels.peak_s_N[order_N])
    behind_s_N += np.maximum(0.0, labels.sync_s_N[best_N] - labels.sync_s_N[order_N])
    kept: IntArray = order_N[new_N | (behind_s_N > 0.0)]
    return kept


def _fastest(problem: BoundaryProblem, usage_NC: IntArray, tokens_per_s_N: FloatArray) -> Replicas:
    """One replica per device counts: the fastest. Another one on the same counts only makes a set worse."""
    order_N = np.lexsort((-tokens_per_s_N, *usage_NC.T))
    new_N = np.ones(len(order_N), dtype=bool)
    new_N[1:] = (np.diff(usage_NC[order_N], axis=0) != 0).any(axis=1)
    chosen_N = order_N[new_N]
    return Replicas(usage_NC=usage_NC[chosen_N], tokens_per_s_N=tokens_per_s_N[chosen_N])
