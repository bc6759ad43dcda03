"""Measured layer times, layer sizes and link curves, with what was measured and what was not kept apart.

Legend of array suffixes: L layers, M profiled micro-batch sizes (ascending).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from costmodels.interface import FloatArray, Origin
from policies.errors import InputError

BYTES_PER_MEGABYTE = 1e6
MEASURED = "measured"
DECLARED = "declared"
ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCurve:
    """Bandwidth of one link as a polynomial in log2 of the payload in megabytes.

    `gigabytes_per_s` holds the coefficients, highest power first. The polynomial is trusted from
    `smallest_bytes` to the payload where it peaks; below, the bandwidth of the smallest payload holds;
    above, the peak. `ceiling_bytes_per_s` caps it everywhere.
    """

    gigabytes_per_s: tuple[float, ...]
    ceiling_bytes_per_s: float
    smallest_bytes: float = BYTES_PER_MEGABYTE
    latency_s: float = 0.0
    origin: Origin = field(default_factory=lambda: Origin(kind=MEASURED))

    def bytes_per_s(self, payload_bytes: float) -> float:
        """Bandwidth for one payload, never falling as the payload grows."""
        low = float(np.log2(self.smallest_bytes / BYTES_PER_MEGABYTE))
        high = float(np.log2(max(payload_bytes, self.smallest_bytes) / BYTES_PER_MEGABYTE))
        ends = [low, high]
        slope = np.polyder(np.asarray(self.gigabytes_per_s, dtype=float))
        turning = np.atleast_1d(np.roots(slope))
        ends += [float(root.real) for root in turning if abs(root.imag) < 1e-9 and low < root.real < high]
        best = float(np.polyval(np.asarray(self.gigabytes_per_s, dtype=float), ends).max()) * 1e9
        return min(best, self.ceiling_bytes_per_s)

    def transfer_s(self, payload_bytes: float) -> float:
        """Seconds to move one payload over the idle link; nothing to move takes no time."""
        if payload_bytes <= 0:
            return 0.0
        return self.latency_s + payload_bytes / self.bytes_per_s(payload_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of each layer on one device type at one tensor degree; `update_s` is one optimiser call."""

    micro_batch_sizes: tuple[int, ...]
    forward_s_ML: FloatArray
    backward_s_ML: FloatArray
    update_s_ML: FloatArray
    origin: Origin = field(default_factory=lambda: Origin(kind=MEASURED))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """Sizes on one of the `tp` devices that share a layer; everything but the weights is per sequence."""

    params_L: FloatArray
    weight_bytes_L: FloatArray
    activation_bytes_L: FloatArray
    input_bytes_L: FloatArray
    output_bytes_L: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the layer profile doesn't hold and the prediction needs; `origins` names the source of each field.

    `overhead_bytes` is what a device holds before the first weight (driver context, libraries,
    communicators). `scatter_border`: whether the ranks of a tensor group send disjoint parts of the border
    activation and gather them after arrival (True), or each sends its full copy (False). `fused_update`: one
    optimiser call per stage (True) or one per layer (False). `tied_bytes` is the weight shared by the first
    and the last layer, per rank.
    """

    gradient_bytes_per_param: float
    optimiser_bytes_per_param: float
    update_traffic_bytes_per_param: float
    overhead_bytes: float
    memory_bytes_per_s: float
    scatter_border: bool = False
    fused_update: bool = True
    tied_bytes: float = 0.0
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything measured about one model on some device types.

    `times[type][tp]`, `sizes[tp]`; `outer[(from, to)]` is the link between one device of each type on two
    hosts; `inner[(type, count)]` the fabric among `count` devices of one host.
    """

    model_name: str
    times: Mapping[str, Mapping[int, LayerTimes]]
    sizes: Mapping[int, LayerSizes]
    outer: Mapping[tuple[str, str], LinkCurve]
    inner: Mapping[tuple[str, int], LinkCurve]
    facts: RunFacts

    @property
    def num_layers(self) -> int:
        """Length of the layer chain, embedding and loss head included."""
        return int(next(iter(self.sizes.values())).params_L.size)


def repair_times(times: LayerTimes) -> LayerTimes:
    """The same times without any micro-batch size that takes longer than a larger one.

    Work grows with the micro-batch, so a smaller size that measures slower was measured cold or disturbed;
    each entry becomes the smallest of itself and of all larger sizes: t'(m) = min over n >= m of t(n).
    """

    def floor_ML(values_ML: FloatArray) -> FloatArray:
        lowest_ML: FloatArray = np.minimum.accumulate(values_ML[::-1], axis=0)[::-1]
        return lowest_ML

    forward_s_ML = floor_ML(times.forward_s_ML)
    backward_s_ML = floor_ML(times.backward_s_ML)
    lowered = int((forward_s_ML < times.forward_s_ML).sum() + (backward_s_ML < times.backward_s_ML).sum())
    origin = times.origin
    if lowered:
        note = f"{lowered} of {2 * forward_s_ML.size} times lowered to that of a larger micro-batch"
        origin = Origin(kind=origin.kind, note="; ".join(part for part in (origin.note, note) if part))
    return LayerTimes(
        micro_batch_sizes=times.micro_batch_sizes,
        forward_s_ML=forward_s_ML,
        backward_s_ML=backward_s_ML,
        update_s_ML=times.update_s_ML,
        origin=origin,
    )


