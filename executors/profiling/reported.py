"""A launch as a profile: the layers of its ranks' best steps. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.interface import Origin
from costmodels.measured_profile import DECLARED, MEASURED, ExecutorFacts, Profile
from costmodels.profile_io import profile_from_document
from costmodels.workload import Workload
from executors.layout import Layout, layout_of
from executors.profiling.answers import ExecutorAnswer, spans_from_json
from executors.profiling.layers import DeviceMeasurements, build_profile_from_spans
from executors.profiling.merging import ALL_LEVELS, overhead_bytes
from executors.profiling.spans import LayerSpans, wall_per_cpu
from executors.run_folder import LAYERS
from planner.canonical import inputs_from_documents
from planner.execution import DEEPSPEED, TORCH
from planner.plan import Plan, ReplicaPlan

FASTEST_MEMORY_BYTES_PER_S = 1e13
"""No optimiser is held back by memory that nobody measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRank:
    """What one rank of a launch measured: its layers' spans, and seconds and bytes beside them.

    `update_s` are the CPU seconds of an optimiser step, `outside_s` those of a micro-batch beside layers and
    transfers, `peak_bytes` the most it held. `in_flight` and `pipelined` are its stage's and its replica's.
    """

    device_type: str
    executor: str
    spans: LayerSpans
    update_s: float
    outside_s: float
    peak_bytes: int
    in_flight: int
    pipelined: bool
    sharded: bool


def profile_of_launch(
    plan: Plan, reports: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]
) -> Profile | None:
    """The profile that the finished replicas of a plan make; None where they can't tell their layers.

    Links, and what the plan's own profile measured of sizes, stay as they were planned with; links that
    nobody measured are left to the fleet's rates. A device type counts where its ranks ran every kind of
    layer; one that did not keeps what it was planned with, if that was measured.
    """
    inputs = inputs_from_documents(plan.inputs)
    ranks: list[ReportedRank] = []
    for boundary in plan.boundaries:
        for replica in boundary.replicas:
            if replica.id not in reports or not (folders[replica.id] / LAYERS).is_file():
                continue
            documents = json.loads((folders[replica.id] / LAYERS).read_text(encoding="utf-8"))
            layout = layout_of(inputs.fleet, replica)
            types = {device.device_id: device.type_name for device in inputs.fleet.devices}
            ranks += _ranks_of(replica, layout, types, reports[replica.id], documents)
    ranks = _of_covered_types(inputs.workload, ranks)
    if not ranks:
        return None
    planned = plan.settings.get("cost_model_settings", {}).get("profile")
    base = None if planned is None else profile_from_document(planned)
    return profile_from_ranks(inputs.workload, ranks, base=base)


def _ranks_of(
    replica: ReplicaPlan,
    layout: Layout,
    types: Mapping[str, str],
    report: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any] | None],
) -> Iterable[ReportedRank]:
    """Ranks that kept a step; a replica that went on after a loss is another one than planned."""
    if report["executor"] != replica.executor or len(documents) != layout.world_size:
        return
    for rank, document, told in zip(layout.ranks, documents, report["ranks"], strict=True):
        stage = replica.stages[rank.stage]
        if document is None or not document["forward"]:
            continue
        yield ReportedRank(
            device_type=types[rank.device],
            executor=replica.executor,
            spans=spans_from_json(document),
            update_s=document["update_s"],
            outside_s=document["outside_s"],
            peak_bytes=told["peak_bytes"],
            in_flight=stage.in_flight,
            pipelined=len(replica.stages) > 1,
            sharded=stage.zero > 0,
        )


def _of_covered_types(workload: Workload, ranks: Sequence[ReportedRank]) -> list[ReportedRank]:
    """Ranks of the device types that ran every kind of layer."""
    kinds = [layer.kind for layer in workload.layers]
    ran: dict[str, set[str]] = {}
    for rank in ranks:
        ran.setdefault(rank.device_type, set()).update(kinds[i] for i in rank.spans.forward)
    return [rank for rank in ranks if ran[rank.device_type] == set(kinds)]


def profile_from_ranks(
    workload: Workload, ranks: Sequence[ReportedRank], *, base: Profile | None = None, note: str = "a launch"
) -> Profile:
    """The profile that these ranks make; sizes and links are those of `base`, or of workload and fleet.

    The ranks of each device type must have run every kind of layer.

    Raises:
        InputError: `profile-incomplete`.
    """
    profile = build_profile_from_spans(
        workload,
        {
            name: _measurements(workload, [r for r in ranks if r.device_type == name], base)
            for name in dict.fromkeys(rank.device_type for rank in ranks)
        },
        inner={} if base is None else base.inner,
        outer={} if base is None else base.outer,
        note=note,
    )
    if base is not None:
        profile = replace(profile, sizes=base.sizes, times={**base.times, **profile.times})
    facts = {
        name: _facts(name, profile, [rank for rank in ranks if rank.executor == name], note)
        for name in dict.fromkeys(rank.executor for rank in ranks)
    }
    held = max((fact.overhead_bytes or 0.0 for fact in facts.values()), default=0.0)
    return replace(
        profile,
        facts=replace(profile.facts, overhead_bytes=held),
        executors={**({} if base is None else base.executors), **facts},
    )


def _measurements(
    workload: Workload, ranks: Sequence[ReportedRank], base: Profile | None
) -> DeviceMeasurements:
    trained_L = [layer.trainable_params for layer in workload.layers]
    per_param = [
        rank.update_s / params
        for rank in ranks
        # A rank that updates a part of its layers' weights doesn't tell what a whole one takes.
        if not rank.sharded and (params := sum(trained_L[i] for i in rank.spans.forward)) > 0
    ]
    return DeviceMeasurements(
        spans=[rank.spans for rank in ranks],
        update_s_per_param=float(np.mean(per_param)) if per_param else 0.0,
        memory_bytes_per_s=FASTEST_MEMORY_BYTES_PER_S if base is None else base.facts.memory_bytes_per_s,
    )


def _facts(name: str, profile: Profile, ranks: Sequence[ReportedRank], note: str) -> ExecutorFacts:
    """What an executor adds: the mean over ranks of seconds, the most of bytes."""
    measured = Origin(kind=MEASURED, note=note)
    ratio = wall_per_cpu([rank.spans for rank in ranks])
    return ExecutorFacts(
        blocking_transfers=name == DEEPSPEED,
        micro_batch_overhead_s=ratio * float(np.mean([rank.outside_s for rank in ranks])),
        overhead_bytes=max(overhead_bytes(profile, *_held(name, rank)) for rank in ranks),
        zero_levels=ALL_LEVELS,
        unequal_shares=name == TORCH,
        recompute=True,
        origins={
            "blocking_transfers": Origin(kind=DECLARED, note="sends and receives of the engine's schedule"),
            "micro_batch_overhead_s": measured,
            "overhead_bytes": measured,
        },
    )


def _held(name: str, rank: ReportedRank) -> tuple[ExecutorAnswer, int]:
    """A rank's memory as a measured pipeline's, and whether its replica had several stages (1 or 2)."""
    answer = ExecutorAnswer(
        rank=0,
        executor=name,
        micro_batch_overhead_s=rank.outside_s,
        update_s=rank.update_s,
        peaks_bytes={rank.spans.micro_batch_size: rank.peak_bytes},
        base_bytes=0,
        layers=tuple(sorted(rank.spans.forward)),
        in_flight=rank.in_flight,
        step_s=(),
    )
    return answer, 2 if rank.pipelined else 1
