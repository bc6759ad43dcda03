"""Why one stage is as it is: what it holds, and what the nearest other choices would cost."""

from __future__ import annotations

from dataclasses import dataclass

from costmodels.units import format_seconds
from planner.explain.answer import Section
from planner.explain.pace import shifted
from planner.explain.reasons import layers_text
from planner.explain.view import BoundaryView
from planner.objective import Replica, StageChoice, price_replica, total_usage
from planner.plan import StagePlan
from planner.problem import Mode, Template
from policies.errors import Fault, InputError

CLUSTERS_TOLD = 4
Address = tuple[BoundaryView, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another choice. `tokens_per_s` of the replica under it, None when it can't run; `why_not` says why."""

    kind: str
    text: str
    tokens_per_s: float | None
    why_not: str = ""


def find_stage(views: tuple[BoundaryView, ...], name: str) -> Address:
    """The stage that `boundary/replica/stage` or `replica/stage` names, as view, replica and stage position.

    Raises:
        InputError: `no-such-stage`, with the names there are.
    """
    parts = name.split("/")
    for view in views:
        for r, replica in enumerate(view.planned.replicas):
            short = replica.id.removeprefix(f"{view.problem.name}-")
            for s, stage in enumerate(replica.stages):
                own = (view.problem.name, replica.id, str(stage.index))
                if parts in ([*own], [*own[1:]], [own[0], short, own[2]]):
                    return view, r, s
    known = [f"{r.id}/0-{len(r.stages) - 1}" for view in views for r in view.planned.replicas]
    shown = ", ".join(known[:6]) + (", ..." if len(known) > 6 else "")
    raise InputError(
        "no-such-stage",
        f"the plan has no stage `{name}`",
        faults=[Fault(place="--stage", value=name, limit="boundary/replica/stage")],
        hint=f"the stages are {shown}",
    )


def stage_section(address: Address) -> Section:
    """The facts of a stage and its priced alternatives, the best first."""
    view, r, s = address
    replica, planned = view.replicas[r], view.planned.replicas[r]
    stage, mode = planned.stages[s], view.problem.modes[replica.mode_i]
    lines = [_facts(view, stage), *_demands(view, replica, s)]
    alternatives = [
        *_shifts(view, replica, mode, s),
        *_strategies(view, replica, mode, s),
        *_clusters(view, replica, mode, s),
    ]
    runnable = [a for a in alternatives if a.tokens_per_s is not None]
    runnable.sort(key=lambda a: -(a.tokens_per_s or 0.0))
    now = replica.tokens_per_s
    lines += [f"instead {a.text}: {_difference(now, a.tokens_per_s or 0.0)}" for a in runnable]
    lines += [f"not {a.text}: {a.why_not}" for a in alternatives if a.tokens_per_s is None]
    data = {
        "replica": planned.id,
        "stage": stage.index,
        "tokens_per_s": now,
        "alternatives": [
            {"kind": a.kind, "text": a.text, "tokens_per_s": a.tokens_per_s, "why_not": a.why_not}
            for a in alternatives
        ],
    }
    return Section(name="stage", title=f"stage {stage.index} of {planned.id}", lines=tuple(lines), data=data)


def _facts(view: BoundaryView, stage: StagePlan) -> str:
    template_devices = ", ".join(stage.devices[:4]) + (", ..." if len(stage.devices) > 4 else "")
    words = strategy_text(stage.dp, stage.tp, stage.zero)
    pace = format_seconds(stage.compute_s + stage.comm_s)
    return f"{layers_text(*stage.layers)} on {template_devices} ({words}), {pace} per micro-batch"


def strategy_text(dp: int, tp: int, zero: int) -> str:
    """`dp 2 zero-3`, `tp 2`, `plain`."""
    words = ([f"dp {dp}"] if dp > 1 else []) + ([f"tp {tp}"] if tp > 1 else [])
    return " ".join(words + ([f"zero-{zero}"] if zero else [])) or "plain"


def _demands(view: BoundaryView, replica: Replica, s: int) -> list[str]:
    choice = replica.stages[s]
    required = max(view.problem.tier_required[choice.start : choice.stop])
    own = view.problem.templates[choice.template_i].tier_i
    if required == 0:
        return []
    needed = [i for i in range(choice.start, choice.stop) if view.problem.tier_required[i] == required]
    needs = f"{layers_text(needed[0], needed[-1] + 1)} need{'s' if len(needed) == 1 else ''}"
    return [f"{needs} tier `{view.tier(required)}`; its devices have `{view.tier(own)}`"]


def _difference(now: float, then: float) -> str:
    if abs(then - now) <= 1e-9 * now:
        return "the replica is as fast"
    word = "faster" if then > now else "slower"
    return f"the replica is {abs(then / now - 1.0):.2%} {word} ({then:,.0f} tokens/s)"


def _shifts(view: BoundaryView, replica: Replica, mode: Mode, s: int) -> list[Alternative]:
    found = []
    for border, by, text in (
        (s - 1, -1, "one layer more from the stage before"),
        (s - 1, 1, "one layer less, to the stage before"),
        (s, 1, "one layer more from the stage behind"),
        (s, -1, "one layer less, to the stage behind"),
    ):
        if not 0 <= border < len(replica.stages) - 1:
            continue
        stages = shifted(replica, border, by)
        if stages is not None:
            found.append(_priced(view, mode, "layers", text, stages))
    return found


def _priced(
    view: BoundaryView, mode: Mode, kind: str, text: str, stages: tuple[StageChoice, ...]
) -> Alternative:
    problem = view.problem
    for choice in stages:
        required = max(problem.tier_required[choice.start : choice.stop])
        if required > problem.templates[choice.template_i].tier_i:
            why = f"{layers_text(choice.start, choice.stop)} would need tier `{view.tier(required)}`"
            return Alternative(kind=kind, text=text, tokens_per_s=None, why_not=why)
    replica = price_replica(problem, mode, stages)
    if replica is None:
        return Alternative(
            kind=kind, text=text, tokens_per_s=None, why_not="memory or a link doesn't allow it"
        )
    return Alternative(kind=kind, text=text, tokens_per_s=replica.tokens_per_s)


def _replaced(replica: Replica, s: int, template: Template) -> tuple[StageChoice, ...]:
    stages = list(replica.stages)
    old = stages[s]
    stages[s] = StageChoice(template_i=template.template_i, start=old.start, stop=old.stop)
    return tuple(stages)


def _strategies(view: BoundaryView, replica: Replica, mode: Mode, s: int) -> list[Alternative]:
    """Every other strategy on the same devices."""
    own = view.problem.templates[replica.stages[s].template_i]
    found = []
    for template_i in mode.templates:
        template = view.problem.templates[template_i]
        if template.parts == own.parts and template_i != own.template_i:
            strategy = template.strategy
            text = f"with {strategy_text(strategy.dp, strategy.tp, strategy.zero)}"
            found.append(_priced(view, mode, "strategy", text, _replaced(replica, s, template)))
    return found


def _clusters(view: BoundaryView, replica: Replica, mode: Mode, s: int) -> list[Alternative]:
    """The best other clusters of devices that are idle or the stage's own, each with its best strategy."""
    problem = view.problem
    own = problem.templates[replica.stages[s].template_i]
    own_usage = dict(own.usage)
    free = {
        c.class_i: c.num_devices - view.used[c.class_i] + own_usage.get(c.class_i, 0) for c in problem.classes
    }
    best: dict[tuple[tuple[int, int], ...], Alternative] = {}
    for template_i in mode.templates:
        template = problem.templates[template_i]
        if template.parts == own.parts or any(count > free[c] for c, count in template.usage):
            continue
        stages = _replaced(replica, s, template)
        if not _within_rows(view, replica, stages):
            continue
        devices = " + ".join(
            view.class_text(problem.classes[part.class_i], part.num_devices) for part in template.parts
        )
        strategy = template.strategy
        text = f"on {devices} ({strategy_text(strategy.dp, strategy.tp, strategy.zero)})"
        found = _priced(view, mode, "cluster", text, stages)
        known = best.get(template.usage)
        if known is None or (found.tokens_per_s or 0.0) > (known.tokens_per_s or 0.0):
            best[template.usage] = found
    ranked = sorted(
        (a for a in best.values() if a.tokens_per_s is not None), key=lambda a: -(a.tokens_per_s or 0.0)
    )
    return ranked[:CLUSTERS_TOLD]


def _within_rows(view: BoundaryView, replica: Replica, stages: tuple[StageChoice, ...]) -> bool:
    """Whether the plan with the changed replica keeps every capacity row."""
    used = dict(view.used)
    for class_i, count in replica.usage:
        used[class_i] -= count
    for class_i, count in total_usage([view.problem.templates[c.template_i] for c in stages]):
        used[class_i] += count
    return all(
        sum(weight * used[class_i] for class_i, weight in row.coefficients) <= row.limit + 1e-9
        for row in view.problem.rows
    )
