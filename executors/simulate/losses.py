"""After a loss: which chain of the plan takes over, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from costmodels.fleet import Fleet
from executors.simulate.options import Loss
from planner.plan import Failover, Plan, ReplicaPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A loss as one replica sees it: what is gone, `own` of it the replica's, and the plan's replacement."""

    loss: Loss
    lost: frozenset[str]
    own: frozenset[str]
    replacement: ReplicaPlan | None


def hits_by_replica(plan: Plan, fleet: Fleet, losses: Sequence[Loss]) -> Mapping[str, tuple[Hit, ...]]:
    """What each loss means for each replica that has devices in it, the replica's first step first."""
    found: dict[str, list[Hit]] = {}
    for boundary in plan.boundaries:
        for replica in boundary.replicas:
            devices = {d for stage in replica.stages for d in stage.devices}
            for loss in losses:
                lost = named_devices(fleet, loss.name)
                own = lost & devices
                if own:
                    replacement = replacement_of(boundary.failover, replica.id, own)
                    hit = Hit(loss=loss, lost=lost, own=own, replacement=replacement)
                    found.setdefault(replica.id, []).append(hit)
    return {name: tuple(sorted(hits, key=lambda hit: hit.loss.step)) for name, hits in found.items()}


def named_devices(fleet: Fleet, name: str) -> frozenset[str]:
    """The device of that name, or all devices of the host."""
    if name in fleet.device_by_id:
        return frozenset((name,))
    return frozenset(d.device_id for d in fleet.devices if d.host_id == name)


def replacement_of(entries: Sequence[Failover], replica_id: str, lost: Set[str]) -> ReplicaPlan | None:
    """The plan's replacement when all of these devices are gone: the first entry that covers them."""
    for entry in entries:
        if entry.replica == replica_id and lost <= set(entry.devices):
            return entry.replacement
    return None
