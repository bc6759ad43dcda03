"""Which replacement of the plan takes over after a loss. Pure.

Executors have no solver: every replacement stands in the plan, checked and priced. Losses add up, so after a
second one the replacement must do without all that has ever been lost.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from planner.plan import Failover, Plan, ReplicaPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A replacement with its position among the boundary's failover entries, or None; `reason` says why."""

    replacement: ReplicaPlan | None
    entry: int | None
    reason: str


def devices_of(replica: ReplicaPlan) -> frozenset[str]:
    """Devices that run a replica; its spares are not among them."""
    return frozenset(device for stage in replica.stages for device in stage.devices)


def next_replica(
    plan: Plan, boundary: str, replica: str, lost: Set[str], *, in_use: Set[str] = frozenset()
) -> Choice:
    """The replacement of a replica after these losses.

    An entry fits when its replacement uses no lost device and none that another replica runs on. Entries for
    all of the replica's lost devices come first, then the fastest.

    Args:
        plan: the plan that was launched.
        boundary: name of the replica's boundary.
        replica: its id.
        lost: every device that has been lost since the launch, in any replica.
        in_use: devices on which other replicas run now.
    """
    entries = [
        (position, entry)
        for each in plan.boundaries
        if each.name == boundary
        for position, entry in enumerate(each.failover)
        if entry.replica == replica
    ]
    own = lost & _planned_devices(plan, boundary, replica)
    fitting = [
        (not own <= set(entry.devices), -entry.tokens_per_s, position, entry.replacement)
        for position, entry in entries
        if entry.replacement is not None and not devices_of(entry.replacement) & (lost | in_use)
    ]
    if not fitting:
        return Choice(replacement=None, entry=None, reason=_why_none(entries, own, lost, in_use))
    for_another_loss, _, position, replacement = min(fitting, key=lambda each: each[:3])
    what = "planned for another loss, and does without these" if for_another_loss else "planned for this loss"
    return Choice(
        replacement=replacement, entry=position, reason=f"failover entry {position}, {what}: {_listed(lost)}"
    )


def boundary_of(plan: Plan, replica: str) -> str:
    """The boundary of a replica; ids are unique in a plan."""
    return next(b.name for b in plan.boundaries for known in b.replicas if known.id == replica)


def _planned_devices(plan: Plan, boundary: str, replica: str) -> frozenset[str]:
    return frozenset(
        device
        for each in plan.boundaries
        if each.name == boundary
        for known in each.replicas
        if known.id == replica
        for device in devices_of(known)
    )


def _why_none(entries: list[tuple[int, Failover]], own: Set[str], lost: Set[str], in_use: Set[str]) -> str:
    """What stands against each entry that was meant for the loss."""
    meant = [(i, entry) for i, entry in entries if own <= set(entry.devices)]
    if not meant:
        return f"the plan has no replacement for the loss of {_listed(own or lost)} together"
    told = []
    for position, entry in meant:
        used = frozenset() if entry.replacement is None else devices_of(entry.replacement)
        if entry.replacement is None:
            told.append(f"no replacement exists without {_listed(set(entry.devices))}")
        elif used & lost:
            told.append(f"failover entry {position} uses {_listed(used & lost)}, lost as well")
        else:
            told.append(
                f"failover entry {position} uses {_listed(used & in_use)}, which another replica runs on"
            )
    return "; ".join(told)


def _listed(devices: Set[str]) -> str:
    return ", ".join(sorted(devices)) or "no device"
