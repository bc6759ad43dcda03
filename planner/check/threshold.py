"""Repeats a threshold proof: with one replica in steady state, no real chain has a quicker bottleneck.

All stages and links slower than the plan's are taken away; then no chain from the loss head back to the first
layer is left within the devices there are. Labels are layer, site, widths and device counts alone.
"""

from __future__ import annotations

import numpy as np

from planner.check.chains import ChainSearch, Labels, joined
from planner.check.columns import ColumnSource, IntArray
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.problem import BoundaryProblem, Mode, ObjectiveKind

MAX_LABELS = 4_000_000
MAX_COMPARED = 3000


class _TooManyError(Exception):
    """More labels than the referee is ready to hold."""


def no_faster_replica(
    problem: BoundaryProblem, value: float, findings: Findings, place: str, report: Reporter | None = None
) -> bool:
    """Whether one replica's `value` (tokens/s) is the best in steady state; reasons why not are recorded."""
    if problem.objective.kind is not ObjectiveKind.STEADY_STATE or problem.replicas_max != 1:
        findings.add("proof-kind", f"{place}.kind", "threshold", "one replica in steady state")
        return False
    load_max_s = problem.tokens_per_step / value * (1.0 - REL_TOLERANCE)
    source = ColumnSource(problem)
    for mode in problem.modes:
        if not mode.templates:
            continue
        if report is not None:
            report(f"{problem.name}: reachable chains of mode {mode.mode_i + 1}")
        try:
            reached = _reaches_first_layer(problem, mode, source, load_max_s)
        except _TooManyError:
            findings.add("proof-size", place, "too many chains", f"at most {MAX_LABELS} labels")
            return False
        if reached:
            limit = "a quicker replica exists"
            findings.add("proof-threshold", place, f"bottleneck {load_max_s!r} s per step", limit)
            return False
    return True


def _reaches_first_layer(
    problem: BoundaryProblem, mode: Mode, source: ColumnSource, load_max_s: float
) -> bool:
    search = ChainSearch(problem, mode, source, load_max_s)
    num_stages_max = min(mode.max_stages, problem.num_layers)
    open_labels: Labels | None = None
    seen: set[bytes] = set()
    for num_stages in range(1, num_stages_max + 1):
        pieces = search.first() if open_labels is None else search.longer(open_labels, num_stages - 1)
        kept: list[Labels] = []
        for piece in pieces:
            if (piece.start_N == 0).any():
                return True
            kept.append(piece.take(_smallest(piece)))
            if sum(map(len, kept)) > MAX_LABELS:
                raise _TooManyError
        labels = joined(kept)
        if labels is None:
            return False
        labels = labels.take(_smallest(labels))
        if search.round_robin:
            # What a chain holds in flight depends on widths alone, so reaching a state later is never better.
            labels = _unseen(labels, seen)
        if not len(labels):
            return False
        open_labels = labels
    return False


def _states(labels: Labels) -> IntArray:
    columns = (labels.start_N, labels.site_N, labels.wide_N)
    states_NX: IntArray = np.concatenate([np.stack(columns, axis=1), labels.usage_NC], axis=1)
    return states_NX


def _smallest(labels: Labels) -> IntArray:
    """One label per state; in each layer, site and width only those no other undercuts in every class."""
    states_NX = _states(labels)
    first_N = np.unique(states_NX, axis=0, return_index=True)[1]
    order_N = first_N[np.argsort(labels.usage_NC[first_N].sum(axis=1), kind="stable")]
    group_N = np.unique(states_NX[order_N, :3], axis=0, return_inverse=True)[1].reshape(-1)
    groups = np.split(np.argsort(group_N, kind="stable"), np.cumsum(np.bincount(group_N))[:-1])
    return np.concatenate([order_N[of_N][_minimal(labels.usage_NC[order_N[of_N]])] for of_N in groups])


def _minimal(usage_NC: IntArray) -> IntArray:
    """Positions of the count vectors that no earlier one undercuts; vectors come by growing sum."""
    if len(usage_NC) > MAX_COMPARED:
        return np.arange(len(usage_NC))
    alive_N = np.ones(len(usage_NC), dtype=bool)
    for i in range(len(usage_NC)):
        if alive_N[i]:
            alive_N[i + 1 :] &= (usage_NC[i + 1 :] < usage_NC[i]).any(axis=1)
    return np.flatnonzero(alive_N)


def _unseen(labels: Labels, seen: set[bytes]) -> Labels:
    states_NX = np.ascontiguousarray(_states(labels))
    fresh = [i for i in range(len(labels)) if states_NX[i].tobytes() not in seen]
    seen.update(states_NX[i].tobytes() for i in fresh)
    return labels.take(np.array(fresh, dtype=np.int64))
