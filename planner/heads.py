"""Who leads: the head of each stage, and the hosts of each boundary's aggregator.

A head answers for its stage towards the other stages, so it should be the member least likely to fail, on the
host with the fastest link. The aggregator sees masked updates of all participants of its boundary; it and its
standby stand on two hosts, so that one failure never takes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from costmodels.fleet import Device, Fleet
from planner.packing_hosts import reliability_s


def stage_head(fleet: Fleet, members: Sequence[Device]) -> str:
    """The member with the longest time between failures, then on the fastest host link, then by name."""

    def merit(device: Device) -> tuple[float, float, str]:
        host = fleet.host_by_id[device.host_id]
        return (-reliability_s(device), -host.link_bytes_per_s, device.device_id)

    return min(members, key=merit).device_id


def aggregator_hosts(fleet: Fleet, site_ids: Sequence[str], running: Set[str]) -> Mapping[str, str | None]:
    """`host` and `standby` of a boundary's aggregator; no standby where the boundary has one host.

    Hosts are ranked by the highest clearance of their devices, then those with an idle device (`running`
    lists the busy ones), then by the least reliable of their devices, the speed of their fabric, and their
    name. The first two are taken.
    """
    sites = set(site_ids)
    by_host: dict[str, list[Device]] = {h.host_id: [] for h in fleet.hosts if h.site_id in sites}
    for device in fleet.devices:
        if device.host_id in by_host:
            by_host[device.host_id].append(device)

    def merit(host_id: str) -> tuple[float, bool, float, float, str]:
        """What makes a host a better place for a head; least is best."""
        devices = by_host[host_id]
        fabric = fleet.site_by_id[fleet.host_by_id[host_id].site_id].fabric_bytes_per_s
        return (
            -max((d.tier_i for d in devices), default=-1),
            all(d.device_id in running for d in devices),
            -min((reliability_s(d) for d in devices), default=-1.0),
            -fabric,
            host_id,
        )

    ranked = sorted(by_host, key=merit)
    return {"host": ranked[0], "standby": ranked[1] if len(ranked) > 1 else None}
