"""A fleet file in its shape into core types, with every reference checked where the user wrote it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from costmodels.catalog import DeviceType, device_type
from costmodels.fleet import Device, Fleet, Host, Link, Site
from planner.faults import nearest
from planner.hostnames import expand_pattern
from planner.schema.fleet import DeviceGroupShape, FleetShape, HostShape, LinkShape, PathShape
from planner.schema.source import KeyPath, Source
from policies.errors import Fault, InputError

DEVICES_MAX = 65_536
# A host without a stated link and without a catalog type: PCI Express 3.0 x16 in one direction, rounded down.
HOST_LINK_BYTES_PER_S = 12e9


def build_fleet(shape: FleetShape, source: Source) -> tuple[Fleet | None, list[Fault]]:
    """The fleet in core types, or every fault of it."""
    builder = _Builder(shape=shape, source=source)
    builder.check_names()
    sites = tuple(builder.sites())
    hosts, devices = builder.hosts_and_devices()
    links = tuple(builder.links())
    if builder.faults:
        return None, builder.faults
    fleet = Fleet(
        name=shape.name,
        tiers=tuple(shape.tiers),
        boundaries=tuple(boundary.name for boundary in shape.boundaries),
        sites=sites,
        hosts=tuple(hosts),
        devices=tuple(devices),
        links=links,
        memory_reserve_frac=shape.memory_reserve,
    )
    return fleet, []


@dataclass(slots=True, kw_only=True)
class _Builder:
    """One pass over a fleet file; faults are collected, never raised."""

    shape: FleetShape
    source: Source
    faults: list[Fault] = field(default_factory=list)

    def check_names(self) -> None:
        """Tiers, boundaries and sites are named once."""
        self._require_once("tiers", self.shape.tiers, None)
        self._require_once("boundaries", [boundary.name for boundary in self.shape.boundaries], "name")
        self._require_once("sites", [site.name for site in self.shape.sites], "name")

    def sites(self) -> list[Site]:
        """The sites, each inside a boundary of the fleet."""
        known = [boundary.name for boundary in self.shape.boundaries]
        for i, site in enumerate(self.shape.sites):
            self._require_known(("sites", i, "boundary"), site.boundary, known, "boundaries")
        return [
            Site(
                site_id=site.name,
                boundary_id=site.boundary,
                fabric_bytes_per_s=site.fabric,
                fabric_latency_s=site.latency,
            )
            for site in self.shape.sites
        ]

    def hosts_and_devices(self) -> tuple[list[Host], list[Device]]:
        """Every host its pattern stands for, with its devices."""
        hosts: list[Host] = []
        devices: list[Device] = []
        line_of_host: dict[str, KeyPath] = {}
        site_names = [site.name for site in self.shape.sites]
        for i, shape in enumerate(self.shape.hosts):
            path: KeyPath = ("hosts", i)
            self._require_known((*path, "site"), shape.site, site_names, "sites")
            models = self._device_models(shape, path)
            link_bytes_per_s, link_latency_s = self._host_link(shape)
            names = expand_pattern(shape.name)
            if len(devices) + len(names) * len(models) > DEVICES_MAX:
                self._fault((*path, "name"), f"at most {DEVICES_MAX:,} devices in a fleet")
                break
            for name in names:
                if name in line_of_host:
                    other = self.source.place(line_of_host[name])
                    hint = f"also given at {other}"
                    self._fault((*path, "name"), "each host once", value=f"host `{name}` again", hint=hint)
                    continue
                line_of_host[name] = path
                host = Host(
                    host_id=name,
                    site_id=shape.site,
                    link_bytes_per_s=link_bytes_per_s,
                    link_latency_s=link_latency_s,
                )
                hosts.append(host)
                devices += (
                    Device(device_id=f"{name}/{k}", host_id=name, **model) for k, model in enumerate(models)
                )
        return hosts, devices

    def links(self) -> list[Link]:
        """Links as listed, then what `wan` says of the pairs that are not."""
        listed: dict[tuple[str, str], Link] = {}
        given_at: dict[tuple[str, str], KeyPath] = {}
        site_names = [site.name for site in self.shape.sites]
        for i, shape in enumerate(self.shape.links):
            path: KeyPath = ("links", i)
            for source, target in self._directions(shape, path, site_names):
                if (source, target) in given_at:
                    hint = f"also given at {self.source.place(given_at[source, target])}"
                    value = f"{source} to {target} again"
                    self._fault(path, "each direction once", value=value, hint=hint)
                    continue
                given_at[source, target] = path
                listed[source, target] = Link(
                    source_site_id=source,
                    target_site_id=target,
                    bytes_per_s=shape.bandwidth,
                    latency_s=shape.latency,
                )
        links = [*listed.values(), *self._wan_links(listed)]
        ends = {(link.source_site_id, link.target_site_id) for link in links}
        for (source, target), path in given_at.items():
            if (target, source) not in ends:
                hint = "use `between`, add the other direction, or give a `wan` default"
                limit = "a way back"
                self._fault(path, limit, value=f"{source} to {target}, but not back", hint=hint)
        return links

    def _device_models(self, shape: HostShape, path: KeyPath) -> list[dict[str, Any]]:
        """The fields of every device of one host, but for its names."""
        models: list[dict[str, Any]] = []
        owner_by_boundary = {boundary.name: boundary.owner for boundary in self.shape.boundaries}
        boundary_by_site = {site.name: site.boundary for site in self.shape.sites}
        home = owner_by_boundary.get(boundary_by_site.get(shape.site, "")) or ""
        for j, group in enumerate(shape.devices):
            group_path = self.source.written((*path, "devices", j))
            figures = self._figures(group, group_path)
            tier_i = self._tier_i(shape, group, path, group_path)
            price = group.price if group.price is not None else shape.price
            model = {
                **figures,
                "tier_i": tier_i,
                "usd_per_hour": price if price is not None else 0.0,
                "mtbf_s": group.mtbf if group.mtbf is not None else shape.mtbf,
                "owner": group.owner or shape.owner or home,
            }
            if figures:
                models += [model] * group.count
        return models

    def _figures(self, group: DeviceGroupShape, path: KeyPath) -> dict[str, Any]:
        """Type, memory, rates and their origin: what the file declares, else what the catalog assumes."""
        known = _catalog_type(group.type)
        if known is None:
            if not (group.memory and group.rate and group.memory_bandwidth):
                self._unknown_type(group, path)
                return {}
            name, memory_bytes, bytes_per_s = group.type, group.memory, group.memory_bandwidth
        else:
            name, memory_bytes = known.name, group.memory or float(known.memory_bytes)
            bytes_per_s = group.memory_bandwidth or known.memory_bytes_per_s
        rates = group.rate or dict(known.sustained_flop_per_s if known else ())
        if not memory_bytes:
            limit = "this key, since a processor's memory depends on its host"
            self._fault((*path, "memory"), limit, value="missing", hint="per device, such as '256 GiB'")
            return {}
        return {
            "type_name": name,
            "memory_bytes": memory_bytes,
            "flop_per_s": tuple(sorted(rates.items())),
            "memory_bytes_per_s": bytes_per_s,
            "origin": "declared" if group.rate else "assumed",
        }

    def _unknown_type(self, group: DeviceGroupShape, path: KeyPath) -> None:
        """A type that the catalog does not know, and what an own type lacks."""
        needed = ("memory", "rate", "memory_bandwidth")
        missing = [key for key in needed if not getattr(group, key)]
        if len(missing) < len(needed):
            limit = f"this key, since `{group.type}` is no type of the catalog"
            for key in missing:
                self._fault((*path, key), limit, value="missing")
            return
        hint = "or give memory, rate and memory_bandwidth"
        try:
            device_type(group.type)
        except InputError as error:
            hint = f"{error.hint}; {hint}" if error.hint else hint
        at = (*path, "type") if (*path, "type") in self.source.line_of else path
        self._fault(at, "a device type of the catalog", value=f"`{group.type}`", hint=hint)

    def _tier_i(self, shape: HostShape, group: DeviceGroupShape, path: KeyPath, group_path: KeyPath) -> int:
        """Position of the device's tier; a fleet of one tier needs none written."""
        tiers = self.shape.tiers
        tier = group.tier or shape.tier
        if tier is None and len(tiers) == 1:
            return 0
        if tier is None:
            hint = f"one of {', '.join(tiers)}"
            self._fault((*path, "tier"), "this key, here or at each device group", value="missing", hint=hint)
            return 0
        at = (*group_path, "tier") if group.tier else (*path, "tier")
        self._require_known(at, tier, tiers, "tiers")
        return tiers.index(tier) if tier in tiers else 0

    def _host_link(self, shape: HostShape) -> tuple[float, float]:
        """Bytes per second and latency inside the host: as written, else what its devices have in common.

        Devices of one type use their direct link, if they have one; unlike devices talk through the host,
        at the pace of the slowest.
        """
        latency_s = shape.link_latency if shape.link_latency is not None else 0.0
        if shape.link is not None:
            return shape.link, latency_s
        found = {group.type: _catalog_type(group.type) for group in shape.devices}
        types = {known.name if known else name: known for name, known in found.items()}
        rates = [
            HOST_LINK_BYTES_PER_S
            if known is None
            else known.device_link_bytes_per_s
            if len(types) == 1
            else known.host_link_bytes_per_s
            for known in types.values()
        ]
        return min(rates, default=HOST_LINK_BYTES_PER_S), latency_s

    def _directions(
        self, shape: LinkShape, path: KeyPath, site_names: Sequence[str]
    ) -> list[tuple[str, str]]:
        """The one or two directions of a listed link whose ends exist."""
        one_way = shape.source is not None and shape.target is not None
        neither = shape.source is None and shape.target is None
        if (shape.between is None) == neither or not (one_way or neither):
            self._fault(path, "either `between: [a, b]` or `from: a` with `to: b`")
            return []
        if shape.between is not None:
            ends: list[tuple[KeyPath, str]] = [
                ((*path, "between", k), name) for k, name in enumerate(shape.between)
            ]
        else:
            ends = [((*path, "from"), shape.source or ""), ((*path, "to"), shape.target or "")]
        known = [self._require_known(at, name, site_names, "sites") for at, name in ends]
        if not all(known):
            return []
        source, target = ends[0][1], ends[1][1]
        if source == target:
            hint = "the speed inside a site is its `fabric`"
            self._fault(path, "two different sites", value=f"{source} to itself", hint=hint)
            return []
        return [(source, target)] if one_way else [(source, target), (target, source)]

    def _wan_links(self, listed: Collection[tuple[str, str]]) -> list[Link]:
        """Default links for the ordered pairs of sites that have none, in the order of the sites."""
        wan = self.shape.wan
        if wan.inside is None and wan.across is None:
            return []
        links: list[Link] = []
        for a in self.shape.sites:
            for b in self.shape.sites:
                path: PathShape | None = wan.inside if a.boundary == b.boundary else wan.across
                if a.name == b.name or path is None or (a.name, b.name) in listed:
                    continue
                links.append(
                    Link(
                        source_site_id=a.name,
                        target_site_id=b.name,
                        bytes_per_s=path.bandwidth,
                        latency_s=path.latency,
                    )
                )
        return links

    def _fault(self, path: KeyPath, limit: str, *, value: str | None = None, hint: str = "") -> None:
        self.faults.append(self.source.fault(path, limit, value=value, hint=hint))

    def _require_known(self, path: KeyPath, name: str, known: Collection[str], list_name: str) -> bool:
        if name in known:
            return True
        limit = f"a name from `{list_name}`"
        self._fault(path, limit, value=f"`{name}`", hint=nearest(name, known))
        return False

    def _require_once(self, list_name: str, names: Sequence[str], key: str | None) -> None:
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            if name in first:
                at = self.source.written((list_name, i) if key is None else (list_name, i, key))
                hint = f"also given at {self.source.place((list_name, first[name]))}"
                self._fault(at, "each name once", value=f"`{name}` again", hint=hint)
            first.setdefault(name, i)


def _catalog_type(name: str) -> DeviceType | None:
    try:
        return device_type(name)
    except InputError:
        return None
