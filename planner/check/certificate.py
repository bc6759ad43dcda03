"""The certificate: value, bound and their distance, each derived again and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from planner.check.boundaries import DerivedBoundary
from planner.check.proofs import ProofCheck, Proven
from planner.check.rate import best_rates, least_usd_per_rate, rate_bound
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.plan import Plan
from planner.problem import BoundaryProblem, ObjectiveKind, Problem

PLACE = "certificate"
MINIMISED = (ObjectiveKind.PRICE, ObjectiveKind.STEP_TIME)


def plan_value(problem: Problem, derived: Sequence[DerivedBoundary]) -> float:
    """What the plan is worth: tokens/s, USD per hour, or seconds per step (summed over boundaries)."""
    if problem.objective.kind is ObjectiveKind.PRICE:
        return sum(one.usd_per_hour for one in derived)
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        return sum(one.step_s for one in derived)
    return sum(one.tokens_per_s for one in derived)


def check_demands(problem: Problem, derived: Sequence[DerivedBoundary], findings: Findings) -> None:
    """`price`, `target`: the ceiling in USD per hour and the target in tokens/s hold over all boundaries."""
    usd_per_hour = sum(one.usd_per_hour for one in derived)
    ceiling = problem.usd_per_hour_max
    if ceiling is not None and usd_per_hour > ceiling * (1.0 + REL_TOLERANCE):
        findings.add("price", "boundaries", f"{usd_per_hour} USD per hour", ceiling)
    target = problem.objective.tokens_per_s_min
    if problem.objective.kind is ObjectiveKind.PRICE and target is not None:
        tokens_per_s = sum(one.tokens_per_s for one in derived)
        if tokens_per_s < target * (1.0 - REL_TOLERANCE):
            findings.add("target", "boundaries", f"{tokens_per_s} tokens/s", target)


def check_statement(plan: Plan, problem: Problem, value: float, findings: Findings) -> None:
    """`value`, `excess`, `covers`: the certificate's own arithmetic, the stated bound taken as it is."""
    certificate = plan.certificate
    findings.require_same(
        "objective", f"{PLACE}.objective", certificate.objective, problem.objective.kind.value
    )
    findings.require_same("covers", f"{PLACE}.covers", certificate.covers, "candidates")
    findings.require_equal("value", f"{PLACE}.value", certificate.value, value)
    bound: float | None = certificate.bound
    excess: float | None = certificate.excess_frac
    if bound is None:
        findings.require_same("excess", f"{PLACE}.excess_frac", excess, None)
        return
    derived = excess_of(problem, value, bound)
    if excess is None or not abs(excess - derived) <= REL_TOLERANCE * (1.0 + derived):
        findings.add("excess", f"{PLACE}.excess_frac", excess, derived)
    require_within(problem, value, bound, findings, f"{PLACE}.bound")


def excess_of(problem: Problem, value: float, bound: float) -> float:
    """bound/value - 1 when maximising, value/bound - 1 when minimising; at least 0."""
    better, worse = (value, bound) if problem.objective.kind in MINIMISED else (bound, value)
    if worse <= 0.0:
        return 0.0 if better <= worse else math.inf
    return max(0.0, better / worse - 1.0)


def require_within(problem: Problem, value: float, bound: float, findings: Findings, place: str) -> None:
    """`bound`: no plan is better than a bound."""
    sign = -1.0 if problem.objective.kind in MINIMISED else 1.0
    if sign * (value - bound) > REL_TOLERANCE * abs(value):
        findings.add("bound", place, f"bound {bound!r} is passed by the plan's own {value!r}", "a true bound")


def check_bound(
    plan: Plan,
    problem: Problem,
    derived: Mapping[str, DerivedBoundary],
    findings: Findings,
    report: Reporter | None,
) -> tuple[float | None, list[str]]:
    """`bound`, `proof-*`: the bound that the proofs support together, and a note on each."""
    proofs = plan.certificate.proof
    names = [boundary.name for boundary in problem.boundaries]
    if set(proofs) != set(names):
        findings.add("proof-kind", f"{PLACE}.proof", sorted(proofs), f"one proof each for {names}")
        return None, []
    is_price = problem.objective.kind is ObjectiveKind.PRICE
    several = len(names) > 1
    proven: list[Proven] = []
    for boundary in problem.boundaries:
        one = ProofCheck(
            problem=boundary,
            value=_own_value(boundary, derived[boundary.name]),
            coupled=several and not is_price and problem.usd_per_hour_max is not None,
            alone=not (several and is_price),
            findings=findings,
            place=f"{PLACE}.proof[{boundary.name}]",
            report=report,
        ).run(proofs[boundary.name])
        if one is not None:
            proven.append(one)
    if len(proven) < len(names):
        return None, []
    notes = [
        f"{name}: {one.kind}" + (f", {one.note}" if one.note else "")
        for name, one in zip(names, proven, strict=True)
    ]
    return _require_total(plan, problem, proven, findings), notes


def _require_total(
    plan: Plan, problem: Problem, proven: Sequence[Proven], findings: Findings
) -> float | None:
    stated: float | None = plan.certificate.bound
    total = total_bound(problem, proven)
    if total is None or stated is None:
        if not (total is None and stated is None):
            limit = "null with proofs of kind none" if total is None else total
            findings.add("bound", f"{PLACE}.bound", stated, limit)
        return total
    findings.require_equal("bound", f"{PLACE}.bound", stated, total)
    return total


def total_bound(problem: Problem, proven: Sequence[Proven]) -> float | None:
    """The bound over all boundaries; None as soon as one of them proves nothing.

    Maximising adds up, plus the shared ceiling at its dearest multiplier. Price with one target for several
    boundaries: every token/s costs at least the cheapest boundary's price for it.
    """
    bounds = [one.bound for one in proven if one.bound is not None]
    if len(bounds) < len(proven):
        return None
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        steps = (b.tokens_per_step / bound for b, bound in zip(problem.boundaries, bounds, strict=True))
        return sum(steps) if all(bound > 0.0 for bound in bounds) else math.inf
    if problem.objective.kind is ObjectiveKind.PRICE and len(bounds) > 1:
        target = problem.objective.tokens_per_s_min or 0.0
        return target * min(one.usd_per_rate for one in proven) - sum(one.deduction for one in proven)
    shared = max(one.coupling for one in proven) * (problem.usd_per_hour_max or 0.0)
    return sum(bounds) + shared


def quick_bound(problem: Problem, report: Reporter | None) -> float:
    """The rate bound of the whole problem, in the objective's unit."""
    rates = [best_rates(boundary, report) for boundary in problem.boundaries]
    pairs = list(zip(problem.boundaries, rates, strict=True))
    if problem.objective.kind is ObjectiveKind.PRICE:
        target = problem.objective.tokens_per_s_min or 0.0
        return target * min(least_usd_per_rate(boundary, rate_C) for boundary, rate_C in pairs)
    bounds = [rate_bound(boundary, rate_C) for boundary, rate_C in pairs]
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        return sum(
            b.tokens_per_step / x if x > 0.0 else math.inf
            for b, x in zip(problem.boundaries, bounds, strict=True)
        )
    return sum(bounds)


def _own_value(boundary: BoundaryProblem, derived: DerivedBoundary) -> float:
    if boundary.objective.kind is ObjectiveKind.PRICE:
        return derived.usd_per_hour
    if boundary.objective.kind is ObjectiveKind.STEP_TIME:
        return boundary.tokens_per_step / derived.step_s
    return derived.tokens_per_s
