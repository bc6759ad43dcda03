"""Measured layer times, layer sizes and link curves, with what was measured and what was not kept apart.

Legend of array suffixes: L layers, M profiled micro-batch sizes (ascending).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

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

    `seconds_at` lists (payload bytes, seconds) as they were timed, payloads ascending and seconds never
    falling. Where it isn't empty, transfers are read off it and polynomial and latency say the same in short:
    linear between two payloads, the first one's seconds below it, the last slope beyond.
    """

    gigabytes_per_s: tuple[float, ...]
    ceiling_bytes_per_s: float
    smallest_bytes: float = BYTES_PER_MEGABYTE
    latency_s: float = 0.0
    origin: Origin = field(default_factory=lambda: Origin(kind=MEASURED))
    seconds_at: tuple[tuple[float, float], ...] = ()

    def bytes_per_s(self, payload_bytes: float) -> float:
        """Bandwidth for one payload; that of the polynomial never falls as the payload grows."""
        if self.seconds_at:
            return payload_bytes / self._timed_s(payload_bytes)
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
        if self.seconds_at:
            return self._timed_s(payload_bytes)
        return self.latency_s + payload_bytes / self.bytes_per_s(payload_bytes)

    def _timed_s(self, payload_bytes: float) -> float:
        payloads, seconds = zip(*self.seconds_at, strict=True)
        if payload_bytes <= payloads[-1]:
            return float(np.interp(payload_bytes, payloads, seconds))
        if len(payloads) == 1:
            return float(seconds[0] * payload_bytes / payloads[0])
        per_byte_s = (seconds[-1] - seconds[-2]) / (payloads[-1] - payloads[-2])
        return float(seconds[-1] + (payload_bytes - payloads[-1]) * per_byte_s)


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
    """Sizes on one of the `tp` devices that share a layer; everything but the weights is per sequence.

    `trainable_params_L` counts the weights that get gradients, None for all of them. `working_bytes_L` is
    what a layer needs beside what it keeps while it runs forward or backward; None where it wasn't measured:
    a gradient for each tensor the layer keeps, for its input and for its output.
    """

    params_L: FloatArray
    weight_bytes_L: FloatArray
    activation_bytes_L: FloatArray
    input_bytes_L: FloatArray
    output_bytes_L: FloatArray
    trainable_params_L: FloatArray | None = None
    working_bytes_L: FloatArray | None = None

    @property
    def trained_L(self) -> FloatArray:
        """Weights that get gradients."""
        return self.params_L if self.trainable_params_L is None else self.trainable_params_L

    @property
    def needed_L(self) -> FloatArray:
        """Bytes beside the kept ones while one sequence is in a layer."""
        if self.working_bytes_L is not None:
            return self.working_bytes_L
        # Not through a sum over names: the order of the terms decides the last bit.
        return self.activation_bytes_L + self.output_bytes_L + self.input_bytes_L


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the layer profile doesn't hold and the prediction needs; `origins` names the source of each field.

    `overhead_bytes` is what a device holds before the first weight (driver context, libraries,
    communicators). `scatter_border`: whether the ranks of a tensor group send disjoint parts of the border
    activation and gather them after arrival (True), or each sends its full copy (False). `fused_update`: one
    optimiser call per stage (True) or one per layer (False). `tied_bytes` is the gradient of the weight
    shared by the first and the last layer, per rank. `tied_params` counts that weight where the sizes list it
    in both layers, so that a stage with both holds it once.
    """

    gradient_bytes_per_param: float
    optimiser_bytes_per_param: float
    update_traffic_bytes_per_param: float
    overhead_bytes: float
    memory_bytes_per_s: float
    scatter_border: bool = False
    fused_update: bool = True
    tied_bytes: float = 0.0
    tied_params: float = 0.0
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledJob:
    """The job that the layers were measured under; other jobs have other times."""

    dtype: str
    sequence_tokens: int
    adapter_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorFacts:
    """What an executor adds to its layers, and what of it can be priced.

    `blocking_transfers`: whether both stages at a border wait while a tensor crosses it. A stage spends
    `micro_batch_overhead_s` on every micro-batch and `step_overhead_s` on every step outside its layers. A
    process holds `overhead_bytes` before the first weight (None: as in `RunFacts`), and
    `activation_factor` bytes for each byte of activations, of what a layer works with and of borders: gaps of
    the allocator and what the engine keeps beside. `zero_levels`, unequal shares of a micro-batch and
    recomputed layers are impossible unless listed here.
    """

    blocking_transfers: bool = False
    step_overhead_s: float = 0.0
    micro_batch_overhead_s: float = 0.0
    overhead_bytes: float | None = None
    activation_factor: float = 1.0
    zero_levels: tuple[int, ...] = (0,)
    unequal_shares: bool = False
    recompute: bool = False
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything measured about one model on some device types.

    `times[type][tp]`, `sizes[tp]`; `outer[(from, to)]` is the link between one device of each type on two
    hosts; `inner[(type, count)]` the fabric among `count` devices of one host. Without `job` the profile is
    one of full fine-tuning; without `executors` every executor is free of overhead.
    """

    model_name: str
    times: Mapping[str, Mapping[int, LayerTimes]]
    sizes: Mapping[int, LayerSizes]
    outer: Mapping[tuple[str, str], LinkCurve]
    inner: Mapping[tuple[str, int], LinkCurve]
    facts: RunFacts
    job: ProfiledJob | None = None
    executors: Mapping[str, ExecutorFacts] = field(default_factory=dict)

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
    values = {}
    for column in fields(LayerSizes):
        known = {degree: getattr(sizes, column.name) for degree, sizes in profile.sizes.items()}
        if all(values_L is not None for values_L in known.values()):
            values[column.name] = between_degrees(tp, known, what="layer sizes")
    return LayerSizes(**values)


def executor_facts(profile: Profile, executor: str) -> ExecutorFacts:
    """What the profile says of an executor; a profile that speaks of none promises none any overhead.

    Raises:
        InputError: `profile-executor-missing`.
    """
    known = profile.executors
    if not known:
        return ExecutorFacts()
    if executor not in known:
        raise InputError(
            "profile-executor-missing",
            f"the profile of {profile.model_name} has no executor {executor!r}"
            f" (it has {', '.join(sorted(known))})",
            hint="plan for an executor it has, or measure this one: `echelon profile`",
        )
    return known[executor]


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
