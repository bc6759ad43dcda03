"""Small fleets solved exactly: best speeds on all device counts that could matter, and their best packing.

Every load box of every mode bounds the speed on each device count from above; found replicas bound it from
below. A device count is settled once nothing faster than what a better plan would need is left in any box.
Then packing the replicas found is exact, without prices.

Legend: U device counts, A device counts allowed in a box, J ways to take devices, T templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isfinite

import numpy as np

from planner.objective import StageChoice, step_time_s
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.columns import Column, Shape
from planner.solve.pathdp import least_load
from planner.solve.small_labels import ChainSearch, Effort, PlacedStages
from planner.solve.small_lattice import BoolArray, Choice, Lattice, Packer, cheapest
from planner.solve.small_stages import CountBounds, Stages, build_stages
from planner.solve.tables import FloatArray, IntArray, ModeTables

FIRST_RATIO = 1.5
FINE_RATIO = 1.04
SPLIT = 3
ASPIRATION = 0.02
CHAINS_PER_BOX = 20_000
CHAINS_PER_PROBE = 2_000
FINEST_RATIO = 1.0005
PROBES = 40
SMALL_FRAC = 1e-3
HUGE = 1e100
PROBE_STEP = 0.01
IMPROVEMENT = 1e-10
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Open:
    """A load box that may hold something; `most_U` bounds the speed of its replicas by device count."""

    mode_i: int
    from_s: float
    upto_s: float
    most_U: FloatArray


class SmallFleet:
    """One run; `speed_U` and `columns` hold the best replica met on each device count.

    `tables` are exact ones (`build_tables`).
    """

    def __init__(
        self,
        problem: BoundaryProblem,
        shape: Shape,
        tables: Sequence[ModeTables],
        effort: Effort,
        hear: Callable[[float | None, float | None], None] = lambda _value, _bound: None,
    ) -> None:
        self.problem, self.shape, self.effort, self._hear = problem, shape, effort, hear
        self.tokens = float(problem.tokens_per_step)
        self.lattice = Lattice(shape)
        self.packer = Packer(problem, self.lattice)
        self.stages = [build_stages(table, shape, self.lattice) for table in tables]
        self.bounds = [CountBounds(stages, self.lattice) for stages in self.stages]
        self.placed = [PlacedStages(stages) for stages in self.stages]
        self.count_T = np.array([self.lattice.position(usage_C) for usage_C in shape.usage_JC], np.int64)
        self.speed_U = np.zeros(self.lattice.size)
        self.columns: dict[int, Column] = {}
        self.minimise = problem.objective.kind is ObjectiveKind.PRICE
        self.target = problem.objective.tokens_per_s_min or 0.0
        self.value: float | None = None
        self.choice: Choice | None = None
        self.needed_U = np.zeros(self.lattice.size)
        self.boxes: list[Open] = []
        self.ceiling_U = np.zeros(self.lattice.size)
        self._useless_U: FloatArray | None = None

    def solve(self) -> SmallAnswer | None:
        """The best plan and its proof; None when rounding stood in the way of one.

        Raises:
            SmallLimitError: it took too much effort, or was told to stop.
        """
        self.run()
        if not self.is_proven():
            return None
        listed = self.lattice.undominated(self.ceiling_U)
        return SmallAnswer(
            columns=self.chosen(),
            value=self.value,
            ceilings=tuple(
                (tuple(self.lattice.count_UC[u].tolist()), float(self.ceiling_U[u])) for u in listed.tolist()
            ),
            num_chains=self.effort.num_chains,
            num_runs=self.effort.num_runs,
        )

    def chosen(self) -> tuple[Column, ...] | None:
        """The best plan met so far."""
        return None if self.choice is None else tuple(self.columns[count] for count in self.choice.counts)

    def run(self) -> None:
        """Settle every device count that could matter."""
        known_U = np.zeros(self.lattice.size)
        for box in sorted(self._first_boxes(), key=lambda box: box.from_s):
            for bounded in self._bounded(box, box.most_U > known_U, rough=True):
                np.maximum(known_U, bounded.most_U, out=known_U)
                self.boxes.append(bounded)
        share = ASPIRATION
        while self.boxes:
            self._probe()
            aspired_U = self._refresh(share)
            share *= 1.5
            boxes, self.boxes = self.boxes, []
            for box in sorted(boxes, key=lambda box: box.from_s):
                needed_U = np.maximum(self._needed_U(), aspired_U)
                if self._is_idle(box):
                    continue
                if not np.any(box.most_U > needed_U):
                    self.boxes.append(box)
                elif is_wide(box):
                    self.boxes += self._split(box, box.most_U > self._needed_U())
                elif self._search(box, needed_U, CHAINS_PER_BOX):
                    self.boxes.append(replace(box, most_U=np.minimum(box.most_U, needed_U)))
                else:
                    self.boxes += self._split(box, box.most_U > self._needed_U())
            self._repack()
        np.maximum(self.ceiling_U, self.speed_U, out=self.ceiling_U)

    def is_proven(self) -> bool:
        """Whether no packing of the ceilings beats the plan, which is what the proof says."""
        if self.minimise:
            usd = inf if self.value is None else self.value * (1 - TOLERANCE)
            return cheapest(self.packer, self.ceiling_U, self.target, usd) is None
        beat = -inf if self.value is None else self.value * (1 + TOLERANCE)
        return self.packer.best(self.ceiling_U, None, beat) is None

    def _first_boxes(self) -> list[Open]:
        boxes = []
        for mode_i, stages in enumerate(self.stages):
            tables = stages.tables
            least_s = least_load(tables)
            if stages.entry_E.size and isfinite(least_s):
                hops_s = tables.formula.repeats * tables.transfer_BSS[np.isfinite(tables.transfer_BSS)]
                most_s = max(float(tables.load_E.max()), float(hops_s.max(initial=0.0))) * (1 + 1e-12)
                from_s = float(np.nextafter(least_s, 0.0))
                while True:
                    upto_s = min(from_s * FIRST_RATIO, most_s) if from_s > 0.0 else most_s * SMALL_FRAC
                    most_U = np.full(self.lattice.size, self.tokens / from_s if from_s > 0.0 else HUGE)
                    boxes.append(Open(mode_i=mode_i, from_s=from_s, upto_s=upto_s, most_U=most_U))
                    from_s = upto_s
                    if from_s >= most_s:
                        break
        return boxes

    def _needed_U(self) -> FloatArray:
        """Speeds up to these are of no use: reached on fewer devices, or too slow for a better plan."""
        if self._useless_U is None:
            within_U = self.lattice.most_within(self.speed_U) * (1 + IMPROVEMENT)
            self._useless_U = np.maximum(self.needed_U, within_U)
        return self._useless_U

    def _most_U(self) -> FloatArray:
        """Speed that no replica worth using passes, by device count."""
        most_U = self.speed_U.copy()
        needed_U = self._needed_U()
        for box in self.boxes:
            np.maximum(most_U, np.where(box.most_U > needed_U, box.most_U, 0.0), out=most_U)
        return np.where(most_U > self.needed_U, most_U, 0.0)

    def _probe(self) -> None:
        """Settle the device counts that the bound itself would choose: a first plan, later a better one."""
        choice = self.packer.best(self._most_U())
        for count in sorted(set(choice.counts if choice is not None else ())):
            boxes = [box for box in self.boxes if box.most_U[count] > self.speed_U[count]]
            left = self._settle(count, boxes)
            for box in boxes:
                box.most_U[count] = min(box.most_U[count], left)
        self._repack()

    def _settle(self, count: int, boxes: Sequence[Open]) -> float:
        """Look for the quickest replica on one device count; what no replica on it passes comes back."""
        only_U = np.zeros(self.lattice.size, dtype=bool)
        only_U[count] = True
        queue = [(float(box.most_U[count]), -i, box) for i, box in enumerate(boxes)]
        number, step = len(queue), PROBE_STEP
        for _ in range(PROBES):
            queue.sort(key=lambda item: item[:2])
            if not queue or queue[-1][0] <= self.speed_U[count] * (1 + IMPROVEMENT):
                break
            most, _, box = queue.pop()
            parts = [box]
            if is_wide(box):
                parts = self._split(replace(box, most_U=np.where(only_U, box.most_U, 0.0)), only_U)
            else:
                needed = max(float(self.speed_U[count]) * (1 + IMPROVEMENT), most * (1 - step))
                step = min(2.0 * step, 0.1)
                if not self._search(box, np.where(only_U, needed, inf), CHAINS_PER_PROBE):
                    queue.append((most, -number - 1, box))
                    break
                parts = [replace(box, most_U=np.where(only_U, needed, 0.0))]
            for part in parts:
                number += 1
                queue.append((float(part.most_U[count]), -number, part))
        left = max((most for most, _, _ in queue), default=0.0)
        return max(left, float(self.speed_U[count]) * (1 + IMPROVEMENT))

    def _refresh(self, share: float) -> FloatArray:
        """What a replica on each device count must reach to be part of a plan better than the best one known.

        Comes back for a plan that is nearly as good as the bound, which is looked for first.
        """
        most_U = self._most_U()
        allowed_U: BoolArray | None = None
        beat = -inf if self.value is None else self.value * (1 + IMPROVEMENT)
        if self.minimise:
            beat = self.target * (1 - 1e-12)
            if self.value is not None:
                allowed_U = self.lattice.usd_U < self.value * (1 - IMPROVEMENT)
        go_KU = self.packer.to_go(most_U, allowed_U)
        if not self.minimise:
            bound = max(float(go_KU[0, 0]), self.value or 0.0)
            self._hear(self.value, bound * (1 + IMPROVEMENT) if isfinite(bound) else None)
        rest_U = go_KU[min(1, self.packer.num_states - 1), :-1]
        with np.errstate(invalid="ignore"):
            self._useless_U = None
            self.needed_U = np.maximum(self.needed_U, np.where(np.isfinite(rest_U), beat - rest_U, inf))
            aspired = beat
            if not self.minimise and share < 1.0:
                aspired = max(beat, float(go_KU[0, 0]) * (1 - share))
            return np.where(np.isfinite(rest_U), aspired - rest_U, inf)

    def _repack(self) -> None:
        """The best plan of the replicas met so far."""
        if self.minimise:
            below_usd = inf if self.value is None else self.value
            choice = cheapest(self.packer, self.speed_U, self.target, below_usd)
        else:
            choice = self.packer.best(self.speed_U, None, -inf if self.value is None else self.value)
        if choice is not None:
            self.choice = choice
            self.value = choice.tokens_per_s
            if self.minimise:
                self.value = float(sum(self.lattice.usd_U[count] for count in choice.counts))
                self._hear(self.value, None)

    def _after(self, mode_i: int, allowed_A: IntArray) -> IntArray:
        """Where each way of taking devices leads from each allowed count."""
        state_U = np.full(self.lattice.size + 1, allowed_A.size, dtype=np.int64)
        state_U[allowed_A] = np.arange(allowed_A.size)
        return state_U[self.lattice.sums(self.stages[mode_i].count_J, allowed_A)]

    def _bounded(self, box: Open, wanted_U: BoolArray, *, rough: bool = False) -> list[Open]:
        """The box with bounds under its loads on the wanted device counts; nothing when it is idle."""
        if not wanted_U.any():
            return [] if self._is_idle(box) else [box]
        allowed_A = np.flatnonzero(self.lattice.below(wanted_U))
        self.effort.spend_run(allowed_A.size)
        fill_A = self.bounds[box.mode_i].least_fill(box.upto_s, allowed_A, rough=rough)
        most_U = np.zeros(self.lattice.size)
        with np.errstate(divide="ignore"):
            most_U[allowed_A] = np.minimum(self.tokens / (np.maximum(fill_A, 0.0) + box.from_s), HUGE)
        most_U = np.where(wanted_U, np.minimum(most_U * (1 + IMPROVEMENT), box.most_U), box.most_U)
        bounded = replace(box, most_U=most_U)
        return [] if self._is_idle(bounded) else [bounded]

    def _is_idle(self, box: Open) -> bool:
        """Whether nothing in a box is of use; its bounds then join the ceilings."""
        if np.any(box.most_U > self._needed_U()):
            return False
        np.maximum(self.ceiling_U, box.most_U, out=self.ceiling_U)
        return True

    def _split(self, box: Open, wanted_U: BoolArray) -> list[Open]:
        ratio = box.upto_s / box.from_s
        edges = [box.from_s * ratio ** (k / SPLIT) for k in range(SPLIT)] + [box.upto_s]
        found = []
        for from_s, upto_s in pairwise(edges):
            most_U = np.minimum(box.most_U, self.tokens / from_s)
            part = Open(mode_i=box.mode_i, from_s=from_s, upto_s=upto_s, most_U=most_U)
            found += self._bounded(part, wanted_U)
        return found

    def _column(self, stages: Stages, entries: Sequence[tuple[int, int]]) -> Column:
        """A priced replica from table entries and their first layers."""
        tables = stages.tables
        index_E = np.array([entry for entry, _ in entries])
        starts = [start for _, start in entries]
        stops = [*starts[1:], stages.num_layers]
        busy_s, load_s = tables.busy_E[index_E], tables.load_E[index_E]
        template_E = tables.template_E[index_E]
        sites = [self.problem.templates[int(j)].site_i for j in template_E]
        hops = zip(starts[1:], sites, sites[1:], strict=False)
        transfer_s = [float(tables.transfer_BSS[b, s, t]) for b, s, t in hops]
        sync_s = load_s - tables.formula.repeats * busy_s
        step_s = step_time_s(tables.formula, busy_s.tolist(), transfer_s, sync_s.tolist())
        return Column(
            mode_i=tables.mode.mode_i,
            stages=tuple(
                StageChoice(template_i=int(j), start=start, stop=stop)
                for j, start, stop in zip(template_E, starts, stops, strict=True)
            ),
            step_s=step_s,
            tokens_per_s=self.tokens / step_s,
            fill_s=tables.formula.fill * (float(busy_s.sum()) + sum(transfer_s)),
            load_s=max(float(load_s.max()), tables.formula.repeats * max(transfer_s, default=0.0)),
            usage_C=self.shape.usage_JC[template_E].sum(axis=0),
        )

    def _offer(self, count: int, column: Column) -> None:
        if column.tokens_per_s > self.speed_U[count]:
            self.speed_U[count] = column.tokens_per_s
            self.columns[count] = column
            self._useless_U = None

    def _search(self, box: Open, needed_U: FloatArray, chains_max: int) -> bool:
        """Every replica of a narrow box that beats what is needed is found, the quickest per count.

        Says whether that took no more than some chains; a box that can't be split further has no such limit.
        """
        wanted_U = box.most_U > needed_U
        allowed_A = np.flatnonzero(self.lattice.below(wanted_U))
        self.effort.spend_run(allowed_A.size)
        beat_A = np.flatnonzero(wanted_U[allowed_A])
        target_A = np.full(allowed_A.size, -np.inf)
        with np.errstate(divide="ignore"):
            target_A[beat_A] = np.minimum(self.tokens / np.maximum(needed_U[allowed_A[beat_A]], 0.0), 1e300)
        after_JA = self._after(box.mode_i, allowed_A)
        search = ChainSearch(
            self.placed[box.mode_i],
            self.lattice,
            (box.from_s, box.upto_s),
            allowed_A,
            target_A,
            self.bounds[box.mode_i].fronts(box.upto_s, after_JA, target_A),
            self.count_T,
            self.effort,
            chains_max if box.upto_s > box.from_s * FINEST_RATIO > 0.0 else None,
        )
        found = search.run()
        for chain in found or ():
            self._offer(chain.count, self._column(self.stages[box.mode_i], chain.stages))
        return found is not None


def is_wide(box: Open) -> bool:
    """Whether a box should be split rather than searched."""
    return box.from_s > 0.0 and box.upto_s > box.from_s * FINE_RATIO


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallAnswer:
    """The best plan (None when there is none) and its proof.

    `ceilings` are pairs of devices per class and tokens/s: no replica is faster than the largest ceiling
    listed for devices it has at least, and no packing of ceilings beats the plan.
    """

    columns: tuple[Column, ...] | None
    value: float | None
    ceilings: tuple[tuple[tuple[int, ...], float], ...]
    num_chains: int
    num_runs: int
