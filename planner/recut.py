"""The best layer borders for a given chain of clusters: what a replica does when one of its clusters changed.

Step time is fill * sum(busy + transfer) + repeats * max(busy, transfer) + max sync. For a cap z on every
stage and link the least sum is a shortest path over borders; lowering z below the slowest of each path in
turn visits every trade-off between sum and slowest, so the result is exact but for the synchronisation, which
is counted, not sought.

Legend of array suffixes: L borders 0..num_layers (rows: first layer, columns: end), K interval kinds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from costmodels.interface import FloatArray, Interval, tabulate
from planner.objective import StageChoice, in_flight_counts, step_time_s
from planner.problem import BoundaryProblem, Mode

CAPS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """Seconds of one cluster for layers [row, column); infinite where it can't hold them."""

    busy_s_LL: FloatArray
    sync_s_LL: FloatArray


class Recutter:
    """Finds borders; remembers cost tables and answers, since equal replicas ask the same again."""

    def __init__(self, problem: BoundaryProblem) -> None:
        self._problem = problem
        self._kinds = _interval_kinds(problem)
        self._costs: dict[tuple[int, int, int], _Costs] = {}
        self._answers: dict[tuple[int, tuple[int, ...]], tuple[StageChoice, ...] | None] = {}

    def recut(self, mode: Mode, templates: Sequence[int]) -> tuple[StageChoice, ...] | None:
        """The chain of clusters with its best borders; None when they can't hold the model in this order."""
        key = (mode.mode_i, tuple(templates))
        if key not in self._answers:
            self._answers[key] = self._search(mode, tuple(templates))
        return self._answers[key]

    def _search(self, mode: Mode, templates: tuple[int, ...]) -> tuple[StageChoice, ...] | None:
        problem = self._problem
        if not 0 < len(templates) <= min(mode.max_stages, problem.num_layers):
            return None
        moves_sL = self._moves_s(mode, templates)
        if moves_sL is None:
            return None
        chain = [StageChoice(template_i=t, start=0, stop=0) for t in templates]
        held = in_flight_counts(problem, mode, chain)
        costs = [self._cost(t, mode.micro_batch_size, q) for t, q in zip(templates, held, strict=True)]
        formula = problem.formula(mode)
        best: tuple[float, list[int]] | None = None
        cap_s = np.inf
        for _ in range(CAPS_MAX):
            found = _least_sum(costs, moves_sL, cap_s)
            if found is None or (best is not None and formula.fill * found[0] >= best[0]):
                break
            borders = found[1]
            ends = list(pairwise(borders))
            busy_s = [float(c.busy_s_LL[a, b]) for c, (a, b) in zip(costs, ends, strict=True)]
            sync_s = [float(c.sync_s_LL[a, b]) for c, (a, b) in zip(costs, ends, strict=True)]
            move_s = [float(m[b]) for m, b in zip(moves_sL, borders[1:-1], strict=True)]
            step_s = step_time_s(formula, busy_s, move_s, sync_s)
            if best is None or step_s < best[0]:
                best = (step_s, borders)
            cap_s = max(*busy_s, *move_s, 0.0) * (1.0 - 1e-12)
        if best is None:
            return None
        return tuple(
            StageChoice(template_i=t, start=a, stop=b)
            for t, (a, b) in zip(templates, pairwise(best[1]), strict=True)
        )

    def _moves_s(self, mode: Mode, templates: Sequence[int]) -> list[FloatArray] | None:
        """Seconds per micro-batch over the link behind each cluster but the last, by border."""
        problem, found = self._problem, []
        for before, after in pairwise(templates):
            link = problem.links[problem.templates[before].site_i][problem.templates[after].site_i]
            if link is None:
                return None
            borders = range(1, problem.num_layers)
            seconds = [problem.cost_model.transfer_s(link, b, mode.micro_batch_size) for b in borders]
            found.append(np.array([np.inf, *seconds, np.inf]))
        return found

    def _cost(self, template_i: int, micro_batch_size: int, in_flight: int) -> _Costs:
        key = (template_i, micro_batch_size, in_flight)
        if key not in self._costs:
            template = self._problem.templates[template_i]
            intervals, kind_LL = self._kinds
            table = tabulate(
                self._problem.cost_model,
                template.cluster,
                intervals,
                template.strategy,
                micro_batch_size,
                in_flight,
            )
            busy_s_K = np.append(table.busy_s_KQ[:, in_flight - 1], np.inf)
            sync_s_K = np.append(table.sync_s_KQ[:, in_flight - 1], np.inf)
            busy_s_LL = busy_s_K[kind_LL]
            busy_s_LL[~_cleared(self._problem, template.tier_i)] = np.inf
            self._costs[key] = _Costs(busy_s_LL=busy_s_LL, sync_s_LL=sync_s_K[kind_LL])
        return self._costs[key]


def _least_sum(
    costs: Sequence[_Costs], moves_sL: Sequence[FloatArray], cap_s: float
) -> tuple[float, list[int]] | None:
    """Least sum of busy and transfer seconds with none above the cap, and the borders that reach it."""
    num_borders = costs[0].busy_s_LL.shape[0]
    reached_L = np.full(num_borders, np.inf)
    reached_L[0] = 0.0
    back: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = []
    for position, cost in enumerate(costs):
        total_LL = reached_L[:, None] + np.where(cost.busy_s_LL <= cap_s, cost.busy_s_LL, np.inf)
        back.append(total_LL.argmin(axis=0))
        reached_L = total_LL.min(axis=0)
        if position < len(moves_sL):
            move_L = moves_sL[position]
            reached_L = reached_L + np.where(move_L <= cap_s, move_L, np.inf)
    if not np.isfinite(reached_L[-1]):
        return None
    borders = [num_borders - 1]
    for from_L in reversed(back):
        borders.append(int(from_L[borders[-1]]))
    return float(reached_L[-1]), borders[::-1]


def _interval_kinds(
    problem: BoundaryProblem,
) -> tuple[tuple[Interval, ...], np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """One interval of each kind, and the kind of every [row, column); the last kind is no interval at all."""
    size = problem.num_layers + 1
    position: dict[Hashable, int] = {}
    intervals: list[Interval] = []
    kind_LL = np.full((size, size), -1, dtype=np.int64)
    for start in range(size):
        for stop in range(start + 1, size):
            key = problem.cost_model.interval_key((start, stop))
            if key not in position:
                position[key] = len(intervals)
                intervals.append((start, stop))
            kind_LL[start, stop] = position[key]
    return tuple(intervals), kind_LL


def _cleared(problem: BoundaryProblem, tier_i: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether layers [row, column) ask for no more than this clearance."""
    above = np.concatenate([[0], np.cumsum([required > tier_i for required in problem.tier_required])])
    return np.asarray(above[None, :] <= above[:, None])
