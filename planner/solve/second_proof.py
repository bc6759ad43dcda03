"""Evidence for solvers that prove by having looked at everything, which no referee could repeat.

The default way of solving works on the same boundary; its multipliers are the evidence, its answer a check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.result import BoundaryResult, Limits, Status, excess_frac
from policies.errors import EchelonError

AGREE_FRAC = 1e-6


class SolversDisagreeError(EchelonError):
    """Two ways of solving both claim a proof, of different values."""


def needs_evidence(result: BoundaryResult) -> bool:
    """Whether a proof is claimed whose multipliers are missing."""
    return result.proof.get("kind") == "closure" and "factor" not in result.proof


def with_evidence(
    boundary: BoundaryProblem,
    result: BoundaryResult,
    limits: Limits,
    solve: Callable[[BoundaryProblem, Limits], BoundaryResult],
) -> BoundaryResult:
    """The result with the proof that `solve` finds for it; without a bound where none is found in time.

    Raises:
        SolversDisagreeError: `solvers-disagree`.
    """
    other = solve(boundary, limits)
    value = result.value
    if value is None or other.bound is None:
        return replace(result, proof={"kind": "none"}, bound=None, status=_unproven(result))
    maximise = boundary.objective.kind is not ObjectiveKind.PRICE
    better, worse = (other.value, value) if maximise else (value, other.value)
    passed = (value - other.bound) * (1.0 if maximise else -1.0) > AGREE_FRAC * abs(value)
    beaten = better is not None and worse is not None and better - worse > AGREE_FRAC * abs(value)
    if passed or beaten:
        raise SolversDisagreeError(
            "solvers-disagree",
            f"boundary {boundary.name}: one solver proves {value!r},"
            f" the other finds {other.value!r} and proves {other.bound!r}",
            hint="this is a bug: report it with the input files",
        )
    exact = excess_frac(value, other.bound, maximise=maximise) <= AGREE_FRAC
    if other.proof.get("kind") in ("closure", "ceilings") and not exact:
        return replace(result, proof={"kind": "none"}, bound=None, status=_unproven(result))
    return replace(result, proof=other.proof, bound=other.bound)


def _unproven(result: BoundaryResult) -> Status:
    return Status.FEASIBLE if result.replicas else result.status
