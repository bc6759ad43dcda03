"""What limits each stage: the pace of its replica, memory, clearance, or the links."""

from __future__ import annotations

from typing import Any

from costmodels.units import format_seconds
from planner.explain.answer import Section
from planner.explain.reasons import layers_text
from planner.explain.view import BoundaryView
from planner.objective import Replica, StageChoice, in_flight_counts
from planner.plan import ReplicaPlan, StagePlan

SAME_FRAC = 1e-6
STAGES_TOLD = 24


def stages_section(view: BoundaryView) -> Section:
    """One line per stage; equal replicas are told once."""
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    told: dict[tuple[object, ...], str] = {}
    for replica, planned in zip(view.replicas, view.planned.replicas, strict=True):
        entries = [_stage(view, replica, planned, i) for i in range(len(planned.stages))]
        data.append({"replica": planned.id, "stages": entries})
        key = (replica.mode_i, replica.stages)
        if key in told:
            lines.append(f"{planned.id}: as {told[key]}")
            continue
        told[key] = planned.id
        lines.append(f"{planned.id}: {_pace_text(planned)}")
        if len(lines) + len(entries) <= STAGES_TOLD:
            lines += [
                f"  stage {entry['index']}, {entry['layers_text']}: {entry['text']}" for entry in entries
            ]
    return Section(
        name=f"{view.problem.name}.stages", title="what limits each stage", lines=tuple(lines), data=data
    )


def busy_s(stage: StagePlan) -> float:
    """Seconds a stage is occupied by one micro-batch."""
    return stage.compute_s + stage.comm_s


def _slowest(planned: ReplicaPlan) -> tuple[float, int, bool]:
    """Seconds of the slowest stage or transfer, its stage, and whether it is the transfer behind it."""
    best = (0.0, 0, False)
    for stage in planned.stages:
        for seconds, transfer in ((busy_s(stage), False), (stage.transfer_s, True)):
            if seconds > best[0]:
                best = (seconds, stage.index, transfer)
    return best


def _pace_text(planned: ReplicaPlan) -> str:
    seconds, index, transfer = _slowest(planned)
    what = f"the link behind stage {index}" if transfer else f"stage {index}"
    share = planned.micro_batches * seconds / planned.step_time_s
    return (
        f"{what} sets the pace with {format_seconds(seconds)} per micro-batch,"
        f" {share:.0%} of the step over {planned.micro_batches} micro-batches"
    )


def _stage(view: BoundaryView, replica: Replica, planned: ReplicaPlan, index: int) -> dict[str, Any]:
    stage = planned.stages[index]
    pace_s, _, _ = _slowest(planned)
    fullest = max(
        sum(number for kind, number in kinds.items() if kind != "limit") / kinds["limit"]
        for kinds in stage.memory_bytes.values()
    )
    if busy_s(stage) >= pace_s * (1.0 - SAME_FRAC):
        by = "communication" if stage.comm_s > stage.compute_s else "computation"
        limit, text = by, f"sets the pace, by {by}"
    else:
        limit, text = _kept_from_more(view, replica, index)
        text = f"waits {1.0 - busy_s(stage) / pace_s:.0%} of the time; {text}"
    return {
        "index": index,
        "layers": list(stage.layers),
        "layers_text": layers_text(*stage.layers),
        "limit": limit,
        "busy_s": busy_s(stage),
        "memory_frac": fullest,
        "text": f"{text}; memory {fullest:.0%} full",
    }


def _kept_from_more(view: BoundaryView, replica: Replica, index: int) -> tuple[str, str]:
    """Why a stage that waits does not take a layer of a neighbour."""
    reasons = {}
    for step, layer in ((-1, replica.stages[index].start - 1), (1, replica.stages[index].stop)):
        neighbour = index + step
        if 0 <= neighbour < len(replica.stages):
            reasons[layer] = one_layer_more(view, replica, index, step)
    for code in ("speed", "memory", "clearance", "last-layer"):
        for layer, (found, text) in reasons.items():
            if found == code:
                return code, f"layer {layer} {text}"
    return "alone", "there is no other stage"


def one_layer_more(view: BoundaryView, replica: Replica, index: int, step: int) -> tuple[str, str]:
    """What happens when a stage takes the layer of its neighbour that is next to it."""
    problem, mode = view.problem, view.problem.modes[replica.mode_i]
    choice, giver = replica.stages[index], replica.stages[index + step]
    if giver.stop - giver.start == 1:
        return "last-layer", "is the only one of its stage"
    start, stop = (choice.start - 1, choice.stop) if step < 0 else (choice.start, choice.stop + 1)
    template = problem.templates[choice.template_i]
    if max(problem.tier_required[start:stop]) > template.tier_i:
        needed = view.tier(max(problem.tier_required[start:stop]))
        return "clearance", f"needs tier `{needed}`, which its devices don't have"
    held = in_flight_counts(problem, mode, replica.stages)[index]
    cost = problem.cost_model.stage(
        template.cluster, (start, stop), template.strategy, mode.micro_batch_size, held
    )
    if cost is None or not cost.fits:
        return "memory", "would not fit its memory"
    return "speed", f"would make it take {format_seconds(cost.busy_s)} per micro-batch"


def shifted(replica: Replica, border: int, by: int) -> tuple[StageChoice, ...] | None:
    """The stages with the border behind stage `border` moved; None when a stage would be left empty."""
    stages = list(replica.stages)
    one, two = stages[border], stages[border + 1]
    cut = one.stop + by
    if not one.start < cut < two.stop:
        return None
    stages[border] = StageChoice(template_i=one.template_i, start=one.start, stop=cut)
    stages[border + 1] = StageChoice(template_i=two.template_i, start=cut, stop=two.stop)
    return tuple(stages)
