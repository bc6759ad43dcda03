"""What the rule-of-thumb solvers share: a standard cluster per class, and the choice among replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from planner.objective import Replica
from planner.problem import BoundaryProblem, Mode, ObjectiveKind, Template
from planner.solve.result import BoundaryResult, Status
from planner.solve.small_master import (
    TOLERANCE_FRAC,
    capacity_rows,
    count_max_of,
    counted_tokens_per_s,
    objective_value,
)


class UnitRule(StrEnum):
    """Which cluster of a class serves as its unit."""

    SINGLE = "single device"
    HOST_TENSOR = "whole host, tensor parallel"
    HOST_SHARDED = "whole host, sharded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The standard cluster of one class; `rate_flop_per_s` adds up its devices."""

    class_i: int
    template: Template
    rate_flop_per_s: float


class RowSlack:
    """What is left of every capacity row while replicas are taken one by one."""

    def __init__(self, problem: BoundaryProblem) -> None:
        weight_RC, limit_R = capacity_rows(problem)
        self._rows_by_class = [
            [(r, float(weight_RC[r, c])) for r in range(len(problem.rows)) if weight_RC[r, c] > 0.0]
            for c in range(len(problem.classes))
        ]
        self._left_R: list[float] = limit_R.tolist()

    def copy(self) -> RowSlack:
        """An independent slack with the same amounts left."""
        twin = RowSlack.__new__(RowSlack)
        twin._rows_by_class, twin._left_R = self._rows_by_class, list(self._left_R)
        return twin

    def _use(self, usage: Sequence[tuple[int, int]]) -> dict[int, float]:
        use: dict[int, float] = {}
        for class_i, count in usage:
            for r, weight in self._rows_by_class[class_i]:
                use[r] = use.get(r, 0.0) + weight * count
        return use

    def rows(self) -> list[tuple[dict[int, float], float]]:
        """Every row as weights per class, with what is left of it."""
        weights: list[dict[int, float]] = [{} for _ in self._left_R]
        for class_i, rows in enumerate(self._rows_by_class):
            for r, weight in rows:
                weights[r][class_i] = weight
        return list(zip(weights, self._left_R, strict=True))

    def fits(self, usage: Sequence[tuple[int, int]]) -> bool:
        """Whether this usage of classes is still to be had."""
        if len(usage) == 1:
            class_i, count = usage[0]
            return all(weight * count <= self._left_R[r] for r, weight in self._rows_by_class[class_i])
        return all(amount <= self._left_R[r] for r, amount in self._use(usage).items())

    def take(self, usage: Sequence[tuple[int, int]]) -> None:
        """Use it up."""
        for r, amount in self._use(usage).items():
            self._left_R[r] -= amount


def units_of(problem: BoundaryProblem, mode: Mode, rule: UnitRule) -> tuple[Unit, ...]:
    """One unit per class among the mode's clusters on a single host of that class."""
    dtype = problem.workload.job.dtype
    chosen: dict[int, Template] = {}
    for template_i in mode.templates:
        template = problem.templates[template_i]
        if len(template.parts) == 1 and template.parts[0].num_hosts == 1:
            class_i = template.parts[0].class_i
            known = chosen.get(class_i)
            if known is None or _preference(template, rule) > _preference(known, rule):
                chosen[class_i] = template
    return tuple(
        Unit(
            class_i=class_i,
            template=template,
            rate_flop_per_s=sum(device.rate_flop_per_s(dtype) for device in template.cluster.devices),
        )
        for class_i, template in sorted(chosen.items())
    )


def _preference(template: Template, rule: UnitRule) -> tuple[int, ...]:
    strategy, size = template.strategy, len(template.cluster.devices)
    if rule is UnitRule.SINGLE:
        return (-size, strategy.tp, strategy.zero)
    if rule is UnitRule.HOST_TENSOR:
        return (strategy.tp, size, strategy.zero)
    return (size, strategy.dp, strategy.zero)


def best_choice(problem: BoundaryProblem, replicas: Sequence[Replica]) -> tuple[Replica, ...] | None:
    """The best of these disjoint replicas to run: the k fastest, or for price the k cheapest per token.

    None when too few of them stand or the target is out of reach.
    """
    price = problem.objective.kind is ObjectiveKind.PRICE
    order = sorted(replicas, key=lambda r: r.usd_per_hour / r.tokens_per_s if price else -r.tokens_per_s)
    target = (problem.objective.tokens_per_s_min or 0.0) if price else 0.0
    best: tuple[float, tuple[Replica, ...]] | None = None
    for count in range(max(1, problem.replicas_min), min(count_max_of(problem), len(order)) + 1):
        chosen = tuple(order[:count])
        counted = counted_tokens_per_s([r.tokens_per_s for r in chosen], problem.speed_ratio_max)
        if counted < target * (1.0 - TOLERANCE_FRAC):
            continue
        merit = -sum(r.usd_per_hour for r in chosen) if price else counted
        if best is None or merit > best[0]:
            best = (merit, chosen)
    return None if best is None else best[1]


def better(
    problem: BoundaryProblem, known: tuple[Replica, ...] | None, new: tuple[Replica, ...] | None
) -> tuple[Replica, ...] | None:
    """The better of two plans in the objective's unit."""
    if known is None or new is None:
        return new if known is None else known
    gain = objective_value(problem, new) - objective_value(problem, known)
    minimise = problem.objective.kind is ObjectiveKind.PRICE
    return new if (gain < 0.0 if minimise else gain > 0.0) else known


def rule_result(problem: BoundaryProblem, replicas: tuple[Replica, ...] | None, stop: str) -> BoundaryResult:
    """FEASIBLE with a plan, UNKNOWN without: a rule of thumb proves nothing."""
    result = BoundaryResult(
        boundary=problem.name,
        status=Status.UNKNOWN,
        replicas=(),
        value=None,
        bound=None,
        proof={"kind": "none"},
        stop=stop,
    )
    if replicas is None:
        return result
    return replace(
        result, status=Status.FEASIBLE, replicas=replicas, value=objective_value(problem, replicas)
    )
