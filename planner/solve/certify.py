"""The certificate: a factor f that no replica's worth passes, hence a bound on every plan (Farley scaling).

With worth (t_p + nu) / (price . n_p + rho) <= f for every real replica p, the multipliers (f * mu, nu, f *
rho) are dual feasible, and every plan is worth at most f * (mu . limits + rho * replicas_max) - nu *
replicas_min.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

from planner.solve.boxes import Box, BoxProof, Cut, Duals, Vertex, best_vertex, tangent
from planner.solve.columns import Column
from planner.solve.pricing import Priced, Pricer

NARROWEST = 1.0 + 1e-7
NARROW_SHARE = 0.1
SWEEPS = 2.5
STEPS_MAX = 6000
TIGHTENING_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Certified:
    """`factor` over all `boxes` under `duals`; `columns` are real and relaxed paths met on the way."""

    factor: float
    duals: Duals
    boxes: tuple[BoxProof, ...]
    columns: tuple[Column, ...]
    complete: bool


@dataclass(slots=True, kw_only=True)
class _Search:
    pricer: Pricer
    duals: Duals
    tolerance: float
    known: float
    columns: list[Column]

    def step(self, box: Box) -> list[Box]:
        """Improve the outer approximation of a box; more than one box when it was split."""
        vertex = self.vertex(box)
        if self.pricer.tables[box.table_i].formula.fill <= 0.0:
            return self._price_only(box)
        if len(box.cuts) == 1 and box.theta is not None:
            theta = box.theta
        elif isfinite(vertex.worth):
            theta = tangent(self.pricer.problem.tokens_per_step, box.from_s, vertex, vertex.worth)
        else:  # nothing bounds the price yet
            theta = 0.0
        cut, priced = self._cut(box, theta)
        if cut.value == inf or self._progress(box, cut, vertex):
            return [box]
        if not priced.columns[0].real and self._tighten(box, cut, priced):
            return [box]
        return self._split(box)

    def vertex(self, box: Box) -> Vertex:
        """The corner with the largest worth, which bounds the whole box."""
        return best_vertex(box.cuts, self.pricer.problem.tokens_per_step, self.duals, box.from_s)

    def _price_only(self, box: Box) -> list[Box]:
        """In steady state only the price counts: one path with weight on price, then narrower boxes."""
        if len(box.cuts) == 1:
            self._cut(box, 0.0)
            return [box]
        return self._split(box)

    def _cut(self, box: Box, theta: float) -> tuple[Cut, Priced]:
        usage_2C = box.usage_2C if theta > 0.0 else None
        priced = self.pricer.run(box, self.duals, theta, 1.0, usage_2C)
        self._keep(priced.columns)
        cut = Cut(time_weight=theta, price_weight=1.0, value=priced.value, usage_2C=usage_2C)
        box.cuts.append(cut)
        return cut, priced

    def _keep(self, columns: Sequence[Column]) -> None:
        for column in columns:
            self.columns.append(column)
            if column.real:
                self.known = max(self.known, self.pricer.worth(column, self.duals))

    def _progress(self, box: Box, cut: Cut, before: Vertex) -> bool:
        reached = cut.time_weight * before.fill_s + before.price
        return cut.value > reached + 1e-7 * abs(reached) or self.vertex(box).worth < before.worth * (1 - 1e-4)

    def _tighten(self, box: Box, cut: Cut, start: Priced) -> bool:
        """Raise usage multipliers where no replica comes first; False when that gains nothing."""
        before = self.vertex(box).worth
        known = max(self.known, 1e-12)
        cuts, columns = self.pricer.tighten(box, self.duals, cut.time_weight, known, start, TIGHTENING_STEPS)
        self._keep(columns)
        box.cuts += cuts[-1:]
        return bool(cuts) and self.vertex(box).worth < before - 0.02 * (before - known)

    def _split(self, box: Box) -> list[Box]:
        """Two boxes of equal ratio; a box too narrow to split keeps what it has and is closed for good."""
        high = box.upto_s
        if not isfinite(high):
            high = max(
                2.0 * box.from_s,
                float(self.pricer.tables[box.table_i].load_E.max(initial=0.0)) * NARROWEST**2,
            )
        narrowest = max(NARROWEST, 1.0 + NARROW_SHARE * self.tolerance)
        if box.from_s <= 0.0 or high / box.from_s < narrowest:
            return []
        middle = sqrt(box.from_s * high)
        halves = []
        for low, upto in ((box.from_s, middle), (middle, box.upto_s)):
            half = self.pricer.new_box(box.table_i, low, upto)
            half.theta, half.usage_2C = box.theta, box.usage_2C
            if upto == box.upto_s:  # the same columns, so every cut stays what it is
                half.fill_cut, half.cuts = box.fill_cut, list(box.cuts)
            else:
                half.cuts = [self.pricer.fill_cut(half)]
                # bounded at once, so that the factor stays finite whenever the search is told to stop
                for theta in dict.fromkeys((0.0, box.cuts[-1].time_weight)):
                    self._cut(half, theta)
            halves.append(half)
        return halves


def certify(
    pricer: Pricer,
    duals: Duals,
    *,
    known: float,
    tolerance: float,
    should_stop: Callable[[], bool],
    give_up_above: float = inf,
) -> Certified:
    """The smallest factor that could be shown, within `tolerance` of the best worth met.

    `known` is the worth of some real replica under `duals` (0 when none is known). The factor is valid at
    any time. A replica worth more than `give_up_above` ends the search: then the master has to learn of it
    first.
    """
    search = _Search(pricer=pricer, duals=duals, tolerance=tolerance, known=known, columns=[])
    heap: list[tuple[float, int, Box]] = []
    closed: list[Box] = []
    count = 0
    for box in pricer.boxes:
        box.cuts = [pricer.fill_cut(box)]
        box.usage_2C = None
        heapq.heappush(heap, (-search.vertex(box).worth, count, box))
        count += 1
    complete = False
    steps = 0
    while heap:
        worth, _, box = heap[0]
        if -worth <= search.known * (1 + tolerance):
            complete = True
            break
        swept = steps > SWEEPS * len(pricer.boxes)
        if should_stop() or steps > STEPS_MAX or (swept and search.known > give_up_above):
            break
        steps += 1
        heapq.heappop(heap)
        pieces = search.step(box)
        if not pieces:
            closed.append(box)
        for piece in pieces:
            heapq.heappush(heap, (-search.vertex(piece).worth, count, piece))
            count += 1
    boxes = sorted([*closed, *(box for _, _, box in heap)], key=lambda box: (box.table_i, box.upto_s))
    pricer.boxes = boxes
    factor = max([0.0, *(search.vertex(box).worth for box in boxes)])
    return Certified(
        factor=factor,
        duals=duals,
        boxes=tuple(_proof(pricer, box) for box in boxes),
        columns=tuple(search.columns),
        complete=complete or not heap,
    )


def _proof(pricer: Pricer, box: Box) -> BoxProof:
    return BoxProof(
        mode_i=pricer.tables[box.table_i].mode.mode_i,
        from_s=box.from_s,
        upto_s=box.upto_s,
        cuts=tuple(box.cuts),
    )
