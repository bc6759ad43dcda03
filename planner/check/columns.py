"""The referee's own table of stage columns: every candidate cluster with every layer interval, priced.

Legend of array suffixes: E entries (one per cluster, interval kind and position in the chain that fits), K
interval kinds, I intervals, L layers (or layer borders 0..L), S sites, T target sites, J templates, C
classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import Interval, StageTable, tabulate
from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem, Mode, StepFormula

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalKinds:
    """Intervals that cost the same everywhere share a kind: equal `interval_key`, equal required clearance.

    `first` is one interval of each kind, `tier_K` its clearance; `start_I`, `stop_I`, `kind_I` list all
    intervals, ordered by start.
    """

    first: tuple[Interval, ...]
    tier_K: IntArray
    start_I: IntArray
    stop_I: IntArray
    kind_I: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeColumns:
    """All stages one mode may use.

    `load_s_E` is repeats * busy (+ sync); `left_E` the micro-batches in flight less one. `usage_JC` counts
    devices. `transfer_s_STL` is infinite where two sites have no link.
    """

    mode: Mode
    num_left: int
    formula: StepFormula
    kinds: IntervalKinds
    site_E: IntArray
    left_E: IntArray
    kind_E: IntArray
    template_E: IntArray
    busy_s_E: FloatArray
    sync_s_E: FloatArray
    load_s_E: FloatArray
    transfer_s_STL: FloatArray
    usage_JC: IntArray
    site_C: IntArray


def held_range(problem: BoundaryProblem, mode: Mode, width: int, left: int) -> range:
    """Micro-batches a stage of this width may have to hold with `left` stages left, itself included.

    One number, min(micro-batches, left), when every rank works on every micro-batch. Under round-robin it
    depends on the widths of the later stages, which lie between the narrowest and the widest of the mode.
    """
    count = mode.num_micro_batches
    if problem.workload.job.schedule != ROUND_ROBIN:
        return range(min(count, left), min(count, left) + 1)
    widths = {problem.templates[template_i].strategy.dp for template_i in mode.templates}
    fewest = min(count, width + (left - 1) * min(widths))
    most = min(count, width + (left - 1) * max(widths))
    return range(-(-fewest // width), -(-most // width) + 1)


def num_positions(problem: BoundaryProblem, mode: Mode) -> int:
    """Positions from the chain's end that a path problem tells apart; the last one stands for all further."""
    stages = max(1, min(mode.max_stages, problem.num_layers))
    return stages if problem.workload.job.schedule == ROUND_ROBIN else min(mode.num_micro_batches, stages)


def interval_kinds(problem: BoundaryProblem) -> IntervalKinds:
    """All intervals of the chain, grouped by what they cost and who may hold them."""
    position: dict[tuple[Hashable, int], int] = {}
    first: list[Interval] = []
    tiers: list[int] = []
    rows: list[tuple[int, int, int]] = []
    for start in range(problem.num_layers):
        tier_i = 0
        for stop in range(start + 1, problem.num_layers + 1):
            tier_i = max(tier_i, problem.tier_required[stop - 1])
            key = (problem.cost_model.interval_key((start, stop)), tier_i)
            if key not in position:
                position[key] = len(first)
                first.append((start, stop))
                tiers.append(tier_i)
            rows.append((start, stop, position[key]))
    start_I, stop_I, kind_I = np.array(rows, dtype=np.int64).T
    return IntervalKinds(
        first=tuple(first),
        tier_K=np.array(tiers, dtype=np.int64),
        start_I=start_I,
        stop_I=stop_I,
        kind_I=kind_I,
    )


