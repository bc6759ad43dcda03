"""From the documents of measured hosts to one profile. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from costmodels.interface import Origin
from costmodels.measured_memory import Holding, stage_bytes
from costmodels.measured_profile import (
    ASSUMED,
    DECLARED,
    MEASURED,
    ExecutorFacts,
    LayerSizes,
    LinkCurve,
    Profile,
)
from costmodels.workload import Workload
from executors.profiling.answers import (
    SCHEMA,
    ExecutorAnswer,
    RankAnswer,
    executor_answer_from_json,
    rank_answer_from_json,
)
from executors.profiling.layers import DeviceMeasurements, build_profile_from_spans
from executors.profiling.links import curve_of, slowest_curve
from executors.profiling.spans import wall_per_cpu
from planner.execution import DEEPSPEED, TORCH
from policies.errors import InputError

ALL_LEVELS = (0, 1, 2, 3)
PER_SEQUENCE = ("activations", "working", "borders")
FACTOR_MAX = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a rank ran."""

    host: str
    device_type: str


def merge(workload: Workload, documents: Sequence[Mapping[str, Any]]) -> Profile:
    """The profile that the documents of all measured hosts make together.

    Ranks of one device type are averaged. Links inside a host go to `inner`, those between hosts to `outer`,
    the slowest of each kind.

    Raises:
        InputError: `profile-incomplete` where the documents don't cover the model.
    """
    for document in documents:
        if document.get("schema") != SCHEMA:
            raise InputError(
                "profile-incomplete", f"schema {document.get('schema')!r} found, {SCHEMA!r} expected"
            )
    places = {
        document["first_rank"] + i: _Place(host=document["host"], device_type=document["device_type"])
        for document in documents
        for i in range(len(document["ranks"]))
    }
    answers = [rank_answer_from_json(value) for document in documents for value in document["ranks"]]
    if not answers:
        raise InputError("profile-incomplete", "no rank answered", hint="measure at least one rank")
    by_type: dict[str, list[RankAnswer]] = defaultdict(list)
    for answer in answers:
        by_type[places[answer.rank].device_type].append(answer)
    note = _note(documents, answers)
    inner, outer = _curves(answers, places, _ranks_by_host(documents), note)
    profile = build_profile_from_spans(
        workload,
        {name: _measurements(members) for name, members in by_type.items()},
        sizes=answers[0].sizes,
        inner=inner,
        outer=outer,
        note=note,
    )
    executors = _executors(profile, documents, answers, note)
    overheads = [facts.overhead_bytes for facts in executors.values() if facts.overhead_bytes is not None]
    facts = replace(profile.facts, overhead_bytes=max(overheads, default=0.0))
    return replace(profile, facts=facts, executors=executors)


