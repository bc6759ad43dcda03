"""The best layer borders for a given chain of clusters: what a replica does when one of its clusters changed.

Step time is fill * sum(busy + transfer) + repeats * max(busy, transfer) + max sync. For a cap z on every
stage and link the least sum is a shortest path over borders; lowering z below the slowest of each path in
turn visits every trade-off between sum and slowest, so the result is exact but for the synchronisation, which
is counted, not sought. The lowest cap is tried early, since its borders are close to the best; caps are
passed over where the sum reached so far leaves no room for a step below the best one.

Legend of array suffixes: L borders 0..num_layers (rows: first layer, columns: end), K interval kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from costmodels.interface import FloatArray, tabulate
from planner.kinds import LayerKinds, layer_kinds
from planner.objective import StageChoice, in_flight_counts, step_time_s
from planner.problem import BoundaryProblem, Mode, StepFormula

CAPS_MAX = 64
SAME = 1.0 - 1e-12
"""What gains no more than this counts as equal: sums in another order differ by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of one cluster for layers [row, column); infinite where it can't hold them."""

    busy_s_LL: FloatArray
    sync_s_LL: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Borders with the sum of busy and transfer seconds, the slowest of them, and the step they make."""

    borders: tuple[int, ...]
    sum_s: float
    slowest_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recut:
    """A chain of clusters with its borders, and the seconds of a step."""

    chain: tuple[StageChoice, ...]
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The best borders among those with a step of less than `below_s`."""

    best: Recut | None
    below_s: float


class Recutter:
    """Finds borders; remembers cost tables and answers, since equal replicas ask the same again."""

    def __init__(self, problem: BoundaryProblem, kinds: LayerKinds | None = None) -> None:
        self._problem = problem
        self._kinds = kinds or layer_kinds(problem.cost_model, problem.num_layers)
        self._costs: dict[tuple[int, int, int], Costs] = {}
        self._moves: dict[tuple[int, int, int], FloatArray | None] = {}
        self._answers: dict[tuple[int, tuple[int, ...]], _Answer] = {}

    def recut(self, mode: Mode, templates: Sequence[int], *, below_s: float = np.inf) -> Recut | None:
        """The chain of clusters with its best borders.

        None when they can't hold the model in this order, or not with a step of less than `below_s`.
        """
        key = (mode.mode_i, tuple(templates))
        known = self._answers.get(key)
        if known is None or (known.best is None and known.below_s < below_s):
            known = self._answers[key] = self._search(mode, tuple(templates), below_s)
        return known.best if known.best is not None and known.best.step_s < below_s else None

    def _search(self, mode: Mode, templates: tuple[int, ...], below_s: float) -> _Answer:
        problem = self._problem
        nothing = _Answer(best=None, below_s=np.inf)
        if not 0 < len(templates) <= min(mode.max_stages, problem.num_layers):
            return nothing
        moves_sL = self._moves_s(mode, templates)
        if moves_sL is None:
            return nothing
        chain = [StageChoice(template_i=t, start=0, stop=0) for t in templates]
        held = in_flight_counts(problem, mode, chain)
        costs = [self._cost(t, mode.micro_batch_size, q) for t, q in zip(templates, held, strict=True)]
        best = best_cut(costs, moves_sL, problem.formula(mode), below_s)
        if best is None:
            return _Answer(best=None, below_s=below_s)
        chosen = tuple(
            StageChoice(template_i=t, start=a, stop=b)
            for t, (a, b) in zip(templates, pairwise(best.borders), strict=True)
        )
        return _Answer(best=Recut(chain=chosen, step_s=best.step_s), below_s=below_s)

    def _moves_s(self, mode: Mode, templates: Sequence[int]) -> list[FloatArray] | None:
        """Seconds per micro-batch over the link behind each cluster but the last, by border."""
        found = []
        for before, after in pairwise(self._problem.templates[t].site_i for t in templates):
            key = (before, after, mode.micro_batch_size)
            if key not in self._moves:
                self._moves[key] = self._move_s(*key)
            move_sL = self._moves[key]
            if move_sL is None:
                return None
            found.append(move_sL)
        return found

    def _move_s(self, before: int, after: int, micro_batch_size: int) -> FloatArray | None:
        """Seconds from site to site by border; None without a link."""
        problem = self._problem
        link = problem.links[before][after]
        if link is None:
            return None
        borders = range(1, problem.num_layers)
        seconds = [problem.cost_model.transfer_s(link, b, micro_batch_size) for b in borders]
        return np.array([np.inf, *seconds, np.inf])

    def _cost(self, template_i: int, micro_batch_size: int, in_flight: int) -> Costs:
        key = (template_i, micro_batch_size, in_flight)
        if key not in self._costs:
            template = self._problem.templates[template_i]
            kind_LL = self._kinds.kind_LL
            table = tabulate(
                self._problem.cost_model,
                template.cluster,
                self._kinds.intervals,
                template.strategy,
                micro_batch_size,
                in_flight,
            )
            busy_s_K = np.append(table.busy_s_KQ[:, in_flight - 1], np.inf)
            sync_s_K = np.append(table.sync_s_KQ[:, in_flight - 1], np.inf)
            busy_s_LL = busy_s_K[kind_LL]
            busy_s_LL[~_cleared(self._problem, template.tier_i)] = np.inf
            self._costs[key] = Costs(busy_s_LL=busy_s_LL, sync_s_LL=sync_s_K[kind_LL])
        return self._costs[key]


