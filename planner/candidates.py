"""The candidate rule: which device classes there are, which clusters they may form, and how these are run.

Packing lemma. Inside a host of h devices only the sizes of one divisor chain of h are used (each size divides
the next, the last is h), and wider clusters take whole hosts. Then any choice of clusters that respects the
number of devices per class can be placed on the real hosts: whole-host clusters first, the rest by decreasing
size, each of which fills a multiple of itself. So counts per class are all a solver has to respect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from costmodels.fleet import Device, Fleet, Site
from costmodels.interface import Cluster, Strategy
from costmodels.workload import ROUND_ROBIN, Job
from planner import execution
from planner.execution import StageShape, stage_reasons
from planner.problem import DeviceClass, Mode, Part, Template, usage_of
from policies.policy import SpareKind

EXECUTORS = ("any", *execution.EXECUTORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRule:
    """How rich the list of clusters is. `mixed_classes_max` classes may share a cluster.

    `tensor_parallel_across_hosts` lets the ranks of one tensor-parallel group stand on several hosts; only
    for cost models that price such groups by the cluster's inner link. Which devices a cluster takes is not
    affected, so the packing lemma holds with and without.
    """

    cluster_devices_max: int = 16
    mixed_classes_max: int = 1
    zero_levels: tuple[int, ...] = (0, 1, 2, 3)
    tensor_parallel_max: int = 8
    every_host_multiple: bool = False
    tensor_parallel_across_hosts: bool = False


def rule_for(num_devices: int, job: Job) -> CandidateRule:
    """The default rule: everything up to 24 devices, one class per cluster and fewer ZeRO levels above."""
    if num_devices <= 24:
        return CandidateRule(mixed_classes_max=3, every_host_multiple=True)
    return CandidateRule(zero_levels=(0, 1, 3) if job.full else (0, 3))


def build_classes(fleet: Fleet, boundary: str) -> tuple[tuple[str, ...], tuple[DeviceClass, ...]]:
    """Site ids and device classes of one boundary, in the fleet's own order."""
    sites = [site.site_id for site in fleet.sites if site.boundary_id == boundary]
    by_host: dict[tuple[str, Device], list[str]] = defaultdict(list)
    for device in fleet.devices:
        if fleet.boundary_of(device) == boundary:
            by_host[(device.host_id, _figures(device))].append(device.device_id)
    by_class: dict[tuple[str, float, float, int, Device], list[tuple[str, ...]]] = defaultdict(list)
    for (host_id, figures), ids in by_host.items():
        host = fleet.host_by_id[host_id]
        key = (host.site_id, host.link_bytes_per_s, host.link_latency_s, len(ids), figures)
        by_class[key].append(tuple(ids))
    classes = []
    for class_i, (key, hosts) in enumerate(by_class.items()):
        representative = fleet.device_by_id[hosts[0][0]]
        classes.append(
            DeviceClass(
                class_i=class_i, site_i=sites.index(key[0]), device=representative, hosts=tuple(hosts)
            )
        )
    return tuple(sites), tuple(classes)


def _figures(device: Device) -> Device:
    """The device without its identity: equal results mean interchangeable devices."""
    return replace(device, device_id="", host_id="", mtbf_s=None, owner="", origin="")


