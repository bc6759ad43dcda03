"""The measured cost model: stages of equal devices priced by a profile, for the planner.

docs/measured.md has the formulas; each comes from costmodels.measured, here for one stage that doesn't know
its neighbours. What the profile has not seen is impossible rather than guessed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path

from costmodels.fleet import Device, Link
from costmodels.interface import Cluster, Interval, Origin, StageCost, Strategy
from costmodels.measured import (
    RunReplica,
    RunStage,
    ring_all_reduce_s,
    stage_backward_s,
    stage_forward_s,
    stage_memory_bytes,
    stage_update_s,
)
from costmodels.measured_profile import LinkCurve, Profile, layer_sizes
from costmodels.memory import usable_bytes
from costmodels.profile_io import load_profile, profile_from_document
from costmodels.workload import JOINT, Workload
from policies.errors import InputError

MEMORY_RESERVE_FRAC = 0.06
# A link of the fleet is the one that a curve was measured on when their rates are this close.
RATE_TOLERANCE_FRAC = 0.1
PARAMS_TOLERANCE_FRAC = 0.2
NUM_STAGES_MAX = 1 << 16


class MeasuredCostModel:
    """Seconds and bytes of a workload's stages, from what was measured of its layers.

    A stage is possible on devices of one profiled type, at a profiled tensor degree inside a host, with
    equal shares inside the profiled micro-batch sizes and without sharding (ZeRO). A transfer or a gradient
    ring is priced by the profile's curve whose ceiling is nearest to the link's rate, if within a tenth; else
    by the link's own rate and latency.

    Args:
        workload: the layer chain and the job.
        profile: a profile file, or what it holds as parsed JSON, or the profile itself.
        memory_reserve_frac: part of each device's memory no plan may fill, beside the profile's overhead.

    Raises:
        InputError: `cost-model-settings` without a profile or with a reserve outside 0 to 0.9;
            `profile-unreadable`, `profile-schema`, `profile-incomplete`; `profile-model-differs`;
            `cost-model-schedule` and `cost-model-job` for what profiles don't describe.
    """

    name = "measured"

    def __init__(
        self,
        workload: Workload,
        *,
        profile: str | Path | Mapping[str, object] | Profile | None = None,
        memory_reserve_frac: float = MEMORY_RESERVE_FRAC,
    ) -> None:
        self.workload = workload
        self.profile = _profile_of(profile)
        if not 0.0 <= memory_reserve_frac <= 0.9:
            raise InputError(
                "cost-model-settings",
                f"memory_reserve_frac is {memory_reserve_frac!r}, allowed is 0 to 0.9",
                hint="leave it out for its default",
            )
        self.memory_reserve_frac = memory_reserve_frac
        _require_same_model(self.profile, workload)
        self._priced = lru_cache(maxsize=NUM_STAGES_MAX)(self._price)
        self._memory = lru_cache(maxsize=NUM_STAGES_MAX)(self._memory_bytes)

    def origins(self) -> Mapping[str, Origin]:
        """Where each constant comes from, by its name; layer times carry their own."""
        reserve = Origin(kind="assumed", note="left free on every device, beside the profile's overhead")
        return {**self.profile.facts.origins, "memory_reserve_frac": reserve}

    def interval_key(self, interval: Interval) -> Hashable:
        """The interval itself: measured layers differ, even those of one kind."""
        return interval

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Cost of layers [a, b); None where the profile has nothing measured to say.

        Transfers to the neighbours are no part of it: `transfer_s` counts them, once.
        """
        share = self._share(cluster, strategy, micro_batch_size)
        if share is None:
            return None
        type_name = cluster.devices[0].type_name
        inner = (cluster.inner_bytes_per_s, cluster.inner_latency_s)
        outer = (cluster.site.fabric_bytes_per_s or inner[0], cluster.site.fabric_latency_s)
        forward_s, backward_s, sync_s = self._priced(type_name, interval, strategy, share, inner, outer)
        if not isfinite(sync_s):
            return None
        kinds = self._memory(type_name, interval, strategy, share, in_flight)
        limits = (usable_bytes(device.memory_bytes, self.memory_reserve_frac) for device in cluster.devices)
        return StageCost(
            forward_s=forward_s,
            backward_s=backward_s,
            exposed_s=0.0,
            sync_s=sync_s,
            shares=(share,) * strategy.dp,
            memory_bytes=(kinds,) * len(cluster.devices),
            limit_bytes=tuple(limits),
        )

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds for the activation after layer `border - 1` and, on the way back, its gradient.

        The whole micro-batch goes over this one link, as one full copy of the activation.
        """
        if link.bytes_per_s <= 0.0:
            return float("inf")
        payload_bytes = self._border_sequence_bytes(border) * micro_batch_size
        return 2.0 * self.curve(link.bytes_per_s, link.latency_s).transfer_s(payload_bytes)

    def curve(self, bytes_per_s: float, latency_s: float) -> LinkCurve:
        """The measured curve of a link with this rate, or a flat one of the rate and latency themselves."""
        known = [*self.profile.outer.values(), *self.profile.inner.values()]
        distances = [abs(curve.ceiling_bytes_per_s / bytes_per_s - 1.0) for curve in known]
        if distances and min(distances) <= RATE_TOLERANCE_FRAC:
            return known[distances.index(min(distances))]
        return LinkCurve(
            gigabytes_per_s=(bytes_per_s / 1e9,),
            ceiling_bytes_per_s=bytes_per_s,
            latency_s=latency_s,
            origin=Origin(kind="declared", note="rate and latency of the fleet's link"),
        )

    def _share(self, cluster: Cluster, strategy: Strategy, micro_batch_size: int) -> int | None:
        """Sequences of each data-parallel rank; None where the stage can't run as it was measured."""
        dp, tp = strategy.dp, strategy.tp
        if min(dp, tp) < 1 or dp * tp != len(cluster.devices) or strategy.zero != 0:
            return None
        if micro_batch_size % dp != 0 or len({_figures(device) for device in cluster.devices}) != 1:
            return None
        times = self.profile.times.get(cluster.devices[0].type_name, {}).get(tp)
        if times is None or tp not in self.profile.sizes or not _groups_stay_in_hosts(cluster.devices, tp):
            return None
        share = micro_batch_size // dp
        return share if times.micro_batch_sizes[0] <= share <= times.micro_batch_sizes[-1] else None

    def _price(
        self,
        type_name: str,
        interval: Interval,
        strategy: Strategy,
        share: int,
        inner: tuple[float, float],
        outer: tuple[float, float],
    ) -> tuple[float, float, float]:
        """Forward, backward seconds of a micro-batch; seconds once per step, infinite without a link."""
        stage = self._run_stage(type_name, interval, strategy)
        sync_s = stage_update_s(self.profile, stage, share)
        facts = self.profile.facts
        if strategy.dp > 1:
            params = float(layer_sizes(self.profile, strategy.tp).params_L[slice(*interval)].sum())
            sync_s += self._ring_s(params * facts.gradient_bytes_per_param, strategy.dp, inner)
        holds_one_end = (interval[0] == 0) != (interval[1] == self.workload.num_layers)
        if holds_one_end and facts.tied_bytes > 0.0:
            sync_s += self._ring_s(facts.tied_bytes, 2, outer)
        forward_s = stage_forward_s(self.profile, stage, share)
        return forward_s, stage_backward_s(self.profile, stage, share), sync_s

    def _ring_s(self, payload_bytes: float, num_ranks: int, link: tuple[float, float]) -> float:
        if link[0] <= 0.0:
            return float("inf")
        return ring_all_reduce_s(self.curve(*link), payload_bytes, num_ranks)

    def _memory_bytes(
        self, type_name: str, interval: Interval, strategy: Strategy, share: int, in_flight: int
    ) -> dict[str, float]:
        stage = self._run_stage(type_name, interval, strategy)
        borders = [border for border in interval if 0 < border < self.workload.num_layers]
        held_bytes = sum(self._border_sequence_bytes(border) for border in borders)
        return stage_memory_bytes(self.profile, stage, share, in_flight, held_bytes)

    def _border_sequence_bytes(self, border: int) -> float:
        """Output of layer `border - 1` for one sequence, at the degree where a device holds most of it."""
        return max(float(sizes.output_bytes_L[border - 1]) for sizes in self.profile.sizes.values())

    def _run_stage(self, type_name: str, interval: Interval, strategy: Strategy) -> RunStage:
        rank = RunReplica(type_name=type_name, tp=strategy.tp)
        return RunStage(first=interval[0], end=interval[1], replicas=(rank,) * strategy.dp)


