"""What `echelon solve` answers, as text and as JSON data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from costmodels.units import format_seconds
from planner.certificate import usd_per_hour
from planner.former import moved_devices
from planner.plan import BoundaryPlan, ReplicaPlan, StagePlan, plan_to_json
from planner.problem import BoundaryProblem, Problem
from planner.solve.result import Progress
from planner.solving import Answer, Request
from planner.spares import eligible_spares

THROTTLED = ("tokens", "steady-state")
UNITS = {"tokens": "tokens/s", "steady-state": "tokens/s", "price": "USD/h", "step-time": "s per step"}
MINIMISED = ("price", "step-time")
STAGES_SHOWN_MAX = 40
HEADINGS = ("stage", "layers", "cluster", "devices", "head", "spare", "memory", "strategy")


def progress_line(progress: Progress, objective: str) -> str:
    """Elapsed time, incumbent, bound and their distance on one line."""
    unit = UNITS[objective]
    words = [f"{progress.elapsed_s:5.1f} s"]
    words.append("no plan yet" if progress.value is None else f"best {progress.value:,.6g} {unit}")
    if progress.bound is not None:
        words.append(f"bound {progress.bound:,.6g}")
        if progress.value is not None and min(progress.value, progress.bound) > 0.0:
            better, worse = sorted((progress.value, progress.bound))
            words.append(f"gap {worse / better - 1.0:.2%}")
    return "   ".join([*words, progress.note])


def answer_data(answer: Answer, request: Request, output: Path | None) -> dict[str, Any]:
    """The JSON answer; the whole plan stands in it where it went to no file."""
    plan, certificate = answer.plan, answer.plan.certificate
    data: dict[str, Any] = {
        "file": None if output is None else str(output),
        "objective": certificate.objective,
        "unit": UNITS[certificate.objective],
        "value": certificate.value,
        "bound": certificate.bound,
        "excess_frac": _finite(certificate.excess_frac),
        "stop": certificate.stop,
        "solver": request.solver,
        "tokens_per_s": plan.tokens_per_s,
        "usd_per_hour": total_usd_per_hour(answer),
        "spill_over_used": answer.spilled,
        "boundaries": [
            _boundary_data(answer.problem, boundary, planned)
            for boundary, planned in zip(answer.problem.boundaries, plan.boundaries, strict=True)
        ],
    }
    if request.keep is not None:
        data["moved"] = list(moved_devices(request.keep, plan))
    if output is None:
        data["plan"] = plan_to_json(plan)
    return data


def total_usd_per_hour(answer: Answer) -> float:
    """Price of all devices in use."""
    pairs = zip(answer.problem.boundaries, answer.plan.boundaries, strict=True)
    return sum(usd_per_hour(boundary, planned.replicas) for boundary, planned in pairs)


def _boundary_data(problem: Problem, boundary: BoundaryProblem, planned: BoundaryPlan) -> dict[str, Any]:
    return {
        "name": planned.name,
        "replicas": len(planned.replicas),
        "devices": sum(c.num_devices for c in boundary.classes),
        "devices_used": num_used(planned),
        "tokens_per_s": sum(replica.tokens_per_s for replica in planned.replicas),
        "usd_per_hour": usd_per_hour(boundary, planned.replicas),
        "excluded": dict(sorted(Counter(entry.reason for entry in planned.excluded).items())),
        "aggregator": dict(planned.aggregator),
    }


def num_used(planned: BoundaryPlan) -> int:
    """Devices that run a rank."""
    return sum(len(stage.devices) for replica in planned.replicas for stage in replica.stages)


def answer_text(answer: Answer, request: Request, *, elapsed_s: float, every_stage: bool) -> str:
    """The plan in one line, the bound in one sentence, then the stages of every replica."""
    plan = answer.plan
    lines = [_headline(answer)]
    certificate = plan.certificate
    if certificate.objective in THROTTLED and certificate.value < plan.tokens_per_s * (1.0 - 1e-9):
        lines.append(
            f"value     {certificate.value:,.0f} tokens/s: replicas count as no faster than the policy's "
            "speed ratio allows"
        )
    lines.append(f"bound     {bound_sentence(answer, request, elapsed_s)}")
    if answer.spilled:
        owners = ", ".join(
            answer.problem.policy.spill_over.owners if answer.problem.policy.spill_over else ()
        )
        lines.append(f"spill     devices of {owners} are used: the others do not suffice")
    num_stages = sum(len(r.stages) for b in plan.boundaries for r in b.replicas)
    for boundary, planned in zip(answer.problem.boundaries, plan.boundaries, strict=True):
        if len(plan.boundaries) > 1:
            lines += ["", _boundary_line(boundary, planned)]
        if every_stage or num_stages <= STAGES_SHOWN_MAX:
            for replica in planned.replicas:
                lines += ["", *_replica_lines(answer.problem, boundary, planned, replica)]
    if not every_stage and num_stages > STAGES_SHOWN_MAX:
        lines += ["", f"{num_stages} stages in all: `-v` lists them here, `echelon show` draws the plan"]
    return "\n".join(lines)


def _headline(answer: Answer) -> str:
    plan = answer.plan
    replicas = [replica for boundary in plan.boundaries for replica in boundary.replicas]
    used = sum(num_used(boundary) for boundary in plan.boundaries)
    whole = sum(c.num_devices for boundary in answer.problem.boundaries for c in boundary.classes)
    words = [_count(len(replicas), "replica"), f"over {used} of {_count(whole, 'device')}"]
    figures = [f"{plan.tokens_per_s:,.0f} tokens/s"]
    if len(replicas) == 1:
        figures.append(f"step {format_seconds(replicas[0].step_time_s)}")
    usd = total_usd_per_hour(answer)
    if usd > 0.0:
        figures.append(f"{usd:,.2f} USD/h")
    return f"plan      {' '.join(words)}, {', '.join(figures)}"


def bound_sentence(answer: Answer, request: Request, elapsed_s: float) -> str:
    """What no plan can do better, and so how far this one is from the best."""
    certificate = answer.plan.certificate
    how = f"({request.solver}, {elapsed_s:.0f} s)"
    if certificate.bound is None:
        return f"none: nothing is proven about better plans {how}"
    unit = UNITS[certificate.objective]
    excess = certificate.excess_frac
    if excess is not None and excess <= 1e-9:
        return (
            f"no plan of the candidate list beats {certificate.value:,.6g} {unit}: this one is the best {how}"
        )
    claim = f"no plan can beat {certificate.bound:,.6g} {unit}"
    if excess is None or not isfinite(excess):
        return f"{claim} {how}"
    words = {"price": "dearer than the best", "step-time": "slower than the best"}
    distance = words.get(certificate.objective)
    if distance is None:
        return f"{claim}, so the best is at most {excess:.2%} faster than this one {how}"
    return f"{claim}, so this one is at most {excess:.2%} {distance} {how}"


def former_note(answer: Answer, request: Request) -> str:
    """What became of the earlier plans."""
    words = []
    if answer.former_used is False:
        words.append("the earlier plan no longer runs as it is, so it could not serve as a start everywhere")
    if request.keep is not None:
        moved = moved_devices(request.keep, answer.plan)
        used = sum(num_used(boundary) for boundary in answer.plan.boundaries)
        words.append(f"{len(moved)} of {used} devices in use hold other layers than in the plan to keep")
    return "; ".join(words)


def _boundary_line(boundary: BoundaryProblem, planned: BoundaryPlan) -> str:
    speed = sum(replica.tokens_per_s for replica in planned.replicas)
    whole = sum(c.num_devices for c in boundary.classes)
    used = f"{num_used(planned)} of {_count(whole, 'device')}"
    replicas = _count(len(planned.replicas), "replica")
    return f"boundary  {planned.name}: {replicas} over {used}, {speed:,.0f} tokens/s"


def _replica_lines(
    problem: Problem, boundary: BoundaryProblem, planned: BoundaryPlan, replica: ReplicaPlan
) -> list[str]:
    head = (
        f"replica   {replica.id}: {replica.tokens_per_s:,.0f} tokens/s,"
        f" step {format_seconds(replica.step_time_s)},"
        f" {replica.micro_batches} x {replica.micro_batch_size} sequences, {replica.executor}"
    )
    rows = [HEADINGS] + [_stage_row(problem, boundary, planned, stage) for stage in replica.stages]
    return [head, *table(rows)]


def _stage_row(
    problem: Problem, boundary: BoundaryProblem, planned: BoundaryPlan, stage: StagePlan
) -> tuple[str, ...]:
    members = [problem.fleet.device_by_id[d] for d in stage.devices]
    site = problem.fleet.site_of(members[0]).site_id
    kinds = Counter(device.type_name for device in members)
    spares = eligible_spares(problem.fleet, boundary, stage, planned.excluded)
    return (
        str(stage.index),
        f"{stage.layers[0]}-{stage.layers[1] - 1}",
        site,
        " + ".join(f"{count} x {name}" for name, count in kinds.items()),
        stage.head,
        spares[0] if spares else "-",
        f"{fullest_frac(stage.memory_bytes):.0%}",
        strategy_text(stage),
    )


def fullest_frac(memory_bytes: Mapping[str, Mapping[str, float]]) -> float:
    """Share of its usable memory that the fullest device needs."""
    return max(
        sum(number for kind, number in kinds.items() if kind != "limit") / kinds["limit"]
        for kinds in memory_bytes.values()
    )


def strategy_text(stage: StagePlan) -> str:
    """The strategy in words: `dp 4 zero-2`, `tp 2`, `plain`, with recomputed layers."""
    words = [f"dp {stage.dp}"] if stage.dp > 1 else []
    words += [f"tp {stage.tp}"] if stage.tp > 1 else []
    words += [f"zero-{stage.zero}"] if stage.zero else []
    words += [f"recompute {stage.recompute}"] if stage.recompute else []
    return " ".join(words) or "plain"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None
