"""A plan as text of at most 80 columns, and as plain JSON values."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from costmodels.units import format_bytes, format_seconds
from planner.render.measure import ELLIPSIS
from planner.render.view import IDLE, BoundaryView, PlanView, ReplicaView, StageView
from planner.render.words import (
    UNITS,
    alike,
    bound_sentence,
    count,
    counted_note,
    device_ranges,
    headline,
    idle_groups,
    layers_text,
    numbers_text,
    percent,
    plain,
    reason_text,
    strategy_text,
    used_text,
    value_text,
)
from planner.sync_cost import sync_costs

COLUMNS = 80
INDENT = 10
HEADINGS = ("#", "layers", "site", "devices", "tier", "head", "mem", "strategy")
# Which columns give way first when a table is too wide, by position: they hold names that people chose.
FLEXIBLE = (2, 5, 3, 7)
NAME_MIN = 6
STAGES_SHOWN_MAX = 60


def summary_text(view: PlanView, *, every_replica: bool = False) -> str:
    """The plan in lines of at most 80 columns.

    Equal replicas share a table. Beyond 60 stages only boundaries are listed, unless `every_replica`.
    """
    note = counted_note(view)
    lines = [
        *_labelled("plan", headline(view)),
        *_labelled("value", f"{value_text(view.certificate)}{f' ({note})' if note else ''}"),
        *_labelled("bound", bound_sentence(view.certificate)),
        *_labelled("tiers", _tiers_text(view)),
        *(_labelled("sync", words) if (words := sync_text(view)) else ()),
    ]
    num_stages = sum(len(group[0].stages) for b in view.boundaries for group in alike(b.replicas))
    full = every_replica or num_stages <= STAGES_SHOWN_MAX
    if not full:
        lines += ["", *_boundary_table(view)]
        lines += ["", f"{num_stages} different stages: -v lists them, --html FILE draws them"]
        return "\n".join(plain(line) for line in lines)
    for boundary in view.boundaries:
        lines += ["", *_boundary_lines(boundary)]
        for group in alike(boundary.replicas):
            lines += ["", *_replica_lines(view, group)]
        lines += ["", *_idle_lines(boundary)] if idle_groups(boundary) else []
    return "\n".join(plain(line) for line in lines)


def _tiers_text(view: PlanView) -> str:
    names = [f"{mark} {name}" for mark, name in zip(view.tier_marks, view.fleet.tiers, strict=True)]
    return " < ".join(names)


def sync_text(view: PlanView) -> str:
    """What keeping the boundaries in step costs; "" where nothing crosses or no cost can be told."""
    costs = sync_costs(view.plan, view.inputs)
    if not costs:
        return ""
    slowest = max(costs, key=lambda cost: cost.exchange_s)
    waits = max(cost.waiting_frac for cost in costs)
    return (
        f"{format_bytes(slowest.payload_bytes)} up and down for each boundary after {slowest.local_steps} "
        f"local steps; coordinator beside {slowest.coordinator}: at most "
        f"{format_seconds(slowest.exchange_s)} ({slowest.boundary}), participants wait {percent(waits)} of "
        "the time"
    )


def _labelled(label: str, words: str) -> list[str]:
    """A label and its text, wrapped under itself; words longer than a line are cut."""
    room = COLUMNS - INDENT
    wrapped = textwrap.wrap(words, room, break_on_hyphens=False) or [""]
    return [f"{label if i == 0 else '':<{INDENT}}{line}" for i, line in enumerate(wrapped)]


def _boundary_lines(boundary: BoundaryView) -> list[str]:
    if boundary.plan is None:
        return _labelled("boundary", f"{boundary.name}: takes no part in this plan")
    words = f"{count(len(boundary.replicas), 'replica')} over {used_text((boundary,))}"
    lines = _labelled("boundary", f"{boundary.name}: {words}, {boundary.tokens_per_s:,.0f} tokens/s")
    names = boundary.plan.aggregator
    service = [
        f"{role} {names[key]}"
        for key, role in (("host", "aggregator"), ("standby", "standby"))
        if names.get(key)
    ]
    return [*lines, *_labelled("", ", ".join(service))] if service else lines


def _boundary_table(view: PlanView) -> list[str]:
    """One line for each boundary."""
    rows: list[tuple[str, ...]] = [
        ("boundary", "replicas", "devices used", "tokens/s", "USD/h", "aggregator")
    ]
    for boundary in view.boundaries:
        names = {} if boundary.plan is None else boundary.plan.aggregator
        rows.append(
            (
                boundary.name,
                str(len(boundary.replicas)),
                f"{boundary.num_used} of {len(boundary.devices)}",
                f"{boundary.tokens_per_s:,.0f}",
                f"{boundary.usd_per_hour:,.2f}",
                names.get("host") or "-",
            )
        )
    return table(rows, flexible=(0, 5))


def _replica_lines(view: PlanView, group: Sequence[ReplicaView]) -> list[str]:
    plan = group[0].plan
    name = plan.id if len(group) == 1 else numbers_text([replica.number for replica in group])
    each = " each" if len(group) > 1 else ""
    words = (
        f"{name}: {plan.tokens_per_s:,.0f} tokens/s{each}, step {format_seconds(plan.step_time_s)},"
        f" {count(plan.micro_batches, 'micro-batch', 'micro-batches')}"
        f" of {count(plan.micro_batch_size, 'sequence')}, {plan.executor}"
    )
    if len(group) > 1:
        words += f"; heads are those of r{group[0].number}"
    rows = [_stage_row(view, stage) for stage in group[0].stages]
    return [*_labelled("replica" if len(group) == 1 else "replicas", words), *table([HEADINGS, *rows])]


def _stage_row(view: PlanView, stage: StageView) -> tuple[str, ...]:
    return (
        str(stage.plan.index),
        layers_text(stage.plan),
        stage.site_id,
        " + ".join(f"{number} x {name}" for name, number in stage.kinds),
        view.tier_marks[stage.tier_i],
        stage.plan.head,
        percent(stage.used_frac),
        strategy_text(stage.plan),
    )


def table(rows: Sequence[Sequence[str]], *, flexible: Sequence[int] = FLEXIBLE) -> list[str]:
    """Aligned columns in at most 80 characters; names that people chose are shortened where they must be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    gap = "  "
    excess = 2 + sum(widths) + len(gap) * (len(widths) - 1) - COLUMNS
    for i in flexible:
        cut = min(max(excess, 0), max(0, widths[i] - max(NAME_MIN, len(rows[0][i]))))
        widths[i] -= cut
        excess -= cut
    return [
        "  "
        + gap.join(_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cut(text: str, width: int) -> str:
    """The text, its middle left out where it is too long: both ends of a host's name tell it from others."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + ELLIPSIS + text[len(text) - (width - 1 - head) :]


def _idle_lines(boundary: BoundaryView) -> list[str]:
    lines: list[str] = []
    for reason, type_name, ids in idle_groups(boundary):
        words = f"{len(ids)} x {type_name}, {reason_text(reason)}: {', '.join(device_ranges(ids))}"
        lines += _labelled("idle" if not lines else "", words)
    return lines


def summary_data(view: PlanView) -> dict[str, Any]:
    """The plan as plain JSON values: figures, and what each device does."""
    certificate = view.certificate
    return {
        "fleet": view.fleet.name,
        "model": view.inputs.workload.model_name,
        "job": view.plan.job,
        "objective": certificate.objective,
        "unit": UNITS.get(certificate.objective, ""),
        "value": certificate.value,
        "bound": certificate.bound,
        "excess_frac": certificate.excess_frac,
        "tokens_per_s": view.plan.tokens_per_s,
        "usd_per_hour": view.usd_per_hour,
        "tiers": list(view.fleet.tiers),
        "sync": [asdict(cost) for cost in sync_costs(view.plan, view.inputs)],
        "boundaries": [_boundary_data(view, boundary) for boundary in view.boundaries],
    }


def _boundary_data(view: PlanView, boundary: BoundaryView) -> dict[str, Any]:
    return {
        "name": boundary.name,
        "takes_part": boundary.plan is not None,
        "aggregator": {} if boundary.plan is None else dict(boundary.plan.aggregator),
        "devices": len(boundary.devices),
        "devices_used": boundary.num_used,
        "tokens_per_s": boundary.tokens_per_s,
        "usd_per_hour": boundary.usd_per_hour,
        "replicas": [_replica_data(view, replica) for replica in boundary.replicas],
        "idle": [
            {"device": d.device.device_id, "reason": d.reason, "is_spare": d.role != IDLE}
            for d in boundary.devices
            if d.replica < 0
        ],
    }


def _replica_data(view: PlanView, replica: ReplicaView) -> dict[str, Any]:
    plan = replica.plan
    return {
        "id": plan.id,
        "executor": plan.executor,
        "tokens_per_s": plan.tokens_per_s,
        "step_time_s": plan.step_time_s,
        "micro_batches": plan.micro_batches,
        "micro_batch_size": plan.micro_batch_size,
        "stages": [
            {
                "index": stage.plan.index,
                "layers": list(stage.plan.layers),
                "site": stage.site_id,
                "tier": view.fleet.tiers[stage.tier_i],
                "devices": list(stage.plan.devices),
                "device_types": dict(stage.kinds),
                "head": stage.plan.head,
                "spares": list(stage.plan.spares),
                "memory_frac": stage.used_frac,
                "busy_s": stage.busy_s,
                "strategy": strategy_text(stage.plan),
            }
            for stage in replica.stages
        ],
    }
