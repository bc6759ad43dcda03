"""Repeats a proof by ceilings: no replica is faster than its ceiling, and no set of ceilings beats the value.

A ceiling is a pair of device counts and tokens/s. The ceiling of a replica is the largest one listed for
counts it has at least. docs/certificate.md has the whole argument. Legend: see planner/check/columns.py and
planner/check/count_bounds.py; U device counts of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.check.chains import ChainSearch, Labels, joined
from planner.check.closure import undominated
from planner.check.columns import ColumnSource, FloatArray, IntArray, ModeColumns
from planner.check.count_bounds import CountBounds
from planner.check.counts import PAIRS_MAX, CountGrid, better_packing, num_pairs
from planner.check.multipliers import figure
from planner.check.relaxed import BoxPaths, Weights
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.problem import BoundaryProblem, Mode

COUNTS_MAX = 40_000
CELLS_MAX = 200_000
FIRST_RATIO = 1.5
FIRST_EDGE_RATIO = 1.005
SMALL_FRAC = 1e-3
NARROW_RATIO = 1.04
FINEST_RATIO = 1.0005
SPLIT = 4
FRONTS_AT_ONCE = 8
LABELS_PER_RANGE = 50_000
LABELS_MAX = 4_000_000
NEVER_S = 1e30


class _TooManyError(Exception):
    """More device counts or labels than the referee is ready to go through."""


class _FasterError(Exception):
    """A replica above its ceiling was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRange:
    """Replicas of one mode with a load above `lo_s`, up to `hi_s`; `open_U` where they may pass a ceiling."""

    lo_s: float
    hi_s: float
    open_U: NDArray[np.bool_]

    def split(self) -> list[LoadRange]:
        """The same loads in parts."""
        ratio = self.hi_s / self.lo_s
        edges = [self.lo_s, *(self.lo_s * ratio ** (k / SPLIT) for k in range(1, SPLIT)), self.hi_s]
        return [LoadRange(lo_s=low_s, hi_s=high_s, open_U=self.open_U) for low_s, high_s in pairwise(edges)]

    def is_wide(self, ratio: float) -> bool:
        """Whether splitting tells more than searching."""
        return self.lo_s > 0.0 and self.hi_s > self.lo_s * ratio


