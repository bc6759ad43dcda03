"""Problems so small that every replica can be listed: solved outright, with multipliers as evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from planner.objective import Replica
from planner.problem import BoundaryProblem
from planner.solve.bruteforce import solve_exhaustively
from planner.solve.columns import Column, Shape
from planner.solve.enumerate_replicas import ProblemTooLargeError, enumerate_replicas
from planner.solve.master import Master
from planner.solve.proof import multipliers
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.small_master import solve_over_columns

# Candidate stages (clusters times intervals, over all modes) up to which listing everything is quickest.
LISTED_STAGES_MAX = 40_000


def is_tiny(problem: BoundaryProblem) -> bool:
    """Whether listing every replica costs less than setting up anything cleverer."""
    num_intervals = problem.num_layers * (problem.num_layers + 1) // 2
    return num_intervals * sum(len(mode.templates) for mode in problem.modes) <= LISTED_STAGES_MAX


def solve_tiny(problem: BoundaryProblem, shape: Shape, limits: Limits) -> BoundaryResult | None:
    """The proven answer, or None when the list grew too long after all."""
    try:
        replicas = enumerate_replicas(problem)
        result = solve_over_columns(problem, replicas, limits, solve_exhaustively)
    except ProblemTooLargeError:
        return None
    if result.status is not Status.OPTIMAL:
        return result
    return replace(result, proof=_evidence(problem, shape, replicas, result.value), stop="closed")


def _evidence(
    problem: BoundaryProblem, shape: Shape, replicas: tuple[Replica, ...], value: float | None
) -> dict[str, Any]:
    """Multipliers of the linear master over all replicas: dual feasible, since none is missing."""
    columns = [_column(shape, replica) for replica in replicas]
    master = Master(
        problem, shape, penalty=1e3 * max(1.0, *(c.tokens_per_s for c in columns), shape.usd_C.sum())
    )
    for column in columns:
        master.add(column)
    solution = master.solve()
    price_P = np.array([solution.duals.price_C @ c.usage_C for c in columns]) + solution.duals.rho
    speed_P = np.array([c.tokens_per_s for c in columns]) + solution.duals.nu
    factor = float((speed_P / np.maximum(price_P, 1e-300)).max())
    return {"kind": "closure", **multipliers(problem, solution.duals), "factor": factor, "bound": value}


def _column(shape: Shape, replica: Replica) -> Column:
    usage_C = np.zeros(shape.devices_C.size, dtype=np.int64)
    for class_i, count in replica.usage:
        usage_C[class_i] = count
    return Column(
        mode_i=replica.mode_i,
        stages=replica.stages,
        step_s=replica.step_s,
        tokens_per_s=replica.tokens_per_s,
        fill_s=0.0,
        load_s=0.0,
        usage_C=usage_C,
    )
