"""Which device counts hold a whole replica: reachability over counts per class, exact for any cost model.

Stages are put in front of each other from the loss head backwards, so the stages behind are known. A state is
(stages behind, their widths, site of the first of them, devices used per class) with the borders it reaches.

Legend of array suffixes: U device-count vectors (flat), N some of them, C device classes, A first layer, B
borders (0..L), R capacity rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from planner.explain.fits import BoolArray, Holder, IntArray, ModeFits, mode_fits
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem
from planner.solve.small_master import capacity_rows

CELLS_MAX = 60_000
BYTES_MAX = 1_500_000_000
State = tuple[int, int, int]
"""Stages so far, their widths together (round-robin only), site of the foremost."""


@dataclass(slots=True, kw_only=True)
class Reached:
    """What is known about one boundary's replicas, over all modes.

    `minimal` are the smallest device counts that hold a whole replica, none of them above another. `lowest`
    is the lowest layer from which on the rest of the chain can be held, `counted` whether devices were
    counted (else every class was taken for endless).
    """

    counted: bool
    minimal: tuple[tuple[int, ...], ...]
    lowest: int
    origins: dict[tuple[int, ...], _Origin] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Where a whole replica was met: its mode's walk and state."""

    walk: _Walk
    state: State
    cell: int


def countable(problem: BoundaryProblem) -> bool:
    """Whether the boundary's device counts are few enough to list."""
    cells = float(np.prod([c.num_devices + 1.0 for c in problem.classes]))
    depth = min(problem.num_layers, max((m.max_stages for m in problem.modes), default=1))
    size = cells * (problem.num_layers + 1.0) * depth * len(problem.site_ids)
    return cells <= CELLS_MAX and size <= BYTES_MAX


def reach(
    problem: BoundaryProblem,
    *,
    counted: bool = True,
    enough: Callable[[tuple[tuple[int, ...], ...]], bool] = lambda _minimal: False,
) -> Reached:
    """Every replica the boundary can form, by the devices it takes.

    With `counted` false device counts are left out: whoever reaches nothing then reaches nothing at all. The
    walk ends early when the replicas met so far are `enough`; only then may smaller ones be missing.
    """
    found = Reached(counted=counted, minimal=(), lowest=problem.num_layers)
    if not problem.classes:
        return found
    for fits in mode_fits(problem):
        walk = _Walk(fits, counted)
        for whole in walk.levels():
            found.lowest = min(found.lowest, walk.lowest)
            for state, cells in whole.items():
                for cell in cells.tolist():
                    usage = tuple(int(n) for n in walk.counts_UC[cell])
                    found.origins.setdefault(usage, _Origin(walk=walk, state=state, cell=cell))
            if whole:
                found.minimal = _minimal(list(found.origins))
                if enough(found.minimal):
                    return found
    return found


def witness(found: Reached, usage: tuple[int, ...]) -> Replica | None:
    """A priced replica on these device counts; None when the cost model refuses it after all."""
    origin = found.origins[usage]
    fits = origin.walk.fits
    return price_replica(fits.problem, fits.mode, origin.walk.stages(origin.state, origin.cell))


