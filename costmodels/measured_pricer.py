"""What a stage costs once its ranks and their shares are known; docs/measured.md has the formulas.

Figures are kept by their arguments, since planning asks for the same ones many times over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from costmodels.interface import FloatArray, Interval, Origin, Strategy
from costmodels.measured import RunReplica, RunStage, ring_all_reduce_s, stage_update_s
from costmodels.measured_memory import (
    Holding,
    fewest_recomputed,
    held_bytes,
    recomputable,
    recomputed_mask,
)
from costmodels.measured_profile import ExecutorFacts, LinkCurve, Profile, layer_times_L
from costmodels.measured_traffic import gradient_sync_s, sharding_s, waiting_s
from costmodels.recompute import recompute_sequence
from costmodels.workload import Workload

# A link of the fleet is the one that a curve was measured on when their rates are this close.
RATE_TOLERANCE_FRAC = 0.1
NUM_STAGES_MAX = 1 << 16

Rank = tuple[str, int]
"""Device type and share of one data-parallel rank."""
Rate = tuple[float, float]
"""Bytes per second and latency of a link."""
Seconds = tuple[float, float, float, float]
"""Forward, backward, exposed per micro-batch; once per step. Infinite where a link is missing."""


class MeasuredPricer:
    """Seconds and bytes of stages of one workload, for one executor."""

    def __init__(self, profile: Profile, facts: ExecutorFacts, workload: Workload) -> None:
        self.profile = profile
        self.facts = facts
        self._workload = workload
        self._sequences: dict[int, tuple[int, ...]] = {}
        self.times = lru_cache(maxsize=1024)(self._times)
        self.seconds = lru_cache(maxsize=NUM_STAGES_MAX)(self._seconds)
        self.memory = lru_cache(maxsize=NUM_STAGES_MAX)(self._memory)

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

    def border_sequence_bytes(self, border: int) -> float:
        """Output of layer `border - 1` for one sequence, at the degree where a device holds most of it."""
        return max(float(sizes.output_bytes_L[border - 1]) for sizes in self.profile.sizes.values())

    def inner_borders(self, interval: Interval) -> list[int]:
        """The ends of an interval that are borders to another stage."""
        return [border for border in interval if 0 < border < self.profile.num_layers]

    def _times(self, type_name: str, tp: int, share: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Forward, backward and update seconds of every layer."""
        return layer_times_L(self.profile, type_name, tp, share)

    def _seconds(
        self,
        ranks: tuple[Rank, ...],
        interval: Interval,
        strategy: Strategy,
        num_recomputed: int,
        micro_batch: tuple[int, int],
        inner: Rate,
        fabric: Rate,
    ) -> Seconds:
        """Seconds of a stage; `micro_batch` is its size and the sequences of it over the busiest link."""
        part, tp = slice(*interval), strategy.tp
        order = self._recomputable(interval, tp)[:num_recomputed]
        again = [interval[0] + i for i in order]
        forward_s = backward_s = update_s = 0.0
        for type_name, share in ranks:
            forward_s_L, backward_s_L, _ = self.times(type_name, tp, share)
            forward_s = max(forward_s, float(forward_s_L[part].sum()))
            backward_s = max(backward_s, float(backward_s_L[part].sum() + forward_s_L[again].sum()))
            rank = RunReplica(type_name=type_name, tp=tp)
            stage = RunStage(first=interval[0], end=interval[1], replicas=(rank,))
            update_s = max(update_s, stage_update_s(self.profile, stage, share))
        if strategy.zero > 0:
            update_s /= strategy.dp
        exposed_s = 0.0
        if strategy.zero >= 2 and inner[0] > 0.0:
            exposed_s += sharding_s(self.profile, interval, strategy, self.curve(*inner))
        if self.facts.blocking_transfers and fabric[0] > 0.0:
            exposed_s += self._waiting_s(interval, micro_batch, fabric)
        sync_s = self._sync_s(interval, strategy, inner, fabric) + update_s + self.facts.step_overhead_s
        beside_s = self.facts.micro_batch_overhead_s / 2.0
        return forward_s + beside_s, backward_s + beside_s, exposed_s, sync_s

    def _sync_s(self, interval: Interval, strategy: Strategy, inner: Rate, fabric: Rate) -> float:
        """Seconds of gradients and tied weights per step; infinite where they need a link and have none."""
        if strategy.dp > 1 and inner[0] <= 0.0:
            return float("inf")
        seconds = 0.0
        if strategy.dp > 1:
            seconds += gradient_sync_s(self.profile, interval, strategy, self.curve(*inner))
        tied_bytes = self.profile.facts.tied_bytes
        holds_one_end = (interval[0] == 0) != (interval[1] == self.profile.num_layers)
        if holds_one_end and tied_bytes > 0.0:
            outer = (fabric[0] or inner[0], fabric[1])
            if outer[0] <= 0.0:
                return float("inf")
            seconds += ring_all_reduce_s(self.curve(*outer), tied_bytes, 2)
        return seconds

    def _waiting_s(self, interval: Interval, micro_batch: tuple[int, int], fabric: Rate) -> float:
        """Seconds per micro-batch that a stage is charged for waiting on transfers over the site's fabric.

        A site without a fabric has links to other sites alone, which are priced as the borders' own time.
        """
        size, num_sequences = micro_batch
        curve = self.curve(*fabric)
        round_trips_s = sum(
            2.0 * curve.transfer_s(self.border_sequence_bytes(border) * num_sequences)
            for border in self.inner_borders(interval)
        )
        return waiting_s(round_trips_s, self._workload.job.sequences_per_step // size)

    def _memory(
        self,
        interval: Interval,
        strategy: Strategy,
        spaces: tuple[tuple[int, float], ...],
        in_flight: int,
    ) -> tuple[int, Mapping[int, Mapping[str, float]]]:
        """Layers recomputed so that every (share, limit) fits, and the bytes by kind of each share."""
        borders = self.inner_borders(interval)
        held = {
            share: Holding(
                interval=interval,
                tp=strategy.tp,
                dp=strategy.dp,
                zero=strategy.zero,
                share=share,
                in_flight=in_flight,
                border_sequence_bytes=sum(self.border_sequence_bytes(border) for border in borders),
                overhead_bytes=self.facts.overhead_bytes,
            )
            for share, _ in spaces
        }
        order = self._recomputable(interval, strategy.tp)
        number = max(fewest_recomputed(self.profile, held[share], order, limit) for share, limit in spaces)
        return number, {
            share: held_bytes(self.profile, each, recomputed_mask(each, order, number))
            for share, each in held.items()
        }

    def _recomputable(self, interval: Interval, tp: int) -> list[int]:
        """Layers of the interval that may be recomputed, best first; none where job or executor forbid it."""
        if not self.facts.recompute:
            return []
        if tp not in self._sequences:
            self._sequences[tp] = recompute_sequence(self._workload, tp=tp)
        return recomputable(self.profile, tp, interval, self._sequences[tp])
