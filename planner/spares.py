"""Devices held back, and why each idle device is idle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

from costmodels.fleet import Fleet
from planner.packing_hosts import reliability_s
from planner.plan import Excluded, StagePlan
from planner.problem import BoundaryProblem, DeviceClass
from policies.policy import SpareKind, SpareRule

DEDICATED = "spare"
POOLED = "pooled-spare"
NOT_CLEARED = "not-cleared"
NO_STAGE_FITS = "no-stage-fits"
NOT_NEEDED = "not-needed"


def excluded_devices(
    fleet: Fleet, problem: BoundaryProblem, rule: SpareRule, running: Set[str], dedicated: Set[str]
) -> tuple[Excluded, ...]:
    """Every device of the boundary that runs no rank, in the fleet's order, with its reason.

    `spare`: the dedicated spare of a stage. `pooled-spare`: held back for its pool. `not-cleared`: its tier
    may hold no layer. `no-stage-fits`: no candidate cluster with it holds even one layer. `not-needed`: the
    plan is no better with it.
    """
    pooled = pool_spares(fleet, problem, rule, running | dedicated)
    reasons: dict[str, str] = {}
    for device_class in problem.classes:
        idle = [d for host in device_class.hosts for d in host if d not in running and d not in dedicated]
        if idle:
            reason = _class_reason(problem, device_class)
            reasons |= {d: POOLED if d in pooled else reason for d in idle}
    reasons |= dict.fromkeys(dedicated, DEDICATED)
    return tuple(
        Excluded(device=d.device_id, reason=reasons[d.device_id])
        for d in fleet.devices
        if d.device_id in reasons
    )


def pools_of(problem: BoundaryProblem) -> dict[tuple[str, int], list[DeviceClass]]:
    """Classes of one type and tier, which stand in for each other."""
    pools: dict[tuple[str, int], list[DeviceClass]] = defaultdict(list)
    for device_class in problem.classes:
        pools[(device_class.device.type_name, device_class.device.tier_i)].append(device_class)
    return dict(pools)


def pool_spares(fleet: Fleet, problem: BoundaryProblem, rule: SpareRule, taken: Set[str]) -> frozenset[str]:
    """The idle devices that count as spares of their pool: the most reliable ones, `per_pool` of each."""
    if rule.kind is not SpareKind.POOLED:
        return frozenset()
    chosen: set[str] = set()
    for members in pools_of(problem).values():
        if sum(c.num_devices for c in members) >= rule.pool_min_devices:
            idle = [d for c in members for host in c.hosts for d in host if d not in taken]
            idle.sort(key=lambda d: -reliability_s(fleet.device_by_id[d]))
            chosen.update(idle[: rule.per_pool])
    return frozenset(chosen)


def eligible_spares(
    fleet: Fleet, problem: BoundaryProblem, stage: StagePlan, excluded: Sequence[Excluded]
) -> tuple[str, ...]:
    """Idle devices of the boundary that equal a member of the stage in type, and are cleared for its layers.

    Its own dedicated spare comes first, then spares of the pool, then whatever else is idle.
    """
    required = max(problem.tier_required[stage.layers[0] : stage.layers[1]])
    types = {fleet.device_by_id[d].type_name for d in stage.devices}
    order = {POOLED: 0}
    able = [
        entry
        for entry in excluded
        if entry.reason != DEDICATED
        and fleet.device_by_id[entry.device].type_name in types
        and fleet.device_by_id[entry.device].tier_i >= required
    ]
    able.sort(key=lambda entry: order.get(entry.reason, 1))
    return (*stage.spares, *(entry.device for entry in able))


def _class_reason(problem: BoundaryProblem, device_class: DeviceClass) -> str:
    """Why devices of a class that are no spares stay idle."""
    if device_class.device.tier_i < min(problem.tier_required):
        return NOT_CLEARED
    clearing = [i for i, tier_i in enumerate(problem.tier_required) if tier_i <= device_class.device.tier_i]
    admissible = {template_i: mode for mode in problem.modes for template_i in mode.templates}
    for template in problem.templates:
        mode = admissible.get(template.template_i)
        if mode is None or all(part.class_i != device_class.class_i for part in template.parts):
            continue
        for layer_i in clearing:
            cost = problem.cost_model.stage(
                template.cluster, (layer_i, layer_i + 1), template.strategy, mode.micro_batch_size, 1
            )
            if cost is not None and cost.fits:
                return NOT_NEEDED
    return NO_STAGE_FITS
