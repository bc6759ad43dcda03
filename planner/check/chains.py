"""Exact search over real chains of stages, backwards from the loss head, with device counts in the label.

Going backwards, the stages already chosen are the ones behind, so the micro-batches in flight are known.
Legend: see planner/check/columns.py; N labels, M columns ending at one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.check.columns import ColumnSource, FloatArray, IntArray, usage_table
from planner.check.fleet_view import in_flight
from planner.problem import BoundaryProblem, Mode

CHUNK = 2_000_000
REL_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Chains that hold layers [start, L). `wide_N` adds up data-parallel widths (round-robin only, else 0).

    Per step: `fill_s_N` fill time, `peak_s_N` repeats * slowest stage or link, `sync_s_N` largest sync.
    """

    start_N: IntArray
    site_N: IntArray
    wide_N: IntArray
    usage_NC: IntArray
    fill_s_N: FloatArray
    peak_s_N: FloatArray
    load_s_N: FloatArray
    sync_s_N: FloatArray

    def take(self, chosen_N: NDArray[np.int64] | NDArray[np.bool_]) -> Labels:
        """The labels at these positions."""
        return Labels(**{name: getattr(self, name)[chosen_N] for name in self.__slots__})

    @property
    def step_s_N(self) -> FloatArray:
        """Seconds per step if nothing more came."""
        return self.fill_s_N + self.peak_s_N + self.sync_s_N

    def __len__(self) -> int:
        return len(self.start_N)


def joined(parts: list[Labels]) -> Labels | None:
    """All labels in one; None when there are none."""
    if not parts:
        return None
    return Labels(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Labels.__slots__}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """Columns that end at one layer, for one in-flight count."""

    start_M: IntArray
    site_M: IntArray
    template_M: IntArray
    busy_s_M: FloatArray
    sync_s_M: FloatArray
    load_s_M: FloatArray


