"""Seconds of communication: ring collectives inside a cluster and transfers between stages.

Source of the ring formulas: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", Journal of Parallel and Distributed Computing 69(2), 2009.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Number = float | FloatArray


def gather_s(payload_bytes: Number, num_ranks: int, bytes_per_s: float, latency_s: float) -> Number:
    """Seconds of one ring all-gather or reduce-scatter of `payload_bytes` in whole over N ranks.

    (N − 1)/N × payload / bandwidth + (N − 1) × latency; nothing for one rank.
    """
    if num_ranks == 1:
        return payload_bytes * 0.0
    return payload_bytes * ((num_ranks - 1) / num_ranks / bytes_per_s) + (num_ranks - 1) * latency_s


def all_reduce_s(payload_bytes: Number, num_ranks: int, bytes_per_s: float, latency_s: float) -> Number:
    """Seconds of one ring all-reduce: a reduce-scatter followed by an all-gather.

    2(N − 1)/N × payload / bandwidth + 2(N − 1) × latency; nothing for one rank.
    """
    return 2.0 * gather_s(payload_bytes, num_ranks, bytes_per_s, latency_s)


def micro_batch_zero_s(
    zero: int,
    weight_bytes: Number,
    gradient_bytes: Number,
    num_layers: Number,
    num_ranks: int,
    bytes_per_s: float,
    latency_s: float,
) -> Number:
    """Seconds of ZeRO traffic for one micro-batch of a stage, layer by layer.

    Level 2 reduce-scatters the gradients of what is trained:
    (N − 1)/N × gradients / bandwidth + layers × (N − 1) × latency.
    Level 3 also gathers the weights for forward and again for backward:
    (N − 1)/N × (2 × weights + gradients) / bandwidth + 3 × layers × (N − 1) × latency.
    Levels 0 and 1 send nothing before the end of the step.
    Source: S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models",
    SC 2020, section 7.
    """
    if zero < 2:
        return gradient_bytes * 0.0
    payload = gradient_bytes if zero == 2 else 2.0 * weight_bytes + gradient_bytes
    num_waits = (1 if zero == 2 else 3) * (num_ranks - 1)
    return gather_s(payload, num_ranks, bytes_per_s, 0.0) + num_layers * (num_waits * latency_s)


def exposed_s(communication_s: Number, compute_s: Number, hidden_frac: float) -> Number:
    """Seconds that computation doesn't hide: max(0, communication − hidden_frac × compute)."""
    exposed: Number = np.maximum(communication_s - hidden_frac * compute_s, 0.0)
    return exposed


def round_trip_s(payload_bytes: float, bytes_per_s: float, latency_s: float) -> float:
    """Seconds to carry an activation forward and its gradient, of the same size, back over one link.

    2 × (payload / bandwidth + latency); infinite over a link without bandwidth.
    """
    if bytes_per_s <= 0.0:
        return float("inf")
    return 2.0 * (payload_bytes / bytes_per_s + latency_s)
