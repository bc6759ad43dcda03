"""What every plan of every solver must hold, said once for the tests."""

from __future__ import annotations

import pytest

from planner.objective import price_replica
from planner.problem import BoundaryProblem
from planner.solve.result import BoundaryResult
from planner.solve.small_master import objective_value
from solver.micro_fleets import MicroCase


def check_plan(case: MicroCase, problem: BoundaryProblem, result: BoundaryResult) -> None:
    """The plan of a result is real: priced anew, within every row and count, and worth what it says."""
    used = dict.fromkeys(range(len(problem.classes)), 0)
    for replica in result.replicas:
        assert price_replica(problem, problem.modes[replica.mode_i], replica.stages) == replica
        assert [s.start for s in replica.stages] == [0, *(s.stop for s in replica.stages[:-1])]
        assert replica.stages[-1].stop == problem.num_layers
        assert len(replica.stages) <= problem.modes[replica.mode_i].max_stages
        for stage in replica.stages:
            assert stage.template_i in problem.modes[replica.mode_i].templates
            required = max(problem.tier_required[stage.start : stage.stop])
            assert problem.templates[stage.template_i].tier_i >= required
        for class_i, count in replica.usage:
            used[class_i] += count
    for row in problem.rows:
        taken = sum(weight * used[class_i] for class_i, weight in row.coefficients)
        assert taken <= row.limit * (1 + 1e-8) + 1e-8, (case.label, row.name)
    assert len(result.replicas) >= problem.replicas_min
    assert problem.replicas_max is None or len(result.replicas) <= problem.replicas_max
    assert result.value == pytest.approx(objective_value(problem, result.replicas), rel=1e-9)
    if case.objective.tokens_per_s_min is not None:
        speeds = [r.tokens_per_s for r in result.replicas]
        slowest = min(speeds)
        ratio = problem.speed_ratio_max
        counted = sum(s if ratio is None else min(s, ratio * slowest) for s in speeds)
        assert counted >= case.objective.tokens_per_s_min * (1 - 1e-8)
