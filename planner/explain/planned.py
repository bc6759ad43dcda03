"""Why a plan is as it is: what binds, what limits its stages, what is idle, and what to add next."""

from __future__ import annotations

from collections.abc import Callable

from planner.candidates import CandidateRule
from planner.certificate import boundary_value
from planner.explain.answer import PLANNED, Explanation, Section
from planner.explain.cases import ModelOf, cases_of
from planner.explain.deep import deep_sections
from planner.explain.idle import idle_section
from planner.explain.pace import stages_section
from planner.explain.prices import binding_section, next_section
from planner.explain.stage_choice import find_stage, stage_section
from planner.explain.view import views_of
from planner.plan import Plan
from planner.problem import Problem

HEADLINE_UNITS = {
    "tokens": "tokens/s",
    "steady-state": "tokens/s",
    "price": "USD/h",
    "step-time": "s per step",
}


def explain_plan(
    plan: Plan,
    problem: Problem,
    *,
    stage: str | None = None,
    deep: bool = False,
    rule: CandidateRule | None = None,
    model_of: ModelOf | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> Explanation:
    """What binds in a plan of `problem`, why devices are idle, and what to add next; or one stage's reasons.

    `stage` names one stage (`boundary/replica/stage`) and leaves the rest out. With `deep` demands and
    devices are re-solved as well. `rule` and `model_of` as in `planner.explain.cases.cases_of`.

    Raises:
        InputError: `plan-misfit`, `no-such-stage`.
    """
    views = views_of(plan, problem)
    if stage is not None:
        section = stage_section(find_stage(views, stage))
        return Explanation(status=PLANNED, headline=_headline(plan), sections=(section,))
    sections: list[Section] = []
    cases = cases_of(problem, rule=rule, model_of=model_of)
    for view, case in zip(views, cases, strict=True):
        report(f"{view.problem.name}: prices, stages and idle devices")
        value = boundary_value(view.problem, view.planned)
        sections += [binding_section(view, value), stages_section(view), idle_section(view)]
        following = next_section(view)
        if following is not None:
            sections.append(following)
        if deep:
            sections += deep_sections(view, case, value, report)
    notes = ["prices count replicas that today's devices can form; a further device may make others possible"]
    if not deep:
        notes.append("--deep solves again without each demand, and with the best devices added")
    return Explanation(status=PLANNED, headline=_headline(plan), sections=tuple(sections), notes=tuple(notes))


def _headline(plan: Plan) -> str:
    certificate = plan.certificate
    unit = HEADLINE_UNITS.get(certificate.objective, "")
    if certificate.bound is None or certificate.excess_frac is None:
        return f"{certificate.value:,.6g} {unit}; how far that is from the best is not proven"
    if certificate.excess_frac <= 1e-9:
        return f"{certificate.value:,.6g} {unit}, and no plan of the candidate list is better"
    return (
        f"{certificate.value:,.6g} {unit}; no plan can beat {certificate.bound:,.6g}"
        f" ({certificate.excess_frac:.2%} away)"
    )
