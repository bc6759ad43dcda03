"""What the organisations own: devices in hosts, hosts in sites, sites in boundaries, and links between them.

Rates are bytes per second and floating-point operations per second; one multiply-add counts as two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or CPU socket.

    `flop_per_s` holds (dtype, sustained dense rate) pairs; `origin` says where the figures come from
    (`measured`, `declared` or `assumed`). `tier_i` is the position in the fleet's tier list.
    """

    device_id: str
    host_id: str
    type_name: str
    memory_bytes: float
    flop_per_s: tuple[tuple[str, float], ...]
    memory_bytes_per_s: float
    tier_i: int
    usd_per_hour: float = 0.0
    mtbf_s: float | None = None
    owner: str = ""
    origin: str = "declared"

    def rate_flop_per_s(self, dtype: str) -> float:
        """Sustained dense rate for `dtype`; the fp32 rate when the dtype has none of its own."""
        rates = dict(self.flop_per_s)
        return rates.get(dtype, rates.get("fp32", 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One computer; `link_*` describe transfers between its own devices."""

    host_id: str
    site_id: str
    link_bytes_per_s: float
    link_latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Hosts joined by one uniform fabric; `fabric_*` describe transfers between two of its hosts."""

    site_id: str
    boundary_id: str
    fabric_bytes_per_s: float
    fabric_latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A one-way connection between two sites (or, with equal ends, the fabric inside one)."""

    source_site_id: str
    target_site_id: str
    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Everything there is. `tiers` go from the lowest clearance to the highest.

    `links` join sites of one boundary for training traffic and sites of different boundaries for aggregates.
    Two sites without a link can't exchange anything.
    """

    name: str
    tiers: tuple[str, ...]
    boundaries: tuple[str, ...]
    sites: tuple[Site, ...]
    hosts: tuple[Host, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    memory_reserve_frac: float = field(default=0.06)

    @cached_property
    def site_by_id(self) -> dict[str, Site]:
        """Sites by their id."""
        return {site.site_id: site for site in self.sites}

    @cached_property
    def host_by_id(self) -> dict[str, Host]:
        """Hosts by their id."""
        return {host.host_id: host for host in self.hosts}

    @cached_property
    def device_by_id(self) -> dict[str, Device]:
        """Devices by their id."""
        return {device.device_id: device for device in self.devices}

    @cached_property
    def link_by_ends(self) -> dict[tuple[str, str], Link]:
        """Links by (source site, target site); a site's own fabric stands under (site, site)."""
        own = {
            (site.site_id, site.site_id): Link(
                source_site_id=site.site_id,
                target_site_id=site.site_id,
                bytes_per_s=site.fabric_bytes_per_s,
                latency_s=site.fabric_latency_s,
            )
            for site in self.sites
        }
        return own | {(link.source_site_id, link.target_site_id): link for link in self.links}

    def boundary_of(self, device: Device) -> str:
        """The administrative domain a device belongs to."""
        return self.site_by_id[self.host_by_id[device.host_id].site_id].boundary_id

    def site_of(self, device: Device) -> Site:
        """The site a device stands in."""
        return self.site_by_id[self.host_by_id[device.host_id].site_id]
