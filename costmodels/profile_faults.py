"""What is wrong with the figures of a profile: each with its place, so that none is found halfway through.

Legend of array suffixes: L layers, M profiled micro-batch sizes (ascending).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from math import isfinite

import numpy as np

from costmodels.interface import FloatArray
from costmodels.measured_profile import ExecutorFacts, LayerTimes, LinkCurve, Profile, ProfiledJob, RunFacts
from costmodels.workload import DTYPE_BYTES
from policies.errors import Fault

NOT_NEGATIVE = "numbers of 0 or more"
SWITCHES = frozenset({"scatter_border", "fused_update", "blocking_transfers", "unequal_shares", "recompute"})


def profile_faults(profile: Profile) -> list[Fault]:
    """Every figure that the formulas can't work with; empty for a sound profile.

    Tables must have one column per layer and one row per micro-batch size, seconds and bytes must be finite
    and not negative, and every link must carry something at any payload.
    """
    found = [
        Fault(place=name, value="nothing", limit=f"at least one {what}")
        for name, held, what in (
            ("times", any(profile.times.values()), "device type and tensor degree"),
            ("sizes", profile.sizes, "tensor degree"),
        )
        if not held
    ]
    if profile.sizes:
        found += _size_faults(profile)
        for type_name, by_degree in profile.times.items():
            for degree, times in by_degree.items():
                place = f"times.{type_name}.{degree}"
                found += _degree_faults(place, degree)
                found += _times_faults(place, times, profile.num_layers)
    for ends, curve in [*profile.outer.items(), *profile.inner.items()]:
        kind = "inner" if isinstance(ends[1], int) else "outer"
        found += _curve_faults(f"{kind}[{ends[0]}, {ends[1]}]", curve)
    found += _fact_faults("facts", profile.facts)
    for name, facts in profile.executors.items():
        found += _fact_faults(f"executors.{name}", facts)
    return found + (list(_job_faults(profile.job)) if profile.job is not None else [])


def _size_faults(profile: Profile) -> Iterator[Fault]:
    for degree, sizes in profile.sizes.items():
        yield from _degree_faults(f"sizes.{degree}", degree)
        for column in fields(sizes):
            values_L = getattr(sizes, column.name)
            if values_L is None:
                continue
            yield from _array_faults(f"sizes.{degree}.{column.name}", values_L, (profile.num_layers,))


def _times_faults(place: str, times: LayerTimes, num_layers: int) -> Iterator[Fault]:
    counts = times.micro_batch_sizes
    if not counts or counts[0] < 1 or any(a >= b for a, b in pairwise(counts)):
        limit = "at least one whole number above 0, ascending"
        yield Fault(place=f"{place}.micro_batch_sizes", value=str(list(counts))[:60], limit=limit)
    for name in ("forward_s_ML", "backward_s_ML", "update_s_ML"):
        yield from _array_faults(f"{place}.{name}", getattr(times, name), (len(counts), num_layers))


def _degree_faults(place: str, degree: int) -> Iterator[Fault]:
    if degree < 1:
        yield Fault(place=place, value=str(degree), limit="a tensor degree of 1 or more")


def _array_faults(place: str, values: FloatArray, shape: tuple[int, ...]) -> Iterator[Fault]:
    if values.shape != shape or 0 in shape:
        yield Fault(place=place, value=_by(values.shape), limit=f"{_by(shape)}, not empty")
        return
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0.0)))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        inside = "".join(f"[{i}]" for i in at)
        yield Fault(place=place + inside, value=f"{float(values[at])!r}", limit=NOT_NEGATIVE)


def _by(shape: tuple[int, ...]) -> str:
    return " by ".join(str(size) for size in shape) + " numbers" if shape else "one number"


def _curve_faults(place: str, curve: LinkCurve) -> Iterator[Fault]:
    figures = (*curve.gigabytes_per_s, curve.ceiling_bytes_per_s, curve.smallest_bytes, curve.latency_s)
    if curve.seconds_at and not _timed_well(curve.seconds_at):
        limit = "pairs of bytes and seconds above 0, bytes ascending, seconds never falling"
        yield Fault(place=f"{place}.seconds_at", value=str(curve.seconds_at)[:60], limit=limit)
    elif not all(map(isfinite, figures)) or curve.smallest_bytes <= 0.0 or curve.latency_s < 0.0:
        yield Fault(place=place, value="a figure out of range", limit="finite ones, latency_s 0 or more")
    elif not curve.gigabytes_per_s or curve.bytes_per_s(curve.smallest_bytes) <= 0.0:
        yield Fault(
            place=place, value="no bytes/s", limit="a rate above 0 at smallest_bytes, and so beyond it"
        )


def _timed_well(pairs: tuple[tuple[float, float], ...]) -> bool:
    above_zero = all(isfinite(size) and isfinite(s) and size > 0.0 and s > 0.0 for size, s in pairs)
    return above_zero and all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(pairs))


def _fact_faults(part: str, facts: RunFacts | ExecutorFacts) -> Iterator[Fault]:
    for entry in fields(facts):
        value, place = getattr(facts, entry.name), f"{part}.{entry.name}"
        if entry.name == "origins" or (entry.name == "overhead_bytes" and value is None):
            continue
        if entry.name == "zero_levels":
            if not value or any(type(level) is not int or not 0 <= level <= 3 for level in value):
                yield Fault(place=place, value=repr(value)[:60], limit="some of 0, 1, 2 and 3")
        elif entry.name in SWITCHES:
            if not isinstance(value, bool):
                yield Fault(place=place, value=repr(value)[:60], limit="true or false")
        elif not _is_amount(value):
            yield Fault(place=place, value=repr(value)[:60], limit="a number of 0 or more")
        elif entry.name in ("memory_bytes_per_s", "activation_factor") and value == 0:
            yield Fault(place=place, value="0", limit="more than 0")


def _job_faults(job: ProfiledJob) -> Iterator[Fault]:
    if job.dtype not in DTYPE_BYTES:
        yield Fault(place="job.dtype", value=repr(job.dtype)[:60], limit=f"one of {', '.join(DTYPE_BYTES)}")
    for name, least in (("sequence_tokens", 1), ("adapter_rank", 0)):
        value = getattr(job, name)
        if type(value) is not int or value < least:
            yield Fault(
                place=f"job.{name}", value=repr(value)[:60], limit=f"a whole number of {least} or more"
            )


def _is_amount(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < float("inf")