@dataclass(slots=True)
class ColumnSource:
    """Builds the columns of each mode; tables of equal clusters and micro-batch sizes are asked for once."""

    problem: BoundaryProblem
    _kinds: IntervalKinds | None = None
    _tables: dict[int, tuple[int, IntArray, StageTable]] = field(default_factory=dict)
    _tables_of_size: int = 0
    _transfers: dict[int, FloatArray] = field(default_factory=dict)

    @property
    def kinds(self) -> IntervalKinds:
        """The interval kinds of the chain."""
        if self._kinds is None:
            self._kinds = interval_kinds(self.problem)
        return self._kinds

    def table(self, template_i: int, mode: Mode, num_held: int) -> tuple[IntArray, StageTable]:
        """Kinds a cluster is cleared for, and the cost model's figures of them for 1..num_held or more."""
        if self._tables_of_size != mode.micro_batch_size:
            # Modes come ordered by micro-batch size; keeping older tables would only fill memory.
            self._tables.clear()
            self._tables_of_size = mode.micro_batch_size
        if template_i not in self._tables or self._tables[template_i][0] < num_held:
            template = self.problem.templates[template_i]
            kind_K = np.flatnonzero(self.kinds.tier_K <= template.tier_i)
            intervals = [self.kinds.first[k] for k in kind_K]
            table = tabulate(
                self.problem.cost_model,
                template.cluster,
                intervals,
                template.strategy,
                mode.micro_batch_size,
                num_held,
            )
            self._tables[template_i] = (num_held, kind_K, table)
        return self._tables[template_i][1:]

    def transfers(self, micro_batch_size: int) -> FloatArray:
        """Seconds per micro-batch from site to site at every border; infinite without a link."""
        if micro_batch_size not in self._transfers:
            problem = self.problem
            num_sites = len(problem.site_ids)
            seconds_STL = np.full((num_sites, num_sites, problem.num_layers + 1), np.inf)
            for s, row in enumerate(problem.links):
                for t, link in enumerate(row):
                    if link is None:
                        continue
                    for border in range(1, problem.num_layers):
                        seconds_STL[s, t, border] = problem.cost_model.transfer_s(
                            link, border, micro_batch_size
                        )
            self._transfers[micro_batch_size] = seconds_STL
        return self._transfers[micro_batch_size]

    def columns(self, mode: Mode) -> ModeColumns:
        """Every stage of a mode that fits, ordered by site, position from the end and interval kind."""
        problem, formula = self.problem, self.problem.formula(mode)
        num_left = num_positions(problem, mode)
        places: list[tuple[IntArray, ...]] = []
        seconds: list[tuple[FloatArray, ...]] = []
        for template_i in mode.templates:
            width = problem.templates[template_i].strategy.dp
            held = [(left, h) for left in range(num_left) for h in held_range(problem, mode, width, left + 1)]
            left_H, held_H = np.array(held, dtype=np.int64).T
            kind_K, table = self.table(template_i, mode, int(held_H.max()))
            busy_s_KH, sync_s_KH = table.busy_s_KQ[:, held_H - 1], table.sync_s_KQ[:, held_H - 1]
            at_K, at_H = np.nonzero(np.isfinite(busy_s_KH) & np.isfinite(sync_s_KH))
            site_i = problem.templates[template_i].site_i
            ends = (np.full(len(at_K), number, dtype=np.int64) for number in (site_i, template_i))
            places.append((left_H[at_H], kind_K[at_K], *ends))
            seconds.append((busy_s_KH[at_K, at_H], sync_s_KH[at_K, at_H]))
        left_E, kind_E, site_E, template_E = _joined(places, 4, np.int64)
        busy_s_E, sync_s_E = _joined(seconds, 2, np.float64)
        order_E = np.lexsort((template_E, kind_E, left_E, site_E))
        load_s_E = formula.repeats * busy_s_E + (sync_s_E if formula.sync else 0.0)
        return ModeColumns(
            mode=mode,
            num_left=num_left,
            formula=formula,
            kinds=self.kinds,
            site_E=site_E[order_E],
            left_E=left_E[order_E],
            kind_E=kind_E[order_E],
            template_E=template_E[order_E],
            busy_s_E=busy_s_E[order_E],
            sync_s_E=sync_s_E[order_E],
            load_s_E=load_s_E[order_E],
            transfer_s_STL=self.transfers(mode.micro_batch_size),
            usage_JC=usage_table(problem),
            site_C=np.array([c.site_i for c in problem.classes], dtype=np.int64),
        )


def usage_table(problem: BoundaryProblem) -> IntArray:
    """Devices of each class that each candidate cluster takes, its dedicated spare included."""
    usage_JC = np.zeros((len(problem.templates), len(problem.classes)), dtype=np.int64)
    for template in problem.templates:
        for class_i, count in template.usage:
            usage_JC[template.template_i, class_i] += count
    return usage_JC


def _joined(parts: Sequence[tuple[NDArray[Any], ...]], count: int, dtype: type) -> list[NDArray[Any]]:
    if not parts:
        return [np.zeros(0, dtype=dtype) for _ in range(count)]
    return [np.concatenate([part[i] for part in parts]) for i in range(count)]