def best_cut(
    costs: Sequence[Costs], moves_sL: Sequence[FloatArray], formula: StepFormula, below_s: float
) -> Cut | None:
    """The borders with the shortest step of less than `below_s`; None without any."""
    least_s = _least_slowest(costs, moves_sL)
    if least_s == np.inf:
        return None
    best: Cut | None = None
    best_s, cap_s = below_s, np.inf
    for visit in range(CAPS_MAX):
        found = _least_sum(costs, moves_sL, formula, cap_s)
        if found is None or formula.fill * found.sum_s + formula.repeats * least_s >= best_s * SAME:
            break
        for cut in (found, _least_sum(costs, moves_sL, formula, least_s) if visit == 0 else None):
            if cut is not None and cut.step_s < best_s:
                best_s, best = cut.step_s, cut
        room_s = best_s * SAME - formula.fill * found.sum_s
        cap_s = found.slowest_s * SAME
        if formula.repeats > 0.0:
            cap_s = min(cap_s, room_s / formula.repeats)
    return best


def _least_sum(
    costs: Sequence[Costs], moves_sL: Sequence[FloatArray], formula: StepFormula, cap_s: float
) -> Cut | None:
    """The borders with the least sum of busy and transfer seconds, none of them above the cap."""
    num_borders = costs[0].busy_s_LL.shape[0]
    reached_L = np.full(num_borders, np.inf)
    reached_L[0] = 0.0
    steps: list[tuple[FloatArray, FloatArray]] = []
    for position, cost in enumerate(costs):
        busy_s_LL = cost.busy_s_LL
        if cap_s < np.inf:
            busy_s_LL = np.where(busy_s_LL <= cap_s, busy_s_LL, np.inf)
        steps.append((reached_L, busy_s_LL))
        reached_L = (reached_L[:, None] + busy_s_LL).min(axis=0)
        if position < len(moves_sL):
            move_L = moves_sL[position]
            reached_L = reached_L + np.where(move_L <= cap_s, move_L, np.inf)
    if not np.isfinite(reached_L[-1]):
        return None
    borders = [num_borders - 1]
    for before_L, busy_s_LL in reversed(steps):
        borders.append(int((before_L + busy_s_LL[:, borders[-1]]).argmin()))
    borders.reverse()
    return _cut(costs, moves_sL, formula, borders, float(reached_L[-1]))


def _cut(
    costs: Sequence[Costs],
    moves_sL: Sequence[FloatArray],
    formula: StepFormula,
    borders: Sequence[int],
    sum_s: float,
) -> Cut:
    ends = list(zip(costs, pairwise(borders), strict=True))
    busy_s = [float(cost.busy_s_LL[a, b]) for cost, (a, b) in ends]
    sync_s = [float(cost.sync_s_LL[a, b]) for cost, (a, b) in ends]
    move_s = [float(move_L[b]) for move_L, b in zip(moves_sL, borders[1:-1], strict=True)]
    return Cut(
        borders=tuple(borders),
        sum_s=sum_s,
        slowest_s=max(*busy_s, *move_s, 0.0),
        step_s=step_time_s(formula, busy_s, move_s, sync_s),
    )


def _least_slowest(costs: Sequence[Costs], moves_sL: Sequence[FloatArray]) -> float:
    """The slowest stage or link of the borders where it is fastest; infinite where there are no borders."""
    reached_L = np.full(costs[0].busy_s_LL.shape[0], np.inf)
    reached_L[0] = 0.0
    for position, cost in enumerate(costs):
        reached_L = np.maximum(reached_L[:, None], cost.busy_s_LL).min(axis=0)
        if position < len(moves_sL):
            reached_L = np.maximum(reached_L, moves_sL[position])
    return float(reached_L[-1])


def _cleared(problem: BoundaryProblem, tier_i: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether layers [row, column) ask for no more than this clearance."""
    above = np.concatenate([[0], np.cumsum([required > tier_i for required in problem.tier_required])])
    return np.asarray(above[None, :] <= above[:, None])
