"""Step time and peak memory of a pipeline x data x tensor plan, from a measured profile.

Each piece of a stage is a pure function of its own; `predict` puts them together the way a
one-forward-one-backward pipeline runs.
Formulas and the origin of every constant: docs/measured.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Protocol

from costmodels.interface import FloatArray, Interval
from costmodels.measured_memory import Holding, stage_bytes
from costmodels.measured_profile import LinkCurve, Profile, layer_sizes, layer_times_L
from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReplica:
    """One data-parallel rank of a stage: `tp` devices of one type on one host."""

    type_name: str
    tp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStage:
    """Layers [first, end) and the data-parallel ranks that hold them."""

    first: int
    end: int
    replicas: tuple[RunReplica, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One step: `global_batch` sequences, `micro_batch_size` per micro-batch and data-parallel rank."""

    stages: tuple[RunStage, ...]
    micro_batch_size: int
    global_batch: int

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches each data-parallel rank runs in one step, set by the narrowest stage."""
        width = min(len(stage.replicas) for stage in self.stages)
        return ceil(self.global_batch / (self.micro_batch_size * width))


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrediction:
    """What one stage takes: seconds per micro-batch, seconds per step, and bytes per device by kind."""

    forward_s: float
    backward_s: float
    exposed_s: float
    sync_s: float
    update_s: float
    memory_bytes: Mapping[str, float]

    @property
    def busy_s(self) -> float:
        """Seconds one micro-batch occupies the stage, its transfers included."""
        return self.forward_s + self.backward_s + self.exposed_s

    @property
    def total_bytes(self) -> float:
        """Peak bytes on one device."""
        return sum(self.memory_bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted seconds of one training step and peak bytes of the fullest device."""

    iteration_s: float
    peak_bytes: float
    stages: tuple[StagePrediction, ...]


def stage_forward_s(profile: Profile, stage: RunStage, micro_batch_size: int) -> float:
    """Forward seconds of one micro-batch on the slowest data-parallel rank."""
    return max(
        float(layer_times_L(profile, r.type_name, r.tp, micro_batch_size)[0][stage.first : stage.end].sum())
        for r in set(stage.replicas)
    )


def stage_backward_s(profile: Profile, stage: RunStage, micro_batch_size: int) -> float:
    """Backward seconds of one micro-batch on the slowest data-parallel rank."""
    return max(
        float(layer_times_L(profile, r.type_name, r.tp, micro_batch_size)[1][stage.first : stage.end].sum())
        for r in set(stage.replicas)
    )


def stage_update_s(profile: Profile, stage: RunStage, micro_batch_size: int) -> float:
    """Optimiser seconds per step on the slowest data-parallel rank."""
    return max(
        update_s(
            profile,
            layer_times_L(profile, replica.type_name, replica.tp, micro_batch_size)[2],
            (stage.first, stage.end),
            replica.tp,
        )
        for replica in set(stage.replicas)
    )


def update_s(profile: Profile, update_s_L: FloatArray, interval: Interval, tp: int) -> float:
    """Optimiser seconds per step: max(cost of a call, bytes moved / memory bandwidth).

    The profiled time of a layer is the cost of one optimiser call. A fused multi-tensor optimiser pays it
    once per stage, whatever the number of layers; an unfused one pays it per layer.
    """
    facts, part = profile.facts, slice(*interval)
    calls_s_N = update_s_L[part]
    call_s = float(calls_s_N.max() if facts.fused_update else calls_s_N.sum())
    params = float(layer_sizes(profile, tp).trained_L[part].sum())
    return max(call_s, params * facts.update_traffic_bytes_per_param / facts.memory_bytes_per_s)


class Carrier(Protocol):
    """What carries payloads, such as a link curve."""

    def transfer_s(self, payload_bytes: float) -> float:
        """Seconds to move one payload."""
        ...


def ring_all_reduce_s(curve: Carrier, payload_bytes: float, num_ranks: int) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) steps of one n-th of the payload (Patarasuk and Yuan 2009)."""
    if num_ranks < 2:
        return 0.0
    return 2 * (num_ranks - 1) * curve.transfer_s(payload_bytes / num_ranks)


def outer_curve(profile: Profile, from_type: str, to_type: str) -> LinkCurve:
    """The link between one device of each type on two hosts.

    Raises:
        InputError: `profile-link-missing`.
    """
    curve = profile.outer.get((from_type, to_type))
    if curve is None:
        raise InputError(
            "profile-link-missing",
            f"the profile has no link curve from {from_type!r} to {to_type!r}",
            hint="measure the link between one device of each type",
        )
    return curve


def stage_sync_s(profile: Profile, stage: RunStage) -> float:
    """Gradient all-reduce seconds per step, after the last backward and hidden behind nothing.

    One ring per tensor rank over the data-parallel ranks, each rank on its own link; the slowest pair of
    neighbours sets the pace. With unequal tensor degrees the smallest one holds the largest payload.
    """
    if len(stage.replicas) < 2:
        return 0.0
    tp = min(replica.tp for replica in stage.replicas)
    params = float(layer_sizes(profile, tp).trained_L[stage.first : stage.end].sum())
    payload_bytes = params * profile.facts.gradient_bytes_per_param
    after = (*stage.replicas[1:], stage.replicas[0])
    pairs = {(a.type_name, b.type_name) for a, b in zip(stage.replicas, after, strict=True)}
    curves = [outer_curve(profile, a, b) for a, b in sorted(pairs)]
    return max(ring_all_reduce_s(curve, payload_bytes, len(stage.replicas)) for curve in curves)


def tied_sync_s(profile: Profile, first: RunStage, last: RunStage) -> float:
    """Seconds to sum the gradients of the weight that the first and the last stage both hold."""
    payload_bytes = profile.facts.tied_bytes
    if first == last or payload_bytes <= 0:
        return 0.0
    curve = outer_curve(profile, first.replicas[0].type_name, last.replicas[0].type_name)
    return ring_all_reduce_s(curve, payload_bytes, 2)


def border_bytes(profile: Profile, source: RunStage, tp: int) -> float:
    """Bytes one tensor rank holds of one sequence's activation after the last layer of a stage."""
    return float(layer_sizes(profile, tp).output_bytes_L[source.end - 1])


