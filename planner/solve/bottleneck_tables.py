"""What a threshold search looks at: seconds per step of stages and links in one mode, and how positions move.

A chain of stages is built from its last stage to its first. The `position` of a partial chain holds all that
the in-flight rule of the next stage in front needs to know: under the joint schedule the number of stages
behind it, under round-robin the sum of their data-parallel widths (and the number of stages too, where
`max_stages` can bind).

Legend of array suffixes: A first layer, B layer after the last, K distinct intervals, Q micro-batches held
(position 0 stands for one), P positions, S and T sites (before and after a border).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, Interval, tabulate
from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem, Mode, Template

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Positions a partial chain may have; 0 is the empty chain.

    A stage of width w may stand in front of the chains at `sources[w]`, which takes them to `targets[w]`, and
    then holds `held[w] + 1` micro-batches.
    """

    count: int
    sources: dict[int, IntArray]
    targets: dict[int, IntArray]
    held: dict[int, IntArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGroup:
    """Candidate clusters that a search need not tell apart: equal site, devices taken, width and clearance.

    `step_s_KQ` is the least of their figures, `choice_KQ` which of `templates` has it; `least_s_AB` is its
    minimum over in-flight counts, infinite where the interval is empty or asks for a higher tier.
    """

    site_i: int
    usage: tuple[tuple[int, int], ...]
    dp: int
    templates: tuple[int, ...]
    step_s_KQ: FloatArray
    choice_KQ: NDArray[np.int32]
    least_s_AB: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeTables:
    """All a threshold search needs of one mode. `link_s_BST[b]` prices the border in front of layer b."""

    mode: Mode
    num_layers: int
    interval_AB: IntArray
    groups: tuple[StageGroup, ...]
    positions: Positions
    link_s_BST: FloatArray

    def values_s(self) -> FloatArray:
        """All seconds per step that the slowest stage or link of a chain may have, sorted, each once."""
        parts = [np.unique(group.step_s_KQ) for group in self.groups] + [np.unique(self.link_s_BST)]
        values = np.unique(np.concatenate(parts))
        return values[np.isfinite(values) & (values >= self.floor_s())]

    def floor_s(self) -> float:
        """No chain is faster: some stage holds each layer; infinite when a layer fits nowhere."""
        least_s_AB = np.full(self.interval_AB.shape, np.inf)
        for group in self.groups:
            np.minimum(least_s_AB, group.least_s_AB, out=least_s_AB)
        return max(float(least_s_AB[: a + 1, a + 1 :].min()) for a in range(self.num_layers))


def build_tables(problem: BoundaryProblem, mode: Mode, ask_stop: Callable[[], None]) -> ModeTables:
    """Price every stage and link of a mode; `ask_stop` is called often and may raise."""
    intervals, interval_AB = _distinct_intervals(problem)
    members: dict[tuple[int, tuple[tuple[int, int], ...], int, int], list[Template]] = {}
    for template_i in mode.templates:
        t = problem.templates[template_i]
        members.setdefault((t.site_i, t.usage, t.strategy.dp, t.tier_i), []).append(t)
    positions = _positions(problem, mode)
    groups = []
    for templates in members.values():
        num_held = int(positions.held[templates[0].strategy.dp].max(initial=-1)) + 1
        if num_held:
            ask_stop()
            groups.append(_group(problem, mode, templates, intervals, interval_AB, num_held))
    return ModeTables(
        mode=mode,
        num_layers=problem.num_layers,
        interval_AB=interval_AB,
        groups=tuple(groups),
        positions=positions,
        link_s_BST=_link_seconds(problem, mode),
    )


def _distinct_intervals(problem: BoundaryProblem) -> tuple[list[Interval], IntArray]:
    """One interval for each key of the cost model, and the position of every interval's own."""
    num_layers = problem.num_layers
    interval_AB = np.zeros((num_layers, num_layers + 1), dtype=np.int64)
    position: dict[object, int] = {}
    intervals: list[Interval] = []
    for start in range(num_layers):
        for stop in range(start + 1, num_layers + 1):
            key = problem.cost_model.interval_key((start, stop))
            if key not in position:
                position[key] = len(intervals)
                intervals.append((start, stop))
            interval_AB[start, stop] = position[key]
    return intervals, interval_AB


def _positions(problem: BoundaryProblem, mode: Mode) -> Positions:
    devices = sum(device_class.num_devices for device_class in problem.classes)
    templates = [problem.templates[i] for i in mode.templates]
    smallest = min((sum(count for _, count in t.usage) for t in templates), default=1)
    num_stages = min(mode.max_stages, problem.num_layers, devices // smallest)
    widths = sorted({t.strategy.dp for t in templates})
    if problem.workload.job.schedule != ROUND_ROBIN:
        sources = np.arange(num_stages)
        held = np.minimum(mode.num_micro_batches, sources + 1) - 1
        return Positions(
            count=num_stages + 1,
            sources=dict.fromkeys(widths, sources),
            targets=dict.fromkeys(widths, sources + 1),
            held=dict.fromkeys(widths, held),
        )
    stages_bind = mode.max_stages < min(problem.num_layers, devices // smallest)
    return _width_positions(mode, widths, devices, num_stages if stages_bind else None)


def _width_positions(mode: Mode, widths: Sequence[int], devices: int, num_stages: int | None) -> Positions:
    """Positions under round-robin; with `num_stages` they count stages too, in steps of `stride`."""
    stride = devices + 1
    sources, targets, held = {}, {}, {}
    for dp in widths:
        behind = np.arange(max(0, stride - dp))
        in_flight = -(-np.minimum(mode.num_micro_batches, behind + dp) // dp) - 1
        rows = np.arange(num_stages if num_stages is not None else 1)[:, None] * stride
        sources[dp] = (rows + behind).reshape(-1)
        targets[dp] = sources[dp] + dp + (stride if num_stages is not None else 0)
        held[dp] = np.tile(in_flight, len(rows))
    count = stride * (1 if num_stages is None else num_stages + 1)
    return Positions(count=count, sources=sources, targets=targets, held=held)


def _group(
    problem: BoundaryProblem,
    mode: Mode,
    templates: Sequence[Template],
    intervals: Sequence[Interval],
    interval_AB: IntArray,
    num_held: int,
) -> StageGroup:
    repeats = problem.formula(mode).repeats
    least_KQ = np.full((len(intervals), num_held), np.inf)
    choice_KQ = np.zeros((len(intervals), num_held), dtype=np.int32)
    for position, t in enumerate(templates):
        table = tabulate(
            problem.cost_model, t.cluster, intervals, t.strategy, mode.micro_batch_size, num_held
        )
        step_s_KQ = repeats * table.busy_s_KQ
        choice_KQ[step_s_KQ < least_KQ] = position
        np.minimum(least_KQ, step_s_KQ, out=least_KQ)
    least_s_AB = least_KQ.min(axis=1)[interval_AB]
    least_s_AB[~_cleared(problem, templates[0].tier_i)] = np.inf
    return StageGroup(
        site_i=templates[0].site_i,
        usage=templates[0].usage,
        dp=templates[0].strategy.dp,
        templates=tuple(t.template_i for t in templates),
        step_s_KQ=least_KQ,
        choice_KQ=choice_KQ,
        least_s_AB=least_s_AB,
    )


def _cleared(problem: BoundaryProblem, tier_i: int) -> BoolArray:
    """Which intervals [a, b), a < b, hold only layers that devices of this tier may hold."""
    num_layers = problem.num_layers
    cleared_AB = np.zeros((num_layers, num_layers + 1), dtype=np.bool_)
    for start in range(num_layers):
        for stop in range(start + 1, num_layers + 1):
            if problem.tier_required[stop - 1] > tier_i:
                break
            cleared_AB[start, stop] = True
    return cleared_AB


def _link_seconds(problem: BoundaryProblem, mode: Mode) -> FloatArray:
    """Seconds per step of every link at every border; infinite without a link and at both ends."""
    repeats, num_sites = problem.formula(mode).repeats, len(problem.site_ids)
    link_s_BST = np.full((problem.num_layers + 1, num_sites, num_sites), np.inf)
    for before, row in enumerate(problem.links):
        for after, link in enumerate(row):
            if link is not None:
                for border in range(1, problem.num_layers):
                    seconds = problem.cost_model.transfer_s(link, border, mode.micro_batch_size)
                    link_s_BST[border, before, after] = repeats * seconds
    return link_s_BST
