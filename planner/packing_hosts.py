"""From clusters counted per class to devices on real hosts.

By the packing lemma (planner/candidates.py) counts per class suffice: whole hosts are given out first, then
parts inside a host by decreasing size. Each size divides every larger one, so what is left of a host is a
multiple of the part that comes next, and any host with room for one device has room for the part. Which host
is taken is therefore free; the preferences below use that freedom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from costmodels.fleet import Device, Fleet
from planner.objective import Replica
from planner.problem import BoundaryProblem, DeviceClass, Template
from policies.errors import EchelonError

Wish = tuple[tuple[int, int], int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The devices of one stage in rank order, and its dedicated spare where the policy wants one."""

    devices: tuple[str, ...]
    spares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """Devices of an earlier plan by what they held: layers, data-parallel, tensor-parallel, ZeRO."""

    devices: Mapping[Wish, frozenset[str]] = field(default_factory=dict)

    def wanted(self, wish: Wish) -> frozenset[str]:
        """Devices that hold the same layers in the same way already."""
        return self.devices.get(wish, frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One part of one stage: `per_host` devices on each of `num_hosts` hosts of a class.

    `together` says of a cluster of several classes whether the candidate list priced it on one common host;
    None for a cluster of one class.
    """

    replica_i: int
    stage_i: int
    part_i: int
    class_i: int
    per_host: int
    num_hosts: int
    wish: Wish | None
    together: bool | None = None


def reliability_s(device: Device) -> float:
    """Mean time between failures; what is unknown counts as the worst."""
    return -1.0 if device.mtbf_s is None else device.mtbf_s


def seat_replicas(
    fleet: Fleet, problem: BoundaryProblem, replicas: Sequence[Replica], former: Former | None = None
) -> tuple[tuple[Seat, ...], ...]:
    """Real devices for every stage of every replica; each device is used at most once.

    Among hosts with room, those are preferred that keep devices of a `former` plan in place, then those that
    the replica uses already, then the fullest (so that whole hosts stay idle), then the most reliable, then
    by position.

    Raises:
        EchelonError: `hosts-too-few` when the replicas use more devices of a class than there are.
    """
    packer = _Packer(fleet, problem, former or Former())
    for request in _ordered(_requests(problem, replicas)):
        packer.place(request)
    return tuple(
        tuple(
            packer.seat(r, s, problem.templates[stage.template_i]) for s, stage in enumerate(replica.stages)
        )
        for r, replica in enumerate(replicas)
    )


def _requests(problem: BoundaryProblem, replicas: Sequence[Replica]) -> list[_Request]:
    found: list[_Request] = []
    for r, replica in enumerate(replicas):
        for s, stage in enumerate(replica.stages):
            template = problem.templates[stage.template_i]
            strategy = template.strategy
            wish: Wish = ((stage.start, stage.stop), strategy.dp, strategy.tp, strategy.zero)
            several = len(template.parts) > 1
            together = len({d.host_id for d in template.cluster.devices}) == 1 if several else None
            for p, part in enumerate(template.parts):
                found.append(
                    _Request(
                        replica_i=r,
                        stage_i=s,
                        part_i=p,
                        class_i=part.class_i,
                        per_host=part.per_host,
                        num_hosts=part.num_hosts,
                        wish=wish,
                        together=together,
                    )
                )
            if template.spare_class_i is not None:
                found.append(
                    _Request(
                        replica_i=r,
                        stage_i=s,
                        part_i=len(template.parts),
                        class_i=template.spare_class_i,
                        per_host=1,
                        num_hosts=1,
                        wish=None,
                    )
                )
    return found


def _ordered(requests: list[_Request]) -> list[_Request]:
    """Several whole hosts first, then by decreasing size; spares after clusters of their size."""
    return sorted(
        requests,
        key=lambda q: (-q.num_hosts, -q.per_host, q.wish is None, q.replica_i, q.stage_i, q.part_i),
    )


class _Packer:
    """Free devices per class and host, and what was given out."""

    def __init__(self, fleet: Fleet, problem: BoundaryProblem, former: Former) -> None:
        self._fleet = fleet
        self._classes = problem.classes
        self._former = former
        self._free = {c.class_i: [self._by_reliability(host) for host in c.hosts] for c in problem.classes}
        self._host_of = {d.device_id: d.host_id for d in fleet.devices}
        self._used: dict[int, set[str]] = {}
        self._used_by_stage: dict[tuple[int, int], set[str]] = {}
        self._given: dict[tuple[int, int, int], tuple[str, ...]] = {}

    def _by_reliability(self, host: Sequence[str]) -> list[str]:
        return sorted(host, key=lambda d: -reliability_s(self._fleet.device_by_id[d]))

    def place(self, request: _Request) -> None:
        """Give the request its hosts."""
        hosts = self._free[request.class_i]
        wanted = frozenset[str]() if request.wish is None else self._former.wanted(request.wish)
        able = [i for i, free in enumerate(hosts) if len(free) >= request.per_host]
        if len(able) < request.num_hosts:
            raise _too_few(self._classes[request.class_i], request)
        able.sort(key=lambda i: (*self._merit(hosts[i], request, wanted), i))
        taken: list[str] = []
        for i in able[: request.num_hosts]:
            chosen = sorted(hosts[i], key=lambda d: d not in wanted)[: request.per_host]
            hosts[i] = [d for d in hosts[i] if d not in chosen]
            taken += sorted(chosen, key=self._position(request.class_i).__getitem__)
        seen = {self._host_of[d] for d in taken}
        self._used.setdefault(request.replica_i, set()).update(seen)
        self._used_by_stage.setdefault((request.replica_i, request.stage_i), set()).update(seen)
        self._given[(request.replica_i, request.stage_i, request.part_i)] = tuple(taken)

    def _merit(self, free: Sequence[str], request: _Request, wanted: frozenset[str]) -> tuple[float, ...]:
        """Smaller is better."""
        host_id = self._host_of[free[0]]
        beside = self._used_by_stage.get((request.replica_i, request.stage_i), set())
        as_priced = not beside or request.together is None or (host_id in beside) == request.together
        kept = min(request.per_host, sum(d in wanted for d in free))
        compact = host_id in self._used.get(request.replica_i, ())
        steady = reliability_s(self._fleet.device_by_id[free[0]])
        return (not as_priced, -kept, not compact, len(free), -steady)

    def _position(self, class_i: int) -> dict[str, int]:
        listed = (d for host in self._classes[class_i].hosts for d in host)
        return {d: i for i, d in enumerate(listed)}

    def seat(self, replica_i: int, stage_i: int, template: Template) -> Seat:
        """What a stage was given, part by part in the order of its candidate cluster."""
        parts = [self._given[(replica_i, stage_i, p)] for p in range(len(template.parts))]
        return Seat(
            devices=tuple(d for part in parts for d in part),
            spares=self._given.get((replica_i, stage_i, len(template.parts)), ()),
        )


def _too_few(device_class: DeviceClass, request: _Request) -> EchelonError:
    return EchelonError(
        "hosts-too-few",
        f"replica {request.replica_i} stage {request.stage_i} wants {request.num_hosts} x {request.per_host}"
        f" {device_class.device.type_name}, which {len(device_class.hosts)} hosts of"
        f" {device_class.host_size} no longer have free",
        hint="the replicas together use more devices than the class has",
    )