def _profile_of(given: str | Path | Mapping[str, object] | Profile | None) -> Profile:
    if given is None:
        raise InputError(
            "cost-model-settings",
            "cost model `measured` needs the setting `profile`",
            hint="give a profile file, or use the cost model `analytic`",
        )
    if isinstance(given, Profile):
        return given
    if isinstance(given, Mapping):
        return profile_from_document(given)
    return load_profile(Path(given))


def _require_same_model(profile: Profile, workload: Workload) -> None:
    """Refuse a profile of another chain, and jobs that profiles don't describe.

    Raises:
        InputError: `profile-model-differs`, `cost-model-schedule` or `cost-model-job`.
    """
    if workload.job.schedule != JOINT:
        raise InputError(
            "cost-model-schedule",
            f"cost model `measured` prices the schedule `{JOINT}`, the job has `{workload.job.schedule}`",
            hint=f"set the job's schedule to `{JOINT}`",
        )
    if not workload.job.full:
        raise InputError(
            "cost-model-job",
            "cost model `measured` prices full fine-tuning,"
            f" the job has adapter rank {workload.job.adapter_rank}",
            hint="train without an adapter, or use the cost model `analytic`",
        )
    if profile.num_layers != workload.num_layers:
        raise InputError(
            "profile-model-differs",
            f"the profile of {profile.model_name} has {profile.num_layers} layers,"
            f" the model {workload.model_name} has {workload.num_layers}",
            hint="profile this model; embedding and loss head count as layers",
        )
    degree = min(profile.sizes)
    params = float(profile.sizes[degree].params_L.sum()) * degree
    held = sum(layer.params for layer in workload.layers)
    if held > 0 and abs(params / held - 1.0) > PARAMS_TOLERANCE_FRAC:
        raise InputError(
            "profile-model-differs",
            f"the profile of {profile.model_name} counts {params:,.0f} parameters,"
            f" the model {workload.model_name} has {held:,}",
            hint="profile this model",
        )


def _figures(device: Device) -> tuple[str, float]:
    return device.type_name, device.memory_bytes


def _groups_stay_in_hosts(devices: tuple[Device, ...], tp: int) -> bool:
    """Whether each tensor group, in rank order, stands in one host, where its times were measured."""
    groups = (devices[i : i + tp] for i in range(0, len(devices), tp))
    return all(len({device.host_id for device in group}) == 1 for group in groups)
