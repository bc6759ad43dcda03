"""Why an executor can't run a replica: the planner's own rules, applied to what stands in a plan."""

from __future__ import annotations

from costmodels.fleet import Device, Fleet
from planner.canonical import inputs_from_documents
from planner.execution import Reason, StageShape, stage_reasons, uniformity_reasons, workload_reasons
from planner.plan import Plan, ReplicaPlan


def reasons(executor: str, plan: Plan, replica: ReplicaPlan) -> tuple[Reason, ...]:
    """Every reason why the executor can't run the replica, with its place in the plan."""
    inputs = inputs_from_documents(plan.inputs)
    found = list(workload_reasons(inputs.workload))
    found += replica_reasons(executor, inputs.fleet, replica)
    return tuple(found)


def replica_reasons(executor: str, fleet: Fleet, replica: ReplicaPlan) -> tuple[Reason, ...]:
    """Reasons in how the replica is placed, whatever is trained."""
    found: list[Reason] = []
    shapes = []
    for stage in replica.stages:
        shape = StageShape(
            dp=stage.dp,
            tp=stage.tp,
            zero=stage.zero,
            num_kinds=len({_kind(fleet, device) for device in stage.devices}),
        )
        shapes.append(shape)
        pipelined = len(replica.stages) > 1
        for reason in stage_reasons(executor, shape, replica.micro_batch_size, pipelined=pipelined):
            place = f"{replica.id}.stages[{stage.index}].{reason.place}"
            found.append(Reason(code=reason.code, place=place, value=reason.value, limit=reason.limit))
    found += uniformity_reasons(executor, shapes)
    return tuple(found)


def _kind(fleet: Fleet, device_id: str) -> tuple[object, ...]:
    """What makes devices alike to the planner: figures and tier, and the links of the host they stand in."""
    device: Device = fleet.device_by_id[device_id]
    host = fleet.host_by_id[device.host_id]
    figures = (device.type_name, device.memory_bytes, device.flop_per_s, device.memory_bytes_per_s)
    return (*figures, device.tier_i, device.usd_per_hour, host.link_bytes_per_s, host.link_latency_s)
