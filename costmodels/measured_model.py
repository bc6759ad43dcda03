"""The measured cost model: stages of equal devices priced by a profile, for the planner.

docs/measured.md has the formulas; each comes from costmodels.measured, here for one stage that doesn't know
its neighbours. What the profile has not seen is impossible rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import isfinite
from pathlib import Path

import numpy as np

from costmodels.fleet import Device, Link
from costmodels.interface import Cluster, FloatArray, Interval, Origin, StageCost, StageTable, Strategy
from costmodels.measured_pricer import NUM_STAGES_MAX, MeasuredPricer, StageShape
from costmodels.measured_profile import ExecutorFacts, LinkCurve, Profile, executor_facts
from costmodels.measured_shares import equal_device_shares, quickest_shares
from costmodels.memory import usable_bytes
from costmodels.profile_io import load_profile, profile_from_document
from costmodels.profile_match import require_same_job, require_same_model
from costmodels.workload import Workload
from policies.errors import InputError

ANY = "any"
"""The planner's word for plans without an executor filter; they name `DEFAULT_EXECUTOR`."""
DEFAULT_EXECUTOR = "torch"
MEMORY_RESERVE_FRAC = 0.06


class MeasuredCostModel:
    """Seconds and bytes of a workload's stages, from what was measured of its layers.

    A stage is possible on devices of profiled types, at a profiled tensor degree inside a host and with
    shares inside the profiled micro-batch sizes. Unequal shares, sharding (ZeRO) and recomputed layers are
    possible as far as the profile's facts of the executor list them. A transfer or a gradient ring is priced
    by the profile's curve whose ceiling is nearest to the link's rate, if within a tenth; else by the link's
    own rate and latency.

    Args:
        workload: the layer chain and the job.
        profile: a profile file, or what it holds as parsed JSON, or the profile itself.
        memory_reserve_frac: part of each device's memory no plan may fill, beside the profile's overhead.
        executor: whose facts count; None for that of the plan (`for_executor`).

    Raises:
        InputError: `cost-model-settings` without a profile or with a reserve outside 0 to 0.9;
            `profile-unreadable`, `profile-schema`, `profile-incomplete`; `profile-model-differs`,
            `profile-job-differs`, `profile-executor-missing`; `cost-model-schedule` and `cost-model-job` for
            what the profile doesn't describe.
    """

    name = "measured"

    def __init__(
        self,
        workload: Workload,
        *,
        profile: str | Path | Mapping[str, object] | Profile | None = None,
        memory_reserve_frac: float = MEMORY_RESERVE_FRAC,
        executor: str | None = None,
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
        require_same_job(self.profile, workload)
        require_same_model(self.profile, workload)
        self._class_L = _layer_classes(self.profile, workload)
        self._shares = lru_cache(maxsize=NUM_STAGES_MAX)(self._shares_of)
        self._executor = executor
        self._set_facts(_facts_of(self.profile, executor or ANY))

    def for_executor(self, executor: str) -> MeasuredCostModel:
        """The same model with the facts of an executor, or itself where one was asked for by name.

        Raises:
            InputError: `profile-executor-missing`.
        """
        facts = _facts_of(self.profile, executor)
        return self if self._executor is not None else self._with_facts(facts)

    def without_waiting(self) -> MeasuredCostModel:
        """The same model with all transfers as the borders' own time, whether stages wait for them or not."""
        return self._with_facts(replace(self.facts, blocking_transfers=False))

    def _with_facts(self, facts: ExecutorFacts) -> MeasuredCostModel:
        if facts == self.facts:
            return self
        other = MeasuredCostModel(
            self.workload,
            profile=self.profile,
            memory_reserve_frac=self.memory_reserve_frac,
            executor=self._executor,
        )
        other._set_facts(facts)
        return other

    def _set_facts(self, facts: ExecutorFacts) -> None:
        self.facts = facts
        self._pricer = MeasuredPricer(self.profile, facts, self.workload)

    def origins(self) -> Mapping[str, Origin]:
        """Where each constant comes from, by its name; layer times carry their own."""
        reserve = Origin(kind="assumed", note="left free on every device, beside the profile's overhead")
        return {**self.profile.facts.origins, **self.facts.origins, "memory_reserve_frac": reserve}

    def interval_key(self, interval: Interval) -> Hashable:
        """Classes of its layers in order, and what enters it: layers of one class agree in every figure."""
        start, stop = interval
        return (self.border_key(start) if start else 0.0, self._class_L[start:stop])

    def border_key(self, border: int) -> Hashable:
        """What crosses the border after layer `border - 1`: equal keys mean equal transfers on every link."""
        return self._pricer.border_sequence_bytes(border)

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Cost of layers [a, b) with the fewest recomputed layers that fit; with all where nothing fits.

        None where the profile has nothing measured to say. Transfers to the neighbours are no part of it,
        unless the executor waits for them: then the stage is charged for those over both its borders.
        """
        found = self._shape(cluster, strategy, micro_batch_size)
        if found is None:
            return None
        shape, shares, limits = found
        seconds = self._pricer.seconds(shape, interval)
        if not isfinite(seconds.exposed_s + seconds.sync_s):
            return None
        number = int(self._pricer.recomputed_Q(shape, interval, np.array([float(in_flight)]))[0])
        by_share = {
            share: self._pricer.bytes(strategy, share, interval).kinds(in_flight, number)
            for share in set(shares)
        }
        return StageCost(
            forward_s=seconds.forward_s,
            backward_s=seconds.backward_s_R[number],
            exposed_s=seconds.exposed_s,
            sync_s=seconds.sync_s,
            shares=shares,
            memory_bytes=tuple(by_share[shares[i // strategy.tp]] for i in range(len(limits))),
            limit_bytes=limits,
            recompute_layers=number,
        )

    def stage_table(
        self,
        cluster: Cluster,
        intervals: Sequence[Interval],
        strategy: Strategy,
        micro_batch_size: int,
        in_flight_max: int,
    ) -> StageTable:
        """Busy and sync seconds of many intervals, equal to `stage` bit for bit."""
        busy_s_KQ = np.full((len(intervals), in_flight_max), np.inf)
        sync_s_KQ = np.zeros((len(intervals), in_flight_max))
        found = self._shape(cluster, strategy, micro_batch_size)
        if found is None:
            return StageTable(busy_s_KQ=busy_s_KQ, sync_s_KQ=sync_s_KQ)
        shape, pricer = found[0], self._pricer
        in_flight_Q = np.arange(1.0, in_flight_max + 1.0)
        for k, interval in enumerate(intervals):
            seconds = pricer.seconds(shape, interval)
            if not isfinite(seconds.exposed_s + seconds.sync_s):
                continue
            number_Q = pricer.recomputed_Q(shape, interval, in_flight_Q)
            fits_Q = np.all(
                [
                    pricer.bytes(strategy, share, interval).fits_Q(in_flight_Q, number_Q, limit)
                    for share, limit in shape.spaces
                ],
                axis=0,
            )
            backward_s_Q = np.array(seconds.backward_s_R)[number_Q]
            spent_s_Q = seconds.forward_s + backward_s_Q + seconds.exposed_s
            busy_s_KQ[k] = np.where(fits_Q, spent_s_Q, np.inf)
            sync_s_KQ[k] = np.where(fits_Q, seconds.sync_s, 0.0)
        return StageTable(busy_s_KQ=busy_s_KQ, sync_s_KQ=sync_s_KQ)

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds for the activation after layer `border - 1` and, on the way back, its gradient.

        The whole micro-batch goes over this one link, as one full copy of the activation. Where the executor
        waits for transfers, those inside a site are the stages' own (`StageCost.exposed_s`).
        """
        if link.bytes_per_s <= 0.0:
            return float("inf")
        if self.facts.blocking_transfers and link.source_site_id == link.target_site_id:
            return 0.0
        payload_bytes = self._pricer.border_sequence_bytes(border) * micro_batch_size
        return 2.0 * self.curve(link.bytes_per_s, link.latency_s).transfer_s(payload_bytes)

    def curve(self, bytes_per_s: float, latency_s: float) -> LinkCurve:
        """The measured curve of a link with this rate, or a flat one of the rate and latency themselves."""
        return self._pricer.curve(bytes_per_s, latency_s)

    def _shape(
        self, cluster: Cluster, strategy: Strategy, micro_batch_size: int
    ) -> tuple[StageShape, tuple[int, ...], tuple[float, ...]] | None:
        """What the cluster's cost depends on, each rank's share and each device's usable bytes."""
        shares = self._ranks(cluster, strategy, micro_batch_size)
        if shares is None:
            return None
        tp, reserve_frac = strategy.tp, self.memory_reserve_frac
        types = (device.type_name for device in cluster.devices[::tp])
        limits = tuple(usable_bytes(device.memory_bytes, reserve_frac) for device in cluster.devices)
        shape = StageShape(
            ranks=tuple(dict.fromkeys(zip(types, shares, strict=True))),
            spaces=tuple(dict.fromkeys((shares[i // tp], limit) for i, limit in enumerate(limits))),
            strategy=strategy,
            micro_batch_size=micro_batch_size,
            busiest_sequences=_busiest_host_sequences(cluster, strategy, shares),
            inner=(cluster.inner_bytes_per_s, cluster.inner_latency_s),
            fabric=(cluster.site.fabric_bytes_per_s, cluster.site.fabric_latency_s),
        )
        return shape, shares, limits

    def _ranks(self, cluster: Cluster, strategy: Strategy, micro_batch_size: int) -> tuple[int, ...] | None:
        """Sequences of each data-parallel rank; None where the stage can't run as it was measured."""
        dp, tp, devices = strategy.dp, strategy.tp, cluster.devices
        if min(dp, tp) < 1 or dp * tp != len(devices) or strategy.zero not in self.facts.zero_levels:
            return None
        if (strategy.zero and dp == 1) or tp not in self.profile.sizes:
            return None
        equal = len({_figures(device) for device in devices}) == 1
        if not equal and (tp > 1 or not self.facts.unequal_shares):
            return None
        types = tuple(device.type_name for device in devices[::tp])
        if any(tp not in self.profile.times.get(type_name, {}) for type_name in types):
            return None
        if not _groups_stay_in_hosts(devices, tp):
            return None
        return self._shares(types, tp, micro_batch_size)

    def _shares_of(self, types: tuple[str, ...], tp: int, micro_batch_size: int) -> tuple[int, ...] | None:
        sizes = [self.profile.times[type_name][tp].micro_batch_sizes for type_name in types]
        if len(set(types)) == 1:
            shares = equal_device_shares(micro_batch_size, len(types), unequal=self.facts.unequal_shares)
        else:
            most = [known[-1] for known in sizes]
            shares = quickest_shares(
                micro_batch_size, most, lambda i, share: self._chain_s(types[i], tp, share)
            )
        if shares is None:
            return None
        inside = all(known[0] <= share <= known[-1] for known, share in zip(sizes, shares, strict=True))
        return shares if inside else None

    def _chain_s(self, type_name: str, tp: int, share: int) -> float:
        """Seconds of the whole chain: shares follow it, so that they are the same for every interval."""
        forward_s_L, backward_s_L, _ = self._pricer.times(type_name, tp, share)
        return float(forward_s_L.sum() + backward_s_L.sum())


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


def _facts_of(profile: Profile, executor: str) -> ExecutorFacts:
    """Facts of an executor; of a plan without a filter, those of the default one or else the first known."""
    if executor == ANY and profile.executors:
        known = profile.executors
        executor = DEFAULT_EXECUTOR if DEFAULT_EXECUTOR in known else min(known)
    return executor_facts(profile, executor)


def _layer_classes(profile: Profile, workload: Workload) -> tuple[int, ...]:
    """A number for each layer; equal numbers mean equal measured figures and the same part of the model."""
    columns: list[FloatArray] = []
    for by_degree in profile.times.values():
        for times in by_degree.values():
            columns += [*times.forward_s_ML, *times.backward_s_ML, *times.update_s_ML]
    for sizes in profile.sizes.values():
        columns += [sizes.params_L, sizes.weight_bytes_L, sizes.activation_bytes_L, sizes.input_bytes_L]
        columns += [sizes.output_bytes_L, sizes.trained_L, sizes.needed_L]
    table_LC = np.stack(columns, axis=1)
    known: dict[Hashable, int] = {}
    ends = (0, workload.num_layers - 1)
    keys = [(i if i in ends else -1, row.tobytes()) for i, row in enumerate(table_LC)]
    return tuple(known.setdefault(key, len(known)) for key in keys)


def _busiest_host_sequences(cluster: Cluster, strategy: Strategy, shares: tuple[int, ...]) -> int:
    """Sequences of one micro-batch that go in and out of the host that holds most of them.

    The ranks of one host share its link; a tensor group sends one full copy. Devices of different kinds count
    as standing on different hosts, as everywhere in planning.
    """
    by_host: Counter[Hashable] = Counter()
    for i, share in enumerate(shares):
        device = cluster.devices[i * strategy.tp]
        by_host[device.host_id, _figures(device)] += share
    return max(by_host.values())


def _figures(device: Device) -> tuple[str, float]:
    return device.type_name, device.memory_bytes


def _groups_stay_in_hosts(devices: tuple[Device, ...], tp: int) -> bool:
    """Whether each tensor group, in rank order, stands in one host, where its times were measured."""
    groups = (devices[i : i + tp] for i in range(0, len(devices), tp))
    return all(len({device.host_id for device in group}) == 1 for group in groups)