def _note(documents: Sequence[Mapping[str, Any]], answers: Sequence[RankAnswer]) -> str:
    """How it was measured, in a few words."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(answers[0].versions.items()))
    steps = max((len(seconds) for seconds in answers[0].step_s.values()), default=0)
    side = f"{len(answers)} ranks side by side" if len(answers) > 1 else "one rank"
    hosts = f" on {len(documents)} hosts" if len(documents) > 1 else ""
    return f"{steps} steps of the torch executor, {side}{hosts}, {versions}"


def _ranks_by_host(documents: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {document["host"]: len(document["ranks"]) for document in documents}


def _measurements(members: Sequence[RankAnswer]) -> DeviceMeasurements:
    per_param = [one.update_s / one.update_params for one in members if one.update_params > 0]
    return DeviceMeasurements(
        spans=[spans for one in members for spans in one.spans],
        update_s_per_param=float(np.mean(per_param)) if per_param else 0.0,
        memory_bytes_per_s=float(np.mean([one.memory_bytes_per_s for one in members])),
    )


def _curves(
    answers: Iterable[RankAnswer], places: Mapping[int, _Place], num_ranks: Mapping[str, int], note: str
) -> tuple[dict[tuple[str, int], LinkCurve], dict[tuple[str, str], LinkCurve]]:
    inner: dict[tuple[str, int], list[LinkCurve]] = defaultdict(list)
    outer: dict[tuple[str, str], list[LinkCurve]] = defaultdict(list)
    for answer in answers:
        here = places[answer.rank]
        for rank, timed in answer.links.items():
            there, curve = places[rank], curve_of(timed, note=f"sends between two ranks; {note}")
            if there.host == here.host:
                inner[here.device_type, num_ranks[here.host]].append(curve)
            else:
                for ends in {(here.device_type, there.device_type), (there.device_type, here.device_type)}:
                    outer[ends].append(curve)
    return (
        {ends: slowest_curve(curves) for ends, curves in inner.items()},
        {ends: slowest_curve(curves) for ends, curves in outer.items()},
    )


def _executors(
    profile: Profile, documents: Sequence[Mapping[str, Any]], answers: Sequence[RankAnswer], note: str
) -> dict[str, ExecutorFacts]:
    """Facts of every executor that ran a pipeline."""
    ratio = wall_per_cpu([spans for one in answers for spans in one.spans])
    types = {
        document["first_rank"] + i: document["device_type"]
        for document in documents
        for i in range(len(document["ranks"]))
    }
    found = {}
    for name in documents[0]["executors"]:
        members = [
            executor_answer_from_json(value)
            for document in documents
            for value in document["executors"][name]
        ]
        members = [one for one in members if one.layers]
        found[name] = _facts(name, profile, members, types, ratio, note)
    return found


def _facts(
    name: str,
    profile: Profile,
    members: Sequence[ExecutorAnswer],
    types: Mapping[int, str],
    ratio: float,
    note: str,
) -> ExecutorFacts:
    """What an executor adds: the mean over ranks of seconds, the most of bytes.

    Its optimiser's seconds beyond those that the profile has for the layers are its overhead of a step.
    """
    measured = Origin(kind=MEASURED, note=f"pipeline of {len(members)} ranks; {note}")
    factor = activation_factor(profile, members)
    beyond = []
    for one in members:
        update_s_L = profile.times[types[one.rank]][1].update_s_ML[0]
        beyond.append(ratio * one.update_s - float(update_s_L[list(one.layers)].sum()))
    return ExecutorFacts(
        blocking_transfers=name == DEEPSPEED,
        step_overhead_s=max(0.0, float(np.mean(beyond))),
        micro_batch_overhead_s=ratio * float(np.mean([one.micro_batch_overhead_s for one in members])),
        overhead_bytes=max(overhead_bytes(profile, one, len(members), factor) for one in members),
        activation_factor=factor,
        zero_levels=ALL_LEVELS,
        unequal_shares=name == TORCH,
        recompute=True,
        origins={
            "blocking_transfers": Origin(kind=DECLARED, note="sends and receives of the engine's schedule"),
            "step_overhead_s": measured,
            "micro_batch_overhead_s": measured,
            "overhead_bytes": measured,
            "activation_factor": measured,
            "zero_levels": Origin(kind=ASSUMED, note="gathers and scatters by link curves, none hidden"),
        },
    )


def activation_factor(profile: Profile, members: Sequence[ExecutorAnswer]) -> float:
    """Bytes held for each byte of activations: how the peaks grow with the micro-batch, over the ranks.

    1 where only one size was measured.
    """
    grown_bytes = grown_activation_bytes = 0.0
    for one in members:
        small, large = min(one.peaks_bytes), max(one.peaks_bytes)
        grown_bytes += one.peaks_bytes[large] - one.peaks_bytes[small]
        for size, sign in ((large, 1.0), (small, -1.0)):
            kinds = _kinds(profile, one, size, len(members))
            grown_activation_bytes += sign * sum(kinds[kind] for kind in PER_SEQUENCE)
    if grown_bytes <= 0.0 or grown_activation_bytes <= 0.0:
        return 1.0
    return float(np.clip(grown_bytes / grown_activation_bytes, 1.0 / FACTOR_MAX, FACTOR_MAX))


def overhead_bytes(profile: Profile, one: ExecutorAnswer, num_stages: int, factor: float = 1.0) -> float:
    """Bytes of a rank that the sizes of its layers don't account for, and at least what it began with.

    Libraries and buffers of the engine, as they were at the size that leaves most of them.
    """
    beside = [
        peak_bytes - sum(_kinds(profile, one, size, num_stages, factor).values())
        for size, peak_bytes in one.peaks_bytes.items()
    ]
    return max(float(one.base_bytes), *beside)


def _kinds(
    profile: Profile, one: ExecutorAnswer, size: int, num_stages: int, factor: float = 1.0
) -> dict[str, float]:
    """Bytes of a rank by kind, as its layers' sizes say, at a micro-batch size."""
    sizes = profile.sizes[1]
    columns = {
        column.name: getattr(sizes, column.name)[list(one.layers)]
        for column in fields(LayerSizes)
        if getattr(sizes, column.name) is not None
    }
    stage = replace(profile, sizes={1: LayerSizes(**columns)})
    is_first, is_last = one.layers[0] == 0, one.layers[-1] == profile.num_layers - 1
    held = Holding(
        interval=(0, len(one.layers)),
        tp=1,
        share=size,
        border_sequence_bytes=(0.0 if is_first else float(sizes.output_bytes_L[one.layers[0] - 1]))
        + (0.0 if is_last else float(sizes.output_bytes_L[one.layers[-1]])),
        overhead_bytes=0.0,
        activation_factor=factor,
    )
    if num_stages > 1:
        stage = replace(stage, facts=replace(stage.facts, tied_params=0.0))
    return stage_bytes(stage, held).kinds(one.in_flight, 0)