def border_transfer_s(profile: Profile, source: RunStage, target: RunStage, micro_batch_size: int) -> float:
    """Seconds to carry one micro-batch's activation (or its gradient back) from a stage to the next, one way.

    Full copies: every tensor rank sends the whole activation over its own link. Scattered: every rank sends
    its part, and the receiving host gathers the parts.
    """
    seconds = 0.0
    for a in set(source.replicas):
        for b in set(target.replicas):
            payload_bytes = border_bytes(profile, source, a.tp) * micro_batch_size
            curve = outer_curve(profile, a.type_name, b.type_name)
            if not profile.facts.scatter_border:
                seconds = max(seconds, curve.transfer_s(payload_bytes))
                continue
            inner = profile.inner.get((b.type_name, b.tp))
            gather_s = inner.transfer_s(payload_bytes * (b.tp - 1) / b.tp) if inner and b.tp > 1 else 0.0
            seconds = max(seconds, curve.transfer_s(payload_bytes / min(a.tp, b.tp)) + gather_s)
    return seconds


def stage_memory_bytes(
    profile: Profile, stage: RunStage, micro_batch_size: int, in_flight: int, border_sequence_bytes: float
) -> dict[str, float]:
    """Peak bytes by kind on one device of the data-parallel rank that holds most.

    `border_sequence_bytes` sums one sequence's tensor over the stage's borders; `StageBytes.kinds` says what
    each kind is.
    """
    fullest: dict[str, float] = {}
    for tp in {replica.tp for replica in stage.replicas}:
        held = Holding(
            interval=(stage.first, stage.end),
            tp=tp,
            dp=len(stage.replicas),
            share=micro_batch_size,
            border_sequence_bytes=border_sequence_bytes,
        )
        kinds = stage_bytes(profile, held).kinds(in_flight, 0)
        if sum(kinds.values()) > sum(fullest.values()):
            fullest = kinds
    return fullest


def predict(profile: Profile, plan: RunPlan) -> Prediction:
    """Step time and memory of a plan run one-forward-one-backward with blocking transfers.

    T = (B - 1) max_s busy_s + sum_s (forward_s + backward_s) + 2 sum_borders transfer
        + max_s sync_s + tied sync + max_s update_s,
    where busy_s counts the transfers at both borders of the stage, each in both directions: the engine waits
    for every one of them. The tail is not overlapped, since the engine reduces after the last backward.

    Raises:
        InputError: `plan-layers-wrong` when the stages don't cover the chain once and in order; or what the
            pieces raise.
    """
    check_layers(profile, plan)
    stages, size, count = plan.stages, plan.micro_batch_size, plan.num_micro_batches
    borders_s = [border_transfer_s(profile, a, b, size) for a, b in pairwise(stages)]
    held_bytes = [max(border_bytes(profile, a, r.tp) for r in a.replicas) for a in stages[:-1]]
    parts: list[StagePrediction] = []
    for i, stage in enumerate(stages):
        touching = [j for j in (i - 1, i) if 0 <= j < len(borders_s)]
        in_flight = min(count, len(stages) - i)
        parts.append(
            StagePrediction(
                forward_s=stage_forward_s(profile, stage, size),
                backward_s=stage_backward_s(profile, stage, size),
                exposed_s=2.0 * sum(borders_s[j] for j in touching),
                sync_s=stage_sync_s(profile, stage),
                update_s=stage_update_s(profile, stage, size),
                memory_bytes=stage_memory_bytes(
                    profile, stage, size, in_flight, sum(held_bytes[j] for j in touching)
                ),
            )
        )
    fill_s = sum(part.forward_s + part.backward_s for part in parts) + 2.0 * sum(borders_s)
    tail_s = max(part.sync_s for part in parts) + max(part.update_s for part in parts)
    tail_s += tied_sync_s(profile, stages[0], stages[-1])
    return Prediction(
        iteration_s=(count - 1) * max(part.busy_s for part in parts) + fill_s + tail_s,
        peak_bytes=max(part.total_bytes for part in parts),
        stages=tuple(parts),
    )


def check_layers(profile: Profile, plan: RunPlan) -> None:
    """Refuse stages that don't cover every layer once and in order, or a stage without devices."""
    expected = 0
    for stage in plan.stages:
        if stage.first != expected or stage.end <= stage.first or not stage.replicas:
            break
        expected = stage.end
    if expected != profile.num_layers:
        ranges = ", ".join(f"[{s.first}, {s.end}) x {len(s.replicas)}" for s in plan.stages)
        raise InputError(
            "plan-layers-wrong",
            f"stages {ranges or 'none'} don't cover the {profile.num_layers} layers once and in order",
            hint="the first stage starts at layer 0, each next where the last ended, each with a replica",
        )