def most_replicas(
    problem: BoundaryProblem, minimal: tuple[tuple[int, ...], ...], wanted: int
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The most disjoint replicas within all capacity rows, at most `wanted`, and device counts of each.

    exists[k][u] = OR over minimal counts v of exists[k-1][u - v]; rows are checked on the sum. More devices
    never make room, so as soon as no sum of k counts keeps the rows, none of k + 1 does.
    """
    shape = tuple(c.num_devices + 1 for c in problem.classes)
    weight_RC, limit_R = capacity_rows(problem)
    counts_UC = _counts(shape)
    allowed_U = (counts_UC @ weight_RC.T <= limit_R).all(axis=1).reshape(shape)
    tables: list[BoolArray] = [np.zeros(shape, dtype=bool)]
    tables[0][(0,) * len(shape)] = True
    while len(tables) <= wanted:
        grown = np.zeros(shape, dtype=bool)
        for usage in minimal:
            after = tuple(slice(n, None) for n in usage)
            before = tuple(slice(0, size - n) for n, size in zip(usage, shape, strict=True))
            grown[after] |= tables[-1][before]
        grown &= allowed_U
        if not grown.any():
            break
        tables.append(grown)
    return len(tables) - 1, _traced(tables, minimal)


def least_usd_per_hour(problem: BoundaryProblem, minimal: tuple[tuple[int, ...], ...], count: int) -> float:
    """USD per hour of the cheapest `count` disjoint replicas, ceilings left out; infinite without any."""
    shape = tuple(c.num_devices + 1 for c in problem.classes)
    usd_C = np.array([c.device.usd_per_hour for c in problem.classes])
    table = np.full(shape, np.inf)
    table[(0,) * len(shape)] = 0.0
    for _ in range(count):
        grown = np.full(shape, np.inf)
        for usage in minimal:
            after = tuple(slice(n, None) for n in usage)
            before = tuple(slice(0, size - n) for n, size in zip(usage, shape, strict=True))
            np.minimum(grown[after], table[before] + float(usd_C @ np.array(usage)), out=grown[after])
        table = grown
    counts_UC = _counts(shape)
    ok_U = np.ones(len(counts_UC), dtype=bool)
    for row in problem.rows:
        if row.name != "price":
            weight_C = np.zeros(len(shape))
            for class_i, coefficient in row.coefficients:
                weight_C[class_i] += coefficient
            ok_U &= counts_UC @ weight_C <= row.limit + 1e-9
    return float(np.where(ok_U.reshape(shape), table, np.inf).min())


def _counts(shape: tuple[int, ...]) -> IntArray:
    """All count vectors, in the order of the flat index."""
    return np.stack(np.unravel_index(np.arange(int(np.prod(shape))), shape), axis=1).astype(np.int64)


def _traced(tables: list[BoolArray], minimal: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    at = tuple(int(n[0]) for n in np.nonzero(tables[-1]))
    chosen = []
    for k in range(len(tables) - 1, 0, -1):
        for usage in minimal:
            before = tuple(n - m for n, m in zip(at, usage, strict=True))
            if min(before) >= 0 and tables[k - 1][before]:
                chosen.append(usage)
                at = before
                break
    return tuple(chosen)


def _minimal(usages: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    kept: list[tuple[int, ...]] = []
    for usage in sorted(usages, key=lambda u: (sum(u), u)):
        if not any(all(a <= b for a, b in zip(other, usage, strict=True)) for other in kept):
            kept.append(usage)
    return tuple(kept)


class _Walk:
    """Backwards over the stages of one mode."""

    def __init__(self, fits: ModeFits, counted: bool) -> None:
        self.fits = fits
        num_classes = len(fits.problem.classes)
        have = [c.num_devices for c in fits.problem.classes] if counted else [0] * num_classes
        self.counted = counted
        self.have_C = np.array(have, dtype=np.int64)
        shape = tuple(n + 1 for n in have)
        self.counts_UC = _counts(shape)
        self.radix_C = np.array([int(np.prod(shape[i + 1 :])) for i in range(num_classes)], dtype=np.int64)
        self.borders: dict[State, BoolArray] = {}
        self.lowest = fits.problem.num_layers

    def levels(self) -> Iterator[dict[State, IntArray]]:
        """Fill `borders`, a stage more at a time; gives the counts that reach layer 0 with so many stages."""
        num_layers = self.fits.problem.num_layers
        start_UB = np.zeros((len(self.counts_UC), num_layers + 1), dtype=bool)
        start_UB[0, num_layers] = True
        level: dict[State, BoolArray] = {(0, 0, -1): start_UB}
        self.borders.update(level)
        for _ in range(self.fits.max_stages):
            grown: dict[State, BoolArray] = {}
            for state, open_UB in level.items():
                self._put_in_front(state, open_UB, grown)
            level = {state: self._smallest(open_UB) for state, open_UB in grown.items() if open_UB.any()}
            if not level:
                return
            self.borders.update(level)
            lowest = min(int(np.flatnonzero(open_UB.any(axis=0))[0]) for open_UB in level.values())
            self.lowest = min(self.lowest, lowest)
            whole = {state: np.flatnonzero(open_UB[:, 0]) for state, open_UB in level.items()}
            yield {state: cells for state, cells in whole.items() if len(cells)}

    def _smallest(self, open_UB: BoolArray) -> BoolArray:
        """Borders reached on the smallest counts only: a tail on fewer devices serves as well.

        below[u] = OR over classes c of reached[u' <= u - e_c].
        """
        shape = tuple(self.have_C + 1)
        reached = open_UB.reshape(*shape, -1).copy()
        for axis in range(len(shape)):
            np.logical_or.accumulate(reached, axis=axis, out=reached)
        below = np.zeros_like(reached)
        for axis, size in enumerate(shape):
            if size > 1:
                upper = tuple(slice(1, None) if i == axis else slice(None) for i in range(len(shape)))
                lower = tuple(slice(0, -1) if i == axis else slice(None) for i in range(len(shape)))
                below[upper] |= reached[lower]
        return np.asarray(open_UB & ~below.reshape(open_UB.shape))

    def _put_in_front(self, state: State, open_UB: BoolArray, grown: dict[State, BoolArray]) -> None:
        cells = np.flatnonzero(open_UB[:, 1:].any(axis=1))
        if not len(cells):
            return
        open_NB = open_UB[cells].astype(np.float32)
        for holder in self.fits.holders:
            if state[2] >= 0 and not self.fits.linked_SS[holder.site_i, state[2]]:
                continue
            fits_AB = self.fits.fits_AB(holder, state[0], state[1])
            taken_C = holder.usage_C if self.counted else np.zeros_like(holder.usage_C)
            room_N = (self.counts_UC[cells] + taken_C <= self.have_C).all(axis=1)
            if not room_N.any() or not fits_AB.any():
                continue
            first_NA = open_NB[room_N] @ fits_AB.T.astype(np.float32) > 0.5
            after = (state[0] + 1, self._width(state, holder), holder.site_i)
            if after not in grown:
                grown[after] = np.zeros_like(open_UB)
            to_N = cells[room_N] + int(taken_C @ self.radix_C)
            grown[after][to_N, : first_NA.shape[1]] |= first_NA

    def _width(self, state: State, holder: Holder) -> int:
        return min(state[1] + holder.width, self.fits.mode.num_micro_batches) if self.fits.round_robin else 0

    def stages(self, state: State, cell: int) -> list[StageChoice]:
        """The stages of a chain that reaches layer 0 in this state on these counts."""
        before_of: dict[State, list[State]] = defaultdict(list)
        for known in self.borders:
            before_of[(known[0] + 1, 0, 0)].append(known)
        chosen: list[StageChoice] = []
        layer = 0
        while state[0] > 0:
            step = self._step(state, cell, layer, before_of[(state[0], 0, 0)])
            choice, state, cell = step
            chosen.append(choice)
            layer = choice.stop
        return chosen

    def _step(
        self, state: State, cell: int, layer: int, candidates: list[State]
    ) -> tuple[StageChoice, State, int]:
        """The stage at `layer` and what lies behind it."""
        for holder in self.fits.holders:
            if holder.site_i != state[2]:
                continue
            taken_C = holder.usage_C if self.counted else np.zeros_like(holder.usage_C)
            if not (self.counts_UC[cell] >= taken_C).all():
                continue
            at = cell - int(taken_C @ self.radix_C)
            for behind in candidates:
                if behind[2] >= 0 and not self.fits.linked_SS[holder.site_i, behind[2]]:
                    continue
                if self._width(behind, holder) != state[1]:
                    continue
                fits_B = self.fits.fits_AB(holder, behind[0], behind[1])[layer]
                stops = np.flatnonzero(fits_B & self.borders[behind][at])
                if len(stops):
                    stop = int(stops[-1])
                    return self._choice(holder, behind, layer, stop), behind, at
        raise LookupError("a state without a stage in front of it")

    def _choice(self, holder: Holder, behind: State, start: int, stop: int) -> StageChoice:
        """The first of the holder's clusters on which the cost model confirms the stage."""
        fits, mode = self.fits, self.fits.mode
        held = min(mode.num_micro_batches, behind[0] + 1)
        if fits.round_robin:
            held = -(-min(mode.num_micro_batches, behind[1] + holder.width) // holder.width)
        template_i = holder.template_for(fits.problem, mode, (start, stop), held)
        return StageChoice(template_i=template_i, start=start, stop=stop)
