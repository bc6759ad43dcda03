"""Why no plan exists: a smallest conflict for each boundary, what would mend it, and who says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from planner.candidates import CandidateRule
from planner.explain.answer import INFEASIBLE, NOT_PROVEN, POSSIBLE, Conflict, Explanation
from planner.explain.cases import Case, ModelOf, cases_of
from planner.explain.conflict import smallest_conflict
from planner.explain.demands import demands_of, without
from planner.explain.judge import Judgement, judge
from planner.explain.mends import Mend, mends_of
from planner.explain.reach import countable
from planner.explain.reasons import reasons
from planner.explain.second import confirm
from planner.explain.speed import confirm_speed
from planner.problem import ObjectiveKind, Problem
from policies.errors import EchelonError, InfeasibleError, NoPlanInTimeError

HEADLINE = "no placement satisfies all rules"
DEADLINE_S = 60.0
MENDS_MAX = 6
Report = Callable[[str], None]


def explain_infeasible(
    problem: Problem,
    *,
    rule: CandidateRule | None = None,
    model_of: ModelOf | None = None,
    deadline_s: float = DEADLINE_S,
    mends: bool = True,
    report: Report = lambda _line: None,
) -> Explanation:
    """Whether a plan exists; if not, a smallest set of demands in conflict, with what would mend it.

    `rule` and `model_of` as in `planner.explain.cases.cases_of`. Only the search for the smallest conflict
    and for mends heeds the deadline; "infeasible" is told when two independent methods agree on it.
    """
    until_s = time.monotonic() + deadline_s
    cases = cases_of(problem, rule=rule, model_of=model_of)
    verdicts: list[Judgement] = []
    for case in cases:
        report(f"{case.boundary}: can it be planned at all")
        verdicts.append(judge(case.problem(), thorough=False, deadline_s=deadline_s / 3.0))
    impossible = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict.possible is False]
    if not impossible:
        return _no_conflict(cases, verdicts)
    conflicts = []
    for i, case in enumerate(impossible):
        share_s = (until_s - time.monotonic()) / (len(impossible) - i)
        conflicts.append(_conflict(case, time.monotonic() + share_s, mends, report))
    conflicts = [_with_boundary_left_out(problem, conflict, cases, verdicts) for conflict in conflicts]
    proven = any(len(conflict.methods) > 1 for conflict in conflicts)
    if proven:
        conflicts = [conflict for conflict in conflicts if len(conflict.methods) > 1]
        return Explanation(status=INFEASIBLE, headline=HEADLINE, conflicts=tuple(conflicts))
    return Explanation(
        status=NOT_PROVEN,
        headline="no plan was found, and that none exists is not proven",
        conflicts=tuple(conflicts),
        notes=("one method finds the conflict, a second one did not confirm it in time",),
    )


def refuted(problem: Problem) -> bool:
    """Whether listing device counts, where they are few, shows at once that a boundary has no plan."""
    for boundary in problem.boundaries:
        plain = replace(boundary, objective=replace(boundary.objective, kind=ObjectiveKind.TOKENS))
        if boundary.classes and countable(plain) and judge(plain, thorough=False).possible is False:
            return True
    return False


def error_of(explanation: Explanation, ended: EchelonError) -> EchelonError:
    """The error that a solve without a plan, which ended with `ended`, tells its user.

    A proof of the solver's own counts as one of the two methods. What one method proves and another one
    contradicts is told as not proven.
    """
    proven_before = isinstance(ended, InfeasibleError)
    if explanation.status == INFEASIBLE:
        return explanation.to_error()
    if not proven_before:
        return ended
    if any(conflict.methods for conflict in explanation.conflicts):
        return explanation.to_error()
    return NoPlanInTimeError(
        "not-proven",
        "the solver finds that no plan exists, and a second method did not confirm it",
        hint="give a longer --deadline, or another --solver",
    )


def _no_conflict(cases: tuple[Case, ...], verdicts: list[Judgement]) -> Explanation:
    open_cases = [c.boundary for c, v in zip(cases, verdicts, strict=True) if v.possible is None]
    if open_cases:
        names = ", ".join(open_cases)
        return Explanation(
            status=NOT_PROVEN,
            headline=f"neither a plan nor a proof that none exists was found for {names}",
            notes=("`echelon solve` with a longer --deadline may find one",),
        )
    notes = [
        f"{case.boundary}: {verdict.num_replicas} of {verdict.wanted} replicas found by {verdict.method}"
        for case, verdict in zip(cases, verdicts, strict=True)
    ]
    return Explanation(
        status=POSSIBLE, headline="a plan exists: `echelon solve` finds the best one", notes=tuple(notes)
    )


def _conflict(case: Case, until_s: float, with_mends: bool, report: Report) -> Conflict:
    """The smallest conflict of a boundary that can't be planned."""
    demands = demands_of(case)
    halfway_s = until_s - 0.5 * max(0.0, until_s - time.monotonic())

    def possible(active: frozenset[str]) -> bool | None:
        if time.monotonic() > halfway_s:
            return None
        report(f"{case.boundary}: without {len(demands) - len(active)} of {len(demands)} demands")
        dropped = tuple(demand for demand in demands if demand.name not in active)
        return judge(without(case, dropped).problem(), thorough=False).possible

    found = smallest_conflict([demand.name for demand in demands], possible)
    members = tuple(demand.name for demand in demands) if found is None else found.members
    reduced = without(case, tuple(demand for demand in demands if demand.name not in members))
    verdict = judge(reduced.problem())
    report(f"{case.boundary}: confirming by a second method")
    methods = _methods(reduced, verdict)
    mends: tuple[Mend, ...] = ()
    if with_mends:
        report(f"{case.boundary}: looking for mends")
        mends = tuple(islice(mends_of(case, members, lambda: time.monotonic() > until_s), MENDS_MAX))
    return Conflict(
        boundary=case.boundary,
        members=members,
        because=reasons(case, members, reduced, verdict),
        minimal=found is not None and found.minimal,
        smallest=found is not None and found.smallest,
        methods=methods,
        mends=mends,
        trials=0 if found is None else found.trials,
    )


def _methods(reduced: Case, verdict: Judgement) -> tuple[str, ...]:
    """The ways in which the conflict alone was proven; one when the second did not agree in time."""
    if verdict.possible is not False:
        return ()
    problem = reduced.problem()
    if verdict.bound_tokens_per_s is not None or verdict.best_tokens_per_s is not None:
        second = confirm_speed(problem, verdict)
    else:
        from planner.explain.weights import weigh

        weighing = verdict.weighing or weigh(problem, verdict.wanted)
        second = confirm(problem, verdict.wanted, weighing)
    return (verdict.method,) if second is None else (verdict.method, second)


def _with_boundary_left_out(
    problem: Problem, conflict: Conflict, cases: tuple[Case, ...], verdicts: list[Judgement]
) -> Conflict:
    """With the mend "leave this boundary out", where the others may and can go on without it."""
    others = [case for case in cases if case.boundary != conflict.boundary]
    left = len(others)
    if left == 0 or (left == 2 and not problem.policy.accept_two_boundaries):
        return conflict
    for case, verdict in zip(cases, verdicts, strict=True):
        if case.boundary != conflict.boundary and verdict.possible is not True:
            return conflict
    names = tuple(case.boundary for case in others)
    leave_out = Mend(
        demand="boundaries",
        text=f"leave {conflict.boundary} out of `boundaries`, which the other {left} can do without",
        amount=1.0,
        tight=True,
        apply=lambda case: replace(case, policy=replace(case.policy, boundaries=names)),
    )
    return replace(conflict, mends=(*conflict.mends, leave_out))
