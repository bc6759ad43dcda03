"""One stage of a plan against the fleet, the candidate list and the cost model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from costmodels.fleet import Device
from costmodels.interface import Cluster, StageCost, Strategy
from planner.candidates import cluster_of
from planner.check.fleet_view import BoundaryView
from planner.check.report import Findings
from planner.plan import StagePlan
from planner.problem import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSite:
    """A stage on its real devices: the cluster, the candidate it realises, and where it stands."""

    stage: StagePlan
    cluster: Cluster
    template: Template
    strategy: Strategy


def place_stage(view: BoundaryView, stage: StagePlan, findings: Findings, place: str) -> StageSite | None:
    """The stage on its real devices; None, with the reasons recorded, when they can't form it."""
    devices = _real_devices(view, stage, findings, place)
    if devices is None:
        return None
    _check_grid(view, stage, devices, findings, place)
    sites = {view.fleet.site_of(device).site_id for device in devices}
    if len(sites) != 1:
        findings.add("candidate", f"{place}.devices", sorted(sites), "devices of one site")
        return None
    strategy = Strategy(dp=stage.dp, tp=stage.tp, zero=stage.zero)
    template = view.template_of(devices, strategy)
    if template is None:
        found = f"{view.parts_of(devices)} with {strategy}"
        findings.add("candidate", f"{place}.devices", found, "a cluster of the candidate list")
        return None
    order = [view.class_of[device.device_id] for device in devices]
    listed = [view.class_of[device.device_id] for device in template.cluster.devices]
    runs = [(view.class_of[device.device_id], device.host_id) for device in devices]
    num_runs = 1 + sum(a != b for a, b in pairwise(runs))
    if order != listed or num_runs != len(set(runs)):
        findings.add("cluster-order", f"{place}.devices", order, f"classes {listed}, host by host")
        return None
    cluster = cluster_of(view.fleet, view.fleet.site_of(devices[0]), devices)
    return StageSite(stage=stage, cluster=cluster, template=template, strategy=strategy)


def _real_devices(
    view: BoundaryView, stage: StagePlan, findings: Findings, place: str
) -> tuple[Device, ...] | None:
    before = len(findings.violations)
    for device_id in stage.devices:
        if device_id not in view.fleet.device_by_id:
            findings.add("device-known", f"{place}.devices", device_id, "a device of the fleet")
        elif device_id not in view.class_of:
            findings.add(
                "boundary", f"{place}.devices", device_id, f"a device of boundary {view.problem.name}"
            )
    for device_id, count in Counter(stage.devices).items():
        if count > 1:
            findings.add("device-once", f"{place}.devices", f"{device_id} {count} times", "each device once")
    if not stage.devices:
        findings.add("rank-grid", f"{place}.devices", "no device", "dp x tp devices")
    if len(findings.violations) > before:
        return None
    return tuple(view.fleet.device_by_id[device_id] for device_id in stage.devices)


def _check_grid(
    view: BoundaryView, stage: StagePlan, devices: tuple[Device, ...], findings: Findings, place: str
) -> None:
    """`rank-grid`, `head`: devices are dp x tp in rank order, each tensor-parallel row inside one host."""
    if stage.dp < 1 or stage.tp < 1 or len(devices) != stage.dp * stage.tp:
        findings.add("rank-grid", f"{place}.devices", f"{len(devices)} devices", f"{stage.dp} x {stage.tp}")
        return
    rows = tuple(tuple(stage.devices[i * stage.tp : (i + 1) * stage.tp]) for i in range(stage.dp))
    if stage.ranks != rows:
        findings.add(
            "rank-grid", f"{place}.ranks", stage.ranks, f"{stage.dp} x {stage.tp} in order of devices"
        )
    host_by_id = {device.device_id: device.host_id for device in devices}
    across = view.tensor_parallel_across_hosts
    for i, row in enumerate(rows):
        if len({host_by_id[device_id] for device_id in row}) > 1 and not across:
            findings.add("rank-grid", f"{place}.ranks[{i}]", row, "tensor-parallel ranks inside one host")
    if stage.head not in stage.devices:
        findings.add("head", f"{place}.head", stage.head, "a device of the stage")


def check_tier(view: BoundaryView, stage: StagePlan, findings: Findings, place: str) -> None:
    """`tier`: every device of a stage is cleared for all of its layers."""
    first, stop = stage.layers
    required = max(view.problem.tier_required[first:stop], default=0)
    for device_id in stage.devices:
        device = view.fleet.device_by_id.get(device_id)
        if device is not None and device.tier_i < required:
            tiers = view.fleet.tiers
            limit = f"{tiers[required]} or higher for layers {first} to {stop - 1}"
            findings.add(
                "tier", f"{place}.devices", f"{device_id} is cleared for {tiers[device.tier_i]}", limit
            )


def check_cost(site: StageSite, cost: StageCost, held: int, findings: Findings, place: str) -> None:
    """`memory`, `in-flight`, `recompute`, `shares`, `compute`, `comm`, `sync`: the stage's own figures."""
    stage = site.stage
    findings.require_same("in-flight", f"{place}.in_flight", stage.in_flight, held)
    findings.require_same("recompute", f"{place}.recompute", stage.recompute, cost.recompute_layers)
    findings.require_same(
        "shares", f"{place}.micro_batch_shares", stage.micro_batch_shares, tuple(cost.shares)
    )
    findings.require_equal("compute", f"{place}.compute_s", stage.compute_s, cost.forward_s + cost.backward_s)
    findings.require_equal("comm", f"{place}.comm_s", stage.comm_s, cost.exposed_s)
    findings.require_equal("sync", f"{place}.sync_s", stage.sync_s, cost.sync_s)
    if set(stage.memory_bytes) != set(stage.devices):
        findings.add("memory", f"{place}.memory_bytes", sorted(stage.memory_bytes), "one entry per device")
        return
    for device_id, kinds, limit in zip(stage.devices, cost.memory_bytes, cost.limit_bytes, strict=True):
        _check_memory(
            stage.memory_bytes[device_id], kinds, limit, findings, f"{place}.memory_bytes[{device_id}]"
        )


def _check_memory(
    stated: Mapping[str, float], kinds: Mapping[str, float], limit: float, findings: Findings, place: str
) -> None:
    derived = {**kinds, "limit": limit}
    if set(stated) != set(derived):
        findings.add("memory", place, sorted(stated), sorted(derived))
        return
    for kind, number in derived.items():
        findings.require_equal("memory", f"{place}.{kind}", stated[kind], number)
    if sum(kinds.values()) > limit:
        findings.add("memory", place, f"{sum(kinds.values()):.0f} bytes", f"{limit:.0f} bytes usable")
