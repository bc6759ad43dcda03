"""Pricing and proof in one: sweeps over the loads of every mode, shared out over threads.

A sweep under any multipliers ends with a factor that no replica's worth passes, hence with a bound, and with
the best replicas it met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from threading import Event

import numpy as np

from planner.objective import StageChoice
from planner.problem import BoundaryProblem
from planner.solve.boxes import BoxProof, Cut, Duals
from planner.solve.columns import Column, Shape
from planner.solve.envelope import Line, Scale
from planner.solve.path_kernels import Devices, build_devices, new_scratch, price_paths
from planner.solve.pathdp import least_load
from planner.solve.paths import build_paths, device_groups
from planner.solve.sweep import (
    GRID_RATIO,
    Desk,
    FoundPath,
    Goal,
    Obstacle,
    Prices,
    Range,
    Segment,
    Sweep,
    Swept,
)
from planner.solve.tables import FloatArray, ModeTables
from planner.solve.tracking import Tracker, no_charges

SEGMENTS = 6
POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Certified:
    """No replica is worth more than `factor` under `duals`, as `boxes` prove; infinite when cut short.

    `columns` are replicas met on the way that are worth something.
    """

    factor: float
    duals: Duals
    boxes: tuple[BoxProof, ...]
    columns: tuple[Column, ...]
    obstacles: tuple[Obstacle, ...]
    num_runs: int


class Sweeper:
    """Sweeps of one boundary. Remembers angles and usage multipliers by load between sweeps."""

    def __init__(
        self, problem: BoundaryProblem, shape: Shape, tables: Sequence[ModeTables], *, threads: int
    ) -> None:
        self.problem = problem
        self.shape = shape
        self.tables = tuple(tables)
        groups_J = device_groups(problem)
        self.devices = build_devices(problem, shape)
        self.paths = tuple(build_paths(t, groups_J) for t in self.tables)
        self.num_runs = 0
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._desks: dict[int, list[Desk]] = {i: [] for i in range(len(self.tables))}
        self._fill_tables = [self._fill_table(i) for i in range(len(self.tables))]
        self.segments = [s for i in range(len(self.tables)) for s in self._first_segments(i)]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def any_path(self) -> bool:
        """Whether any replica exists, even in the relaxation."""
        return any(isfinite(fill_s[-1]) for _, fill_s in self._fill_tables)

    def _borrow(self, mode_i: int) -> Desk:
        free, paths = self._desks[mode_i], self.paths[mode_i]
        if free:
            return free.pop()
        return Desk(new_scratch(paths, self.devices), Tracker(paths, self.devices))

    def _fill_table(self, mode_i: int) -> tuple[FloatArray, FloatArray]:
        """Load limits in rising order and the least fill time under each; no price changes it."""
        tables, paths = self.tables[mode_i], self.paths[mode_i]
        least_s = least_load(tables)
        if not isfinite(least_s):
            return np.array([inf]), np.array([inf])
        hops_s = paths.repeats * paths.transfer_BST[np.isfinite(paths.transfer_BST)]
        most_s = max(float(tables.load_E.max()), float(hops_s.max(initial=0.0)), least_s)
        limits = [max(least_s, most_s * 1e-6)]
        while limits[-1] * GRID_RATIO < most_s:
            limits.append(limits[-1] * GRID_RATIO)
        limits.append(inf)
        desk = self._borrow(mode_i)
        free_C = np.zeros(self.shape.devices_C.size)
        free_2C = np.zeros((2, free_C.size))
        fill = [
            price_paths(paths, self.devices, desk.scratch, s, 1.0, 0.0, free_2C, free_C, 1.0, 0.0, 1.0, inf)[
                0
            ]
            for s in limits
        ]
        self._desks[mode_i].append(desk)
        return np.array(limits), np.array(fill) * (1.0 - 1e-12)

    def _first_segments(self, mode_i: int) -> list[Segment]:
        """Equal parts of the logarithm of the load."""
        limit_s = self._fill_tables[mode_i][0]
        inner: list[float] = []
        if limit_s.size > 2:
            inner = np.geomspace(limit_s[0], limit_s[-2], SEGMENTS + 1)[-2:0:-1].tolist()
        nothing = no_charges(self.shape.devices_C.size)
        return [
            Segment(mode_i=mode_i, top_s=top, bottom_s=bottom, theta=0.0, charges=nothing)
            for top, bottom in pairwise([inf, *inner, 0.0])
        ]

    def run(self, duals: Duals, goal: Goal, should_stop: Callable[[], bool]) -> Certified:
        """Sweep all modes under these multipliers."""
        prices = self._prices(duals)
        swept = self._all(self.segments, self.devices, prices, goal, should_stop)
        self._learn(swept)
        self.num_runs += sum(part.num_runs for part in swept)
        boxes = [self._box(part.segment.mode_i, r) for part in swept for r in part.ranges]
        return Certified(
            factor=max(part.factor for part in swept),
            duals=duals,
            boxes=tuple(sorted(boxes, key=lambda box: (box.mode_i, box.upto_s))),
            columns=self._columns(swept, goal.columns_max),
            obstacles=tuple(one for part in swept for one in part.obstacles),
            num_runs=sum(part.num_runs for part in swept),
        )

    def search(
        self, duals: Duals, goal: Goal, left_R: FloatArray, should_stop: Callable[[], bool]
    ) -> tuple[Column, ...]:
        """Good replicas within what is left of the capacity rows. Nothing is learnt or proven by it.

        The goal can't be exact: classes are tracked by the devices of the whole fleet.
        """
        left_C = np.zeros(self.shape.devices_C.size)
        for c in range(left_C.size):
            weight_R = self.shape.coefficient_RC[:, c]
            rows = np.flatnonzero(weight_R)
            most = np.min(left_R[rows] / weight_R[rows], initial=float(self.shape.devices_C[c]))
            left_C[c] = np.floor(max(0.0, float(most)) + 1e-9)
        devices = self.devices._replace(devices_C=left_C, limit_R=np.maximum(left_R, 0.0))
        swept = self._all(self.segments, devices, self._prices(duals), goal, should_stop)
        return self._columns(swept, goal.columns_max)

    def _prices(self, duals: Duals) -> Prices:
        floor = 1e-3 * max(1e-300, float(duals.price_C.max(initial=0.0)))
        scale_C = np.maximum(duals.price_C, floor)
        return Prices(
            duals=duals,
            scale=Scale(tokens=float(self.problem.tokens_per_step), rho=duals.rho, nu=duals.nu),
            scale_K=np.concatenate([scale_C, scale_C]),
        )

    def _columns(self, swept: Sequence[Swept], most: int) -> tuple[Column, ...]:
        """The replicas found, the `most` of most worth, in the order they were found."""
        found = [(part.segment.mode_i, path) for part in swept for path in part.found]
        best = np.sort(np.argsort([-path.worth for _, path in found], kind="stable")[:most])
        return tuple(self._column(*found[int(p)]) for p in best)

    def _all(
        self,
        segments: Sequence[Segment],
        devices: Devices,
        prices: Prices,
        goal: Goal,
        should_stop: Callable[[], bool],
    ) -> list[Swept]:
        """All segments, one after another or side by side; a segment's answer never depends on another's."""
        if self._pool is None:
            return [self._one(segment, devices, prices, goal, should_stop) for segment in segments]
        halt = Event()
        futures = [
            self._pool.submit(self._one, segment, devices, prices, goal, halt.is_set) for segment in segments
        ]
        return [_wait(future, halt, should_stop) for future in futures]

    def _one(
        self,
        segment: Segment,
        devices: Devices,
        prices: Prices,
        goal: Goal,
        should_stop: Callable[[], bool],
    ) -> Swept:
        mode_i = segment.mode_i
        desk = self._borrow(mode_i)
        sweep = Sweep(self.paths[mode_i], devices, desk, self._fill_tables[mode_i], segment, prices, goal)
        answer = sweep.run(should_stop)
        self._desks[mode_i].append(desk)
        return answer

    def _box(self, mode_i: int, part: Range) -> BoxProof:
        cuts = [
            Cut(
                time_weight=line.theta,
                price_weight=1.0,
                value=line.value,
                usage_2C=line.charges.usage_2C if line.charges.usage_2C.any() else None,
                tracked=line.charges.tracked,
            )
            for line in part.lines
        ]
        if self.paths[mode_i].fill > 0.0:
            cuts.append(Cut(time_weight=1.0, price_weight=0.0, value=part.least_w, usage_2C=None))
        mode = self.tables[mode_i].mode.mode_i
        return BoxProof(mode_i=mode, from_s=part.from_s, upto_s=part.upto_s, cuts=tuple(cuts))

    def _column(self, mode_i: int, path: FoundPath) -> Column:
        """A priced replica."""
        paths = self.paths[mode_i]
        entry_K, start_K = path.entry_K, path.start_K
        busy_K, load_K = paths.busy_E[entry_K], paths.load_E[entry_K]
        template_K = paths.template_E[entry_K]
        site_K = self.devices.site_J[template_K]
        transfer_s = paths.transfer_BST[start_K[1:], site_K[1:], site_K[:-1]]
        slowest_s = max(float(busy_K.max()), float(transfer_s.max(initial=0.0)))
        fill_s = paths.fill * float(busy_K.sum() + transfer_s.sum())
        sync_s = float((load_K - paths.repeats * busy_K).max()) if paths.sync else 0.0
        step_s = fill_s + paths.repeats * slowest_s + sync_s
        stops = [*start_K[1:].tolist(), self.problem.num_layers]
        return Column(
            mode_i=self.tables[mode_i].mode.mode_i,
            stages=tuple(
                StageChoice(template_i=j, start=a, stop=b)
                for j, a, b in zip(template_K.tolist(), start_K.tolist(), stops, strict=True)
            ),
            step_s=step_s,
            tokens_per_s=self.problem.tokens_per_step / step_s,
            fill_s=fill_s,
            load_s=max(float(load_K.max()), paths.repeats * float(transfer_s.max(initial=0.0))),
            usage_C=self.shape.usage_JC[template_K].sum(axis=0),
        )

    def _learn(self, swept: Sequence[Swept]) -> None:
        """Cut the loads anew so that segments take about equally many runs, each from a known angle."""
        segments: list[Segment] = []
        for mode_i in range(len(self.tables)):
            parts = [part for part in swept if part.segment.mode_i == mode_i]
            lines = [line for part in parts for line in part.lines]
            if len(lines) < SEGMENTS or any(not isfinite(part.factor) for part in parts):
                segments += [part.segment for part in parts]
            else:
                segments += self._recut(mode_i, sorted(lines, key=lambda line: -line.upto_s))
        self.segments = segments

    def _recut(self, mode_i: int, lines: Sequence[Line]) -> list[Segment]:
        picks = np.linspace(0, len(lines) - 1, SEGMENTS + 1)[1:-1].astype(np.int64)
        inner = sorted({lines[i].upto_s for i in picks if isfinite(lines[i].upto_s)}, reverse=True)
        found = []
        for top, bottom in pairwise([inf, *inner, 0.0]):
            below = [line for line in lines if line.upto_s <= top and line.theta > 0.0][:1]
            theta = below[0].theta if below else 0.0
            charges = below[0].charges if below else no_charges(self.shape.devices_C.size)
            found.append(Segment(mode_i=mode_i, top_s=top, bottom_s=bottom, theta=theta, charges=charges))
        return found


def _wait(future: Future[Swept], halt: Event, should_stop: Callable[[], bool]) -> Swept:
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if should_stop():
                halt.set()