def divisor_chain(host_size: int) -> tuple[int, ...]:
    """Sizes from 1 to host_size, each dividing the next; the powers of two when host_size is one."""
    sizes = [host_size]
    while sizes[-1] > 1:
        size = sizes[-1]
        sizes.append(size // next(p for p in range(2, size + 1) if size % p == 0))
    return tuple(reversed(sizes))


def blocks_of(device_class: DeviceClass, rule: CandidateRule) -> Iterator[Part]:
    """Parts one class can lend to a cluster: chain sizes inside a host, then multiples of whole hosts."""
    size, num_hosts = device_class.host_size, len(device_class.hosts)
    for per_host in divisor_chain(size):
        if per_host <= rule.cluster_devices_max:
            yield Part(class_i=device_class.class_i, per_host=per_host, num_hosts=1)
    multiples = range(2, num_hosts + 1) if rule.every_host_multiple else _powers_of_two(num_hosts)
    for hosts in multiples:
        if hosts * size <= rule.cluster_devices_max:
            yield Part(class_i=device_class.class_i, per_host=size, num_hosts=hosts)


def _powers_of_two(limit: int) -> list[int]:
    return [1 << k for k in range(1, limit.bit_length()) if 1 << k <= limit]


def _part_sets(classes: Sequence[DeviceClass], rule: CandidateRule) -> Iterator[tuple[Part, ...]]:
    blocks = [tuple(blocks_of(device_class, rule)) for device_class in classes]
    for count in range(1, rule.mixed_classes_max + 1):
        for chosen in combinations(range(len(classes)), count):
            if len({classes[i].site_i for i in chosen}) == 1:
                for parts in product(*(blocks[i] for i in chosen)):
                    if sum(part.num_devices for part in parts) <= rule.cluster_devices_max:
                        yield parts


def _strategies(parts: Sequence[Part], job: Job, rule: CandidateRule) -> Iterator[Strategy]:
    num_devices = sum(part.num_devices for part in parts)
    widest = 1
    if len(parts) == 1:
        widest = num_devices if rule.tensor_parallel_across_hosts else parts[0].per_host
    for tp in (t for t in (1, *_powers_of_two(rule.tensor_parallel_max)) if widest % t == 0):
        dp = num_devices // tp
        if any(width_fits(dp, size, job) for size in job.micro_batch_sizes):
            for zero in rule.zero_levels if dp > 1 else (0,):
                yield Strategy(dp=dp, tp=tp, zero=zero)


def width_fits(dp: int, micro_batch_size: int, job: Job) -> bool:
    """Whether `dp` ranks can share the micro-batches: each of them (joint) or their number (round-robin)."""
    if job.schedule == ROUND_ROBIN:
        return job.sequences_per_step // micro_batch_size % dp == 0
    return dp <= micro_batch_size


def build_cluster(fleet: Fleet, site: Site, classes: Sequence[DeviceClass], parts: Sequence[Part]) -> Cluster:
    """The cluster on representative hosts, with the slowest link between its members."""
    devices = tuple(
        fleet.device_by_id[device_id]
        for part in parts
        for host in classes[part.class_i].hosts[: part.num_hosts]
        for device_id in host[: part.per_host]
    )
    return cluster_of(fleet, site, devices)


def cluster_of(fleet: Fleet, site: Site, devices: tuple[Device, ...]) -> Cluster:
    """A cluster of these devices: inside one host its link counts, else the slower of host and fabric.

    Devices of several kinds always count as standing on several hosts: where a class of one kind shares hosts
    with another is not part of the candidate rule, so no plan may rest on it.
    """
    hosts = [fleet.host_by_id[host_id] for host_id in dict.fromkeys(device.host_id for device in devices)]
    tp_bytes_per_s = min(host.link_bytes_per_s for host in hosts)
    tp_latency_s = max(host.link_latency_s for host in hosts)
    inner = (tp_bytes_per_s, tp_latency_s)
    mixed = len({_figures(device) for device in devices}) > 1
    if len(hosts) > 1 or mixed:
        inner = (min(tp_bytes_per_s, site.fabric_bytes_per_s), max(tp_latency_s, site.fabric_latency_s))
    return Cluster(
        site=site,
        devices=devices,
        inner_bytes_per_s=inner[0],
        inner_latency_s=inner[1],
        tp_bytes_per_s=tp_bytes_per_s,
        tp_latency_s=tp_latency_s,
    )


def build_templates(
    fleet: Fleet,
    site_ids: Sequence[str],
    classes: Sequence[DeviceClass],
    job: Job,
    rule: CandidateRule,
    spares: SpareKind,
) -> tuple[Template, ...]:
    """All candidate clusters with their strategies; with dedicated spares each takes one more device."""
    templates: list[Template] = []
    for parts in _part_sets(classes, rule):
        spare_class_i = None
        if spares is SpareKind.DEDICATED:
            spare_class_i = max(
                (part.class_i for part in parts),
                key=lambda i: (classes[i].device.tier_i, classes[i].device.memory_bytes, -i),
            )
        usage = usage_of(parts, spare_class_i)
        if any(count > classes[class_i].num_devices for class_i, count in usage):
            continue
        site_i = classes[parts[0].class_i].site_i
        cluster = build_cluster(fleet, fleet.site_by_id[site_ids[site_i]], classes, parts)
        tier_i = min(classes[part.class_i].device.tier_i for part in parts)
        for strategy in _strategies(parts, job, rule):
            templates.append(
                Template(
                    template_i=len(templates),
                    site_i=site_i,
                    parts=parts,
                    strategy=strategy,
                    cluster=cluster,
                    usage=usage,
                    spare_class_i=spare_class_i,
                    tier_i=tier_i,
                )
            )
    return tuple(templates)


def _refused_by(executor: str, template: Template, size: int, job: Job, *, pipelined: bool) -> bool:
    """Whether the executor can't run this cluster with its strategy."""
    strategy = template.strategy
    shape = StageShape(dp=strategy.dp, tp=strategy.tp, zero=strategy.zero, num_kinds=len(template.parts))
    return bool(stage_reasons(executor, shape, size, pipelined=pipelined, schedule=job.schedule))


def build_modes(templates: Sequence[Template], job: Job, executor: str) -> tuple[Mode, ...]:
    """Micro-batch options times what the executor can run.

    `planner.execution` has the rules. The torch-native executor runs unequal widths; DeepSpeed runs pipelines
    of equal width and ZeRO level, hence one mode for each pair, and single stages by rules of their own.
    """
    modes: list[Mode] = []
    for size in job.micro_batch_sizes:
        count = job.sequences_per_step // size
        fitting = [t for t in templates if width_fits(t.strategy.dp, size, job)]
        if executor in ("any", "torch"):
            chosen: list[tuple[str, int | None, int, list[Template]]] = [
                ("torch", None, job.max_stages, fitting)
            ]
        else:
            plain, piped = (
                [t for t in fitting if not _refused_by(executor, t, size, job, pipelined=pipelined)]
                for pipelined in (False, True)
            )
            chosen = [(executor, None, 1, plain)]
            for width, zero in sorted({(t.strategy.dp, t.strategy.zero) for t in piped}):
                equal = [t for t in piped if (t.strategy.dp, t.strategy.zero) == (width, zero)]
                chosen.append((executor, width, job.max_stages, equal))
        for name, width_or_none, max_stages, members in chosen:
            modes.append(
                Mode(
                    mode_i=len(modes),
                    num_micro_batches=count,
                    micro_batch_size=size,
                    executor=name,
                    width=width_or_none,
                    max_stages=max_stages,
                    templates=tuple(t.template_i for t in members),
                )
            )
    return tuple(modes)
