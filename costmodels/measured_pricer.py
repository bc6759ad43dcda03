"""What a stage costs once its ranks and their shares are known; docs/measured.md has the formulas.

Figures are kept by their arguments, since planning asks for the same ones many times over. Legend of array
suffixes: L layers of the profile, R how many layers of a stage are recomputed (from none on), Q micro-batches
in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, Interval, Origin, Strategy
from costmodels.measured import Carrier, ring_all_reduce_s, update_s
from costmodels.measured_memory import Holding, StageBytes, recomputable, stage_bytes
from costmodels.measured_profile import ExecutorFacts, LinkCurve, Profile, layer_times_L
from costmodels.measured_traffic import RememberingCurve, gradient_sync_s, sharding_s, waiting_s
from costmodels.recompute import recompute_sequence
from costmodels.workload import Workload

# A link of the fleet is the one that a curve was measured on when their rates are this close.
RATE_TOLERANCE_FRAC = 0.1
NUM_STAGES_MAX = 1 << 16

Rank = tuple[str, int]
"""Device type and share of one data-parallel rank."""
Space = tuple[int, float]
"""Share and usable bytes of one device."""
Rate = tuple[float, float]
"""Bytes per second and latency of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShape:
    """A stage as far as its cost goes: equal shapes cost the same.

    `ranks` and `spaces` list what differs among the ranks and devices, once each. `busiest_sequences` of a
    micro-batch go over the link of the busiest host. `inner` joins the ranks, `fabric` the site's hosts.
    """

    ranks: tuple[Rank, ...]
    spaces: tuple[Space, ...]
    strategy: Strategy
    micro_batch_size: int
    busiest_sequences: int
    inner: Rate
    fabric: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds of a micro-batch, backward by how many layers are recomputed; `sync_s` once per step.

    Infinite where a link is missing.
    """

    forward_s: float
    backward_s_R: tuple[float, ...]
    exposed_s: float
    sync_s: float


class MeasuredPricer:
    """Seconds and bytes of stages of one workload, for one executor."""

    def __init__(self, profile: Profile, facts: ExecutorFacts, workload: Workload) -> None:
        self.profile = profile
        self.facts = facts
        self._workload = workload
        self._sequences: dict[int, tuple[int, ...]] = {}
        self.times = lru_cache(maxsize=1024)(self._times)
        self.seconds = lru_cache(maxsize=NUM_STAGES_MAX)(self._seconds)
        self.bytes = lru_cache(maxsize=NUM_STAGES_MAX)(self._bytes)
        self._carrier = lru_cache(maxsize=1024)(self._remembering)

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

    def carrier(self, link: Rate) -> Carrier:
        """The curve of a link with this rate."""
        return self._carrier(*link)

    def border_sequence_bytes(self, border: int) -> float:
        """Output of layer `border - 1` for one sequence, at the degree where a device holds most of it."""
        return max(float(sizes.output_bytes_L[border - 1]) for sizes in self.profile.sizes.values())

    def recomputed_Q(
        self, shape: StageShape, interval: Interval, in_flight_Q: FloatArray
    ) -> NDArray[np.int64]:
        """The fewest recomputed layers with which every device fits; all where nothing helps."""
        numbers = [
            self.bytes(shape.strategy, share, interval).fewest_recomputed_Q(in_flight_Q, limit)
            for share, limit in shape.spaces
        ]
        most_Q: NDArray[np.int64] = np.max(numbers, axis=0)
        return most_Q

    def _remembering(self, bytes_per_s: float, latency_s: float) -> RememberingCurve:
        return RememberingCurve(self.curve(bytes_per_s, latency_s))

    def _times(self, type_name: str, tp: int, share: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Forward, backward and update seconds of every layer."""
        return layer_times_L(self.profile, type_name, tp, share)

    def _seconds(self, shape: StageShape, interval: Interval) -> StageSeconds:
        part, strategy = slice(*interval), shape.strategy
        again = [interval[0] + i for i in self._recomputable(interval, strategy.tp)]
        forward_s = stepped_s = 0.0
        backward_s_R = np.zeros(len(again) + 1)
        for type_name, share in shape.ranks:
            forward_s_L, backward_s_L, update_s_L = self.times(type_name, strategy.tp, share)
            again_s_R = np.concatenate([[0.0], forward_s_L[again].cumsum()])
            forward_s = max(forward_s, float(forward_s_L[part].sum()))
            backward_s_R = np.maximum(backward_s_R, float(backward_s_L[part].sum()) + again_s_R)
            stepped_s = max(stepped_s, update_s(self.profile, update_s_L, interval, strategy.tp))
        if strategy.zero > 0:
            stepped_s /= strategy.dp
        exposed_s = 0.0
        if strategy.zero >= 2 and shape.inner[0] > 0.0:
            exposed_s += sharding_s(self.profile, interval, strategy, self.carrier(shape.inner))
        if self.facts.blocking_transfers and shape.fabric[0] > 0.0:
            exposed_s += self._waiting_s(shape, interval)
        beside_s = self.facts.micro_batch_overhead_s / 2.0
        return StageSeconds(
            forward_s=forward_s + beside_s,
            backward_s_R=tuple((backward_s_R + beside_s).tolist()),
            exposed_s=exposed_s,
            sync_s=self._sync_s(shape, interval) + stepped_s + self.facts.step_overhead_s,
        )

    def _sync_s(self, shape: StageShape, interval: Interval) -> float:
        """Seconds of gradients and tied weights per step; infinite where they need a link and have none."""
        if shape.strategy.dp > 1 and shape.inner[0] <= 0.0:
            return float("inf")
        seconds = 0.0
        if shape.strategy.dp > 1:
            seconds += gradient_sync_s(self.profile, interval, shape.strategy, self.carrier(shape.inner))
        tied_bytes = self.profile.facts.tied_bytes
        holds_one_end = (interval[0] == 0) != (interval[1] == self.profile.num_layers)
        if holds_one_end and tied_bytes > 0.0:
            outer = (shape.fabric[0] or shape.inner[0], shape.fabric[1])
            if outer[0] <= 0.0:
                return float("inf")
            seconds += ring_all_reduce_s(self.carrier(outer), tied_bytes, 2)
        return seconds

    def _waiting_s(self, shape: StageShape, interval: Interval) -> float:
        """Seconds per micro-batch that a stage is charged for waiting on transfers over the site's fabric.

        A site without a fabric has links to other sites alone, which are priced as the borders' own time.
        """
        carrier = self.carrier(shape.fabric)
        round_trips_s = sum(
            2.0 * carrier.transfer_s(self.border_sequence_bytes(border) * shape.busiest_sequences)
            for border in self._inner_borders(interval)
        )
        return waiting_s(round_trips_s, self._workload.job.sequences_per_step // shape.micro_batch_size)

    def _bytes(self, strategy: Strategy, share: int, interval: Interval) -> StageBytes:
        """Bytes of a device with this share of each micro-batch."""
        borders = self._inner_borders(interval)
        held = Holding(
            interval=interval,
            tp=strategy.tp,
            dp=strategy.dp,
            zero=strategy.zero,
            share=share,
            border_sequence_bytes=sum(self.border_sequence_bytes(border) for border in borders),
            overhead_bytes=self.facts.overhead_bytes,
            activation_factor=self.facts.activation_factor,
        )
        return stage_bytes(self.profile, held, self._recomputable(interval, strategy.tp))

    def _inner_borders(self, interval: Interval) -> list[int]:
        """The ends of an interval that are borders to another stage."""
        return [border for border in interval if 0 < border < self.profile.num_layers]

    def _recomputable(self, interval: Interval, tp: int) -> Sequence[int]:
        """Layers of the interval that may be recomputed, best first; none where job or executor forbid it."""
        if not self.facts.recompute:
            return ()
        if tp not in self._sequences:
            self._sequences[tp] = recompute_sequence(self._workload, tp=tp)
        return recomputable(self.profile, tp, interval, self._sequences[tp])
