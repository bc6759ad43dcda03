"""The placement MILP in PuLP: stage candidates joined to paths, one path per replica slot.

Written from docs/formulation.md without any code of the other solvers, so that it can disagree with them.
A stage candidate is (mode, template, layers, stages left); binaries x choose candidates, p joins neighbours
over a link. Times are divided by `time_scale_s`, which keeps the numbers near one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from planner.objective import StageChoice
from planner.problem import BoundaryProblem, Mode, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One stage: layers [start, stop) on a template with `left` stages left, itself included."""

    mode: Mode
    template: Template
    start: int
    stop: int
    left: int
    busy_s: float
    sync_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A transfer between a stage with `left` stages left and the next one, across a layer border."""

    mode: Mode
    left: int
    border: int
    source_i: int
    target_i: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathData:
    """All candidates and moves of a boundary, and a time no replica made of them exceeds."""

    candidates: tuple[Candidate, ...]
    moves: tuple[Move, ...]
    longest_s: float


def path_data(problem: BoundaryProblem) -> PathData:
    """Every stage that fits and every transfer that exists."""
    candidates: list[Candidate] = []
    moves: list[Move] = []
    longest_s = 0.0
    for mode in problem.modes:
        depth = min(mode.max_stages, problem.num_layers)
        own = list(_candidates_of(problem, mode, depth))
        own_moves = list(_moves_of(problem, mode, depth))
        candidates += own
        moves += own_moves
        slowest_s = max((c.busy_s for c in own), default=0.0)
        farthest_s = max((m.seconds for m in own_moves), default=0.0)
        sync_s = max((c.sync_s for c in own), default=0.0)
        total_s = depth * slowest_s + (depth - 1) * farthest_s
        longest_s = max(longest_s, total_s + mode.num_micro_batches * max(slowest_s, farthest_s) + sync_s)
    return PathData(candidates=tuple(candidates), moves=tuple(moves), longest_s=longest_s)


def _candidates_of(problem: BoundaryProblem, mode: Mode, depth: int) -> Iterable[Candidate]:
    num_layers, size = problem.num_layers, mode.micro_batch_size
    for template_i in mode.templates:
        template = problem.templates[template_i]
        for start in range(num_layers):
            for stop in range(start + 1, num_layers + 1):
                if max(problem.tier_required[start:stop]) > template.tier_i:
                    break
                lefts = (1,) if stop == num_layers else range(2, min(depth, 1 + num_layers - stop) + 1)
                for left in lefts:
                    in_flight = min(mode.num_micro_batches, left)
                    cost = problem.cost_model.stage(
                        template.cluster, (start, stop), template.strategy, size, in_flight
                    )
                    if cost is not None and cost.fits:
                        yield Candidate(
                            mode=mode,
                            template=template,
                            start=start,
                            stop=stop,
                            left=left,
                            busy_s=cost.busy_s,
                            sync_s=cost.sync_s,
                        )


def _moves_of(problem: BoundaryProblem, mode: Mode, depth: int) -> Iterable[Move]:
    for source_i, links in enumerate(problem.links):
        for target_i, link in enumerate(links):
            if link is None:
                continue
            for border in range(1, problem.num_layers):
                seconds = problem.cost_model.transfer_s(link, border, mode.micro_batch_size)
                for left in range(2, depth + 1):
                    yield Move(
                        mode=mode,
                        left=left,
                        border=border,
                        source_i=source_i,
                        target_i=target_i,
                        seconds=seconds,
                    )


def variable(model: Any, name: str, *, upto: float | None = None, binary: bool = False) -> Any:
    """A variable between 0 and `upto`; PuLP 3.3 and later attach it to the model, earlier ones don't yet."""
    import pulp

    add = getattr(model, "add_variable", pulp.LpVariable)
    return add(name, cat="Binary") if binary else add(name, 0.0, upto)


