"""The hand rule most people start with: per device class identical replicas with equally long stages.

Stages are single devices or whole hosts of one class that is cleared for every layer. The best number of
stages (up to 12) and of micro-batches per class is taken. A baseline for comparisons, without any bound.
"""

from __future__ import annotations

from itertools import pairwise

from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, Mode
from planner.solve.result import BoundaryResult, Limits
from planner.solve.units import RowSlack, Unit, UnitRule, best_choice, rule_result, units_of

STAGES_MAX = 12


def solve_boundary(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """FEASIBLE or UNKNOWN: what the hand rule gives."""
    options: dict[int, list[Replica]] = {}
    for mode in problem.modes:
        for rule in UnitRule:
            for unit in units_of(problem, mode, rule):
                if limits.should_stop():
                    return rule_result(problem, None, "stopped")
                if unit.template.tier_i >= max(problem.tier_required):
                    options.setdefault(unit.class_i, []).extend(_equal_chains(problem, mode, unit))
    slack = RowSlack(problem)
    replicas: list[Replica] = []
    for class_i in sorted(options):
        if options[class_i]:
            best = max(options[class_i], key=lambda r: r.tokens_per_s * _times(problem, r))
            while slack.fits(best.usage):
                slack.take(best.usage)
                replicas.append(best)
    return rule_result(problem, best_choice(problem, replicas), "rule applied")


def _times(problem: BoundaryProblem, replica: Replica) -> int:
    """How often this replica of one class can stand side by side."""
    num_devices = {c.class_i: c.num_devices for c in problem.classes}
    return min(num_devices[class_i] // count for class_i, count in replica.usage)


def _equal_chains(problem: BoundaryProblem, mode: Mode, unit: Unit) -> list[Replica]:
    replicas = []
    per_stage = max(1, sum(count for _, count in unit.template.usage))
    most = min(mode.max_stages, STAGES_MAX, problem.num_layers)
    for num_stages in range(1, min(most, problem.classes[unit.class_i].num_devices // per_stage) + 1):
        cuts = [problem.num_layers * i // num_stages for i in range(num_stages + 1)]
        stages = [
            StageChoice(template_i=unit.template.template_i, start=a, stop=b) for a, b in pairwise(cuts)
        ]
        replica = price_replica(problem, mode, stages)
        if replica is not None:
            replicas.append(replica)
    return replicas
