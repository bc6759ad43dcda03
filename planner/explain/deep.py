"""What costs time to say: demands and devices re-solved, each within a stated limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.candidates import rule_for
from planner.explain import edits
from planner.explain.answer import Section
from planner.explain.cases import Case, admissible
from planner.explain.demands import demands_of
from planner.explain.prices import Prices, prices_of, ranked_classes
from planner.explain.view import BoundaryView
from planner.solve.registry import solver
from planner.solve.result import BoundaryResult, Limits

SOLVE_SECONDS = 5.0
NEXT_SOLVED = 3
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """One changed problem solved again: what was found, and what no plan passes (None: not proven)."""

    text: str
    value: float | None
    bound: float | None
    stop: str


def deep_sections(
    view: BoundaryView, case: Case, value: float, report: Report, *, seconds: float = SOLVE_SECONDS
) -> tuple[Section, ...]:
    """Price of each demand, and of the three best devices to add, solved again with `seconds` for each."""
    if case.rule is None:
        # Like is compared with like: more devices must not change the list of clusters by themselves.
        case = replace(case, rule=rule_for(len(case.devices), case.workload.job))
    return (
        _demands(view, case, value, report, seconds),
        _next(view, case, value, report, seconds),
    )


def _solved(case: Case, text: str, seconds: float, report: Report) -> Resolved:
    report(f"{case.boundary}: {text}, solved again for up to {seconds:g} s")
    problem = admissible(case)
    if problem is None:
        return Resolved(text=text, value=None, bound=None, stop="refused")
    result: BoundaryResult = solver("decomposition")(problem, Limits(deadline_s=seconds))
    found = result.value if result.replicas else None
    return Resolved(text=text, value=found, bound=result.bound, stop=result.stop)


def _demands(view: BoundaryView, case: Case, value: float, report: Report, seconds: float) -> Section:
    solved = [
        _solved(demand.drop(case), f"without {demand.name}", seconds, report)
        for demand in demands_of(case)
        if demand.name not in ("memory", "tokens_per_s_min", "links")
    ]
    if len(case.own_sites) > 1:
        faster = edits.links_times(10.0)
        solved.append(_solved(faster(case), "with links between sites ten times as fast", seconds, report))
    lines = [_line(view, one, value) for one in solved]
    return Section(
        name=f"{view.problem.name}.demands",
        title=f"what each demand costs (solved again, {seconds:g} s each)",
        lines=tuple(lines),
        data=[_data(one, value) for one in solved],
    )


def _next(view: BoundaryView, case: Case, value: float, report: Report, seconds: float) -> Section:
    prices = prices_of(view)
    ranked = [] if prices is None else ranked_classes(view, prices)[:NEXT_SOLVED]
    lines, data = [], []
    for worth, device_class in ranked:
        host_id = view.whole.fleet.device_by_id[device_class.hosts[0][0]].host_id
        text = f"with one more host like {host_id} ({edits.host_text(case, host_id)})"
        one = _solved(edits.hosts_added(host_id, 1)(case), text, seconds, report)
        estimate = _host_worth(view, case, host_id, prices)
        lines.append(f"{_line(view, one, value)}; today's prices say up to {estimate:,.2f} {view.unit}")
        data.append({**_data(one, value), "worth_each": worth, "estimate": estimate})
    if not lines:
        lines.append("no device has a price to rank it by")
    return Section(
        name=f"{view.problem.name}.next_solved",
        title=f"the best devices to add (solved again, {seconds:g} s each)",
        lines=tuple(lines),
        data=data,
    )


def _host_worth(view: BoundaryView, case: Case, host_id: str, prices: Prices | None) -> float:
    if prices is None:
        return 0.0
    own = [d.device_id for d in case.devices if d.host_id == host_id]
    return sum(prices.device(view, view.class_of[device_id]) for device_id in own)


def _line(view: BoundaryView, one: Resolved, value: float) -> str:
    if one.value is None:
        return f"{one.text}: no plan found in that time"
    sign = -1.0 if view.minimises else 1.0
    gain = sign * (one.value - value)
    if gain > 1e-9 * abs(value):
        found = f"{gain:,.2f} {view.unit} better ({gain / value:.1%})"
    else:
        found = "no better plan found"
    if one.bound is None:
        return f"{one.text}: {found}, nothing proven"
    most = sign * (one.bound - value)
    if most <= 1e-6 * abs(value):
        return f"{one.text}: proven to bring nothing"
    return f"{one.text}: {found}, at most {most:,.2f} proven"


def _data(one: Resolved, value: float) -> dict[str, object]:
    return {"text": one.text, "value": one.value, "bound": one.bound, "stop": one.stop, "now": value}
