"""Why the torch executor can't follow a training job on a plan. Pure: nothing here needs torch.

A plan itself it always runs, see `planner.execution`. What remains are pipeline schedules: plans are priced
for 1F1B, and the others hold more micro-batches, want equal widths, or put layers on other devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from executors.torch_native.virtual import PIECES, held_layers, pieces_in_flight
from planner.canonical import Inputs, inputs_from_documents
from planner.execution import Reason
from planner.plan import Plan, ReplicaPlan, StagePlan
from planner.problem import tier_required_by_layer
from planner.training import PipelineSchedule, TrainingJob

ZERO_MAX = 1


def reasons(plan: Plan, replica: ReplicaPlan, training: TrainingJob) -> tuple[Reason, ...]:
    """Every reason why the job's schedule can't be followed; empty when it can."""
    schedule = training.pipeline
    if schedule is PipelineSchedule.ONE_FORWARD_ONE_BACKWARD or len(replica.stages) == 1:
        return ()
    found: list[Reason] = []
    if schedule in PIECES:
        found += _unequal(replica)
        for stage in replica.stages:
            found += _strategy(replica, stage)
        found += _rounds(replica)
    if PIECES.get(schedule, 1) > 1:
        found += _too_few_layers(replica, schedule)
        if not found:
            inputs = inputs_from_documents(plan.inputs)
            found += _moved_layers(inputs, replica, schedule)
    for stage in replica.stages:
        found += _memory(replica, stage, schedule)
    return tuple(found)


def _unequal(replica: ReplicaPlan) -> Iterator[Reason]:
    """The library passes each micro-batch from one rank to one rank."""
    shares = list(dict.fromkeys(stage.micro_batch_shares for stage in replica.stages))
    if len(shares) > 1:
        yield Reason(
            code="torch-schedule-unequal-shares",
            place=f"{replica.id}.stages[].micro_batch_shares",
            value=", ".join("+".join(map(str, one)) for one in shares),
            limit="the same shares in all stages, or the schedule 1f1b",
        )


def _strategy(replica: ReplicaPlan, stage: StagePlan) -> Iterator[Reason]:
    """Split-off gradients of weights pass by the hooks that sharding rests on."""
    place = f"{replica.id}.stages[{stage.index}]"
    if stage.tp > 1:
        yield Reason(
            code="torch-schedule-tensor-parallel",
            place=f"{place}.tp",
            value=str(stage.tp),
            limit="1, or the schedule 1f1b",
        )
    if stage.zero > ZERO_MAX:
        yield Reason(
            code="torch-schedule-zero",
            place=f"{place}.zero",
            value=str(stage.zero),
            limit=f"at most {ZERO_MAX}, or the schedule 1f1b",
        )


def _rounds(replica: ReplicaPlan) -> Iterator[Reason]:
    """Micro-batches go through the pieces in rounds of equal size, about as many as there are stages."""
    count, num_stages = replica.micro_batches, len(replica.stages)
    if count % max(1, count // num_stages):
        yield Reason(
            code="torch-schedule-rounds",
            place=f"{replica.id}.micro_batches",
            value=str(count),
            limit=f"fewer than {2 * num_stages} or a multiple of {count // num_stages}",
        )


def _too_few_layers(replica: ReplicaPlan, schedule: PipelineSchedule) -> Iterator[Reason]:
    for stage in replica.stages:
        count = stage.layers[1] - stage.layers[0]
        if count < PIECES[schedule]:
            yield Reason(
                code="torch-schedule-too-few-layers",
                place=f"{replica.id}.stages[{stage.index}].layers",
                value=str(count),
                limit=f"at least {PIECES[schedule]} layers in every stage",
            )


def _moved_layers(inputs: Inputs, replica: ReplicaPlan, schedule: PipelineSchedule) -> Iterator[Reason]:
    """Layers that stand elsewhere than planned must be alike and allowed there."""
    layers = inputs.workload.layers
    required = tier_required_by_layer(inputs.fleet, inputs.policy, len(layers))
    for stage in replica.stages:
        held = held_layers(replica, schedule, stage.index)
        place = f"{replica.id}.stages[{stage.index}]"
        if Counter(layers[i].kind for i in held) != Counter(layers[i].kind for i in range(*stage.layers)):
            yield Reason(
                code="torch-schedule-unlike-layers",
                place=f"{place}.layers",
                value=f"layers {', '.join(map(str, held))}",
                limit="as many layers of each kind as planned",
            )
        floor = max(required[i] for i in held)
        for device_id in stage.devices:
            device = inputs.fleet.device_by_id[device_id]
            if device.tier_i < floor:
                yield Reason(
                    code="torch-schedule-tier",
                    place=f"{place}.devices",
                    value=f"{device_id} is cleared for {inputs.fleet.tiers[device.tier_i]}",
                    limit=f"{inputs.fleet.tiers[floor]} or higher for layers {', '.join(map(str, held))}",
                )


def _memory(replica: ReplicaPlan, stage: StagePlan, schedule: PipelineSchedule) -> Iterator[Reason]:
    """Activations of all micro-batches that the schedule holds must fit as well."""
    num_pieces = PIECES.get(schedule, 1)
    held = -(-pieces_in_flight(replica, schedule, stage.index) // num_pieces)
    for device_id, kinds in stage.memory_bytes.items():
        planned = {kind: value for kind, value in kinds.items() if kind not in ("limit", "fragmentation")}
        total = sum(planned.values())
        more = planned.get("activations", 0.0) * (held / stage.in_flight - 1.0)
        lost_frac = kinds.get("fragmentation", 0.0) / total if total > 0 else 0.0
        need = (total + more) * (1.0 + lost_frac)
        if more > 0 and need > kinds["limit"]:
            yield Reason(
                code="torch-schedule-memory",
                place=f"{replica.id}.stages[{stage.index}].memory_bytes[{device_id}]",
                value=f"{need:,.0f} bytes with {held} micro-batches in flight",
                limit=f"{kinds['limit']:,.0f} bytes, or the schedule 1f1b",
            )
