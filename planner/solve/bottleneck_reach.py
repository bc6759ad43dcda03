"""Is there a chain of stages whose every stage and link takes at most z seconds per step?

Two exact answers to the same question, both from the last layer to the first over (first layer, position,
devices taken): `CountReach` for boundaries of one device class, where the fewest devices dominate, and
`LabelReach` for several classes and sites, where a partial chain is dominated by one that takes no more
devices of any class.

Legend of array suffixes: see `bottleneck_tables` and `bottleneck_labels`; E ends b of the intervals that
start at a.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.objective import StageChoice
from planner.problem import BoundaryProblem
from planner.solve.bottleneck_labels import ROW_TOLERANCE_FRAC, LabelArray, Packer
from planner.solve.bottleneck_tables import ModeTables, StageGroup

NONE = np.int32(1 << 30)
"""More devices than any boundary has: no chain."""

LabelSets = dict[int, LabelArray]
"""Labels by position."""


class Reach(Protocol):
    """Decides thresholds for one mode."""

    def chain(self, step_s: float) -> tuple[StageChoice, ...] | None:
        """A chain within the threshold that takes the fewest devices, or None when there is none."""
        ...


def reach_for(problem: BoundaryProblem, tables: ModeTables, ask_stop: Callable[[], None]) -> Reach:
    """The cheaper of the two ways that is exact for this boundary."""
    if len(problem.classes) == 1:
        return CountReach(problem, tables, ask_stop)
    return LabelReach(problem, tables, ask_stop)


def _choice(tables: ModeTables, group: StageGroup, start: int, stop: int, held: int) -> StageChoice:
    position = group.choice_KQ[tables.interval_AB[start, stop], held]
    return StageChoice(template_i=group.templates[position], start=start, stop=stop)


def _advance(tables: ModeTables, dp: int) -> tuple[dict[int, int], dict[int, int]]:
    """Target position and micro-batches held, by source position, of a stage of width `dp`."""
    positions = tables.positions
    sources = positions.sources[dp].tolist()
    targets = dict(zip(sources, positions.targets[dp].tolist(), strict=True))
    return targets, dict(zip(sources, positions.held[dp].tolist(), strict=True))


class CountReach:
    """One device class, hence one site: keeps the fewest devices per (first layer, position)."""

    def __init__(self, problem: BoundaryProblem, tables: ModeTables, ask_stop: Callable[[], None]) -> None:
        self._tables = tables
        self._ask_stop = ask_stop
        self._site_i = problem.classes[0].site_i
        limits = [
            row.limit * (1.0 + ROW_TOLERANCE_FRAC) / coefficient
            for row in problem.rows
            for _, coefficient in row.coefficients
            if coefficient > 0.0
        ]
        self._devices_max = int(min([*limits, float(problem.classes[0].num_devices)]))

    def chain(self, step_s: float) -> tuple[StageChoice, ...] | None:
        """See `Reach`."""
        tables = self._tables
        fewest_AP = np.full((tables.num_layers + 1, tables.positions.count), NONE, dtype=np.int32)
        fewest_AP[tables.num_layers, 0] = 0
        open_AP = fewest_AP.copy()  # the same, closed where the link in front of layer a is too slow
        for start in range(tables.num_layers - 1, -1, -1):
            self._ask_stop()
            for group in tables.groups:
                self._extend(group, start, step_s, open_AP, fewest_AP[start])
            fewest_AP[start][fewest_AP[start] > self._devices_max] = NONE
            if tables.link_s_BST[start, self._site_i, self._site_i] <= step_s:
                open_AP[start] = fewest_AP[start]
        if fewest_AP[0].min() == NONE:
            return None
        return tuple(self._trace(step_s, fewest_AP, open_AP))

    def _extend(
        self,
        group: StageGroup,
        start: int,
        step_s: float,
        open_AP: NDArray[np.int32],
        fewest_P: NDArray[np.int32],
    ) -> None:
        """Put a stage of `group` that starts at layer `start` in front of every chain that it may precede."""
        positions = self._tables.positions
        ends_E = np.flatnonzero(group.least_s_AB[start] <= step_s)
        if len(ends_E) == 0:
            return
        within_EQ = group.step_s_KQ[self._tables.interval_AB[start, ends_E]] <= step_s
        sources = positions.sources[group.dp]
        behind_EP = open_AP[ends_E].take(sources, axis=1)
        behind_EP[~within_EQ.take(positions.held[group.dp], axis=1)] = NONE
        targets = positions.targets[group.dp]
        fewest_P[targets] = np.minimum(fewest_P[targets], behind_EP.min(axis=0) + group.usage[0][1])

    def _trace(
        self, step_s: float, fewest_AP: NDArray[np.int32], open_AP: NDArray[np.int32]
    ) -> Iterator[StageChoice]:
        start, position = 0, int(fewest_AP[0].argmin())
        while start < self._tables.num_layers:
            need = fewest_AP[start, position]
            choice, position = self._step_back(step_s, open_AP, start, position, int(need))
            yield choice
            start = choice.stop

    def _step_back(
        self, step_s: float, open_AP: NDArray[np.int32], start: int, position: int, need: int
    ) -> tuple[StageChoice, int]:
        tables = self._tables
        for group in tables.groups:
            for index in np.flatnonzero(tables.positions.targets[group.dp] == position):
                source = int(tables.positions.sources[group.dp][index])
                held = int(tables.positions.held[group.dp][index])
                for stop in np.flatnonzero(group.least_s_AB[start] <= step_s).tolist():
                    within = group.step_s_KQ[tables.interval_AB[start, stop], held] <= step_s
                    if within and int(open_AP[stop, source]) + group.usage[0][1] == need:
                        return _choice(tables, group, start, stop, held), source
        raise AssertionError(f"no stage leads from layer {start} at position {position}")


class LabelReach:
    """Several classes and sites: all undominated labels per (first layer, its stage's site, position)."""

    def __init__(self, problem: BoundaryProblem, tables: ModeTables, ask_stop: Callable[[], None]) -> None:
        self._tables = tables
        self._ask_stop = ask_stop
        self._num_sites = len(problem.site_ids)
        self._packer = Packer(problem)
        self._usd_C = np.array([device_class.device.usd_per_hour for device_class in problem.classes])
        self._taken_W = [self._packer.pack(group.usage) for group in tables.groups]
        self._advance = {dp: _advance(tables, dp) for dp in tables.positions.sources}

    def chain(self, step_s: float) -> tuple[StageChoice, ...] | None:
        """See `Reach`."""
        num_layers = self._tables.num_layers
        # by first layer, then by the site of its stage (`open_sets`: of a stage that would stand in front)
        labels: list[list[LabelSets]] = [[{} for _ in range(self._num_sites)] for _ in range(num_layers + 1)]
        open_sets: list[list[LabelSets]] = [[] for _ in range(num_layers + 1)]
        empty = np.zeros((1, self._packer.num_words), dtype=np.int64)
        open_sets[num_layers] = [{0: empty} for _ in range(self._num_sites)]
        for start in range(num_layers - 1, -1, -1):
            labels[start] = self._labels_at(start, step_s, open_sets)
            open_sets[start] = self._open_at(start, step_s, labels[start])
        first = self._cheapest(labels[0])
        return None if first is None else tuple(self._trace(step_s, labels, *first))

    def _labels_at(self, start: int, step_s: float, open_sets: list[list[LabelSets]]) -> list[LabelSets]:
        tables = self._tables
        found: list[dict[int, list[LabelArray]]] = [{} for _ in range(self._num_sites)]
        for group, taken_W in zip(tables.groups, self._taken_W, strict=True):
            targets, held = self._advance[group.dp]
            for stop in np.flatnonzero(group.least_s_AB[start] <= step_s).tolist():
                within_Q = group.step_s_KQ[tables.interval_AB[start, stop]] <= step_s
                for source, behind_NW in open_sets[stop][group.site_i].items():
                    if source in targets and within_Q[held[source]]:
                        found[group.site_i].setdefault(targets[source], []).append(behind_NW + taken_W)
        return [self._merge(by_position) for by_position in found]

    def _merge(self, by_position: dict[int, list[LabelArray]]) -> LabelSets:
        merged: LabelSets = {}
        for position in sorted(by_position):
            self._ask_stop()
            labels_NW = self._packer.admissible(np.concatenate(by_position[position]))
            if len(labels_NW):
                merged[position] = self._packer.pareto(labels_NW)
        return merged

    def _open_at(self, start: int, step_s: float, at_sites: list[LabelSets]) -> list[LabelSets]:
        """For every site of a stage that ends in front of layer `start`: the chains its links can feed."""
        within_ST = self._tables.link_s_BST[start] <= step_s
        remembered: dict[bytes, LabelSets] = {}
        result = []
        for before in range(self._num_sites):
            key = within_ST[before].tobytes()
            if key not in remembered:
                found: dict[int, list[LabelArray]] = {}
                for after in np.flatnonzero(within_ST[before]).tolist():
                    for position, labels_NW in at_sites[after].items():
                        found.setdefault(position, []).append(labels_NW)
                remembered[key] = self._merge(found)
            result.append(remembered[key])
        return result

    def _cheapest(self, at_sites: list[LabelSets]) -> tuple[int, int, LabelArray] | None:
        """Site, position and label of a whole chain with the fewest devices, then the lowest price."""
        options = []
        for site_i, by_position in enumerate(at_sites):
            for position, labels_NW in by_position.items():
                counts_NC = self._packer.unpack(labels_NW)
                order = zip(counts_NC.sum(axis=1).tolist(), (counts_NC @ self._usd_C).tolist(), strict=True)
                options += [(*key, site_i, position, n) for n, key in enumerate(order)]
        if not options:
            return None
        _, _, site_i, position, n = min(options)
        return site_i, position, at_sites[site_i][position][n]

    def _trace(
        self, step_s: float, labels: list[list[LabelSets]], site_i: int, position: int, label_W: LabelArray
    ) -> Iterator[StageChoice]:
        start = 0
        while start < self._tables.num_layers:
            choice, site_i, position, label_W = self._step_back(
                step_s, labels, start, site_i, position, label_W
            )
            yield choice
            start = choice.stop

    def _step_back(
        self,
        step_s: float,
        labels: list[list[LabelSets]],
        start: int,
        site_i: int,
        position: int,
        label_W: LabelArray,
    ) -> tuple[StageChoice, int, int, LabelArray]:
        tables = self._tables
        for group, taken_W in zip(tables.groups, self._taken_W, strict=True):
            if group.site_i != site_i:
                continue
            targets, held = self._advance[group.dp]
            rest_W = label_W - taken_W
            for source in (s for s, target in targets.items() if target == position):
                for stop in np.flatnonzero(group.least_s_AB[start] <= step_s).tolist():
                    if group.step_s_KQ[tables.interval_AB[start, stop], held[source]] > step_s:
                        continue
                    choice = _choice(tables, group, start, stop, held[source])
                    if stop == tables.num_layers:
                        if source == 0 and not rest_W.any():
                            return choice, site_i, source, rest_W
                        continue
                    for after in np.flatnonzero(tables.link_s_BST[stop, site_i] <= step_s).tolist():
                        known_NW = labels[stop][after].get(source)
                        if known_NW is not None and (known_NW == rest_W).all(axis=1).any():
                            return choice, after, source, rest_W
        raise AssertionError(f"no stage leads from layer {start} at position {position}")
