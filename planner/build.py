"""From fleet, workload and policy to a `Problem`: one boundary problem each, with its capacity rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from costmodels.fleet import Fleet
from costmodels.interface import CostModel, priced_for
from costmodels.workload import Workload
from planner.candidates import (
    EXECUTORS,
    CandidateRule,
    build_classes,
    build_modes,
    build_templates,
    rule_for,
)
from planner.problem import (
    BoundaryProblem,
    CapacityRow,
    DeviceClass,
    Objective,
    ObjectiveKind,
    Problem,
    tier_required_by_layer,
)
from policies.errors import EchelonError, PolicyRefusedError
from policies.policy import Policy, SpareKind


def build_problem(
    fleet: Fleet,
    workload: Workload,
    policy: Policy,
    cost_model: CostModel,
    *,
    objective: Objective | None = None,
    executor: str = "any",
    rule: CandidateRule | None = None,
) -> Problem:
    """The placement problem of all boundaries that take part.

    Raises:
        PolicyRefusedError: `two-boundaries` when only two boundaries would exchange aggregates unaccepted.
        EchelonError: `unknown-executor`, `price-needs-target`; what the cost model says of the executor.
    """
    objective = objective or Objective()
    if executor not in EXECUTORS:
        raise EchelonError(
            "unknown-executor", f"executor {executor!r} is unknown", hint=f"use one of {', '.join(EXECUTORS)}"
        )
    if objective.kind is ObjectiveKind.PRICE and not objective.tokens_per_s_min:
        raise EchelonError(
            "price-needs-target", "objective price has no tokens/s target", hint="give --tokens-per-s-min"
        )
    names = policy.boundaries if policy.boundaries is not None else fleet.boundaries
    if objective.kind is ObjectiveKind.STEP_TIME and policy.replicas_min(num_boundaries=len(names)) > 1:
        raise EchelonError(
            "step-time-needs-one-replica",
            f"objective step-time plans one replica per boundary, but {len(names)} boundaries need at least "
            f"{policy.replicas_min(num_boundaries=len(names))} each",
            hint="use objective tokens, or name a single boundary in the policy",
        )
    if len(names) == 2 and not policy.accept_two_boundaries:
        raise PolicyRefusedError(
            "two-boundaries",
            f"only {names[0]} and {names[1]} take part: "
            "each could derive the other's delta from the new global model",
            hint="add a third boundary, or set `accept_two_boundaries: true` in the policy",
        )
    cost_model = priced_for(cost_model, executor)
    boundaries = tuple(
        _build_boundary(fleet, name, len(names), workload, policy, cost_model, objective, executor, rule)
        for name in names
    )
    return Problem(
        fleet=fleet,
        workload=workload,
        policy=policy,
        cost_model=cost_model,
        objective=objective,
        executor=executor,
        boundaries=boundaries,
        usd_per_hour_max=policy.usd_per_hour_max,
    )


def _build_boundary(
    fleet: Fleet,
    name: str,
    num_boundaries: int,
    workload: Workload,
    policy: Policy,
    cost_model: CostModel,
    objective: Objective,
    executor: str,
    rule: CandidateRule | None,
) -> BoundaryProblem:
    site_ids, classes = build_classes(fleet, name)
    num_devices = sum(c.num_devices for c in classes)
    rule = rule or rule_for(num_devices, workload.job)
    templates = build_templates(fleet, site_ids, classes, workload.job, rule, policy.spares.kind)
    links = tuple(tuple(fleet.link_by_ends.get((a, b)) for b in site_ids) for a in site_ids)
    single = objective.kind is ObjectiveKind.STEP_TIME
    rows = class_rows(classes) + pool_rows(classes, policy) + price_rows(classes, policy, num_boundaries)
    return BoundaryProblem(
        name=name,
        objective=objective,
        workload=workload,
        cost_model=cost_model,
        site_ids=site_ids,
        links=links,
        classes=classes,
        templates=templates,
        modes=build_modes(templates, workload.job, executor),
        rows=rows,
        tier_required=tier_required_by_layer(fleet, policy, workload.num_layers),
        replicas_min=policy.replicas_min(num_boundaries=num_boundaries),
        replicas_max=1 if single else policy.replicas_max,
        speed_ratio_max=policy.speed_ratio_max,
    )


def class_rows(classes: Sequence[DeviceClass]) -> tuple[CapacityRow, ...]:
    """`class[c]`: devices used of a class never exceed those there are."""
    return tuple(
        CapacityRow(name=f"class[{c.class_i}]", coefficients=((c.class_i, 1.0),), limit=float(c.num_devices))
        for c in classes
    )


def pool_rows(classes: Sequence[DeviceClass], policy: Policy) -> tuple[CapacityRow, ...]:
    """`pool[type,tier]`: pooled spares stay unused in every pool that is large enough to owe them."""
    rule = policy.spares
    if rule.kind is not SpareKind.POOLED:
        return ()
    pools: dict[tuple[str, int], list[DeviceClass]] = defaultdict(list)
    for device_class in classes:
        pools[(device_class.device.type_name, device_class.device.tier_i)].append(device_class)
    rows = []
    for (type_name, tier_i), members in pools.items():
        total = sum(c.num_devices for c in members)
        if total >= rule.pool_min_devices:
            coefficients = tuple((c.class_i, 1.0) for c in members)
            name = f"pool[{type_name},{tier_i}]"
            rows.append(CapacityRow(name=name, coefficients=coefficients, limit=float(total - rule.per_pool)))
    return tuple(rows)


def price_rows(
    classes: Sequence[DeviceClass], policy: Policy, num_boundaries: int
) -> tuple[CapacityRow, ...]:
    """`price`: with one boundary the ceiling is a row of its own; with several it couples them."""
    if policy.usd_per_hour_max is None or num_boundaries > 1:
        return ()
    coefficients = tuple((c.class_i, c.device.usd_per_hour) for c in classes)
    return (CapacityRow(name="price", coefficients=coefficients, limit=policy.usd_per_hour_max),)


def without_owners(fleet: Fleet, owners: Sequence[str]) -> Fleet:
    """The fleet less the devices of some owners (spill-over capacity)."""
    return replace(fleet, devices=tuple(d for d in fleet.devices if d.owner not in owners))