class Slot:
    """The variables and constraints of one replica: at most one path through the layers."""

    def __init__(
        self, problem: BoundaryProblem, data: PathData, model: Any, slot_i: int, time_scale_s: float
    ) -> None:
        self.problem, self.data, self.model, self.slot_i = problem, data, model, slot_i
        self.scale_s = time_scale_s
        self.x = [variable(model, f"x_{slot_i}_{e}", binary=True) for e in range(len(data.candidates))]
        self.p = [variable(model, f"p_{slot_i}_{k}", upto=1.0) for k in range(len(data.moves))]
        self.slowest = variable(model, f"z_{slot_i}")
        self.sync = variable(model, f"g_{slot_i}")
        self.starts = [x for x, c in zip(self.x, data.candidates, strict=True) if c.start == 0]
        self.start_once()
        self.join_stages()
        self.bound_slowest()
        self.bound_sync()

    def _add(self, terms: list[tuple[Any, float]], sense: int, rhs: float, name: str) -> None:
        import pulp

        expression = pulp.LpAffineExpression(terms)
        self.model += pulp.LpConstraint(expression, sense, f"{name}_{self.slot_i}", rhs)

    def start_once(self) -> None:
        """`start`: at most one stage at layer 0. `end` is built in: only a stage with one left ends at L."""
        import pulp

        self._add([(x, 1.0) for x in self.starts], pulp.LpConstraintLE, 1.0, "start")

    def join_stages(self) -> None:
        """`chain`: what ends at a border with q left moves on; only what arrives may begin there with q-1.

        sum_{e ends at b in s, q left} x_e = sum_t p[q,b,s,t]
        sum_{e starts at b in t, q-1 left} x_e = sum_s p[q,b,s,t]
        `link` is built in: p exists only where two sites are linked.
        """
        import pulp

        leaving: dict[tuple[int, int, int, int], list[tuple[Any, float]]] = defaultdict(list)
        arriving: dict[tuple[int, int, int, int], list[tuple[Any, float]]] = defaultdict(list)
        for x, c in zip(self.x, self.data.candidates, strict=True):
            if c.left > 1:
                leaving[(c.mode.mode_i, c.left, c.stop, c.template.site_i)].append((x, 1.0))
            if c.start > 0:
                arriving[(c.mode.mode_i, c.left + 1, c.start, c.template.site_i)].append((x, 1.0))
        for p, m in zip(self.p, self.data.moves, strict=True):
            leaving[(m.mode.mode_i, m.left, m.border, m.source_i)].append((p, -1.0))
            arriving[(m.mode.mode_i, m.left, m.border, m.target_i)].append((p, -1.0))
        for name, groups in (("leave", leaving), ("arrive", arriving)):
            for key, terms in groups.items():
                self._add(terms, pulp.LpConstraintEQ, 0.0, f"chain_{name}_" + "_".join(map(str, key)))

    def bound_slowest(self) -> None:
        """`slowest`: z >= repeats * busy at each layer, z >= repeats * transfer at each border."""
        import pulp

        layers: dict[int, list[tuple[Any, float]]] = defaultdict(list)
        borders: dict[int, list[tuple[Any, float]]] = defaultdict(list)
        for x, c in zip(self.x, self.data.candidates, strict=True):
            repeats = self.problem.formula(c.mode).repeats
            for layer in range(c.start, c.stop):
                layers[layer].append((x, repeats * c.busy_s / self.scale_s))
        for p, m in zip(self.p, self.data.moves, strict=True):
            repeats = self.problem.formula(m.mode).repeats
            borders[m.border].append((p, repeats * m.seconds / self.scale_s))
        for name, groups in (("layer", layers), ("border", borders)):
            for i, terms in groups.items():
                self._add([*terms, (self.slowest, -1.0)], pulp.LpConstraintLE, 0.0, f"slowest_{name}_{i}")

    def bound_sync(self) -> None:
        """`sync`: g >= sync of the stage that covers layer l; nothing in steady state."""
        import pulp

        layers: dict[int, list[tuple[Any, float]]] = defaultdict(list)
        for x, c in zip(self.x, self.data.candidates, strict=True):
            if self.problem.formula(c.mode).sync:
                for layer in range(c.start, c.stop):
                    layers[layer].append((x, c.sync_s / self.scale_s))
        for layer, terms in layers.items():
            self._add([*terms, (self.sync, -1.0)], pulp.LpConstraintLE, 0.0, f"sync_{layer}")

    def step_terms(self) -> list[tuple[Any, float]]:
        """The step time in scaled seconds: fill * (sum busy x + sum transfer p) + z + g."""
        fill = [self.problem.formula(c.mode).fill * c.busy_s / self.scale_s for c in self.data.candidates]
        move = [self.problem.formula(m.mode).fill * m.seconds / self.scale_s for m in self.data.moves]
        return [
            *zip(self.x, fill, strict=True),
            *zip(self.p, move, strict=True),
            (self.slowest, 1.0),
            (self.sync, 1.0),
        ]

    def usage_terms(self, weights: dict[int, float]) -> list[tuple[Any, float]]:
        """Devices of some classes used by this replica, weighted per class."""
        terms = []
        for x, c in zip(self.x, self.data.candidates, strict=True):
            weight = sum(weights.get(class_i, 0.0) * count for class_i, count in c.template.usage)
            if weight:
                terms.append((x, weight))
        return terms

    def chosen(self) -> tuple[Mode, list[StageChoice]] | None:
        """The path the solver picked, or None when the slot is empty."""
        picked = [c for x, c in zip(self.x, self.data.candidates, strict=True) if (x.value() or 0.0) > 0.5]
        if not picked:
            return None
        picked.sort(key=lambda c: -c.left)
        stages = [StageChoice(template_i=c.template.template_i, start=c.start, stop=c.stop) for c in picked]
        return picked[0].mode, stages