class ChainSearch:
    """Expands labels of one mode by every column whose load is at most `load_max_s`, which may be lowered."""

    def __init__(self, problem: BoundaryProblem, mode: Mode, source: ColumnSource, load_max_s: float) -> None:
        self.problem = problem
        self.mode = mode
        self.formula = problem.formula(mode)
        self.round_robin = problem.workload.job.schedule != "joint"
        self._source = source
        self.load_max_s = self._load_top_s = load_max_s
        self._usage_JC = usage_table(problem)
        self._width_J = np.array([t.strategy.dp for t in problem.templates], dtype=np.int64)
        self._transfer_s_STL = source.transfers(mode.micro_batch_size)
        self._endings: dict[tuple[int, ...], list[Endings]] = {}
        self._row_RC = np.zeros((len(problem.rows), len(problem.classes)))
        for r, row in enumerate(problem.rows):
            for class_i, coefficient in row.coefficients:
                self._row_RC[r, class_i] += coefficient
        limits = np.array([row.limit for row in problem.rows])
        self._limit_R = limits + REL_SLACK * np.abs(limits)

    def fits(self, usage_NC: IntArray) -> NDArray[np.bool_]:
        """Whether every capacity row holds."""
        ok: NDArray[np.bool_] = (usage_NC @ self._row_RC.T <= self._limit_R).all(axis=1)
        return ok

    def first(self) -> Iterator[Labels]:
        """Chains of one stage: the one with the loss head."""
        num_classes = len(self.problem.classes)
        root = Labels(
            start_N=np.array([self.problem.num_layers], dtype=np.int64),
            site_N=np.array([-1], dtype=np.int64),
            wide_N=np.zeros(1, dtype=np.int64),
            usage_NC=np.zeros((1, num_classes), dtype=np.int64),
            fill_s_N=np.zeros(1),
            peak_s_N=np.zeros(1),
            load_s_N=np.zeros(1),
            sync_s_N=np.zeros(1),
        )
        yield from self.longer(root, 0)

    def longer(self, labels: Labels, num_behind: int) -> Iterator[Labels]:
        """All chains with one more stage in front of chains of `num_behind` stages, in pieces."""
        group_N = (labels.start_N * (len(self.problem.site_ids) + 1) + labels.site_N + 1) * (
            int(labels.wide_N.max(initial=0)) + 1
        ) + labels.wide_N
        order_N = np.argsort(group_N, kind="stable")
        cuts = np.flatnonzero(np.diff(group_N[order_N])) + 1
        for members_N in np.split(order_N, cuts):
            if len(members_N):
                yield from self._group(labels.take(members_N), num_behind)

    def _group(self, labels: Labels, num_behind: int) -> Iterator[Labels]:
        """Labels of one layer, site and width."""
        stop, site_i, wide = int(labels.start_N[0]), int(labels.site_N[0]), int(labels.wide_N[0])
        if stop == 0:
            return
        columns = self._ending_at(stop, num_behind, wide)
        move_s_M = np.zeros(len(columns.start_M))
        if site_i >= 0:
            move_s_M = self._transfer_s_STL[columns.site_M, site_i, stop]
        # A link's load must stay below the limit too; an unlinked pair has infinite seconds.
        chosen_M = np.flatnonzero(np.isfinite(move_s_M) & (columns.load_s_M <= self.load_max_s))
        chosen_M = chosen_M[self.formula.repeats * move_s_M[chosen_M] <= self.load_max_s]
        if not len(chosen_M):
            return
        columns = Endings(**{name: getattr(columns, name)[chosen_M] for name in columns.__slots__})
        move_s_M = move_s_M[chosen_M]
        step = max(1, CHUNK // (len(columns.start_M) * max(1, labels.usage_NC.shape[1])))
        for at in range(0, len(labels), step):
            yield self._crossed(labels.take(np.arange(at, min(at + step, len(labels)))), columns, move_s_M)

    def _crossed(self, labels: Labels, columns: Endings, move_s_M: FloatArray) -> Labels:
        """Every label with every column in front, where the devices suffice."""
        formula = self.formula
        usage_NMC = labels.usage_NC[:, None, :] + self._usage_JC[columns.template_M][None, :, :]
        flat_NC = usage_NMC.reshape(-1, usage_NMC.shape[2])
        at_X = np.flatnonzero(self.fits(flat_NC))
        n_X, m_X = np.divmod(at_X, len(columns.start_M))
        busy_s_X, sync_s_X, move_s_X = columns.busy_s_M[m_X], columns.sync_s_M[m_X], move_s_M[m_X]
        if not formula.sync:
            sync_s_X = np.zeros(len(m_X))
        peak_s_X = formula.repeats * np.maximum(busy_s_X, move_s_X)
        load_s_X = np.maximum(formula.repeats * busy_s_X + sync_s_X, formula.repeats * move_s_X)
        width_X = (
            self._width_J[columns.template_M[m_X]] if self.round_robin else np.zeros(len(m_X), dtype=np.int64)
        )
        return Labels(
            start_N=columns.start_M[m_X],
            site_N=columns.site_M[m_X],
            wide_N=labels.wide_N[n_X] + width_X,
            usage_NC=flat_NC[at_X],
            fill_s_N=labels.fill_s_N[n_X] + formula.fill * (busy_s_X + move_s_X),
            peak_s_N=np.maximum(labels.peak_s_N[n_X], peak_s_X),
            load_s_N=np.maximum(labels.load_s_N[n_X], load_s_X),
            sync_s_N=np.maximum(labels.sync_s_N[n_X], sync_s_X),
        )

    def _ending_at(self, stop: int, num_behind: int, wide: int) -> Endings:
        """Columns that end at a layer when these stages stand behind them."""
        behind = [1] * num_behind if not self.round_robin else ([wide] if wide else [])
        widths = sorted(set(self._width_J[list(self.mode.templates)].tolist()))
        schedule = self.problem.workload.job.schedule
        held = tuple(in_flight(schedule, self.mode.num_micro_batches, [width, *behind]) for width in widths)
        if held not in self._endings:
            self._endings[held] = self._build(dict(zip(widths, held, strict=True)))
        return self._endings[held][stop]

    def _build(self, held_by_width: dict[int, int]) -> list[Endings]:
        kinds = self._source.kinds
        num_held = max(held_by_width.values())
        parts: list[tuple[IntArray, IntArray, FloatArray, FloatArray, FloatArray]] = []
        for template_i in self.mode.templates:
            kind_K, table = self._source.table(template_i, self.mode, num_held)
            held = held_by_width[int(self._width_J[template_i])] - 1
            busy_s_K = np.full(len(kinds.first), np.inf)
            sync_s_K = np.zeros(len(kinds.first))
            busy_s_K[kind_K], sync_s_K[kind_K] = table.busy_s_KQ[:, held], table.sync_s_KQ[:, held]
            load_s_K = (
                self.formula.repeats * busy_s_K
                if self.formula.repeats
                else np.where(np.isfinite(busy_s_K), 0.0, np.inf)
            )
            load_s_K = load_s_K + (sync_s_K if self.formula.sync else 0.0)
            usable_K = np.isfinite(busy_s_K) & np.isfinite(sync_s_K) & (load_s_K <= self._load_top_s)
            at_I = np.flatnonzero(usable_K[kinds.kind_I])
            kind_I = kinds.kind_I[at_I]
            templates_I = np.full(len(at_I), template_i)
            parts.append((at_I, templates_I, busy_s_K[kind_I], sync_s_K[kind_I], load_s_K[kind_I]))
        at_I, template_I, busy_s_I, sync_s_I, load_s_I = (
            np.concatenate([part[i] for part in parts]) for i in range(5)
        )
        site_J = np.array([t.site_i for t in self.problem.templates], dtype=np.int64)
        stop_I = kinds.stop_I[at_I]
        endings = []
        for stop in range(self.problem.num_layers + 1):
            of_I = np.flatnonzero(stop_I == stop)
            endings.append(
                Endings(
                    start_M=kinds.start_I[at_I[of_I]],
                    site_M=site_J[template_I[of_I]],
                    template_M=template_I[of_I],
                    busy_s_M=busy_s_I[of_I],
                    sync_s_M=sync_s_I[of_I],
                    load_s_M=load_s_I[of_I],
                )
            )
        return endings


def usage_codes(problem: BoundaryProblem, usage_NC: IntArray) -> IntArray | None:
    """One number per usage vector, or None when the fleet is too large for 62 bits."""
    radix = 1
    code_N = np.zeros(len(usage_NC), dtype=np.int64)
    for class_i, device_class in enumerate(problem.classes):
        code_N += usage_NC[:, class_i] * radix
        radix *= device_class.num_devices + 1
        if radix >= 1 << 62:
            return None
    return code_N


Keep = Callable[[Labels, int], NDArray[np.bool_]]
