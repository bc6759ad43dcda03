"""Exact search for replicas that beat a step time per device count, in one load box.

Chains grow from the last stage to the first, so the micro-batches in flight of every stage are known. A
chain is kept while some front could still bring it under the step time asked for on the devices it would
then use; fronts are bounded as in planner.solve.small_stages.

Legend: N chains, X stages of one level with their place, A device counts of the box, B layer borders, S
sites, T templates, K multipliers, Q stages behind a front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.solve.small_lattice import Lattice
from planner.solve.small_stages import Stages
from planner.solve.tables import FloatArray, IntArray

PAIRS_MAX = 1_000_000
LEADERS = 12
STATES_PER_CHAIN = 3


class SmallLimitError(Exception):
    """More chains than allowed, or told to stop: the search is not complete."""


@dataclass(slots=True, kw_only=True)
class Effort:
    """What a search may still cost, in chains, and what it has cost."""

    left: int
    should_stop: Callable[[], bool]
    num_chains: int = 0
    num_runs: int = 0

    def spend(self, count: int) -> None:
        """Count chains.

        Raises:
            SmallLimitError: too many, or told to stop.
        """
        self.num_chains += count
        self._pay(count)

    def spend_run(self, num_states: int) -> None:
        """Count a bound on this many device counts.

        Raises:
            SmallLimitError: too many, or told to stop.
        """
        self.num_runs += 1
        self._pay(num_states // STATES_PER_CHAIN)

    def _pay(self, count: int) -> None:
        self.left -= count
        if self.left < 0 or self.should_stop():
            raise SmallLimitError


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Chains of equally many stages; `layer_N`, `site_N` of the first stage, `count_N` the devices used.

    `w`, `z`, `g`: fill time, slowest busy or transfer time, largest sync. `parent` is the chain without the
    first stage, `entry` the table entry of that stage.
    """

    layer_N: IntArray
    site_N: IntArray
    count_N: IntArray
    w_N: FloatArray
    z_N: FloatArray
    g_N: FloatArray
    parent_N: IntArray
    entry_N: IntArray

    @property
    def size(self) -> int:
        """How many chains there are."""
        return int(self.w_N.size)

    def take(self, index: NDArray[np.generic]) -> Chains:
        """The chosen chains."""
        return Chains(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete chain: its device count, step time, and (table entry, start) from the first stage on."""

    count: int
    step_s: float
    stages: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class LevelStages:
    """Stages of one in-flight level by stop border, all places of each table entry."""

    entry_X: IntArray
    start_X: IntArray
    stop_X: IntArray


class PlacedStages:
    """The stages of a mode with place, per in-flight level."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        order_X = np.argsort(stages.pair_X, kind="stable")
        self._place_X = order_X
        self._from_P = np.searchsorted(stages.pair_X[order_X], np.arange(stages.way_P.size + 1))
        self._levels: dict[int, LevelStages] = {}

    @cached_property
    def sync_E(self) -> FloatArray:
        """Sync seconds of every table entry."""
        tables = self.stages.tables
        if not tables.formula.sync:
            return np.zeros(tables.load_E.size)
        sync_E: FloatArray = np.maximum(0.0, tables.load_E - tables.formula.repeats * tables.busy_E)
        return sync_E

    def level(self, level: int) -> LevelStages:
        """Everything that may stand at a level."""
        if level not in self._levels:
            stages = self.stages
            at_E = np.flatnonzero(stages.level_E == level)
            pair_E = stages.pair_E[at_E]
            num_E = self._from_P[pair_E + 1] - self._from_P[pair_E]
            of_X = np.repeat(np.arange(at_E.size), num_E)
            within_X = np.arange(of_X.size) - np.repeat(np.cumsum(num_E) - num_E, num_E)
            place_X = self._place_X[self._from_P[pair_E[of_X]] + within_X]
            order_X = np.argsort(stages.stop_X[place_X], kind="stable")
            place_X, of_X = place_X[order_X], of_X[order_X]
            self._levels[level] = LevelStages(
                entry_X=stages.entry_E[at_E[of_X]],
                start_X=stages.start_X[place_X],
                stop_X=stages.stop_X[place_X],
            )
        return self._levels[level]


class ChainSearch:
    """All ways to beat the targets among the loads from_s..upto_s.

    `front_QKSA` and `multiplier_K` are those of CountBounds.fronts, `target_A` the step times to beat.
    """

    def __init__(
        self,
        placed: PlacedStages,
        lattice: Lattice,
        loads_s: tuple[float, float],
        allowed_A: IntArray,
        target_A: FloatArray,
        fronts: tuple[FloatArray, FloatArray],
        count_T: IntArray,
        effort: Effort,
        chains_max: int | None,
    ) -> None:
        self.placed, self.lattice, self.allowed_A = placed, lattice, allowed_A
        self.from_s, self.upto_s = loads_s
        self.target_A = np.append(target_A, -np.inf)
        self.multiplier_K, self.front_QKSA = fronts
        self.count_T, self.effort, self.chains_max = count_T, effort, chains_max
        self.tables = placed.stages.tables
        self.site_E = self.tables.cell_E // len(self.tables.signatures.intervals) % self.tables.num_sites
        self.state_U = np.full(lattice.size + 1, allowed_A.size, dtype=np.int64)
        self.state_U[allowed_A] = np.arange(allowed_A.size)
        sync_max = float(placed.sync_E.max(initial=0.0))
        repeats = self.tables.formula.repeats
        self.floor_s = (self.from_s - sync_max) / repeats if repeats > 0.0 else 0.0

    def run(self) -> list[Found] | None:
        """The quickest chain per device count, of those that beat its target; None beyond `chains_max`."""
        num_chains = 0
        none = np.full(1, -1, dtype=np.int64)
        zero = np.zeros(1)
        start = Chains(
            layer_N=np.array([self.placed.stages.num_layers]),
            site_N=none,
            count_N=self.state_U[[self.lattice.position(self.lattice.count_UC[0] * 0)]],
            w_N=zero,
            z_N=zero,
            g_N=zero,
            parent_N=none,
            entry_N=none,
        )
        levels = [start]
        best: dict[int, tuple[float, int, int]] = {}
        for depth in range(1, self.tables.num_stages + 1):
            grown = self._grow(levels[-1], depth)
            self.effort.spend(grown.size)
            num_chains += grown.size
            if self.chains_max is not None and num_chains > self.chains_max:
                return None
            done_N = np.flatnonzero(grown.layer_N == 0)
            step_N = self._step_s(grown)
            for n in done_N[np.argsort(step_N[done_N], kind="stable")].tolist():
                count = int(grown.count_N[n])
                if count not in best or step_N[n] < best[count][0]:
                    best[count] = (float(step_N[n]), depth, n)
            levels.append(grown)
            if not np.any(grown.layer_N > 0):
                break
        return [self._found(levels, *where, count) for count, where in best.items()]

    def _found(self, levels: list[Chains], step_s: float, depth: int, n: int, count: int) -> Found:
        stages: list[tuple[int, int]] = []
        while depth > 0:
            stages.append((int(levels[depth].entry_N[n]), int(levels[depth].layer_N[n])))
            n, depth = int(levels[depth].parent_N[n]), depth - 1
        return Found(count=int(self.allowed_A[count]), step_s=step_s, stages=tuple(stages))

    def _step_s(self, chains: Chains) -> FloatArray:
        step_N: FloatArray = chains.w_N + self.tables.formula.repeats * chains.z_N + chains.g_N
        return step_N

    def _grow(self, behind: Chains, depth: int) -> Chains:
        """One more stage in front of every open chain."""
        ahead = self.placed.level(min(depth, self.tables.num_levels) - 1)
        inside = np.flatnonzero(self.tables.load_E[ahead.entry_X] <= self.upto_s)
        begin_B = np.searchsorted(ahead.stop_X[inside], np.arange(self.placed.stages.num_layers + 2))
        open_N = np.flatnonzero(behind.layer_N > 0)
        num_N = begin_B[behind.layer_N[open_N] + 1] - begin_B[behind.layer_N[open_N]]
        parts: list[Chains] = []
        ends = np.cumsum(num_N)
        at = 0
        while at < open_N.size:
            before = int(ends[at - 1]) if at else 0
            upto = max(at + 1, int(np.searchsorted(ends, before + PAIRS_MAX, side="right")))
            some_N, some_num = open_N[at:upto], num_N[at:upto]
            parent_N = np.repeat(some_N, some_num)
            within = np.arange(parent_N.size) - np.repeat(np.cumsum(some_num) - some_num, some_num)
            x_N = inside[np.repeat(begin_B[behind.layer_N[some_N]], some_num) + within]
            parts.append(self._joined(behind, parent_N, ahead.entry_X[x_N], ahead.start_X[x_N], depth))
            at = upto
        if not parts:
            return behind.take(np.zeros(0, dtype=np.int64))
        names = [f.name for f in fields(Chains)]
        return self._undominated(Chains(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names}))

    def _joined(
        self, behind: Chains, parent_N: IntArray, entry_N: IntArray, start_N: IntArray, depth: int
    ) -> Chains:
        tables, formula = self.tables, self.tables.formula
        site_N = self.site_E[entry_N]
        used_N = self.allowed_A[behind.count_N[parent_N]]
        taken_N = self.count_T[tables.template_E[entry_N]]
        count_N = self.state_U[self.lattice.added(used_N, taken_N)]
        busy_N = tables.busy_E[entry_N]
        w_N = behind.w_N[parent_N] + formula.fill * busy_N
        z_N = np.maximum(behind.z_N[parent_N], busy_N)
        if depth > 1:
            border_N, next_N = behind.layer_N[parent_N], behind.site_N[parent_N]
            hop_N = tables.transfer_BSS[border_N, site_N, next_N]
            linked_N = np.isfinite(hop_N)
            hop_N = np.where(linked_N, hop_N, 0.0)
            linked_N &= formula.repeats * hop_N <= self.upto_s
            w_N = w_N + np.where(linked_N, formula.fill * hop_N, np.inf)
            z_N = np.maximum(z_N, hop_N)
        g_N = np.maximum(behind.g_N[parent_N], self.placed.sync_E[entry_N])
        rest_N = np.maximum(formula.repeats * z_N + g_N, self.from_s)
        step_N = w_N + rest_N
        kept = np.flatnonzero(step_N < np.where(start_N == 0, self.target_A[count_N], np.inf))
        kept = kept[count_N[kept] < self.allowed_A.size]
        for k, multiplier in enumerate(self.multiplier_K):
            front_N = self.front_QKSA[depth - 1, k, site_N[kept], count_N[kept]] + multiplier * start_N[kept]
            kept = kept[(step_N[kept] + front_N < 0.0) | (start_N[kept] == 0)]
        return Chains(
            layer_N=start_N[kept],
            site_N=site_N[kept],
            count_N=count_N[kept],
            w_N=w_N[kept],
            z_N=z_N[kept],
            g_N=g_N[kept],
            parent_N=parent_N[kept],
            entry_N=entry_N[kept],
        )

    def _undominated(self, chains: Chains) -> Chains:
        """Drop chains that another one at the same place and on the same devices matches under every front.

        Chain 1 matches 2 when w1 + repeats * max(0, z1 - z2) + max(0, g1 - g2) <= w2. A replica of this box
        has a slowest stage or link of at least (lower end - largest sync) / repeats; z counts from there.
        """
        if chains.size < 2:
            return chains
        repeats = self.tables.formula.repeats
        place_N = chains.layer_N * self.tables.num_sites + chains.site_N
        key_N = place_N * self.allowed_A.size + chains.count_N
        z_N = np.maximum(chains.z_N, self.floor_s)
        rest = np.lexsort((chains.w_N + repeats * z_N + chains.g_N, key_N))
        kept: list[IntArray] = []
        for _ in range(LEADERS):
            first = np.flatnonzero(np.diff(key_N[rest], prepend=-1))
            leader = rest[np.repeat(first, np.diff(np.append(first, rest.size)))]
            kept.append(rest[first])
            behind_N = chains.w_N[leader] - chains.w_N[rest]
            behind_N += repeats * np.maximum(0.0, z_N[leader] - z_N[rest])
            behind_N += np.maximum(0.0, chains.g_N[leader] - chains.g_N[rest])
            rest = rest[behind_N > 0.0]
            if rest.size == 0:
                break
        return chains.take(np.sort(np.concatenate([*kept, rest])))
