"""The second opinion on a tokens/s target that no plan reaches."""

from __future__ import annotations

from dataclasses import replace

from planner.check.proofs import ProofCheck
from planner.check.rate import best_rates, rate_bound
from planner.check.report import Findings
from planner.explain.judge import TOLERANCE_FRAC, Judgement
from planner.problem import BoundaryProblem, ObjectiveKind


def confirm_speed(problem: BoundaryProblem, verdict: Judgement) -> str | None:
    """How it was confirmed that no plan reaches the problem's target; None when it was not.

    Either even every device at its best is too slow, or the referee repeats the solver's proof and arrives at
    a bound below the target.
    """
    needed = (problem.objective.tokens_per_s_min or 0.0) * (1.0 - TOLERANCE_FRAC)
    plain = replace(problem, objective=replace(problem.objective, kind=ObjectiveKind.TOKENS))
    if rate_bound(plain, best_rates(plain)) < needed:
        return "the referee's bound on the rates of single devices"
    result = verdict.result
    if result is None or result.bound is None or result.bound >= needed:
        return None
    value = result.value if result.value is not None else 0.0
    proof = dict(result.proof) | ({"bound": value} if result.proof.get("kind") == "closure" else {})
    check = ProofCheck(
        problem=plain, value=value, coupled=False, alone=True, findings=Findings(), place="proof"
    )
    proven = check.run(proof)
    if proven is None or check.findings.violations or proven.bound is None or proven.bound >= needed:
        return None
    return f"the referee, which repeated the solver's {proven.kind} proof"
