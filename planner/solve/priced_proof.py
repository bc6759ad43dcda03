"""A certificate under multipliers that come from elsewhere, such as a price all boundaries have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

import numpy as np

from planner.objective import Replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals
from planner.solve.columns import build_shape
from planner.solve.proof import dual_proof
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.sweep import Goal
from planner.solve.sweeper import Sweeper
from planner.solve.tables import build_signatures, build_tables

TOLERANCES = (0.1, 0.02, 0.002)
WORTH_MIN = 1e-12


def certified_at(
    problem: BoundaryProblem, multipliers: Mapping[str, Any], known: Sequence[Replica], limits: Limits
) -> BoundaryResult:
    """The proof with the smallest factor that could be shown; of kind `none` when none could.

    `multipliers` hold `prices` per capacity row, `rho` and `nu`; `known` are replicas that may run. The bound
    is left to the caller.
    """
    started_s = time.monotonic()

    def should_stop() -> bool:
        late = time.monotonic() - started_s > limits.deadline_s
        return (late and not limits.deterministic) or limits.should_stop()

    shape = build_shape(problem)
    row_R = np.array([float(multipliers["prices"].get(row.name, 0.0)) for row in problem.rows])
    own_C = shape.usd_C if problem.objective.kind is ObjectiveKind.PRICE else 0.0
    duals = Duals(
        row_R=row_R,
        rho=float(multipliers["rho"]),
        nu=float(multipliers["nu"]),
        price_C=np.asarray(row_R @ shape.coefficient_RC + own_C, dtype=np.float64),
    )
    worth = max((_worth(replica, duals) for replica in known), default=WORTH_MIN)
    best = _unbounded(problem.name, {"kind": "none"})
    sweeper = Sweeper(problem, shape, build_tables(problem, build_signatures(problem)), threads=1)
    # A sweep that is cut short proves nothing: coarse ones come first.
    for tolerance in TOLERANCES:
        goal = Goal(factor=worth * (1.0 + tolerance), tolerance=tolerance, collect_frac=1.0, columns_max=0)
        found = sweeper.run(duals, goal, should_stop)
        if not isfinite(found.factor):
            break
        if found.factor > 0.0:
            best = _unbounded(problem.name, dual_proof(problem, found, 0.0))
            worth = max(worth, found.factor / (1.0 + tolerance))
    return best


def _unbounded(name: str, proof: Mapping[str, Any]) -> BoundaryResult:
    return BoundaryResult(
        boundary=name,
        status=Status.UNKNOWN,
        replicas=(),
        value=None,
        bound=None,
        proof=proof,
        stop="certified",
    )


def _worth(replica: Replica, duals: Duals) -> float:
    price = duals.rho + sum(float(duals.price_C[class_i]) * count for class_i, count in replica.usage)
    return (replica.tokens_per_s + duals.nu) / price if price > 0.0 else inf
