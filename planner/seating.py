"""Free devices of one boundary, host by host, and candidate clusters seated on them one at a time.

Unlike a whole plan's packing, what is free here need not be multiples of anything, so seating may fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from costmodels.fleet import Fleet
from planner.packing_hosts import reliability_s
from planner.problem import BoundaryProblem, Part, Template

FreeHosts = Mapping[int, Sequence[tuple[str, ...]]]


def free_hosts(problem: BoundaryProblem, free: Set[str]) -> FreeHosts:
    """Free devices of every host, per class, in the order of the class."""
    return {c.class_i: [tuple(d for d in host if d in free) for host in c.hosts] for c in problem.classes}


def seatable(template: Template, hosts: FreeHosts) -> bool:
    """Whether enough hosts have enough free devices for every part of a cluster."""
    return all(
        sum(len(host) >= part.per_host for host in hosts[part.class_i]) >= part.num_hosts
        for part in template.parts
    )


def seat_template(
    fleet: Fleet, template: Template, hosts: FreeHosts, *, before: Sequence[str] = ()
) -> tuple[str, ...] | None:
    """Devices for a cluster in rank order; None when the free hosts don't allow it.

    Hosts that can give most of the devices the stage had `before` come first, then the fullest, then by
    position.
    """
    taken: list[str] = []
    for part in template.parts:
        chosen = _seat_part(fleet, part, hosts[part.class_i], frozenset(before))
        if chosen is None:
            return None
        taken += chosen
    return tuple(taken)


def _seat_part(
    fleet: Fleet, part: Part, hosts: Sequence[tuple[str, ...]], before: frozenset[str]
) -> list[str] | None:
    able = [i for i, host in enumerate(hosts) if len(host) >= part.per_host]
    if len(able) < part.num_hosts:
        return None

    def merit(i: int) -> tuple[int, int, float, int]:
        kept = sum(d in before for d in hosts[i])
        steady = max(reliability_s(fleet.device_by_id[d]) for d in hosts[i])
        return (-min(kept, part.per_host), len(hosts[i]), -steady, i)

    taken: list[str] = []
    for i in sorted(able, key=merit)[: part.num_hosts]:
        position = {d: k for k, d in enumerate(hosts[i])}
        wanted = sorted(
            hosts[i], key=lambda d: (d not in before, -reliability_s(fleet.device_by_id[d]), position[d])
        )
        taken += sorted(wanted[: part.per_host], key=position.__getitem__)
    return taken
