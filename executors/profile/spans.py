"""Seconds of layers, micro-batch by micro-batch, and what is left of them when disturbances are put aside.

No torch here. Legend of array suffixes: K steps, J micro-batches of a step, I measured layers.
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
BOTH = ("forward", "backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpans:
    """What one rank's layers took, the micro-batches of all steps in order of time.

    `micro_batch_size` are the sequences of a micro-batch on this rank, `micro_batches` those of a step. Both
    mappings go from a layer's position in the chain to one entry per micro-batch.
    """

    micro_batch_size: int
    micro_batches: int
    forward: Mapping[int, Sequence[Span]]
    backward: Mapping[int, Sequence[Span]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Seconds of one micro-batch in each measured layer.

    `wall_per_cpu` is by how much the wall clock ran ahead of the CPU in the best step: 1 on a core of one's
    own, more where it is shared, throttled or waits for memory that swaps.
    """

    micro_batch_size: int
    forward_s: Mapping[int, float]
    backward_s: Mapping[int, float]
    wall_per_cpu: float


def layer_seconds(spans: LayerSpans) -> LayerSeconds:
    """Forward and backward seconds of each layer, as an undisturbed step takes them.

    CPU seconds leave out the time in which another process had the core, but not what this one lost by it
    (cold caches). So the quarter of the steps with the fewest CPU seconds is kept and averaged, not its
    minima, whose sum over the layers no step reaches. A core that is throttled or shared for good runs behind
    the clock in every step: the mean is multiplied by the smallest ratio of wall to CPU seconds of any step.

    Raises:
        InputError: `profile-incomplete` without a whole step, or when layers have different numbers of spans.
    """
    layers = sorted(spans.forward)
    wall_IKJ, cpu_IKJ = {}, {}
    for way in BOTH:
        tables = [_table(getattr(spans, way).get(i, ()), spans, f"{way} of layer {i}") for i in layers]
        wall_IKJ[way] = np.stack([table[0] for table in tables])
        cpu_IKJ[way] = np.stack([table[1] for table in tables])
    wall_K = sum(wall_IKJ[way].sum(axis=(0, 2)) for way in BOTH)
    cpu_K = sum(cpu_IKJ[way].sum(axis=(0, 2)) for way in BOTH)
    kept = best_steps(cpu_K)
    ratio = float((wall_K / np.maximum(cpu_K, 1e-12)).min())
    seconds = {way: cpu_IKJ[way][:, kept].mean(axis=(1, 2)) * ratio for way in BOTH}
    return LayerSeconds(
        micro_batch_size=spans.micro_batch_size,
        forward_s=dict(zip(layers, seconds["forward"].tolist(), strict=True)),
        backward_s=dict(zip(layers, seconds["backward"].tolist(), strict=True)),
        wall_per_cpu=ratio,
    )


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
        wall_per_cpu=float(np.mean([each.wall_per_cpu for each in several])),
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


def _table(entries: Sequence[Span], spans: LayerSpans, what: str) -> tuple[FloatArray, FloatArray]:
    """Wall and CPU seconds by step and micro-batch."""
    count = spans.micro_batches
    if len(entries) < count or len(entries) % count:
        raise InputError(
            "profile-incomplete",
            f"{what}: {len(entries)} micro-batches measured, not whole steps of {count}",
            hint="measure whole steps",
        )
    table = np.array(entries, dtype=np.float64).reshape(-1, count, 2)
    return table[:, :, 0], table[:, :, 1]