@dataclass(slots=True, kw_only=True)
class CeilingsCheck:
    """One boundary's proof by ceilings. `value` is None where it is to show that there is no plan at all."""

    problem: BoundaryProblem
    value: float | None
    findings: Findings
    place: str
    report: Reporter | None = None
    num_ranges: int = 0
    num_labels: int = 0
    _grid: CountGrid = field(init=False)
    _step_s_U: FloatArray = field(init=False)

    def run(self, ceilings: object) -> bool:
        """Whether the value is proved to be the best one; reasons why not are recorded."""
        counts = int(np.prod([float(c.num_devices + 1) for c in self.problem.classes]))
        if counts > COUNTS_MAX or num_pairs(self.problem) > PAIRS_MAX:
            limit = f"at most {COUNTS_MAX} device counts and {PAIRS_MAX} pairs of them"
            self.findings.add("proof-size", self.place, f"{counts} device counts", limit)
            return False
        self._grid = CountGrid(self.problem)
        speed_U = self._read(ceilings)
        if speed_U is None or not self._packs(speed_U):
            return False
        try:
            self._search(speed_U)
        except _FasterError:
            return False
        except _TooManyError:
            limit = f"at most {LABELS_MAX} labels"
            self.findings.add("proof-size", self.place, "ceilings that take too long to confirm", limit)
            return False
        return True

    def _read(self, ceilings: object) -> FloatArray | None:
        """Ceiling of every device count."""
        speed_U = np.zeros(self._grid.size)
        for i, pair in enumerate(ceilings if isinstance(ceilings, Sequence) else [None]):
            count, speed = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
            tokens_per_s = figure(speed)
            if tokens_per_s is None or not self._is_count(count):
                limit = "devices of every class, as far as there are any, and a finite number >= 0"
                self.findings.add("proof-ceilings", f"{self.place}.ceilings[{i}]", pair, limit)
                return None
            code = int(self._grid.codes(np.array([count], dtype=np.int64))[0])
            speed_U[code] = max(speed_U[code], tokens_per_s)
        return self._grid.most_within(speed_U)

    def _is_count(self, count: object) -> bool:
        if not isinstance(count, list | tuple) or len(count) != len(self._grid.shape):
            return False
        return all(
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n < size
            for n, size in zip(count, self._grid.shape, strict=True)
        )

    def _packs(self, speed_U: FloatArray) -> bool:
        found = better_packing(self._grid, speed_U, self.value)
        if found is not None:
            limit = "no set within the rows that is better than the plan"
            self.findings.add("proof-packing", f"{self.place}.ceilings", f"a set worth {found!r}", limit)
        return found is None

    def _search(self, speed_U: FloatArray) -> None:
        """Look for a replica above its ceiling.

        Raises:
            _FasterError: there is one; it is recorded.
            _TooManyError: the search is too long.
        """
        tokens = float(self.problem.tokens_per_step)
        with np.errstate(divide="ignore", over="ignore"):
            step_s_U = np.minimum(tokens / (speed_U * (1.0 + REL_TOLERANCE)), NEVER_S)
        self._step_s_U = np.where(self._grid.inside_U, step_s_U, -np.inf)
        source = ColumnSource(self.problem)
        for mode in self.problem.modes:
            if mode.templates:
                if self.report is not None:
                    self.report(f"{self.problem.name}: mode {mode.mode_i + 1} of {len(self.problem.modes)}")
                self._mode(mode, source)

    def _mode(self, mode: Mode, source: ColumnSource) -> None:
        columns = source.columns(mode)
        bounds = CountBounds(columns)
        search = ChainSearch(self.problem, mode, source, np.inf)
        waiting = first_ranges(columns, self._grid.inside_U)
        while waiting:
            size = max(1, CELLS_MAX // (self._grid.size * len(self.problem.site_ids)))
            batch, waiting = waiting[:size], waiting[size:]
            self.num_ranges += len(batch)
            for rough in (True, False):
                batch = self._narrowed(bounds, batch, rough=rough)
            later = [part for one in batch if one.is_wide(NARROW_RATIO) for part in one.split()]
            narrow = [one for one in batch if not one.is_wide(NARROW_RATIO)]
            for at in range(0, len(narrow), FRONTS_AT_ONCE):
                for fronts in fronts_of(self._grid, bounds, narrow[at : at + FRONTS_AT_ONCE], self._step_s_U):
                    if not self._is_clear(bounds, search, fronts):
                        later += fronts.load_range.split()
            waiting = later + waiting

    def _narrowed(self, bounds: CountBounds, batch: list[LoadRange], *, rough: bool) -> list[LoadRange]:
        """The ranges whose least fill time leaves device counts open, with these counts."""
        if not batch:
            return []
        charged = bounds.charged(np.array([one.hi_s for one in batch]), rough=rough)
        box, in_box_U = self._grid.box_around(np.any([one.open_U for one in batch], axis=0))
        fill_s_UB = np.maximum(bounds.least_fill(charged, box).reshape(-1, len(batch)), 0.0)
        least_U = np.full(self._grid.size, np.inf)
        left: list[LoadRange] = []
        for b, one in enumerate(batch):
            least_U[in_box_U] = fill_s_UB[:, b] + one.lo_s
            open_U = one.open_U & (least_U < self._step_s_U)
            if open_U.any():
                left.append(LoadRange(lo_s=one.lo_s, hi_s=one.hi_s, open_U=open_U))
        return left

    def _is_clear(self, bounds: CountBounds, search: ChainSearch, fronts: Fronts) -> bool:
        """Go through the chains of a range that may pass a ceiling; False when there are too many.

        Raises:
            _FasterError: one of them does.
            _TooManyError: too many, in a range that can't be split further.
        """
        one = fronts.load_range
        search.load_max_s = one.hi_s
        open_labels: Labels | None = None
        for num_stages in range(1, bounds.num_stages + 1):
            pieces = search.first() if open_labels is None else search.longer(open_labels, num_stages - 1)
            kept: list[Labels] = []
            for piece in pieces:
                self._require_slower(piece)
                piece = piece.take(fronts.keep(piece, num_stages))
                kept.append(piece.take(undominated(self.problem, piece)))
                self.num_labels += len(kept[-1])
                if self.num_labels > LABELS_MAX:
                    raise _TooManyError
                if sum(map(len, kept)) > LABELS_PER_RANGE and one.is_wide(FINEST_RATIO):
                    return False
            open_labels = joined(kept)
            if open_labels is None or not len(open_labels):
                return True
            open_labels = open_labels.take(undominated(self.problem, open_labels))
        return True

    def _require_slower(self, labels: Labels) -> None:
        """`proof-ceilings`: no complete chain is faster than its ceiling."""
        done_N = np.flatnonzero(labels.start_N == 0)
        step_s_N = self._step_s_U[self._grid.codes(labels.usage_NC[done_N])]
        for n in done_N[labels.step_s_N[done_N] < step_s_N][:1].tolist():
            speed = self.problem.tokens_per_step / float(labels.step_s_N[n])
            step_s = float(self._step_s_U[self._grid.codes(labels.usage_NC[[n]])[0]])
            ceiling = 0.0 if step_s >= NEVER_S else self.problem.tokens_per_step / step_s
            found = f"a replica on {labels.usage_NC[n].tolist()} devices makes {speed!r} tokens/s"
            self.findings.add("proof-ceilings", f"{self.place}.ceilings", found, f"at most {ceiling!r}")
            raise _FasterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """What fronts of a range cost at least, less the step times to stay below.

    `front_QSUM` as in CountBounds.fronts; `at_U` tells where a count stands in it, -1 when it is left out.
    """

    load_range: LoadRange
    grid: CountGrid
    at_U: IntArray
    front_QSUM: FloatArray
    charge_M: FloatArray

    def keep(self, labels: Labels, num_stages: int) -> IntArray:
        """Labels of this many stages with a front that could bring them below the step time asked for."""
        at_N = self.at_U[self.grid.codes(labels.usage_NC)]
        open_N = np.flatnonzero((labels.start_N > 0) & (at_N >= 0))
        labels, at_N = labels.take(open_N), at_N[open_N]
        step_s_N = labels.fill_s_N + np.maximum(labels.peak_s_N + labels.sync_s_N, self.load_range.lo_s)
        front_NM = self.front_QSUM[num_stages, labels.site_N, at_N] + self.charge_M * labels.start_N[:, None]
        kept_N: IntArray = open_N[(step_s_N[:, None] + front_NM < 0.0).all(axis=1)]
        return kept_N


def fronts_of(
    grid: CountGrid, bounds: CountBounds, ranges: Sequence[LoadRange], step_s_U: FloatArray
) -> list[Fronts]:
    """The fronts of several ranges, worked out together."""
    charged = bounds.charged(np.array([one.hi_s for one in ranges]))
    box, in_box_U = grid.box_around(np.any([one.open_U for one in ranges], axis=0))
    step_s_UB = np.stack([np.where(one.open_U, step_s_U, -np.inf)[in_box_U] for one in ranges], axis=-1)
    front_QSNX = bounds.fronts(charged, step_s_UB.reshape(*box, -1))
    front_QSUBM = front_QSNX.reshape(*front_QSNX.shape[:2], -1, *charged.charge_BM.shape)
    at_U = np.full(grid.size, -1, dtype=np.int64)
    at_U[in_box_U] = np.arange(int(in_box_U.sum()))
    return [
        Fronts(
            load_range=one,
            grid=grid,
            at_U=at_U,
            front_QSUM=front_QSUBM[:, :, :, b],
            charge_M=charged.charge_BM[b],
        )
        for b, one in enumerate(ranges)
    ]


def first_ranges(columns: ModeColumns, open_U: NDArray[np.bool_]) -> list[LoadRange]:
    """Ranges that hold every load a replica can have."""
    loads_s = columns.load_s_E
    if not len(loads_s):
        return []
    moves_s = columns.formula.repeats * columns.transfer_s_STL[np.isfinite(columns.transfer_s_STL)]
    top_s = max(float(loads_s.max()), float(moves_s.max(initial=0.0)))
    low_s = _below_all(columns, max(0.0, float(np.nextafter(loads_s.min(), -np.inf))), top_s)
    ranges: list[LoadRange] = []
    while low_s < top_s or not ranges:
        high_s = min(low_s * FIRST_RATIO, top_s) if low_s > 0.0 else top_s * SMALL_FRAC
        ranges.append(LoadRange(lo_s=low_s, hi_s=high_s, open_U=open_U))
        low_s = high_s
    return ranges


def _below_all(columns: ModeColumns, low_s: float, top_s: float) -> float:
    """A load that no chain stays within, near the least one: even if devices could be used twice."""
    still = Weights(
        seconds=0.0,
        price_J=np.zeros(len(columns.usage_JC)),
        start_S=np.zeros(columns.transfer_s_STL.shape[0]),
    )
    high_s = top_s
    while low_s > 0.0 and high_s > low_s * FIRST_EDGE_RATIO:
        middle_s = float(np.sqrt(low_s * high_s))
        if BoxPaths(columns, middle_s).least(still) == np.inf:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s
