"""A plan joined with its fleet: what each device does, in the order in which things are drawn.

Nothing here knows how things look. A plan whose parts don't fit its own fleet is refused: it has no picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodels.fleet import Device, Fleet, Host, Site
from planner.canonical import Inputs, inputs_from_documents
from planner.plan import BoundaryPlan, Certificate, Plan, ReplicaPlan, StagePlan
from planner.render.fitting import plan_faults
from policies.errors import InputError

RUNNING = "running"
SPARE = "spare"
IDLE = "idle"
SPARE_REASONS = ("spare", "pooled-spare")
OUTSIDE = "not-in-plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device and what it does. `role` is RUNNING, SPARE or IDLE; `reason` says why it doesn't run.

    `replica` and `stage` are positions inside the boundary and the replica, -1 where the device runs nothing.
    """

    device: Device
    role: str
    reason: str = ""
    replica: int = -1
    stage: int = -1
    is_head: bool = False
    used_bytes: float = 0.0
    limit_bytes: float = 0.0

    @property
    def slot(self) -> str:
        """The device's id inside its host."""
        own, prefix = self.device.device_id, self.device.host_id + "/"
        return own.removeprefix(prefix)

    @property
    def used_frac(self) -> float:
        """Share of its usable memory that the plan needs."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes > 0.0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A host and its devices."""

    host: Host
    devices: tuple[DeviceView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site and its hosts."""

    site: Site
    hosts: tuple[HostView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage: `tier_i` is the lowest clearance of its members, `kinds` how many of which type."""

    plan: StagePlan
    members: tuple[Device, ...]
    site_id: str
    tier_i: int
    kinds: tuple[tuple[str, int], ...]
    used_frac: float

    @property
    def devices_text(self) -> str:
        """Number and type of its devices: `2 × A10`."""
        return " + ".join(f"{number} × {name}" for name, number in self.kinds)

    @property
    def busy_s(self) -> float:
        """Seconds the stage is occupied by one micro-batch."""
        return self.plan.compute_s + self.plan.comm_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica under its number in the boundary."""

    number: int
    plan: ReplicaPlan
    stages: tuple[StageView, ...]

    @property
    def slowest_s(self) -> float:
        """Busy seconds of the slowest stage."""
        return max(stage.busy_s for stage in self.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryView:
    """A boundary under its position in the fleet: `plan` is None where it takes no part."""

    index: int
    name: str
    plan: BoundaryPlan | None
    sites: tuple[SiteView, ...]
    replicas: tuple[ReplicaView, ...]

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        """All devices, site by site."""
        return tuple(d for site in self.sites for host in site.hosts for d in host.devices)

    @property
    def num_used(self) -> int:
        """Devices that run a rank."""
        return sum(device.role == RUNNING for device in self.devices)

    @property
    def tokens_per_s(self) -> float:
        """Speed of all its replicas together."""
        return sum(replica.plan.tokens_per_s for replica in self.replicas)

    @property
    def usd_per_hour(self) -> float:
        """Price of the devices in use, dedicated spares included."""
        return sum(
            d.device.usd_per_hour for d in self.devices if d.role == RUNNING or d.reason == SPARE_REASONS[0]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """Everything a picture of the plan shows."""

    plan: Plan
    inputs: Inputs
    boundaries: tuple[BoundaryView, ...]
    tier_marks: tuple[str, ...]
    is_crossing: bool

    @property
    def fleet(self) -> Fleet:
        """The fleet that the plan embeds."""
        return self.inputs.fleet

    @property
    def certificate(self) -> Certificate:
        """How far from the best."""
        return self.plan.certificate

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        """All devices of the fleet."""
        return tuple(device for boundary in self.boundaries for device in boundary.devices)

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        """All replicas."""
        return tuple(replica for boundary in self.boundaries for replica in boundary.replicas)

    @property
    def usd_per_hour(self) -> float:
        """Price of the devices in use, dedicated spares included."""
        return sum(boundary.usd_per_hour for boundary in self.boundaries)


def plan_view(plan: Plan) -> PlanView:
    """The plan joined with the fleet that it embeds.

    Raises:
        InputError: `bad-input` where the embedded inputs are refused; `plan-misfit` with every fault where
            the plan names what its fleet doesn't have, or uses a device twice.
    """
    inputs = inputs_from_documents(list(plan.inputs))
    faults = plan_faults(plan, inputs.fleet, inputs.workload.num_layers)
    if faults:
        raise InputError(
            "plan-misfit",
            "the plan doesn't fit the fleet that it embeds, so there is nothing to show",
            faults=faults,
            hint="`echelon check` on the plan lists all that is wrong with it; solve again from the inputs",
        )
    duties = _duties(plan)
    planned = {boundary.name: boundary for boundary in plan.boundaries}
    return PlanView(
        plan=plan,
        inputs=inputs,
        boundaries=tuple(
            _boundary_view(inputs.fleet, index, planned.get(name), duties)
            for index, name in enumerate(inputs.fleet.boundaries)
        ),
        tier_marks=tier_marks(inputs.fleet.tiers),
        is_crossing=any(edge.crossing for edge in plan.edges),
    )


def tier_marks(tiers: Sequence[str]) -> tuple[str, ...]:
    """One letter per tier, its first where all differ, else the tier's level from 1."""
    letters = tuple(tier[:1].upper() for tier in tiers)
    if len(set(letters)) == len(letters):
        return letters
    return tuple(str(level) for level in range(1, len(tiers) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Duty:
    role: str
    reason: str = ""
    replica: int = -1
    stage: StagePlan | None = None


def _duties(plan: Plan) -> dict[str, _Duty]:
    """What each device of the plan does."""
    duties: dict[str, _Duty] = {}
    for boundary in plan.boundaries:
        for entry in boundary.excluded:
            role = SPARE if entry.reason in SPARE_REASONS else IDLE
            duties[entry.device] = _Duty(role=role, reason=entry.reason)
        for number, replica in enumerate(boundary.replicas):
            for stage in replica.stages:
                duties |= {d: _Duty(role=SPARE, reason=SPARE_REASONS[0]) for d in stage.spares}
                duties |= {d: _Duty(role=RUNNING, replica=number, stage=stage) for d in stage.devices}
    return duties


def _boundary_view(
    fleet: Fleet, index: int, plan: BoundaryPlan | None, duties: Mapping[str, _Duty]
) -> BoundaryView:
    name = fleet.boundaries[index]
    by_host: dict[str, list[DeviceView]] = {host.host_id: [] for host in fleet.hosts}
    for device in fleet.devices:
        by_host[device.host_id].append(_device_view(device, duties))
    sites = tuple(
        SiteView(
            site=site,
            hosts=tuple(
                HostView(host=host, devices=tuple(by_host[host.host_id]))
                for host in fleet.hosts
                if host.site_id == site.site_id and by_host[host.host_id]
            ),
        )
        for site in fleet.sites
        if site.boundary_id == name
    )
    replicas = () if plan is None else plan.replicas
    return BoundaryView(
        index=index,
        name=name,
        plan=plan,
        sites=sites,
        replicas=tuple(_replica_view(fleet, number, replica) for number, replica in enumerate(replicas)),
    )


def _device_view(device: Device, duties: Mapping[str, _Duty]) -> DeviceView:
    duty = duties.get(device.device_id, _Duty(role=IDLE, reason=OUTSIDE))
    if duty.stage is None:
        return DeviceView(device=device, role=duty.role, reason=duty.reason)
    kinds = duty.stage.memory_bytes[device.device_id]
    return DeviceView(
        device=device,
        role=duty.role,
        replica=duty.replica,
        stage=duty.stage.index,
        is_head=duty.stage.head == device.device_id,
        used_bytes=used_bytes(kinds),
        limit_bytes=kinds["limit"],
    )


def used_bytes(kinds: Mapping[str, float]) -> float:
    """Bytes of all kinds, the limit left out."""
    return sum(number for kind, number in kinds.items() if kind != "limit")


def _replica_view(fleet: Fleet, number: int, replica: ReplicaPlan) -> ReplicaView:
    return ReplicaView(
        number=number, plan=replica, stages=tuple(_stage_view(fleet, stage) for stage in replica.stages)
    )


def _stage_view(fleet: Fleet, stage: StagePlan) -> StageView:
    members = tuple(fleet.device_by_id[d] for d in stage.devices)
    kinds = Counter(device.type_name for device in members)
    memory = stage.memory_bytes.values()
    return StageView(
        plan=stage,
        members=members,
        site_id=fleet.site_of(members[0]).site_id,
        tier_i=min(device.tier_i for device in members),
        kinds=tuple(kinds.items()),
        used_frac=max(used_bytes(kinds_) / kinds_["limit"] for kinds_ in memory),
    )
