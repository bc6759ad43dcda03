"""`check`: everything a plan claims, derived again from the inputs it embeds."""

from __future__ import annotations

from planner.candidates import CandidateRule
from planner.check.boundaries import DerivedBoundary, check_boundary
from planner.check.certificate import (
    check_bound,
    check_demands,
    check_statement,
    excess_of,
    plan_value,
    quick_bound,
    require_within,
)
from planner.check.fleet_view import BoundaryView
from planner.check.graph import check_graph
from planner.check.rebuild import rebuild
from planner.check.report import CheckReport, Findings, Reporter
from planner.plan import SCHEMA, Plan
from planner.problem import Problem

QUICK_SCOPE = "feasibility and value re-derived; the stated bound was NOT, only compared with the rate bound"
UNBOUNDED_SCOPE = "feasibility and value re-derived; no bound is claimed"
BROKEN_SCOPE = "feasibility re-derived; value and bound were not, because the plan doesn't hold together"


def check(plan: Plan, *, quick: bool = False, report: Reporter | None = None) -> CheckReport:
    """The referee's findings about a plan, from its embedded inputs and settings alone.

    Hashes play no part in it: an attacker recomputes them. With `quick` the bound's proof isn't repeated; the
    rate bound is derived instead, and the scope says so. `report` is told what is being worked on.

    Raises:
        InputError: the embedded inputs or settings can't be rebuilt.
        EchelonError: the problem itself is refused (`two-boundaries`, `unknown-executor`, ...).
    """
    rebuilt = rebuild(plan)
    return check_against(plan, rebuilt.problem, rule=rebuilt.rule, quick=quick, report=report)


def check_against(
    plan: Plan,
    problem: Problem,
    *,
    rule: CandidateRule | None = None,
    quick: bool = False,
    report: Reporter | None = None,
) -> CheckReport:
    """The referee's findings about a plan as an answer to a given problem, built with `rule`."""
    findings = Findings()
    _check_frame(plan, problem, findings)
    derived = _check_boundaries(plan, problem, rule or CandidateRule(), findings, report)
    check_graph(plan, findings)
    if len(derived) < len(problem.boundaries):
        return _answer(findings, None, None, None, BROKEN_SCOPE)
    value = plan_value(problem, list(derived.values()))
    check_demands(problem, list(derived.values()), findings)
    check_statement(plan, problem, value, findings)
    if quick:
        rate = quick_bound(problem, report)
        require_within(problem, value, rate, findings, "rate bound")
        return _answer(findings, value, rate, excess_of(problem, value, rate), QUICK_SCOPE)
    bound, notes = check_bound(plan, problem, derived, findings, report)
    excess_frac = None if bound is None else excess_of(problem, value, bound)
    if bound is None and plan.certificate.bound is None and notes:
        return _answer(findings, value, None, None, f"{UNBOUNDED_SCOPE} ({'; '.join(notes)})")
    covered = "the default candidate list" if rule is None else "the candidate list of the plan's own rule"
    scope = f"feasibility, value and bound re-derived over {covered} ({'; '.join(notes) or 'no proof held'})"
    return _answer(findings, value, bound, excess_frac, scope)


def _check_frame(plan: Plan, problem: Problem, findings: Findings) -> None:
    """`frame`: schema, job and tokens per step are those of the inputs; boundaries and ids are unique."""
    findings.require_same("frame", "schema", plan.schema, SCHEMA)
    findings.require_same("frame", "job", plan.job, problem.workload.job.name)
    tokens = problem.workload.job.tokens_per_step
    findings.require_same("frame", "tokens_per_step", plan.tokens_per_step, tokens)
    planned = sorted(boundary.name for boundary in plan.boundaries)
    wanted = sorted(boundary.name for boundary in problem.boundaries)
    findings.require_same("frame", "boundaries", planned, wanted)
    ids = [replica.id for boundary in plan.boundaries for replica in boundary.replicas]
    if len(set(ids)) != len(ids):
        findings.add("frame", "boundaries", "a replica id twice", "unique ids")


def _check_boundaries(
    plan: Plan, problem: Problem, rule: CandidateRule, findings: Findings, report: Reporter | None
) -> dict[str, DerivedBoundary]:
    problems = {boundary.name: boundary for boundary in problem.boundaries}
    derived: dict[str, DerivedBoundary] = {}
    for i, boundary in enumerate(plan.boundaries):
        if boundary.name not in problems or boundary.name in derived:
            continue
        if report is not None:
            report(f"{boundary.name}: {len(boundary.replicas)} replicas")
        view = BoundaryView(
            fleet=problem.fleet,
            problem=problems[boundary.name],
            tensor_parallel_across_hosts=rule.tensor_parallel_across_hosts,
        )
        one = check_boundary(view, boundary, problem.policy.spares, findings, f"boundaries[{i}]")
        if one is not None:
            derived[boundary.name] = one
    return derived


def _answer(
    findings: Findings, value: float | None, bound: float | None, excess_frac: float | None, scope: str
) -> CheckReport:
    return CheckReport(
        violations=tuple(findings.violations), value=value, bound=bound, excess_frac=excess_frac, scope=scope
    )
