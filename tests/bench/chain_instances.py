"""Mixed fleets where device i holding j layers passes T_i(j) tokens/s: a cost model of others, and its
problems.

An instance states node throughputs and link capacities in tokens/s; see the docstring of its evaluator. One
token is one micro-batch here, so that seconds per step are seconds per token and a plan's tokens/s is the
flow of its chain. Source and sink capacities count in the stage that holds the first or last layer.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.interface import Cluster, Interval, StageCost, Strategy
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.objective import Replica
from planner.problem import BoundaryProblem, Objective, ObjectiveKind
from policies.policy import Policy

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
FOLDER = SHARED / "instances" / "chain"
CASES = ("fleet-10-mixed-30b", "fleet-8l4-30b", "fleet-8l4-30b-geo", "fleet-12t4-30b", "fleet-12t4-30b-geo")
SOURCE, SINK = "source", "sink"


@dataclass(frozen=True, kw_only=True)
class ChainInstance:
    """Tokens/s by device and layers held, and capacities in tokens/s by (from, to)."""

    name: str
    num_layers: int
    tokens_per_s: Mapping[str, tuple[float, ...]]
    capacity_per_s: Mapping[tuple[str, str], float]

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Device ids in the instance's order."""
        return tuple(self.tokens_per_s)

    def type_of(self, device_id: str) -> tuple[object, ...]:
        """Devices of one type have equal throughputs and equal links to source and sink."""
        ends = (self.capacity_per_s.get((SOURCE, device_id)), self.capacity_per_s.get((device_id, SINK)))
        return (self.tokens_per_s[device_id], *ends)

    @property
    def uniform_per_s(self) -> float | None:
        """The capacity between any two devices when it is the same for all pairs, else None."""
        pairs = {self.capacity_per_s.get((a, b)) for a in self.devices for b in self.devices if a != b}
        return next(iter(pairs)) if len(pairs) == 1 else None


class ChainCostModel:
    """One device per stage; a micro-batch is one token."""

    name = "chain-instances"

    def __init__(self, instance: ChainInstance) -> None:
        self._instance = instance

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Seconds per token of the device, or of its link to source or sink where that is slower."""
        device_id = cluster.devices[0].device_id
        table = self._instance.tokens_per_s[device_id]
        num_held = interval[1] - interval[0]
        rates = [table[num_held - 1] if num_held <= len(table) else 0.0]
        if interval[0] == 0:
            rates.append(self._instance.capacity_per_s.get((SOURCE, device_id), 0.0))
        if interval[1] == self._instance.num_layers:
            rates.append(self._instance.capacity_per_s.get((device_id, SINK), 0.0))
        if len(cluster.devices) > 1 or min(rates) <= 0.0:
            return None
        return StageCost(
            forward_s=1.0 / min(rates),
            backward_s=0.0,
            exposed_s=0.0,
            sync_s=0.0,
            shares=(micro_batch_size,),
            memory_bytes=({"layers": float(num_held)},),
            limit_bytes=(float(len(table)),),
        )

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds per token of a link; its bytes per second are the instance's tokens per second."""
        return 1.0 / link.bytes_per_s

    def interval_key(self, interval: Interval) -> Hashable:
        """Only the number of layers and the two ends of the model matter."""
        return interval[1] - interval[0], interval[0] == 0, interval[1] == self._instance.num_layers


def load_instance(name: str) -> ChainInstance:
    """One of `CASES`."""
    document = json.loads((FOLDER / f"{name}.json").read_text())
    assert not document["partial"], "partial entry of requests is another problem"
    return ChainInstance(
        name=name,
        num_layers=document["L"],
        tokens_per_s={device: tuple(rates) for device, rates in document["nodes"].items()},
        capacity_per_s={(a, b): capacity for a, b, capacity in document["edges"]},
    )


def load_peer(name: str) -> dict[str, Any]:
    """The published solution with its value."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.peer.json").read_text())
    return document


def load_evaluator(file_name: str) -> ModuleType:
    """An evaluator of `shared/tools` as a module."""
    spec = importlib.util.spec_from_file_location(file_name.removesuffix(".py"), SHARED / "tools" / file_name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_fleet(instance: ChainInstance) -> Fleet:
    """One host per device; one site where all links are equal, else a site per device and a link per pair."""
    uniform_per_s = instance.uniform_per_s
    types: dict[object, str] = {}
    for device in instance.devices:
        types.setdefault(instance.type_of(device), f"type-{len(types)}")
    site_of = {device: "all" if uniform_per_s else f"at-{device}" for device in instance.devices}
    sites = tuple(
        Site(site_id=site_id, boundary_id="fleet", fabric_bytes_per_s=uniform_per_s or 1.0)
        for site_id in dict.fromkeys(site_of.values())
    )
    pairs = [
        (a, b) for a, b in instance.capacity_per_s if a in site_of and b in site_of and not uniform_per_s
    ]
    return Fleet(
        name=instance.name,
        tiers=("any",),
        boundaries=("fleet",),
        sites=sites,
        hosts=tuple(
            Host(host_id=f"host-{device}", site_id=site_of[device], link_bytes_per_s=1.0)
            for device in instance.devices
        ),
        devices=tuple(
            Device(
                device_id=device,
                host_id=f"host-{device}",
                type_name=types[instance.type_of(device)],
                memory_bytes=float(len(instance.tokens_per_s[device])),
                flop_per_s=(),
                memory_bytes_per_s=1.0,
                tier_i=0,
            )
            for device in instance.devices
        ),
        links=tuple(
            Link(
                source_site_id=site_of[a],
                target_site_id=site_of[b],
                bytes_per_s=instance.capacity_per_s[a, b],
            )
            for a, b in pairs
        ),
    )


def build_chain_problem(instance: ChainInstance) -> BoundaryProblem:
    """One replica, one device per stage, steady state."""
    layer = LayerSpec(
        kind="layer",
        params=1,
        trainable_params=1,
        forward_flops_per_token=1.0,
        activation_bytes_per_token=1.0,
        input_bytes_per_token=1.0,
        output_bytes_per_token=1.0,
    )
    job = Job(
        sequence_tokens=1, sequences_per_step=1, micro_batch_sizes=(1,), max_stages=len(instance.devices)
    )
    problem = build_problem(
        build_fleet(instance),
        Workload(model_name=instance.name, layers=(layer,) * instance.num_layers, job=job),
        Policy(replicas_max=1),
        ChainCostModel(instance),
        objective=Objective(kind=ObjectiveKind.STEADY_STATE),
        rule=CandidateRule(cluster_devices_max=1, tensor_parallel_max=1, zero_levels=(0,)),
    )
    return problem.boundaries[0]


def placement_of(problem: BoundaryProblem, replica: Replica) -> dict[str, list[int]]:
    """Real devices for the stages, in the evaluator's format: equal devices in the order of the fleet."""
    free = {c.class_i: [device for host in c.hosts for device in host] for c in problem.classes}
    placement = {}
    for stage in replica.stages:
        class_i = problem.templates[stage.template_i].parts[0].class_i
        placement[free[class_i].pop(0)] = [stage.start, stage.stop]
    return placement
