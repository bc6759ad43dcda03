"""Bytes on one device, by kind, in whole bytes.

Every kind is rounded up to a whole byte, so sums are exact in float64 (below 2**53) whatever their order, and
"fits" means the same to every reader of a plan. Legend of array suffixes: K intervals, Q in-flight counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Number = float | FloatArray


def state_bytes(params: Number, bytes_per_param: float, num_parts: int) -> Number:
    """Bytes per device of weights, gradients or optimiser state cut in equal parts: ⌈params × bytes / parts⌉.

    Source: S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models",
    SC 2020, section 5: level 1 cuts the optimiser state, level 2 gradients too, level 3 weights too.
    """
    held: Number = np.ceil(params * bytes_per_param / num_parts)
    return held


def activation_bytes(full_bytes: float, input_bytes: float, tp: int, replicated_inputs: float) -> float:
    """Activation bytes per device when `tp` devices share one layer: held + (full − held) / tp.

    held = min(full, replicated_inputs × input): the inputs of norms, attention and feed-forward part are kept
    whole by each device, the rest is cut. Source: V. Korthikanti et al., "Reducing activation recomputation
    in large transformer models", MLSys 2023, section 4.2.1 without dropout masks.
    """
    held = min(full_bytes, replicated_inputs * input_bytes)
    return held + (full_bytes - held) / tp


def fragmentation_bytes(used_bytes: Number, frac: float) -> Number:
    """Bytes lost between blocks of the allocator: ⌈frac × used⌉."""
    lost: Number = np.ceil(frac * used_bytes)
    return lost


def usable_bytes(memory_bytes: float, reserve_frac: float) -> float:
    """Bytes of a device a plan may fill: ⌊memory × (1 − reserve_frac)⌋."""
    return float(np.floor(memory_bytes * (1.0 - reserve_frac)))


def largest_need_bytes(limit_bytes: float, frac: float) -> float:
    """Largest whole number of bytes that fits together with its own fragmentation; negative for none."""
    need = float(np.floor(limit_bytes / (1.0 + frac))) + 1.0
    while need >= 0.0 and need + fragmentation_bytes(need, frac) > limit_bytes:
        need -= 1.0
    return need


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputableKind:
    """Layers of one kind that may be recomputed, on one device of one cluster.

    `count_K` says how many the interval has, `saved_bytes` what one recomputed layer frees per micro-batch in
    flight, `working_bytes` what is held in passing while one is recomputed (0 where the interval has none).
    """

    count_K: FloatArray
    saved_bytes: Number
    working_bytes: FloatArray


def fewest_recomputed_KQ(
    base_bytes_K: FloatArray,
    transient_bytes_K: FloatArray,
    kept_bytes_K: FloatArray,
    in_flight_Q: FloatArray,
    kinds: Sequence[RecomputableKind],
    need_max_bytes: float,
) -> tuple[list[FloatArray], BoolArray]:
    """Smallest number of recomputed layers that fits, split by kind in the given order, and whether it fits.

    With r layers recomputed, in the order of `kinds`, the need is

        base + in_flight × (kept − Σ saved) + max(transient, working of each kind recomputed).

    It doesn't rise with r: one more layer frees in_flight × saved ≥ saved, and working exceeds the same
    layer's transient by no more than saved. So per kind one division gives the answer, exactly, since every
    figure is a whole number far below 2**53. Where nothing fits, every layer is recomputed.
    """
    need_KQ = (base_bytes_K + transient_bytes_K)[:, None] + kept_bytes_K[:, None] * in_flight_Q
    fits_KQ = need_KQ <= need_max_bytes
    counts: list[FloatArray] = []
    if fits_KQ.all():
        return counts, fits_KQ
    for kind in kinds:
        transient_bytes_K = np.maximum(transient_bytes_K, kind.working_bytes)
        fixed_K1 = (base_bytes_K + transient_bytes_K - need_max_bytes)[:, None]
        saved_KQ = np.multiply.outer(kind.saved_bytes, in_flight_Q)
        wanted_KQ = np.ceil((fixed_K1 + kept_bytes_K[:, None] * in_flight_Q) / saved_KQ)
        wanted_KQ[fits_KQ] = 0.0
        counts.append(np.minimum(wanted_KQ, kind.count_K[:, None]))
        fits_KQ = wanted_KQ <= kind.count_K[:, None]
        kept_bytes_K = kept_bytes_K - kind.count_K * kind.saved_bytes
    return counts, fits_KQ
