"""Seconds of layers, micro-batch by micro-batch, and what is left of them when disturbances are put aside.

No torch here. Legend of array suffixes: I measured layers, K steps, J micro-batches of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray
from costmodels.workload import Workload
from policies.errors import InputError

Span = tuple[float, float]
"""Wall and CPU seconds. Where work runs on a GPU both are the seconds between two events of its stream."""
KEPT_FRAC = 0.25
WINDOW_S = 2.0
BOTH = ("forward", "backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpans:
    """What one rank's layers took, the micro-batches of all steps in order of time.

    `micro_batch_size` are the sequences of a micro-batch on this rank, `micro_batches` those of a step. Both
    mappings go from a layer's position in the chain to one entry per micro-batch. `lost_s` are the seconds of
    each step in which another process had the core, where that is known.
    """

    micro_batch_size: int
    micro_batches: int
    forward: Mapping[int, Sequence[Span]]
    backward: Mapping[int, Sequence[Span]]
    lost_s: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """CPU seconds of one micro-batch in each measured layer."""

    micro_batch_size: int
    forward_s: Mapping[int, float]
    backward_s: Mapping[int, float]


def layer_seconds(spans: LayerSpans) -> LayerSeconds:
    """Forward and backward CPU seconds of each layer, as an undisturbed step takes them.

    CPU seconds leave out the time in which another process had the core, but not what this one lost by it
    (cold caches). So the quarter of the steps with the fewest CPU seconds is kept and averaged, not its
    minima, whose sum over the layers no step reaches.

    Raises:
        InputError: `profile-incomplete` without a whole step, or when layers have different numbers of spans.
    """
    layers, tables = sorted(spans.forward), _tables(spans)
    cpu_IKJ = {way: np.stack([tables[way, i][1] for i in layers]) for way in BOTH}
    kept = best_steps(sum(cpu_IKJ[way].sum(axis=(0, 2)) for way in BOTH))
    seconds = {way: cpu_IKJ[way][:, kept].mean(axis=(1, 2)) for way in BOTH}
    return LayerSeconds(
        micro_batch_size=spans.micro_batch_size,
        forward_s=dict(zip(layers, seconds["forward"].tolist(), strict=True)),
        backward_s=dict(zip(layers, seconds["backward"].tolist(), strict=True)),
    )


def wall_per_cpu(several: Sequence[LayerSpans]) -> float:
    """By how much the wall clock runs ahead of CPU seconds on cores of this kind, at best.

    1 on a core of one's own, more where it is throttled or stopped at times. What another process took is
    left out, since it may not be there when the plan runs. Quotas count in periods of a tenth of a second or
    so, which a short step may slip through: what counts is the smallest ratio of any window of consecutive
    steps that lasts two seconds or more.
    """
    ratios: list[float] = []
    for spans in several:
        tables = _tables(spans)
        wall_K, cpu_K = (sum(table[clock].sum(axis=1) for table in tables.values()) for clock in (0, 1))
        if len(spans.lost_s) == len(wall_K):
            wall_K = np.maximum(wall_K - np.asarray(spans.lost_s), cpu_K)
        begin = 0
        for end in range(1, len(wall_K) + 1):
            window = slice(begin, end)
            if wall_K[window].sum() >= WINDOW_S or (end == len(wall_K) and begin == 0):
                ratios.append(float(wall_K[window].sum() / max(cpu_K[window].sum(), 1e-12)))
                begin = end
    return max(1.0, min(ratios, default=1.0))


def best_steps(seconds_K: FloatArray) -> NDArray[np.int64]:
    """Positions of the quarter of the steps that took least, at least one, in order of time."""
    count = max(1, round(KEPT_FRAC * seconds_K.size))
    return np.sort(np.argsort(seconds_K, kind="stable")[:count])


def mean_seconds(several: Sequence[LayerSeconds]) -> LayerSeconds:
    """The mean over ranks of one device type; a layer counts on the ranks that ran it."""

    def mean(columns: Sequence[Mapping[int, float]]) -> dict[int, float]:
        layers = sorted({i for column in columns for i in column})
        return {i: float(np.mean([column[i] for column in columns if i in column])) for i in layers}

    return LayerSeconds(
        micro_batch_size=several[0].micro_batch_size,
        forward_s=mean([each.forward_s for each in several]),
        backward_s=mean([each.backward_s for each in several]),
    )


def by_kind(values: Mapping[int, float], workload: Workload) -> list[float]:
    """One value for each layer of the chain: the mean over the measured layers of its kind.

    Layers of one kind agree in every size and do the same work, so what differs between them is noise; a
    few of each kind stand for all.

    Raises:
        InputError: `profile-incomplete` when no layer of a kind was measured.
    """
    kinds = [layer.kind for layer in workload.layers]
    found: dict[str, list[float]] = {}
    for i, value in values.items():
        found.setdefault(kinds[i], []).append(value)
    missing = sorted(set(kinds) - set(found))
    if missing:
        raise InputError(
            "profile-incomplete",
            f"no layer of kind {', '.join(missing)} was measured",
            hint="measure at least one layer of each kind",
        )
    means = {kind: float(np.mean(measured)) for kind, measured in found.items()}
    return [means[kind] for kind in kinds]


def _tables(spans: LayerSpans) -> dict[tuple[str, int], tuple[FloatArray, FloatArray]]:
    """Wall and CPU seconds by step and micro-batch, of each way through each layer."""
    count = spans.micro_batches
    tables = {}
    for way in BOTH:
        for i in spans.forward:
            entries = getattr(spans, way).get(i, ())
            if len(entries) < count or len(entries) % count:
                raise InputError(
                    "profile-incomplete",
                    f"{way} of layer {i}: {len(entries)} micro-batches measured, not whole steps of {count}",
                    hint="measure whole steps",
                )
            table = np.array(entries, dtype=np.float64).reshape(-1, count, 2)
            tables[way, i] = (table[:, :, 0], table[:, :, 1])
    return tables
