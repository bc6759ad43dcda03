"""Changes of a case: more memory, more hosts, other tiers, links and rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from costmodels.fleet import Device, Link
from planner.explain.cases import Case
from planner.explain.demands import with_job
from planner.problem import ObjectiveKind

Change = Callable[[Case], Case]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All devices of one type and tier in the boundary."""

    type_name: str
    tier_i: int
    text: str


def groups_of(case: Case) -> tuple[Group, ...]:
    """The boundary's devices by type and tier, in the fleet's order."""
    counts = Counter((d.type_name, d.tier_i) for d in case.devices)
    types = Counter(type_name for type_name, _ in counts)
    return tuple(
        Group(
            type_name=type_name,
            tier_i=tier_i,
            text=f"{count} {type_name}"
            + (f" cleared for `{case.fleet.tiers[tier_i]}`" if types[type_name] > 1 else ""),
        )
        for (type_name, tier_i), count in counts.items()
    )


def kinds_of_host(case: Case) -> tuple[str, ...]:
    """One host of each kind: equal devices in one site."""
    return tuple(host_ids[0] for host_ids in like_hosts(case))


def like_hosts(case: Case) -> tuple[tuple[str, ...], ...]:
    """Hosts with equal devices in one site, grouped, in the fleet's order."""
    devices: dict[str, list[Device]] = defaultdict(list)
    for device in case.devices:
        devices[device.host_id].append(device)
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for host_id, members in devices.items():
        host = case.fleet.host_by_id[host_id]
        kinds = tuple(replace(d, device_id="", host_id="", mtbf_s=None, owner="", origin="") for d in members)
        groups[(host.site_id, host.link_bytes_per_s, kinds)].append(host_id)
    return tuple(tuple(host_ids) for host_ids in groups.values())


def host_text(case: Case, host_id: str) -> str:
    """The devices of a host: `4 x A10`."""
    kinds = Counter(d.type_name for d in case.devices if d.host_id == host_id)
    return " + ".join(f"{count} x {name}" for name, count in kinds.items())


def memory_added(group: Group, extra_bytes: float) -> Change:
    """More memory on every device of a group."""

    def change(case: Case) -> Case:
        """The case with this edit made."""
        own = {d.device_id for d in case.devices}

        def grown(device: Device) -> Device:
            member = device.type_name == group.type_name and device.tier_i == group.tier_i
            if not member or device.device_id not in own:
                return device
            return replace(device, memory_bytes=device.memory_bytes + extra_bytes)

        return _with_devices(case, grown)

    return change


def hosts_added(host_id: str, number: int) -> Change:
    """More hosts that equal one there is."""

    def change(case: Case) -> Case:
        """The case with this edit made."""
        host = case.fleet.host_by_id[host_id]
        hosts, devices = list(case.fleet.hosts), list(case.fleet.devices)
        for k in range(1, number + 1):
            name = f"{host_id}-more-{k}"
            hosts.append(replace(host, host_id=name))
            devices += [
                replace(d, device_id=f"{name}/{i}", host_id=name)
                for i, d in enumerate(d for d in case.fleet.devices if d.host_id == host_id)
            ]
        return replace(case, fleet=replace(case.fleet, hosts=tuple(hosts), devices=tuple(devices)))

    return change


def tier_raised(host_ids: tuple[str, ...], tier_i: int) -> Change:
    """A clearance of at least `tier_i` for all devices of some hosts."""

    def raised(device: Device) -> Device:
        return replace(device, tier_i=max(device.tier_i, tier_i)) if device.host_id in host_ids else device

    return lambda case: _with_devices(case, raised)


def required_tier(case: Case, demand: str) -> str:
    """The tier that a demand on clearances asks for."""
    if demand.startswith("layer_tiers"):
        return case.policy.layer_tiers[_position(demand)].tier
    return str(getattr(case.policy, f"{demand.removeprefix('see.')}_tier"))


def tier_lowered(demand: str, tier: str) -> Change:
    """A lower tier for one demand on clearances."""

    def change(case: Case) -> Case:
        if not demand.startswith("layer_tiers"):
            return policy_set(**{f"{demand.removeprefix('see.')}_tier": tier})(case)
        rules = list(case.policy.layer_tiers)
        rules[_position(demand)] = replace(rules[_position(demand)], tier=tier)
        return policy_set(layer_tiers=tuple(rules))(case)

    return change


def _position(demand: str) -> int:
    return int(demand.removeprefix("layer_tiers[").removesuffix("]"))


def linked(a: str, b: str) -> Change:
    """A link between two sites, as fast as the slowest that exists, in the directions that have none."""

    def change(case: Case) -> Case:
        """The case with this edit made."""
        known = case.fleet.link_by_ends
        slowest = min((link.bytes_per_s for link in known.values()), default=1.25e8)
        more = tuple(
            Link(source_site_id=source, target_site_id=target, bytes_per_s=slowest)
            for source, target in ((a, b), (b, a))
            if (source, target) not in known
        )
        return replace(case, fleet=replace(case.fleet, links=case.fleet.links + more))

    return change


def sizes_set(sizes: tuple[int, ...]) -> Change:
    """Other micro-batch sizes."""
    return lambda case: with_job(case, micro_batch_sizes=sizes)


def recompute_allowed(case: Case) -> Case:
    """Activation recomputation allowed."""
    job = replace(case.workload.job, recompute=True)
    return replace(case, workload=replace(case.workload, job=job))


def any_executor(case: Case) -> Case:
    """No filter on what runs the plan."""
    return replace(case, executor="any")


def objective_tokens(case: Case) -> Case:
    """All the speed there is, with as many replicas as help."""
    return replace(case, objective=replace(case.objective, kind=ObjectiveKind.TOKENS))


def target_dropped(case: Case) -> Case:
    """No tokens/s target."""
    return replace(case, objective=replace(case.objective, kind=ObjectiveKind.TOKENS, tokens_per_s_min=None))


def target_set(tokens_per_s: float) -> Change:
    """Another tokens/s target."""
    return lambda case: replace(case, objective=replace(case.objective, tokens_per_s_min=tokens_per_s))


def policy_set(**values: Any) -> Change:
    """Other values of the policy's fields."""
    return lambda case: replace(case, policy=replace(case.policy, **values))


def spares_set(**values: Any) -> Change:
    """Other values of the rule on spares."""
    return lambda case: replace(
        case, policy=replace(case.policy, spares=replace(case.policy.spares, **values))
    )


def _with_devices(case: Case, change: Callable[[Device], Device]) -> Case:
    devices = tuple(change(device) for device in case.fleet.devices)
    return replace(case, fleet=replace(case.fleet, devices=devices))


def links_times(factor: float) -> Change:
    """Links inside the boundary that are so many times as fast."""

    def change(case: Case) -> Case:
        """The case with this edit made."""
        own = set(case.own_sites)
        links = tuple(
            replace(link, bytes_per_s=link.bytes_per_s * factor, latency_s=link.latency_s / factor)
            if {link.source_site_id, link.target_site_id} <= own
            else link
            for link in case.fleet.links
        )
        return replace(case, fleet=replace(case.fleet, links=links))

    return change
