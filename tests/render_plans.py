"""Plans made without a solver, from any fleet: stages of neighbours, layers shared out evenly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.workload import Job, LayerSpec, Workload
from planner.canonical import Inputs, input_documents
from planner.graph import build_graph
from planner.plan import BoundaryPlan, Certificate, Excluded, Plan, ReplicaPlan, StagePlan
from policies.policy import Policy

LAYER = LayerSpec(
    kind="block",
    params=1000,
    trainable_params=1000,
    forward_flops_per_token=2000.0,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=8.0,
    output_bytes_per_token=8.0,
)


def workload(num_layers: int = 34) -> Workload:
    """A chain of equal layers."""
    return Workload(
        model_name="chain", layers=(LAYER,) * num_layers, job=Job(name="tune", sequence_tokens=2048)
    )


def device(host_id: str, slot: int, type_name: str, tier_i: int, usd_per_hour: float = 0.0) -> Device:
    """A device of 80 GiB in a host."""
    return Device(
        device_id=f"{host_id}/{slot}",
        host_id=host_id,
        type_name=type_name,
        memory_bytes=80 * 2.0**30,
        flop_per_s=(("bf16", 3e14),),
        memory_bytes_per_s=2e12,
        tier_i=tier_i,
        usd_per_hour=usd_per_hour,
    )


def ward_fleet() -> Fleet:
    """Eighteen devices of three types in three sites of one boundary; one of two links is slow."""
    rows = [("vault-1", "vault", 4, "A100-80GB", 2)]
    rows += [(f"ward-{i}", "wards", 4, "A10", 1) for i in (1, 2)]
    rows += [(f"clinic-{i}", "clinic", 2, "T4", 0) for i in (1, 2, 3)]
    sites = (("vault", 12.5e9), ("wards", 3.125e9), ("clinic", 1.25e9))
    pairs = (("vault", "wards", 1.25e9), ("vault", "clinic", 0.125e9))
    return Fleet(
        name="wards",
        tiers=("general", "internal", "clinical"),
        boundaries=("hospital",),
        sites=tuple(Site(site_id=s, boundary_id="hospital", fabric_bytes_per_s=rate) for s, rate in sites),
        hosts=tuple(Host(host_id=h, site_id=s, link_bytes_per_s=64e9) for h, s, _, _, _ in rows),
        devices=tuple(
            device(h, slot, kind, tier, usd_per_hour=1.5) for h, _, n, kind, tier in rows for slot in range(n)
        ),
        links=tuple(both_ways(pairs)),
    )


def both_ways(pairs: Sequence[tuple[str, str, float]]) -> Iterator[Link]:
    """Equal links in both directions."""
    for a, b, rate in pairs:
        for source, target in ((a, b), (b, a)):
            yield Link(source_site_id=source, target_site_id=target, bytes_per_s=rate, latency_s=1e-3)


def drawn_plan(
    fleet: Fleet, num_layers: int = 34, *, stages_max: int = 4, without: Sequence[str] = ()
) -> Plan:
    """A plan for every boundary but those in `without`, the same for the same arguments."""
    inputs = Inputs(fleet=fleet, workload=workload(num_layers), policy=Policy())
    boundaries = tuple(
        _boundary(fleet, name, num_layers, stages_max) for name in fleet.boundaries if name not in without
    )
    nodes, edges = build_graph(boundaries)
    value = sum(replica.tokens_per_s for boundary in boundaries for replica in boundary.replicas)
    return Plan(
        inputs=input_documents(inputs),
        job=inputs.workload.job.name,
        tokens_per_step=inputs.workload.job.tokens_per_step,
        settings={"cost_model": "analytic"},
        certificate=Certificate(
            objective="tokens",
            value=value,
            bound=value * 1.05,
            excess_frac=0.05,
            covers="candidates",
            stop="gap",
            proof={boundary.name: {"kind": "dual", "bound": 1.0} for boundary in boundaries},
            seed=0,
            versions={"echelon": "0"},
            limits={"deadline_s": 60.0},
        ),
        boundaries=boundaries,
        nodes=nodes,
        edges=edges,
    )


def _boundary(fleet: Fleet, name: str, num_layers: int, stages_max: int) -> BoundaryPlan:
    """Every fifth cluster is a spare or idle, the rest form replicas one after the other."""
    own = [d for d in fleet.devices if fleet.boundary_of(d) == name]
    clusters = [list(group) for _, group in groupby(own, key=lambda d: (d.host_id, d.type_name))]
    halves = [part for c in clusters for part in (c[: len(c) // 2], c[len(c) // 2 :]) if part]
    idle = [d for i, part in enumerate(halves) if i % 5 == 4 for d in part]
    busy = [part for i, part in enumerate(halves) if i % 5 != 4]
    length = min(stages_max, num_layers)
    chains = [busy[i : i + length] for i in range(0, len(busy), length)]
    hosts = list(dict.fromkeys(d.host_id for d in own))
    return BoundaryPlan(
        name=name,
        aggregator={
            "host": hosts[0] if hosts else None,
            "standby": hosts[1] if len(hosts) > 1 else None,
        },
        replicas=tuple(
            _replica(f"{name}-r{i}", chain, num_layers, 1000.0 / (i + 1)) for i, chain in enumerate(chains)
        ),
        excluded=tuple(
            Excluded(device=d.device_id, reason="pooled-spare" if i % 2 == 0 else "not-needed")
            for i, d in enumerate(idle)
        ),
    )


def _replica(name: str, chain: Sequence[Sequence[Device]], num_layers: int, speed: float) -> ReplicaPlan:
    cuts = [num_layers * i // len(chain) for i in range(len(chain) + 1)]
    return ReplicaPlan(
        id=name,
        executor="torch",
        tokens_per_s=speed,
        step_time_s=2048 * 64 / speed,
        micro_batches=64,
        micro_batch_size=1,
        stages=tuple(
            _stage(i, members, (cuts[i], cuts[i + 1]), i + 1 < len(chain)) for i, members in enumerate(chain)
        ),
    )


def _stage(index: int, members: Sequence[Device], layers: tuple[int, int], has_next: bool) -> StagePlan:
    ids = tuple(d.device_id for d in members)
    limit = 75 * 2.0**30
    return StagePlan(
        index=index,
        layers=layers,
        devices=ids,
        dp=1,
        tp=len(ids),
        zero=0,
        micro_batch_shares=(1,),
        ranks=(ids,),
        recompute=index % 2,
        in_flight=2,
        head=ids[-1],
        spares=(),
        memory_bytes={
            d: {
                "weights": limit * (0.2 + 0.07 * ((index * 3 + i) % 9)),
                "activations": limit / 8,
                "limit": limit,
            }
            for i, d in enumerate(ids)
        },
        compute_s=0.1 + 0.02 * index,
        comm_s=0.01 * index,
        sync_s=0.05,
        transfer_s=0.003 if has_next else 0.0,
    )
