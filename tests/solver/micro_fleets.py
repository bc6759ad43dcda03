"""Random planning problems small enough for exhaustive search by device, from a seed alone.

1 to 6 devices on hosts of 1 to 4 in 1 to 3 sites, 3 to 5 unequal layers, tiers, spares, ceilings. Two cost
models: the analytic one, and a foreign one whose seconds and bytes are arbitrary tables (neither additive nor
monotone).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.interface import Cluster, CostModel, Interval, StageCost, Strategy
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.problem import BoundaryProblem, Objective, ObjectiveKind
from policies.policy import LayerTier, Policy, SpareKind, SpareRule

GIB = 2.0**30
TIERS = ("public", "internal", "secret")
TYPES = (("big", 80 * GIB, 300e12, 4.0), ("mid", 40 * GIB, 140e12, 2.0), ("small", 16 * GIB, 60e12, 0.7))


class ForeignCostModel:
    """Arbitrary but repeatable tables: every figure is drawn from a hash of what the stage is made of."""

    name = "foreign"

    def __init__(self, seed: int, *, roomy_frac: float = 0.7, payload_bytes: float = 2e7) -> None:
        self.seed = seed
        self.payload_bytes = payload_bytes
        self.roomy_frac = roomy_frac
        self._drawn: dict[Hashable, float] = {}
        self._stages: dict[Hashable, StageCost | None] = {}

    def draw(self, *what: Hashable) -> float:
        """A number in [0, 1) that depends on the arguments and the seed alone."""
        if what not in self._drawn:
            digest = hashlib.blake2b(repr((self.seed, what)).encode(), digest_size=8).digest()
            self._drawn[what] = int.from_bytes(digest, "big") / 2.0**64
        return self._drawn[what]

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Seconds around a smooth law, off by up to a factor of six; memory that depends on everything."""
        kinds = tuple((d.type_name, d.tier_i) for d in cluster.devices)
        spread = (cluster.inner_bytes_per_s, len({d.host_id for d in cluster.devices}), cluster.site.site_id)
        shape = (strategy.dp, strategy.tp, strategy.zero)
        key = (kinds, spread, interval, shape, micro_batch_size, in_flight)
        if key not in self._stages:
            self._stages[key] = self._stage(key, cluster, interval, strategy, in_flight)
        return self._stages[key]

    def _stage(
        self, key: Hashable, cluster: Cluster, interval: Interval, strategy: Strategy, in_flight: int
    ) -> StageCost | None:
        if self.draw("possible", key) < 0.05:
            return None
        speed = sum(d.flop_per_s[0][1] for d in cluster.devices) ** 0.7
        work_s = (interval[1] - interval[0]) ** 1.3 * 6e9 / speed
        num_devices = len(cluster.devices)
        full_from = 1.0 + 3.0 * self.roomy_frac * num_devices * self.draw("room", key)
        use_frac = (interval[1] - interval[0]) * (0.8 + 0.2 * in_flight) / (1.7 * full_from)
        return StageCost(
            forward_s=work_s * (0.2 + self.draw("forward", key)),
            backward_s=work_s * (0.4 + 2.0 * self.draw("backward", key)),
            exposed_s=0.3 * work_s * self.draw("exposed", key),
            sync_s=8.0 * work_s * self.draw("sync", key),
            shares=(1,) * strategy.dp,
            memory_bytes=tuple({"weights": use_frac * d.memory_bytes} for d in cluster.devices),
            limit_bytes=tuple(d.memory_bytes for d in cluster.devices),
        )

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds that depend on border and link."""
        draw = self.draw("transfer", link.source_site_id, link.target_site_id, border, micro_batch_size)
        return link.latency_s + (0.2 + draw) * self.payload_bytes * micro_batch_size / link.bytes_per_s

    def interval_key(self, interval: Interval) -> Hashable:
        """No two intervals are alike."""
        return interval


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is asked of a plan beside the fleet's own limits."""

    name: str = "none"
    objective: ObjectiveKind = ObjectiveKind.TOKENS
    replicas_min: int = 1
    replicas_max: int | None = None
    speed_ratio_max: float | None = None
    executor: str = "any"
    spares: SpareRule = field(default_factory=SpareRule)
    tiers: bool = False
    usd_per_hour_max_frac: float | None = None
    target_frac: float | None = None


