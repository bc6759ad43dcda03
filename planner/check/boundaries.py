"""One boundary of a plan: its replicas together, its idle devices, its aggregator, its failovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from planner.check.fleet_view import BoundaryView
from planner.check.replicas import DerivedReplica, check_replica
from planner.check.report import Findings
from planner.plan import BoundaryPlan, Failover, ReplicaPlan
from policies.policy import SpareKind, SpareRule


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedBoundary:
    """What a boundary's replicas are worth together.

    `tokens_per_s` counts a replica faster than speed_ratio_max times the slowest one as throttled to that.
    """

    step_s: float
    tokens_per_s: float
    usd_per_hour: float


def check_boundary(
    view: BoundaryView, boundary: BoundaryPlan, spares: SpareRule, findings: Findings, place: str
) -> DerivedBoundary | None:
    """The boundary's own figures; None when one of its replicas can't be priced. Every fault is recorded."""
    derived: list[DerivedReplica] = []
    for i, replica in enumerate(boundary.replicas):
        one = check_replica(view, replica, findings, f"{place}.replicas[{i}]", with_spares=True)
        if one is not None:
            derived.append(one)
    _check_devices(view, boundary, findings, place)
    _check_pools(view, boundary, spares, findings, place)
    _check_aggregator(view, boundary, findings, place)
    _check_count(view, boundary, findings, place)
    for i, failover in enumerate(boundary.failover):
        _check_failover(view, boundary, failover, findings, f"{place}.failover[{i}]")
    if len(derived) < len(boundary.replicas) or not derived:
        return None
    return _together(derived, view.problem.speed_ratio_max)


def _together(derived: Sequence[DerivedReplica], speed_ratio_max: float | None) -> DerivedBoundary:
    cap = float("inf")
    if speed_ratio_max is not None:
        cap = speed_ratio_max * min(one.tokens_per_s for one in derived)
    return DerivedBoundary(
        step_s=max(one.step_s for one in derived),
        tokens_per_s=sum(min(one.tokens_per_s, cap) for one in derived),
        usd_per_hour=sum(one.usd_per_hour for one in derived),
    )


def running(replicas: Sequence[ReplicaPlan]) -> list[str]:
    """Devices that run a rank, in plan order."""
    return [device_id for replica in replicas for stage in replica.stages for device_id in stage.devices]


def held_back(replicas: Sequence[ReplicaPlan]) -> list[str]:
    """Dedicated spares, in plan order."""
    return [device_id for replica in replicas for stage in replica.stages for device_id in stage.spares]


def _check_devices(view: BoundaryView, boundary: BoundaryPlan, findings: Findings, place: str) -> None:
    """`device-once`, `excluded`: a device has one use or none, and every idle one is listed once."""
    taken = Counter(running(boundary.replicas)) + Counter(held_back(boundary.replicas))
    for device_id, count in taken.items():
        if count > 1:
            findings.add("device-once", f"{place}.replicas", f"{device_id} {count} times", "each device once")
    listed = Counter(entry.device for entry in boundary.excluded)
    spare_ids = set(held_back(boundary.replicas))
    for device_id, count in listed.items():
        if device_id not in view.class_of or count > 1 or (device_id in taken and device_id not in spare_ids):
            limit = "idle devices of the boundary, each once"
            findings.add("excluded", f"{place}.excluded", f"{device_id} {count} times", limit)
    for device_id in view.class_of:
        if device_id not in taken and device_id not in listed:
            findings.add("excluded", f"{place}.excluded", f"{device_id} is missing", "every idle device")
    for i, entry in enumerate(boundary.excluded):
        if not entry.reason:
            findings.add("excluded", f"{place}.excluded[{i}].reason", entry.reason, "a reason")


def _check_pools(
    view: BoundaryView, boundary: BoundaryPlan, rule: SpareRule, findings: Findings, place: str
) -> None:
    """`pool`: of every large enough set of equal type and clearance, `per_pool` devices stay idle."""
    if rule.kind is not SpareKind.POOLED:
        return
    pool_of = {
        device_id: (device_class.device.type_name, device_class.device.tier_i)
        for device_class in view.problem.classes
        for host in device_class.hosts
        for device_id in host
    }
    sizes = Counter(pool_of.values())
    busy = Counter(
        pool_of[device_id] for device_id in set(running(boundary.replicas)) if device_id in pool_of
    )
    for pool, total in sizes.items():
        if total >= rule.pool_min_devices and total - busy[pool] < rule.per_pool:
            findings.add("pool", f"{place}.replicas", f"{total - busy[pool]} of {pool} idle", rule.per_pool)


def _check_aggregator(view: BoundaryView, boundary: BoundaryPlan, findings: Findings, place: str) -> None:
    """`aggregator`: host and standby are two hosts of the boundary; one host alone has no standby."""
    here = f"{place}.aggregator"
    if set(boundary.aggregator) != {"host", "standby"}:
        findings.add("aggregator", here, sorted(boundary.aggregator), ["host", "standby"])
        return
    host, standby = boundary.aggregator["host"], boundary.aggregator["standby"]
    if host not in view.host_ids:
        findings.add("aggregator", f"{here}.host", host, "a host of the boundary")
    wants_none = len(view.host_ids) == 1
    if (standby is None) != wants_none or (standby is not None and standby not in view.host_ids - {host}):
        limit = "null, for there is one host" if wants_none else "another host of the boundary"
        findings.add("aggregator", f"{here}.standby", standby, limit)


def _check_count(view: BoundaryView, boundary: BoundaryPlan, findings: Findings, place: str) -> None:
    """`replicas-min`, `replicas-max`: as many replicas as the policy demands and allows."""
    count, problem = len(boundary.replicas), view.problem
    if count < max(1, problem.replicas_min):
        findings.add("replicas-min", f"{place}.replicas", count, max(1, problem.replicas_min))
    if problem.replicas_max is not None and count > problem.replicas_max:
        findings.add("replicas-max", f"{place}.replicas", count, problem.replicas_max)


def _check_failover(
    view: BoundaryView, boundary: BoundaryPlan, failover: Failover, findings: Findings, place: str
) -> None:
    """`failover`: the replacement is a sound replica of what is left of the old one and of idle devices."""
    replica = next((one for one in boundary.replicas if one.id == failover.replica), None)
    if replica is None:
        findings.add("failover", f"{place}.replica", failover.replica, "a replica of the boundary")
        return
    own = set(running([replica])) | set(held_back([replica]))
    lost = set(failover.devices)
    if not lost or not lost <= own:
        findings.add("failover", f"{place}.devices", sorted(lost - own), f"devices of {replica.id}")
    if failover.replacement is None:
        findings.require_same("failover", f"{place}.tokens_per_s", failover.tokens_per_s, 0.0)
        return
    others = set(running(boundary.replicas)) | set(held_back(boundary.replicas))
    free = (set(view.class_of) - others) | own
    used = running([failover.replacement])
    for device_id in sorted(set(used) - (free - lost)):
        limit = "a device of the old replica that is left, or an idle one"
        findings.add("failover", f"{place}.replacement", device_id, limit)
    if len(set(used)) != len(used):
        findings.add("device-once", f"{place}.replacement", "a device twice", "each device once")
    derived = check_replica(view, failover.replacement, findings, f"{place}.replacement", with_spares=False)
    if derived is not None:
        findings.require_equal(
            "failover", f"{place}.tokens_per_s", failover.tokens_per_s, derived.tokens_per_s
        )
