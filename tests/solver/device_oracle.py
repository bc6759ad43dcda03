"""The best plan of a micro fleet by exhaustive search over single devices: no classes, templates or counts.

Shares nothing with the planner but the cost model and the plain data types. Every set of devices is tried as
a cluster if the candidate rule in words allows it, every chain of disjoint clusters as a replica, every
family of disjoint replicas as a plan. Devices are bits of a mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import inf

from costmodels.fleet import Device, Link
from costmodels.interface import Cluster, Strategy
from planner.problem import ObjectiveKind
from policies.policy import SpareKind
from solver.micro_fleets import MicroCase

Label = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One cluster of real devices with a strategy; `mask` includes a dedicated spare."""

    mask: int
    cluster: Cluster
    strategy: Strategy
    num_kinds: int
    tier_i: int
    alike: Hashable


class DeviceOracle:
    """Exhaustive answers about one case; `best_by_mask` is the fastest replica on exactly those devices."""

    def __init__(self, case: MicroCase) -> None:
        self.case = case
        self.devices = case.fleet.devices
        self.kind = [self._kind_of(device) for device in self.devices]
        self.kinds = list(dict.fromkeys(self.kind))
        self.tier_required = self._tier_required()
        self.options = list(self._options())
        self._costs: dict[Hashable, tuple[float, float] | None] = {}
        self.best_by_mask: dict[int, float] = {}
        for micro_batch_size in case.workload.job.micro_batch_sizes:
            for options, max_stages in self._executable(micro_batch_size):
                self._search(options, micro_batch_size, max_stages)

    def _kind_of(self, device: Device) -> Hashable:
        host = self.case.fleet.host_by_id[device.host_id]
        figures = (
            device.type_name,
            device.memory_bytes,
            device.flop_per_s,
            device.memory_bytes_per_s,
            device.tier_i,
            device.usd_per_hour,
        )
        alike = sum(
            d.host_id == device.host_id and (d.type_name, d.tier_i) == (device.type_name, device.tier_i)
            for d in self.devices
        )
        return (host.site_id, host.link_bytes_per_s, host.link_latency_s, alike, figures)

    def _tier_required(self) -> list[int]:
        policy, tiers = self.case.policy, self.case.fleet.tiers
        required = [0] * self.case.workload.num_layers
        if policy.tokens_tier is not None:
            required[0] = tiers.index(policy.tokens_tier)
        if policy.labels_tier is not None:
            required[-1] = max(required[-1], tiers.index(policy.labels_tier))
        for rule in policy.layer_tiers:
            for layer in range(rule.start, rule.stop):
                required[layer] = max(required[layer], tiers.index(rule.tier))
        return required

    def _options(self) -> Iterator[Option]:
        everyone = range(len(self.devices))
        for size in range(1, min(len(self.devices), self.case.rule.cluster_devices_max) + 1):
            for members in combinations(everyone, size):
                if not self._legal(members):
                    continue
                kinds = {self.kind[i] for i in members}
                ordered = sorted(members, key=lambda i: (self.kinds.index(self.kind[i]), i))
                cluster = self._cluster(ordered)
                mask = sum(1 << i for i in members)
                alike = (tuple(self.kinds.index(self.kind[i]) for i in ordered), cluster.inner_bytes_per_s)
                for strategy in self._strategies(ordered, len(kinds)):
                    for spare in self._spares(members):
                        yield Option(
                            mask=mask | spare,
                            cluster=cluster,
                            strategy=strategy,
                            num_kinds=len(kinds),
                            tier_i=min(self.devices[i].tier_i for i in members),
                            alike=(alike, strategy),
                        )

    def _legal(self, members: tuple[int, ...]) -> bool:
        """One site; of each kind either a divisor-chain number on one host, or whole hosts only."""
        fleet = self.case.fleet
        if len({fleet.host_by_id[self.devices[i].host_id].site_id for i in members}) > 1:
            return False
        if len({self.kind[i] for i in members}) > self.case.rule.mixed_classes_max:
            return False
        for kind in {self.kind[i] for i in members}:
            taken: dict[str, int] = defaultdict(int)
            for i in members:
                if self.kind[i] == kind:
                    taken[self.devices[i].host_id] += 1
            host_size = sum(
                self.kind[i] == kind and self.devices[i].host_id == next(iter(taken))
                for i in range(len(self.devices))
            )
            if len(taken) == 1:
                if next(iter(taken.values())) not in chain_sizes(host_size):
                    return False
                continue
            odd_multiple = not self.case.rule.every_host_multiple and len(taken) & (len(taken) - 1)
            if odd_multiple or any(count != host_size for count in taken.values()):
                return False
        return True

    def _cluster(self, ordered: list[int]) -> Cluster:
        fleet = self.case.fleet
        devices = tuple(self.devices[i] for i in ordered)
        hosts = [fleet.host_by_id[host_id] for host_id in sorted({d.host_id for d in devices})]
        site = fleet.site_by_id[hosts[0].site_id]
        inside = min(host.link_bytes_per_s for host in hosts)
        latency = max(host.link_latency_s for host in hosts)
        alone = len(hosts) == 1
        return Cluster(
            site=site,
            devices=devices,
            inner_bytes_per_s=inside if alone else min(inside, site.fabric_bytes_per_s),
            inner_latency_s=latency if alone else max(latency, site.fabric_latency_s),
            tp_bytes_per_s=inside,
            tp_latency_s=latency,
        )

    def _strategies(self, ordered: list[int], num_kinds: int) -> Iterator[Strategy]:
        per_host = sum(self.devices[i].host_id == self.devices[ordered[0]].host_id for i in ordered)
        for tp in (1, 2, 4, 8):
            fits = tp == 1 or (num_kinds == 1 and tp <= self.case.rule.tensor_parallel_max)
            if not fits or (tp > 1 and per_host % tp):
                continue
            dp = len(ordered) // tp
            if dp <= max(self.case.workload.job.micro_batch_sizes):
                for zero in self.case.rule.zero_levels if dp > 1 else (0,):
                    yield Strategy(dp=dp, tp=tp, zero=zero)

    def _spares(self, members: tuple[int, ...]) -> Iterator[int]:
        """Masks of the one device held back for a stage; 0 when none is asked for."""
        if self.case.policy.spares.kind is not SpareKind.DEDICATED:
            yield 0
            return
        first = min(
            members,
            key=lambda i: (
                -self.devices[i].tier_i,
                -self.devices[i].memory_bytes,
                self.kinds.index(self.kind[i]),
            ),
        )
        for i in range(len(self.devices)):
            if self.kind[i] == self.kind[first] and i not in members:
                yield 1 << i

    def _executable(self, micro_batch_size: int) -> Iterator[tuple[list[Option], int]]:
        """Options that may stand together in one replica, with the most stages it may have."""
        job = self.case.workload.job
        able = [o for o in self.options if o.strategy.dp <= micro_batch_size]
        if self.case.condition.executor != "deepspeed":
            yield able, job.max_stages
            return
        plain = [
            o
            for o in able
            if o.strategy.tp == 1 and o.num_kinds == 1 and micro_batch_size % o.strategy.dp == 0
        ]
        yield plain, 1
        # One configuration holds for all stages of a pipeline.
        for width, zero in {(o.strategy.dp, o.strategy.zero) for o in plain if o.strategy.zero <= 1}:
            equal = [o for o in plain if (o.strategy.dp, o.strategy.zero) == (width, zero)]
            yield equal, job.max_stages

    def _stage(
        self, option: Option, interval: tuple[int, int], size: int, in_flight: int
    ) -> tuple[float, float] | None:
        key = (option.alike, interval, size, in_flight)
        if key not in self._costs:
            cost = self.case.cost_model.stage(option.cluster, interval, option.strategy, size, in_flight)
            held = cost is not None and all(
                sum(kinds.values()) <= limit
                for kinds, limit in zip(cost.memory_bytes, cost.limit_bytes, strict=True)
            )
            self._costs[key] = (
                (cost.forward_s + cost.backward_s + cost.exposed_s, cost.sync_s)
                if cost is not None and held
                else None
            )
        return self._costs[key]

    def _link(self, before: str, after: str) -> Link | None:
        site = self.case.fleet.site_by_id[before]
        if before == after:
            return Link(
                source_site_id=before,
                target_site_id=after,
                bytes_per_s=site.fabric_bytes_per_s,
                latency_s=site.fabric_latency_s,
            )
        found = [x for x in self.case.fleet.links if (x.source_site_id, x.target_site_id) == (before, after)]
        return found[0] if found else None

    def _search(self, options: list[Option], size: int, max_stages: int) -> None:
        """Chains from the last stage to the first; of two with equal ends only a worse one is dropped."""
        num_layers = self.case.workload.num_layers
        count = self.case.workload.job.sequences_per_step // size
        frontier: dict[tuple[int, int, str], list[Label]] = {(0, num_layers, ""): [(0.0, 0.0, 0.0)]}
        for left in range(1, min(max_stages, num_layers) + 1):
            grown: dict[tuple[int, int, str], list[Label]] = defaultdict(list)
            for (used, stop, next_site), labels in frontier.items():
                for option in options:
                    if option.mask & used:
                        continue
                    transfer_s = self._transfer(option, next_site, stop, size)
                    if transfer_s is None:
                        continue
                    for start in range(stop - 1, -1, -1):
                        if self.tier_required[start] > option.tier_i:
                            break
                        cost = self._stage(option, (start, stop), size, min(count, left))
                        if cost is None:
                            continue
                        state = (used | option.mask, start, option.cluster.site.site_id)
                        for w, z, g in labels:
                            label = (
                                w + cost[0] + transfer_s,
                                max(z, cost[0], transfer_s),
                                max(g, cost[1]),
                            )
                            insert(grown[state], label)
            frontier = grown
            for (used, start, _), labels in frontier.items():
                if start == 0:
                    for label in labels:
                        self._record(used, label, count)

    def _transfer(self, option: Option, next_site: str, border: int, size: int) -> float | None:
        if not next_site:
            return 0.0
        link = self._link(option.cluster.site.site_id, next_site)
        return None if link is None else self.case.cost_model.transfer_s(link, border, size)

    def _record(self, used: int, label: Label, count: int) -> None:
        w, z, g = label
        steady = self.case.objective.kind is ObjectiveKind.STEADY_STATE
        step_s = count * z if steady else w + (count - 1) * z + g
        speed = self.case.workload.job.tokens_per_step / step_s
        self.best_by_mask[used] = max(speed, self.best_by_mask.get(used, 0.0))

    def _allowed(self, used: int) -> bool:
        """Pooled spares stay unused and the price ceiling holds."""
        policy = self.case.policy
        taken = [d for i, d in enumerate(self.devices) if used >> i & 1]
        if policy.usd_per_hour_max is not None and self.price(used) > policy.usd_per_hour_max + 1e-9:
            return False
        if policy.spares.kind is SpareKind.POOLED:
            for pool in {(d.type_name, d.tier_i) for d in self.devices}:
                total = sum((d.type_name, d.tier_i) == pool for d in self.devices)
                used_here = sum((d.type_name, d.tier_i) == pool for d in taken)
                if total >= policy.spares.pool_min_devices and used_here > total - policy.spares.per_pool:
                    return False
        return True

    def _families(self, speed_by_mask: dict[int, float], count_max: int) -> list[dict[int, float]]:
        """Per number of replicas: the best total speed by exact union of their devices."""
        families: list[dict[int, float]] = [{0: 0.0}]
        for _ in range(count_max):
            more: dict[int, float] = {}
            for used, total in families[-1].items():
                for mask, speed in speed_by_mask.items():
                    if not mask & used:
                        more[used | mask] = max(more.get(used | mask, 0.0), total + speed)
            families.append(more)
        return families

    def totals(self) -> dict[int, float]:
        """Best counted tokens/s by exact set of devices, over every allowed family of replicas."""
        condition = self.case.condition
        most = len(self.devices) if condition.replicas_max is None else condition.replicas_max
        if condition.objective is ObjectiveKind.STEP_TIME:
            most = 1
        ratio = condition.speed_ratio_max
        totals: dict[int, float] = {}
        for slowest in {0.0} if ratio is None else set(self.best_by_mask.values()):
            speeds = {m: s for m, s in self.best_by_mask.items() if s >= slowest}
            if ratio is not None:
                speeds = {m: min(s, ratio * slowest) for m, s in speeds.items()}
            families = self._families(speeds, min(most, len(self.devices)))
            for family in families[condition.replicas_min :]:
                for used, total in family.items():
                    if self._allowed(used):
                        totals[used] = max(total, totals.get(used, 0.0))
        return totals

    def best(self) -> float | None:
        """The optimum in the objective's unit, or None when there is no plan."""
        totals = self.totals()
        if self.case.objective.kind is not ObjectiveKind.PRICE:
            return max(totals.values(), default=None)
        target = self.case.objective.tokens_per_s_min or 0.0
        price = min((self.price(used) for used, total in totals.items() if total >= target), default=inf)
        return None if price == inf else price

    def price(self, used: int) -> float:
        """USD per hour of a set of devices."""
        return sum(d.usd_per_hour for i, d in enumerate(self.devices) if used >> i & 1)


def chain_sizes(host_size: int) -> set[int]:
    """Sizes allowed inside a host: the host, then always the largest proper divisor of the size before."""
    sizes = {host_size}
    while min(sizes) > 1:
        sizes.add(max(n for n in range(1, min(sizes)) if min(sizes) % n == 0))
    return sizes


def insert(labels: list[Label], new: Label) -> None:
    """Keep only labels that no other one matches in all three figures."""
    w, z, g = new
    if any(a <= w and b <= z and c <= g for a, b, c in labels):
        return
    labels[:] = [x for x in labels if not (w <= x[0] and z <= x[1] and g <= x[2])]
    labels.append(new)
