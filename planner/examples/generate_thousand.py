"""Writes the fleet of the example `thousand`: 1,000 devices of 8 types in 12 boundaries and 4 tiers.

Run from a checkout: `python -m planner.examples.generate_thousand > planner/examples/thousand/fleet.yaml`.
The same seed gives the same bytes on every machine: only `Random.random` is drawn from, whose sequence Python
promises to keep.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")

SEED = 20260
NUM_DEVICES = 1000
BLOCK_DEVICES = 8
TIERS = ("open", "internal", "confidential", "restricted")
BOUNDARIES = (
    "aachen", "bergen", "coimbra", "delft", "espoo", "fribourg",
    "ghent", "hamburg", "iasi", "jena", "krakow", "lund",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A device type as it is bought: how many per host, what one costs, how often it fails."""

    name: str
    per_host: int
    usd_per_hour: float
    mtbf_h: int


LARGE = (
    Kind(name="H200", per_host=8, usd_per_hour=3.6, mtbf_h=20000),
    Kind(name="H100-80GB", per_host=8, usd_per_hour=2.9, mtbf_h=20000),
    Kind(name="A100-80GB", per_host=8, usd_per_hour=1.8, mtbf_h=18000),
)
SMALL = (
    Kind(name="A100-40GB", per_host=4, usd_per_hour=1.3, mtbf_h=16000),
    Kind(name="L40S", per_host=4, usd_per_hour=1.1, mtbf_h=20000),
    Kind(name="RTX-A6000", per_host=4, usd_per_hour=0.6, mtbf_h=12000),
    Kind(name="A10", per_host=4, usd_per_hour=0.5, mtbf_h=15000),
    Kind(name="L4", per_host=2, usd_per_hour=0.4, mtbf_h=20000),
)
# Blocks of 8 large devices that every boundary has, so that each holds four replicas of a 70B-class model.
LARGE_BLOCKS_MIN = 3
FABRICS_GBIT = (100, 200, 400)
CAMPUS_GBIT = (10, 25, 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal hosts of one site."""

    site: str
    kind: Kind
    tier: str
    num_devices: int
    price_factor: float


def fleet_text(seed: int = SEED) -> str:
    """The fleet file."""
    rng = Random(seed)  # noqa: S311 - an example, not a secret
    blocks = _blocks_by_boundary(rng)
    sites: list[str] = []
    hosts: list[str] = []
    links: list[str] = []
    for boundary, num_blocks in zip(BOUNDARIES, blocks, strict=True):
        names = [f"{boundary}-{place}" for place in ("hall", "annex", "lab")[: 2 + (num_blocks > 10)]]
        sites += _site_lines(rng, boundary, names)
        links += _link_lines(rng, names)
        for number, group in enumerate(_groups(rng, names, num_blocks)):
            hosts += _host_lines(boundary, number, group)
    return "\n".join([*_head_lines(seed), "sites:", *sites, "hosts:", *hosts, "links:", *links]) + "\n"


def _blocks_by_boundary(rng: Random) -> list[int]:
    """How many blocks of 8 devices each boundary has: six, and a share of the rest."""
    blocks = [6] * len(BOUNDARIES)
    for _ in range(NUM_DEVICES // BLOCK_DEVICES - sum(blocks)):
        blocks[int(rng.random() * len(blocks))] += 1
    return blocks


def _groups(rng: Random, sites: Sequence[str], num_blocks: int) -> Iterator[Group]:
    """Large devices in the first site, cleared for everything; the others anywhere, with less clearance."""
    counts: dict[tuple[str, Kind, str], int] = {}
    for i in range(num_blocks):
        if i < LARGE_BLOCKS_MIN:
            key = (sites[0], _pick(rng, LARGE), _pick(rng, TIERS[2:]))
        else:
            key = (_pick(rng, sites), _pick(rng, SMALL), _pick(rng, TIERS[:3]))
        counts[key] = counts.get(key, 0) + BLOCK_DEVICES
    price_factor = 0.8 + 0.05 * int(rng.random() * 9)
    for (site, kind, tier), num_devices in counts.items():
        yield Group(site=site, kind=kind, tier=tier, num_devices=num_devices, price_factor=price_factor)


def _pick(rng: Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


def _head_lines(seed: int) -> list[str]:
    return [
        "# 1,000 devices of 8 types in 12 universities: what a continental training alliance might pool.",
        f"# Written by planner/examples/generate_thousand.py with seed {seed}; edit that, not this.",
        "schema: echelon/fleet/1",
        "name: thousand",
        f"tiers: [{', '.join(TIERS)}]",
        "boundaries:",
        *(f"  - {{name: {name}, owner: university-of-{name}}}" for name in BOUNDARIES),
        "wan:",
        "  across: {bandwidth: 2 Gbit/s, latency: 20 ms}",
    ]


def _site_lines(rng: Random, boundary: str, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        fabric = _pick(rng, FABRICS_GBIT)
        yield f"  - {{name: {name}, boundary: {boundary}, fabric: {fabric} Gbit/s, latency: 8 us}}"


def _link_lines(rng: Random, names: Sequence[str]) -> Iterator[str]:
    for i, source in enumerate(names):
        for target in names[i + 1 :]:
            rate = _pick(rng, CAMPUS_GBIT)
            yield f"  - {{between: [{source}, {target}], bandwidth: {rate} Gbit/s, latency: 200 us}}"


def _host_lines(boundary: str, number: int, group: Group) -> list[str]:
    num_hosts = group.num_devices // group.kind.per_host
    stem = f"{boundary}-{number}"
    name = f"{stem}-[01-{num_hosts:02d}]" if num_hosts > 1 else f"{stem}-01"
    return [
        f"  - name: {name}",
        f"    site: {group.site}",
        f"    devices: {group.kind.per_host} x {group.kind.name}",
        f"    tier: {group.tier}",
        f"    price: {group.kind.usd_per_hour * group.price_factor:.2f} USD/h",
        f"    mtbf: {group.kind.mtbf_h} h",
    ]


if __name__ == "__main__":
    sys.stdout.write(fleet_text())
