"""An update as ring elements, and a sum of them as a weighted mean.

Shapes: N coordinates. A member clips its update x to L2 norm C2, then each coordinate to C, rounds its
weight to q = rint(w / w_max * V) with V = 2^value_bits - 1, and sends rint(x q / C). So |x q / C| <= V, and

    mean = C * (sum of elements) / (sum of q)

is the mean under the rounded weights, off by at most half a step C / q each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from executors.boundary.secagg.descriptor import NUM_EXTRAS, Descriptor
from executors.boundary.secagg.masks import Ring, zeros
from executors.boundary.secagg.reasons import Reason, RefusedError

_STEP = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a window releases: sums over its cohort and what they say.

    Attributes:
        sum_N: signed sums of ring elements, `length` of them.
        weight_sum: sum of the members' weights.
        num_clipped: members whose update exceeded the L2 bound.
        clipped_frac: mean over members of the fraction of coordinates that exceeded the L-infinity bound.
        squared_norm: mean over members of the squared L2 norm after L2 clipping.
    """

    epoch: int
    cohort_size: int
    scale: float
    sum_N: NDArray[np.signedinteger[Any]]
    weight_sum: float
    num_clipped: int
    clipped_frac: float
    squared_norm: float

    def mean(self, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
        """The weighted mean of the coordinates from `start` to `stop`."""
        mean_N: NDArray[np.float64] = np.multiply(self.sum_N[start:stop], self.scale, dtype=np.float64)
        return mean_N


def signed_view(total_N: Ring) -> NDArray[np.signedinteger[Any]]:
    """Ring elements as signed numbers, not copied."""
    signed_N: NDArray[np.signedinteger[Any]] = total_N.view(np.int32 if total_N.itemsize == 4 else np.int64)
    return signed_N


def encode_update(update_N: NDArray[np.float32], weight: float, descriptor: Descriptor) -> Ring:
    """The update and the extra coordinates as ring elements, unmasked.

    Raises:
        RefusedError: UPDATE_INVALID for another length or type, a value not finite, a weight out of range.
    """
    _check_update(update_N, weight, descriptor)
    norm = l2_norm(update_N)
    if not isfinite(norm):
        raise RefusedError(Reason.UPDATE_INVALID, "the update holds values that are not finite")
    weight_q = max(1, round(weight / descriptor.weight_max * descriptor.value_max))
    shrink = min(1.0, descriptor.clip_l2 / norm) if norm > 0 else 1.0
    element_N = zeros(descriptor)
    num_over = _fill(element_N, update_N, shrink * weight_q / descriptor.clip_linf, float(weight_q))
    unit = descriptor.value_max
    element_N[-NUM_EXTRAS:] = (
        weight_q,
        int(norm > descriptor.clip_l2),
        round(num_over / descriptor.length * unit),
        round(min(1.0, (norm * shrink / descriptor.clip_l2) ** 2) * unit),
    )
    return element_N


def _check_update(update_N: NDArray[np.float32], weight: float, descriptor: Descriptor) -> None:
    if update_N.dtype != np.float32 or update_N.shape != (descriptor.length,):
        raise RefusedError(
            Reason.UPDATE_INVALID,
            f"an update of {update_N.dtype} {update_N.shape}, not float32 ({descriptor.length},)",
        )
    if not 0 < weight <= descriptor.weight_max:
        raise RefusedError(
            Reason.UPDATE_INVALID, f"weight {weight} is outside 0 (excluded) to {descriptor.weight_max}"
        )


def l2_norm(update_N: NDArray[np.float32]) -> float:
    """The L2 norm, pieces in single precision, their sum in double; infinite where a value is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # einsum: the dot product of a linear algebra library wakes threads that then spin beside the masks
        total = sum(float(np.einsum("i,i->", piece, piece)) for piece in _pieces(update_N))
        if not isfinite(total):  # squares beyond single precision
            total = sum(float(np.square(piece, dtype=np.float64).sum()) for piece in _pieces(update_N))
    return sqrt(total) if isfinite(total) else float("inf")


def _pieces(update_N: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [update_N[start : start + _STEP] for start in range(0, len(update_N), _STEP)]


def _fill(element_N: Ring, update_N: NDArray[np.float32], factor: float, bound: float) -> int:
    """Write rint(clip(x * factor, +-bound)); how many coordinates were clipped."""
    signed_N = signed_view(element_N)
    work_N = np.empty(min(_STEP, len(update_N)), dtype=np.float64)
    num_over = 0
    for at, piece_N in enumerate(_pieces(update_N)):
        scaled_N = work_N[: len(piece_N)]
        np.multiply(piece_N, factor, out=scaled_N, dtype=np.float64)
        # extremes in single precision cost half; what is half a unit below the bound rounds within it
        if max(float(piece_N.max()), -float(piece_N.min())) * factor > bound - 0.5:
            num_over += int(np.count_nonzero(np.abs(scaled_N) > bound * (1 + 1e-12)))
            np.clip(scaled_N, -bound, bound, out=scaled_N)
        np.rint(scaled_N, out=scaled_N)
        signed_N[at * _STEP : at * _STEP + len(piece_N)] = scaled_N
    return num_over


def decode_sum(total_N: Ring, cohort_size: int, descriptor: Descriptor) -> Aggregate:
    """What an unmasked sum of `cohort_size` members says; the sum is viewed, not copied.

    Raises:
        RefusedError: SUM_ALTERED where the extra sums are impossible for such a cohort.
    """
    signed_N = signed_view(total_N)
    weight_q, num_clipped, over_q, norm_q = (int(value) for value in signed_N[-NUM_EXTRAS:])
    unit = descriptor.value_max
    most = cohort_size * unit
    possible = cohort_size <= weight_q <= most and 0 <= num_clipped <= cohort_size
    if not (possible and 0 <= over_q <= most and 0 <= norm_q <= most):
        raise RefusedError(
            Reason.SUM_ALTERED,
            f"the sums of weights, clips and norms are impossible for {cohort_size} members",
        )
    return Aggregate(
        epoch=descriptor.epoch,
        cohort_size=cohort_size,
        scale=descriptor.clip_linf / weight_q,
        sum_N=signed_N[:-NUM_EXTRAS],
        weight_sum=weight_q * descriptor.weight_max / unit,
        num_clipped=num_clipped,
        clipped_frac=over_q / unit / cohort_size,
        squared_norm=norm_q / unit / cohort_size * descriptor.clip_l2**2,
    )
