"""The best single replica of a boundary: boxes of loads, usage multipliers, fronts with true device counts.

Step time is at least w + y, with w the fill time and y the load of the busiest stage or link. Loads are
gone through from above: under a limit y the multipliers show that no replica fills in less than w(y), so one
with a load in (T - w(y), y] takes no less than T. Where that falls short of the goal, the box is cut narrow
and searched for a better replica. docs/formulation.md, section 8.

Legend: C device classes, R capacity rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf, isfinite

import numpy as np

from costmodels.workload import JOINT
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.columns import build_shape, fits
from planner.solve.pathdp import least_load
from planner.solve.result import BoundaryResult, Limits, Progress, Status, excess_frac
from planner.solve.single_bound import FillBounds, Raised
from planner.solve.single_plans import LabelSearch
from planner.solve.single_proof import LoadBox, box_proof
from planner.solve.single_views import EDGE, cluster_counts, pack_rows, single_mode
from planner.solve.tables import FloatArray, IntArray, build_signatures, build_tables

PROBE_RATIO = 1.15
PROBE_WIDTHS = (3, 30)
PROBE_TRIALS = 12
FARTHEST = 0.9
"""A box is not sought to reach further down than this part of its upper edge."""

SWEEPS = ((0.03, 0.05, 4), (0.01, 0.02, 20), (0.01, 0.005, 100), (0.003, 0.004, 1000), (0.0, 0.003, 20_000))
"""Excess aimed at, width of a box that misses it, and fronts kept per state."""

PROVING_RATIO = 0.002
"""Width of the boxes in the last sweep, which only proves."""

ROUNDED_UP = 1.0 + 2e-10


@dataclass(slots=True, kw_only=True)
class _Best:
    """Best replica, the boxes that prove most, and those of the latest sweep, by mode."""

    replica: Replica | None = None
    boxes: list[list[LoadBox]] = field(default_factory=list)
    latest: list[list[LoadBox]] = field(default_factory=list)


def is_single_problem(problem: BoundaryProblem) -> bool:
    """Whether one replica at most is wanted, for speed, with every rank at work on every micro-batch."""
    return (
        problem.replicas_max == 1
        and problem.replicas_min <= 1
        and problem.objective.kind in (ObjectiveKind.TOKENS, ObjectiveKind.STEP_TIME)
        and problem.workload.job.schedule == JOINT
    )


def solve_single(problem: BoundaryProblem, limits: Limits) -> BoundaryResult | None:
    """The best replica found and a bound that none passes, in tokens/s.

    None when the problem is of another kind, or when no replica was found at all: then nothing is proven.
    """
    if not is_single_problem(problem):
        return None
    run = _Single(problem, limits)
    run.probe()
    if run.best.replica is None:
        return None
    stop = "tolerance"
    for target_frac, ratio, width in SWEEPS:
        finished = run.sweep(max(target_frac, limits.max_excess_frac), ratio, width)
        run.report(f"swept within {target_frac:.1%}")
        if not finished:
            return run.result("limits")
        if run.good_enough():
            return run.result("good-enough")
        if run.all_closed(max(limits.max_excess_frac, 1e-9)):
            stop = "searched"
            break
    finished = run.sweep(limits.max_excess_frac, PROVING_RATIO, 0)
    run.report("swept for the certificate")
    if run.good_enough():
        stop = "good-enough"
    return run.result(stop if finished else "limits")


class _Single:
    """One run: incumbent, boxes of every mode and the tools to better both."""

    def __init__(self, problem: BoundaryProblem, limits: Limits) -> None:
        self.problem = problem
        self.limits = limits
        self.started_s = time.monotonic()
        self.shape = build_shape(problem)
        clusters = cluster_counts(problem)
        tables = build_tables(problem, build_signatures(problem))
        self.modes = [
            FillBounds(single_mode(part, len(problem.templates)), clusters, self.shape)
            for part in tables
            if part.cell_E.size
        ]
        self.search = LabelSearch(pack_rows(self.shape))
        self.best = _Best()
        self._nothing_2C = np.zeros((2, self.shape.devices_C.size))

    @property
    def step_s(self) -> float:
        """Step time of the best replica; infinite without one."""
        return inf if self.best.replica is None else self.best.replica.step_s

    def should_stop(self) -> bool:
        """Whether limits ask for the end."""
        if self.limits.should_stop():
            return True
        late = time.monotonic() - self.started_s > self.limits.deadline_s
        return late and not self.limits.deterministic

    def report(self, note: str) -> None:
        """Tell the limits where things stand."""
        replica = self.best.replica
        bound = self.bound() if self.best.boxes else None
        self.limits.report(
            Progress(
                elapsed_s=time.monotonic() - self.started_s,
                value=None if replica is None else replica.tokens_per_s,
                bound=bound,
                note=note,
            )
        )

    def offer(self, mode: FillBounds, stages: tuple[StageChoice, ...], note: str) -> None:
        """Take a replica as incumbent when it is quicker and within every row."""
        replica = price_replica(self.problem, mode.mode.tables.mode, stages)
        if replica is None:
            raise RuntimeError(f"table and cost model disagree about {stages}")
        usage_C = np.zeros(self.shape.devices_C.size, dtype=np.int64)
        for class_i, count in replica.usage:
            usage_C[class_i] = count
        if replica.step_s < self.step_s and fits(self.shape, usage_C, self.shape.limit_R):
            self.best.replica = replica
            self.report(note)

    def probe(self) -> None:
        """A first replica: the load limit of each mode is raised until one is found, or all loads are in."""
        starts = [(least_load(part.mode.tables), part) for part in self.modes]
        starts = sorted((s for s in starts if isfinite(s[0])), key=lambda start: start[0])
        for _, part in starts:
            self.best.boxes.append([self._box(part, 0.0, inf, self._nothing_2C)])
        self.best.latest = list(self.best.boxes)
        self.modes = [part for _, part in starts]
        for width in PROBE_WIDTHS:
            for least_s, part in starts:
                upto_s, usage_2C = least_s * (1.0 + 1e-9), self._nothing_2C
                most_s = float(part.mode.tables.load_E.max()) * PROBE_RATIO
                while upto_s < min(most_s, self.step_s) and not self.should_stop():
                    usage_2C = self._try(part, upto_s, usage_2C, width)
                    upto_s *= PROBE_RATIO
                    if isfinite(self.step_s) and upto_s > self.step_s / PROBE_RATIO:
                        break
            if self.best.replica is not None:
                return

    def _try(self, part: FillBounds, upto_s: float, usage_2C: FloatArray, width: int) -> FloatArray:
        """A quick search under one load limit; the multipliers it ended with."""
        view = part.mode.view(upto_s)
        target = upto_s if not isfinite(self.step_s) else max(self.step_s - 0.5 * upto_s, 1e-9)
        raised = part.raise_fill(view, upto_s, usage_2C, target, cap=max(target, upto_s), trials=PROBE_TRIALS)
        if not isfinite(raised.value) or raised.value >= self.step_s:
            return raised.usage_2C
        once = float(raised.usage_2C[1] @ self.shape.devices_C)
        found = self.search.run(view, part.mode.costs, once, 0.0, self.step_s, width, self.should_stop)
        if found.stages:
            self.offer(part, found.stages, "first replica")
        return raised.usage_2C

    def sweep(self, target_frac: float, ratio: float, width: int) -> bool:
        """Boxes over all loads of every mode, from above; says whether it came to the end."""
        for i, part in enumerate(self.modes):
            boxes: list[LoadBox] = []
            upto_s, usage_2C = inf, self._nothing_2C
            while upto_s > 0.0:
                if self.should_stop():
                    self.best.boxes[i] = self._joined(part, boxes, self.best.boxes[i], upto_s)
                    return False
                box = self._next_box(part, upto_s, usage_2C, target_frac, ratio, width)
                boxes.append(box)
                upto_s, usage_2C = box.from_s, box.usage_2C
            self.best.latest[i] = boxes
            old_s = min(box.step_s for box in self.best.boxes[i])
            if min(box.step_s for box in boxes) > old_s:
                self.best.boxes[i] = boxes
            self.report("a mode swept")
        return True

    def _next_box(
        self,
        part: FillBounds,
        upto_s: float,
        usage_2C: FloatArray,
        target_frac: float,
        ratio: float,
        width: int,
    ) -> LoadBox:
        """The box below a load limit: as deep as the bound allows, narrow and searched where it fails."""
        view = part.mode.view(upto_s)
        goal_s = self.step_s / (1.0 + target_frac)
        reached_s = min(part.mode.top_load_s(upto_s), goal_s)
        raised = part.raise_fill(view, upto_s, usage_2C, goal_s - FARTHEST * reached_s, cap=self.step_s)
        self._offer_met(part, view.template_E, raised)
        goal_s = self.step_s / (1.0 + target_frac)
        if not isfinite(raised.value) or raised.value >= goal_s:
            return LoadBox(from_s=0.0, upto_s=upto_s, fill_s=raised.value, usage_2C=raised.usage_2C)
        from_s = goal_s - raised.value
        searched_s, num_fronts = 0.0, 0
        missed = from_s > (1.0 - ratio) * reached_s
        if missed:
            from_s = min(part.mode.edge_s((1.0 - ratio) * reached_s), upto_s * EDGE)
            once = float(raised.usage_2C[1] @ self.shape.devices_C)
            found = self.search.run(view, part.mode.costs, once, from_s, goal_s, width, self.should_stop)
            searched_s = min(goal_s, found.missed_s, found.step_s)
            num_fronts = found.num_fronts
            if found.stages:
                self.offer(part, found.stages, f"search with {width} fronts per state")
        return LoadBox(
            from_s=from_s,
            upto_s=upto_s,
            fill_s=raised.value,
            usage_2C=raised.usage_2C,
            searched_s=searched_s,
            num_fronts=num_fronts,
        )

    def _offer_met(self, part: FillBounds, template_E: IntArray, raised: Raised) -> None:
        """Paths of the relaxation that happen to be real."""
        for path in raised.met:
            if path.real and path.fill_s + path.load_s < self.step_s:
                starts = (0, *path.borders[:-1])
                stages = tuple(
                    StageChoice(template_i=int(template_E[e]), start=a, stop=b)
                    for e, a, b in zip(path.entries, starts, path.borders, strict=True)
                )
                self.offer(part, stages, "relaxed path")

    def _box(self, part: FillBounds, from_s: float, upto_s: float, usage_2C: FloatArray) -> LoadBox:
        value, _ = part.run(part.mode.view(upto_s), usage_2C)
        return LoadBox(from_s=from_s, upto_s=upto_s, fill_s=value, usage_2C=usage_2C)

    def _joined(
        self, part: FillBounds, new: list[LoadBox], old: list[LoadBox], edge_s: float
    ) -> list[LoadBox]:
        """New boxes above an edge and the old ones below it."""
        below = [box for box in old if box.upto_s <= edge_s]
        across = [box for box in old if box.from_s < edge_s < box.upto_s]
        return [*new, *(self._box(part, box.from_s, edge_s, box.usage_2C) for box in across), *below]

    def all_closed(self, frac: float) -> bool:
        """Whether every box is proven or searched through, up to a replica this much better."""
        goal_s = self.step_s / (1.0 + frac)
        return all(max(box.step_s, box.searched_s) >= goal_s for boxes in self.best.latest for box in boxes)

    def bound(self) -> float:
        """Tokens/s that no replica passes."""
        least_s = min(box.step_s for boxes in self.best.boxes for box in boxes)
        bound = self.problem.tokens_per_step / least_s * ROUNDED_UP if least_s > 0.0 else inf
        value = 0.0 if self.best.replica is None else self.best.replica.tokens_per_s
        return max(bound, value)

    def good_enough(self) -> bool:
        """Whether the replica is proven to be as good as asked."""
        if self.best.replica is None:
            return False
        excess = excess_frac(self.best.replica.tokens_per_s, self.bound(), maximise=True)
        return excess <= max(self.limits.max_excess_frac, 1e-9)

    def result(self, stop: str) -> BoundaryResult:
        """What was reached."""
        replica = self.best.replica
        if replica is None:
            raise RuntimeError("no replica to return")
        bound, value = self.bound(), replica.tokens_per_s
        boxes = {
            part.mode.tables.mode.mode_i: mode_boxes
            for part, mode_boxes in zip(self.modes, self.best.boxes, strict=True)
        }
        return BoundaryResult(
            boundary=self.problem.name,
            status=Status.OPTIMAL if excess_frac(value, bound, maximise=True) <= 1e-9 else Status.FEASIBLE,
            replicas=(replica,),
            value=value,
            bound=bound,
            proof=box_proof(self.problem, boxes, value, bound),
            stop=stop,
        )
