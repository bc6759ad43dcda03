"""The one function that prices any plan: seconds per step of a replica, tokens per second of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from costmodels.interface import StageCost
from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem, Mode, StepFormula, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChoice:
    """A candidate cluster and the layers [a, b) it is to hold."""

    template_i: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A priced replica over candidate clusters; `usage` counts devices taken per class, ordered by class."""

    mode_i: int
    stages: tuple[StageChoice, ...]
    step_s: float
    tokens_per_s: float
    usd_per_hour: float
    usage: tuple[tuple[int, int], ...]


def step_time_s(
    formula: StepFormula, busy_s: Sequence[float], transfer_s: Sequence[float], sync_s: Sequence[float]
) -> float:
    """Seconds per step of a pipeline, as `StepFormula` states it."""
    slowest_s = max((*busy_s, *transfer_s))
    total_s = formula.fill * (sum(busy_s) + sum(transfer_s)) + formula.repeats * slowest_s
    return total_s + (max(sync_s) if formula.sync else 0.0)


def in_flight_counts(problem: BoundaryProblem, mode: Mode, stages: Sequence[StageChoice]) -> list[int]:
    """Micro-batches each device of a stage holds at most, stage by stage, under 1F1B.

    `joint`: a stage with q stages left, itself included, holds min(micro-batches, q) of them. `round-robin`:
    as many as the widths of this and all later stages together are on their way, shared out over the stage's
    own ranks, so a rank holds ceil(sum of dp from here on / own dp), and at most the micro-batches / own dp
    that it gets.
    """
    count = mode.num_micro_batches
    if problem.workload.job.schedule != ROUND_ROBIN:
        return [min(count, len(stages) - position) for position in range(len(stages))]
    widths = [problem.templates[stage.template_i].strategy.dp for stage in stages]
    return [-(-min(count, sum(widths[position:])) // dp) for position, dp in enumerate(widths)]


def stage_costs(
    problem: BoundaryProblem, mode: Mode, stages: Sequence[StageChoice]
) -> list[StageCost] | None:
    """The cost model's figures of each stage at its own `in_flight_counts`; None if one can't run."""
    costs = []
    for stage, in_flight in zip(stages, in_flight_counts(problem, mode, stages), strict=True):
        template = problem.templates[stage.template_i]
        cost = problem.cost_model.stage(
            template.cluster, (stage.start, stage.stop), template.strategy, mode.micro_batch_size, in_flight
        )
        if cost is None or not cost.fits:
            return None
        costs.append(cost)
    return costs


def transfers_s(problem: BoundaryProblem, mode: Mode, stages: Sequence[StageChoice]) -> list[float] | None:
    """Seconds per micro-batch between neighbouring stages; None when two sites have no link."""
    seconds = []
    for before, after in pairwise(stages):
        link = problem.links[problem.templates[before.template_i].site_i][
            problem.templates[after.template_i].site_i
        ]
        if link is None:
            return None
        seconds.append(problem.cost_model.transfer_s(link, after.start, mode.micro_batch_size))
    return seconds


def total_usage(templates: Sequence[Template]) -> tuple[tuple[int, int], ...]:
    """Devices taken per class by several clusters together, ordered by class."""
    usage: dict[int, int] = {}
    for template in templates:
        for class_i, count in template.usage:
            usage[class_i] = usage.get(class_i, 0) + count
    return tuple(sorted(usage.items()))


def price_replica(problem: BoundaryProblem, mode: Mode, stages: Sequence[StageChoice]) -> Replica | None:
    """The replica with its speed, or None when a stage doesn't fit or two neighbours have no link."""
    costs = stage_costs(problem, mode, stages)
    transfer_s = transfers_s(problem, mode, stages)
    if costs is None or transfer_s is None:
        return None
    step_s = step_time_s(
        problem.formula(mode), [c.busy_s for c in costs], transfer_s, [c.sync_s for c in costs]
    )
    usage = total_usage([problem.templates[stage.template_i] for stage in stages])
    price = sum(count * problem.classes[class_i].device.usd_per_hour for class_i, count in usage)
    return Replica(
        mode_i=mode.mode_i,
        stages=tuple(stages),
        step_s=step_s,
        tokens_per_s=problem.tokens_per_step / step_s,
        usd_per_hour=price,
        usage=usage,
    )
