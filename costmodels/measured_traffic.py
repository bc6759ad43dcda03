"""Seconds a stage spends on traffic, from measured link curves; docs/measured.md, sections 1 and 6.

Legend of array suffixes: N layers of one stage.
"""

from __future__ import annotations

from functools import lru_cache

from costmodels.interface import Interval, Strategy
from costmodels.measured import Carrier, ring_all_reduce_s
from costmodels.measured_profile import LinkCurve, Profile, layer_sizes

NUM_PAYLOADS_MAX = 1 << 14


class RememberingCurve:
    """A link curve that works out each payload once."""

    def __init__(self, curve: LinkCurve) -> None:
        self._seconds = lru_cache(maxsize=NUM_PAYLOADS_MAX)(curve.transfer_s)

    def transfer_s(self, payload_bytes: float) -> float:
        """Seconds to move one payload over the idle link."""
        return self._seconds(payload_bytes)


def ring_gather_s(curve: Carrier, payload_bytes: float, num_ranks: int) -> float:
    """Seconds of a ring all-gather or reduce-scatter: n - 1 steps of one n-th of the payload."""
    if num_ranks < 2:
        return 0.0
    return (num_ranks - 1) * curve.transfer_s(payload_bytes / num_ranks)


def gradient_sync_s(profile: Profile, interval: Interval, strategy: Strategy, curve: Carrier) -> float:
    """Seconds once per step until all data-parallel ranks of a stage hold the same weights again.

    ZeRO-0 sums gradients in a ring; ZeRO-1 scatters them and gathers the updated weights; ZeRO-2 gathers the
    weights alone, since gradients went out with every micro-batch; ZeRO-3 gathers them when they are needed.
    """
    sizes, part = layer_sizes(profile, strategy.tp), slice(*interval)
    trained = float(sizes.trained_L[part].sum())
    gradient_bytes = trained * profile.facts.gradient_bytes_per_param
    held = float(sizes.params_L[part].sum())
    updated_bytes = trained * float(sizes.weight_bytes_L[part].sum()) / held if held > 0.0 else 0.0
    if strategy.zero == 0:
        return ring_all_reduce_s(curve, gradient_bytes, strategy.dp)
    if strategy.zero == 1:
        both = (gradient_bytes, updated_bytes)
        return sum(ring_gather_s(curve, payload_bytes, strategy.dp) for payload_bytes in both)
    return ring_gather_s(curve, updated_bytes, strategy.dp) if strategy.zero == 2 else 0.0


def sharding_s(profile: Profile, interval: Interval, strategy: Strategy, curve: Carrier) -> float:
    """Seconds per micro-batch of ZeRO-2 and ZeRO-3 traffic, layer by layer, hidden behind nothing.

    Level 2 scatters each layer's gradients; level 3 also gathers its weights for forward and for backward.
    """
    if strategy.zero < 2 or strategy.dp < 2:
        return 0.0
    sizes, part = layer_sizes(profile, strategy.tp), slice(*interval)
    gradient_bytes_N = sizes.trained_L[part] * profile.facts.gradient_bytes_per_param
    seconds = sum(ring_gather_s(curve, float(size), strategy.dp) for size in gradient_bytes_N)
    if strategy.zero == 3:
        weights_N = sizes.weight_bytes_L[part]
        seconds += 2.0 * sum(ring_gather_s(curve, float(size), strategy.dp) for size in weights_N)
    return seconds


def waiting_s(round_trips_s: float, num_micro_batches: int) -> float:
    """Seconds per micro-batch that a stage is charged for the blocking transfers over its borders.

    `round_trips_s` sums 2 x over the stage's borders. Both stages at a border wait for each transfer, so in
    the steady state the slowest stage pays all of its round trips, while filling and draining the pipeline
    takes each border's round trip once. The planner's step time adds a stage's seconds to both. Charged with
    m / (m + 1) of its round trips, a stage makes the sum right: docs/measured.md, section 6, has the proof.
    """
    return round_trips_s * num_micro_batches / (num_micro_batches + 1)
