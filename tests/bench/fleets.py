"""The benchmark fleets: 18, 64, 256 and 1,024 mixed devices in one boundary, from one seeded generator.

Device types carry effective rates. Site 0 is cleared for everything; the hosts elsewhere are cleared at
random, host by host of one type inside a site alike. Embedding and loss head need the top tier, the two
blocks next to each the middle.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from costmodels.fleet import Device, Fleet, Host, Link, Site
from policies.policy import LayerTier, Policy

TIERS = ("open", "internal", "restricted")
GIB = 2.0**30
GBIT_PER_S = 1e9 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """Name, memory, effective bf16 rate, memory bandwidth, price per hour, link inside a host."""

    name: str
    memory_gib: float
    tflop_per_s: float
    memory_gb_per_s: float
    usd_per_hour: float
    link_gb_per_s: float


KINDS = (
    DeviceKind(
        name="H100", memory_gib=80, tflop_per_s=380, memory_gb_per_s=3350, usd_per_hour=4.0, link_gb_per_s=450
    ),
    DeviceKind(
        name="A100-80",
        memory_gib=80,
        tflop_per_s=150,
        memory_gb_per_s=2039,
        usd_per_hour=2.2,
        link_gb_per_s=300,
    ),
    DeviceKind(
        name="A100-40",
        memory_gib=40,
        tflop_per_s=140,
        memory_gb_per_s=1555,
        usd_per_hour=1.7,
        link_gb_per_s=300,
    ),
    DeviceKind(
        name="L40S", memory_gib=48, tflop_per_s=110, memory_gb_per_s=864, usd_per_hour=1.2, link_gb_per_s=32
    ),
    DeviceKind(
        name="RTX4090",
        memory_gib=24,
        tflop_per_s=80,
        memory_gb_per_s=1008,
        usd_per_hour=0.5,
        link_gb_per_s=32,
    ),
    DeviceKind(
        name="A10", memory_gib=24, tflop_per_s=45, memory_gb_per_s=600, usd_per_hour=0.6, link_gb_per_s=32
    ),
    DeviceKind(
        name="T4", memory_gib=16, tflop_per_s=18, memory_gb_per_s=320, usd_per_hour=0.35, link_gb_per_s=16
    ),
    DeviceKind(
        name="CPU", memory_gib=256, tflop_per_s=1.5, memory_gb_per_s=200, usd_per_hour=0.4, link_gb_per_s=20
    ),
)
HOST_SIZES = {
    "H100": (4, 8),
    "A100-80": (4, 8),
    "A100-40": (4, 8),
    "L40S": (2, 4, 8),
    "RTX4090": (1, 2, 4),
    "A10": (1, 2, 4),
    "T4": (1, 2, 4),
    "CPU": (1,),
}
SITES = {18: 3, 64: 5, 256: 10, 1024: 24}
CLASSES_PER_SITE = {18: 2, 64: 3, 256: 4, 1024: 4}
WEIGHTS = {"H100": 2, "A100-80": 4, "A100-40": 3, "L40S": 4, "RTX4090": 4, "A10": 3, "T4": 2, "CPU": 1}


def generate_fleet(num_devices: int, seed: int) -> Fleet:
    """A fleet of exactly `num_devices` devices in one boundary; equal arguments give equal fleets."""
    rng = random.Random(f"echelon-bench-{num_devices}-{seed}")
    num_sites = SITES[num_devices]
    sites = tuple(
        Site(
            site_id=f"site-{i}",
            boundary_id="org",
            fabric_latency_s=20e-6,
            fabric_bytes_per_s=rng.choice((100, 200, 400)) * GBIT_PER_S,
        )
        for i in range(num_sites)
    )
    hosts: list[Host] = []
    devices: list[Device] = []
    for i, budget in enumerate(_split(num_devices, num_sites, rng)):
        _fill_site(i, budget, CLASSES_PER_SITE[num_devices], rng, hosts, devices)
    links = tuple(
        Link(source_site_id=a.site_id, target_site_id=b.site_id, latency_s=latency_s, bytes_per_s=rate)
        for i, x in enumerate(sites)
        for y in sites[i + 1 :]
        for rate, latency_s in [(rng.choice((1, 5, 10, 25)) * GBIT_PER_S, rng.choice((1e-3, 5e-3, 20e-3)))]
        for a, b in ((x, y), (y, x))
    )
    return Fleet(
        name=f"bench-{num_devices}-{seed}",
        tiers=TIERS,
        boundaries=("org",),
        sites=sites,
        hosts=tuple(hosts),
        devices=tuple(devices),
        links=links,
    )


def _split(total: int, parts: int, rng: random.Random) -> list[int]:
    weights = [rng.uniform(0.6, 1.4) for _ in range(parts)]
    sizes = [max(2, int(total * w / sum(weights))) for w in weights]
    sizes[0] += total - sum(sizes)
    return sizes


def _fill_site(
    site_i: int, budget: int, num_classes: int, rng: random.Random, hosts: list[Host], devices: list[Device]
) -> None:
    names = [kind.name for kind in KINDS]
    chosen = rng.choices(names, weights=[WEIGHTS[n] for n in names], k=num_classes)
    plans = []
    for name in dict.fromkeys(chosen):
        tier_i = 2 if site_i == 0 else rng.choice((0, 1, 2))
        plans.append((name, rng.choice(HOST_SIZES[name]), tier_i))
    count = 0
    while count < budget:
        name, size, tier_i = plans[len(hosts) % len(plans)]
        size = min(size, budget - count)
        kind = next(k for k in KINDS if k.name == name)
        host_id = f"s{site_i}h{len(hosts)}"
        hosts.append(
            Host(
                host_id=host_id,
                site_id=f"site-{site_i}",
                link_bytes_per_s=kind.link_gb_per_s * 1e9,
                link_latency_s=5e-6,
            )
        )
        for k in range(size):
            devices.append(_device(kind, host_id, k, tier_i))
        count += size


def _device(kind: DeviceKind, host_id: str, k: int, tier_i: int) -> Device:
    rate = kind.tflop_per_s * 1e12
    return Device(
        device_id=f"{host_id}/{k}",
        host_id=host_id,
        type_name=kind.name,
        memory_bytes=kind.memory_gib * GIB,
        flop_per_s=(("bf16", rate), ("fp16", rate), ("fp32", rate / 2)),
        memory_bytes_per_s=kind.memory_gb_per_s * 1e9,
        tier_i=tier_i,
        usd_per_hour=kind.usd_per_hour,
    )


def bench_policy(num_layers: int) -> Policy:
    """Ends need the top tier, the two layers next to each end the middle one; one boundary, so no cohort."""
    return Policy(
        name="bench",
        tokens_tier="restricted",
        labels_tier="restricted",
        layer_tiers=(
            LayerTier(start=1, stop=3, tier="internal"),
            LayerTier(start=num_layers - 3, stop=num_layers - 1, tier="internal"),
        ),
    )