CONDITIONS = (
    Condition(),
    Condition(name="replicas-min-2", replicas_min=2),
    Condition(name="replicas-max-1", replicas_max=1),
    Condition(name="pooled", spares=SpareRule(kind=SpareKind.POOLED, pool_min_devices=3)),
    Condition(name="dedicated", spares=SpareRule(kind=SpareKind.DEDICATED)),
    Condition(name="tiers", tiers=True),
    Condition(name="ratio", speed_ratio_max=1.3),
    Condition(name="ratio-tiers-min-2", speed_ratio_max=1.1, tiers=True, replicas_min=2),
    Condition(name="steady-state", objective=ObjectiveKind.STEADY_STATE),
    Condition(name="steady-ratio", objective=ObjectiveKind.STEADY_STATE, speed_ratio_max=1.2, tiers=True),
    Condition(name="step-time", objective=ObjectiveKind.STEP_TIME, tiers=True),
    Condition(name="ceiling", usd_per_hour_max_frac=0.55),
    Condition(name="price", objective=ObjectiveKind.PRICE, target_frac=0.6),
    Condition(name="price-ratio", objective=ObjectiveKind.PRICE, target_frac=0.7, speed_ratio_max=1.2),
    Condition(name="deepspeed", executor="deepspeed"),
)


@dataclass(frozen=True, kw_only=True)
class MicroCase:
    """One random problem and everything it was built from."""

    seed: int
    fleet: Fleet
    workload: Workload
    policy: Policy
    cost_model: CostModel
    rule: CandidateRule
    condition: Condition
    objective: Objective

    @property
    def label(self) -> str:
        """What a failing test is called."""
        return f"{self.cost_model.name}-{self.seed}-{self.condition.name}"

    def problem(self) -> BoundaryProblem:
        """The placement problem of the one boundary."""
        built = build_problem(
            self.fleet,
            self.workload,
            self.policy,
            self.cost_model,
            objective=self.objective,
            executor=self.condition.executor,
            rule=self.rule,
        )
        return replace(built.boundaries[0], replicas_min=self.condition.replicas_min)

    def with_target(self, tokens_per_s_min: float) -> MicroCase:
        """The same case with a tokens/s target for the price objective."""
        return replace(self, objective=replace(self.objective, tokens_per_s_min=tokens_per_s_min))


def random_fleet(rng: random.Random, num_devices: int, *, scattered: bool) -> Fleet:
    """Hosts of one to four equal devices each, sometimes twins, in one to three linked sites.

    A scattered fleet has single devices in two or three sites, which makes for long chains between sites.
    """
    num_sites = rng.choice((1, 1, 2, 2, 3)) if num_devices > 2 else rng.choice((1, 2))
    num_sites = rng.choice((2, 3)) if scattered else num_sites
    sites = tuple(
        Site(site_id=f"s{i}", boundary_id="b", fabric_bytes_per_s=rng.choice((1e9, 1e10)))
        for i in range(num_sites)
    )
    hosts: list[Host] = []
    devices: list[Device] = []
    last: tuple[int, tuple[str, float, float, float], int, str] | None = None
    while len(devices) < num_devices:
        room = num_devices - len(devices)
        if last is not None and last[0] <= room and rng.random() < 0.45:
            size, kind, tier_i, site_id = last
        else:
            size, kind = 1 if scattered else rng.randint(1, min(4, room)), rng.choice(TYPES)
            tier_i, site_id = rng.choice((0, 1, 2, 2)), rng.choice(sites).site_id
        last = (size, kind, tier_i, site_id)
        host_id = f"h{len(hosts)}"
        hosts.append(Host(host_id=host_id, site_id=site_id, link_bytes_per_s=3e10, link_latency_s=1e-6))
        devices += [
            Device(
                device_id=f"{host_id}d{i}",
                host_id=host_id,
                type_name=kind[0],
                memory_bytes=kind[1],
                flop_per_s=(("bf16", kind[2]), ("fp32", kind[2] / 2)),
                memory_bytes_per_s=1e12,
                tier_i=tier_i,
                usd_per_hour=kind[3],
            )
            for i in range(size)
        ]
    links = tuple(
        Link(
            source_site_id=a.site_id,
            target_site_id=b.site_id,
            bytes_per_s=rng.choice((1e8, 1e9, 5e9)),
            latency_s=rng.choice((0.0, 1e-3)),
        )
        for a in sites
        for b in sites
        if a is not b and rng.random() < 0.85
    )
    used = {h.site_id for h in hosts}
    return Fleet(
        name="micro",
        tiers=TIERS,
        boundaries=("b",),
        sites=tuple(s for s in sites if s.site_id in used),
        hosts=tuple(hosts),
        devices=tuple(devices),
        links=tuple(x for x in links if {x.source_site_id, x.target_site_id} <= used),
    )