def at_micro_batch(sizes: tuple[int, ...], values_ML: FloatArray, micro_batch_size: int) -> FloatArray:
    """Values per layer at one micro-batch size: linear between samples, and beyond the last one.

    Below the smallest sample its value is kept, which can only overstate. A single sample scales in
    proportion.
    """
    at = micro_batch_size
    if at > sizes[-1] and len(sizes) == 1:
        values_L: FloatArray = values_ML[-1] * (at / sizes[-1])
    elif at > sizes[-1]:
        slope_L = (values_ML[-1] - values_ML[-2]) / (sizes[-1] - sizes[-2])
        values_L = values_ML[-1] + (at - sizes[-1]) * np.maximum(slope_L, 0.0)
    elif at <= sizes[0]:
        values_L = values_ML[0]
    else:
        high = bisect_left(sizes, at)
        share = (at - sizes[high - 1]) / (sizes[high] - sizes[high - 1])
        values_L = (1.0 - share) * values_ML[high - 1] + share * values_ML[high]
    return values_L


def between_degrees(tp: int, known: Mapping[int, FloatArray], *, what: str) -> FloatArray:
    """Values per layer at one tensor-parallel degree, as a power law between the two neighbouring degrees.

    Raises:
        InputError: `profile-degree-missing` outside the profiled degrees; a power law isn't extrapolated.
    """
    degrees = sorted(known)
    if tp in known:
        return known[tp]
    if not degrees or tp < degrees[0] or tp > degrees[-1]:
        raise InputError(
            "profile-degree-missing",
            f"{what}: tensor-parallel degree {tp} was not profiled (profiled: {degrees})",
            hint="profile this degree, or plan with one inside the profiled range",
        )
    high = bisect_left(degrees, tp)
    below, above = degrees[high - 1], degrees[high]
    share = np.log(tp / below) / np.log(above / below)
    low_L = np.maximum(known[below], 1e-30)
    high_L = np.maximum(known[above], 1e-30)
    values_L: FloatArray = np.exp((1.0 - share) * np.log(low_L) + share * np.log(high_L))
    return values_L


def layer_times_L(
    profile: Profile, type_name: str, tp: int, micro_batch_size: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Forward, backward and update seconds of every layer on one device type.

    Raises:
        InputError: `profile-device-missing` or `profile-degree-missing`.
    """
    by_degree = profile.times.get(type_name)
    if not by_degree:
        raise InputError(
            "profile-device-missing",
            f"the profile of {profile.model_name} has no times for device type {type_name!r}"
            f" (profiled: {', '.join(sorted(profile.times)) or 'none'})",
            hint="profile this device type, or let the analytic cost model price it",
        )
    columns: list[FloatArray] = []
    for name in ("forward_s_ML", "backward_s_ML", "update_s_ML"):
        known = {
            degree: at_micro_batch(times.micro_batch_sizes, getattr(times, name), micro_batch_size)
            for degree, times in by_degree.items()
        }
        columns.append(between_degrees(tp, known, what=f"times of {type_name}"))
    return columns[0], columns[1], columns[2]


def layer_sizes(profile: Profile, tp: int) -> LayerSizes:
    """Sizes of every layer at one tensor-parallel degree, interpolated like the times."""
    if tp in profile.sizes:
        return profile.sizes[tp]
    fields = ("params_L", "weight_bytes_L", "activation_bytes_L", "input_bytes_L", "output_bytes_L")
    values = {
        name: between_degrees(tp, {t: getattr(s, name) for t, s in profile.sizes.items()}, what="layer sizes")
        for name in fields
    }
    return LayerSizes(**values)


def time_origin(profile: Profile, type_name: str, tp: int, micro_batch_size: int) -> Origin:
    """Whether a time was measured as asked, or interpolated or extrapolated and hence assumed."""
    times = profile.times.get(type_name, {}).get(tp)
    if times is None:
        return Origin(kind=ASSUMED, note=f"tensor-parallel degree {tp} interpolated")
    if micro_batch_size in times.micro_batch_sizes:
        return times.origin
    inside = times.micro_batch_sizes[0] < micro_batch_size < times.micro_batch_sizes[-1]
    way = "interpolated" if inside else "extrapolated"
    return Origin(kind=ASSUMED, note=f"micro-batch size {micro_batch_size} {way}")