def random_workload(rng: random.Random) -> Workload:
    """Three to five layers, each of its own size, and a small job."""
    num_layers = rng.randint(3, 5)
    scale = rng.uniform(0.3, 1.4)
    layers = []
    for i in range(num_layers):
        params = int(scale * rng.uniform(0.3, 2.0) * 1e9)
        layers.append(
            LayerSpec(
                kind=f"layer{i}",
                params=params,
                trainable_params=params,
                forward_flops_per_token=2.0 * params,
                activation_bytes_per_token=rng.uniform(2e4, 3e5),
                input_bytes_per_token=8192.0,
                output_bytes_per_token=rng.uniform(4e3, 2e4),
                transient_bytes_per_token=rng.choice((0.0, 1e5)),
            )
        )
    sizes = rng.choice(((1,), (2,), (1, 2), (2, 4)))
    job = Job(
        sequence_tokens=1024,
        sequences_per_step=rng.choice((4, 8, 16)),
        micro_batch_sizes=sizes,
        max_stages=rng.choice((2, 3, 4, 12)),
    )
    return Workload(model_name="micro", layers=tuple(layers), job=job)


def micro_case(
    seed: int, condition: Condition, *, num_devices: int | None = None, foreign: bool = True
) -> MicroCase:
    """The case of a seed under a condition; a seed has one fleet and model under all conditions."""
    rng = random.Random(seed)
    num_devices = num_devices or rng.choice((1, 2, 3, 3, 4, 4, 5))
    scattered = num_devices > 2 and rng.random() < 0.4
    fleet, workload = random_fleet(rng, num_devices, scattered=scattered), random_workload(rng)
    model: CostModel = ForeignCostModel(
        seed,
        roomy_frac=rng.uniform(0.25, 0.8) if scattered else rng.uniform(0.3, 1.2),
        payload_bytes=rng.choice((2e7, 3e8, 2e9)),
    )
    if not foreign:
        from costmodels.analytic import AnalyticCostModel

        model = AnalyticCostModel(workload)
    tokens_tier, labels_tier = None, None
    layer_tiers: tuple[LayerTier, ...] = ()
    wanted = (rng.choice(TIERS), rng.choice(TIERS), rng.randrange(workload.num_layers), rng.choice(TIERS[:2]))
    if condition.tiers:
        tokens_tier, labels_tier = wanted[0], wanted[1]
        layer_tiers = (LayerTier(start=wanted[2], stop=wanted[2] + 1, tier=wanted[3]),)
    total_usd = sum(d.usd_per_hour for d in fleet.devices)
    policy = Policy(
        tokens_tier=tokens_tier,
        labels_tier=labels_tier,
        layer_tiers=layer_tiers,
        spares=condition.spares,
        usd_per_hour_max=None
        if condition.usd_per_hour_max_frac is None
        else round(total_usd * condition.usd_per_hour_max_frac, 1),
        speed_ratio_max=condition.speed_ratio_max,
        replicas_max=condition.replicas_max,
    )
    rule = CandidateRule(
        mixed_classes_max=rng.choice((1, 2, 3)),
        every_host_multiple=rng.random() < 0.8,
        zero_levels=rng.choice(((0, 1), (0, 3), (0, 1, 2, 3))),
        tensor_parallel_max=rng.choice((1, 2, 4)),
        cluster_devices_max=1 if scattered else rng.choice((3, 16)),
    )
    target = 1.0 if condition.objective is ObjectiveKind.PRICE else None
    return MicroCase(
        seed=seed,
        fleet=fleet,
        workload=workload,
        policy=policy,
        cost_model=model,
        rule=rule,
        condition=condition,
        objective=Objective(kind=condition.objective, tokens_per_s_min=target),
    )
