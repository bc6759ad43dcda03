"""A launch's own layers: its best steps are kept while it runs, and make a profile afterwards. No torch here.

A worker gives its engine a chain that a `LayerClock` watches (`ClockedChain`) and that clock, calls
`KeptSteps.step_done` after each step, and puts `KeptSteps.document` into its summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from costmodels.interface import Origin
from costmodels.measured_profile import DECLARED, MEASURED, ExecutorFacts, LinkCurve, Profile
from costmodels.workload import Workload
from executors.profiling.answers import spans_from_json
from executors.profiling.layer_clock import LayerClock
from executors.profiling.layers import DeviceMeasurements, build_profile_from_spans
from executors.profiling.merging import ALL_LEVELS
from executors.profiling.spans import BOTH, LayerSpans, wall_per_cpu
from executors.training.clock import Kind
from planner.execution import DEEPSPEED, TORCH

NUM_KEPT = 8
AFTER_PASSES = (Kind.OPTIMISER, Kind.SYNC)
CPU = 1


class KeptSteps:
    """The steps of one rank whose layers took the fewest CPU seconds: no run is too long for its report."""

    def __init__(self, clock: LayerClock, *, micro_batch_size: int, micro_batches: int) -> None:
        self._clock = clock
        self._size, self._count = micro_batch_size, micro_batches
        self._kept: list[tuple[float, LayerSpans, float, float]] = []

    def step_done(self, cpu_s: float) -> None:
        """Keep what the clock has of the step just done, which took so many CPU seconds of this thread."""
        spans = self._clock.take(micro_batch_size=self._size, micro_batches=self._count)
        others = self._clock.take_others()
        passes_s = sum(
            span[CPU] for way in BOTH for entries in getattr(spans, way).values() for span in entries
        )
        update_s = sum(span[CPU] for kind in AFTER_PASSES for span in others.get(kind, ()))
        beside_s = sum(span[CPU] for entries in others.values() for span in entries)
        outside_s = max(0.0, cpu_s - passes_s - beside_s) / self._count
        self._kept.append((passes_s, spans, update_s, outside_s))
        self._kept.sort(key=lambda kept: kept[0])
        del self._kept[NUM_KEPT:]

    def document(self) -> dict[str, Any]:
        """What stands in the rank's summary: spans of the kept steps, and means beside them."""
        kept = [spans for _, spans, _, _ in self._kept]

        def joined(way: str) -> dict[int, list[Sequence[float]]]:
            layers = getattr(kept[0], way) if kept else ()
            return {i: [list(span) for spans in kept for span in getattr(spans, way)[i]] for i in layers}

        return {
            "micro_batch_size": self._size,
            "micro_batches": self._count,
            "forward": joined("forward"),
            "backward": joined("backward"),
            "update_s": float(np.mean([update_s for _, _, update_s, _ in self._kept])) if kept else 0.0,
            "outside_s": float(np.mean([outside_s for *_, outside_s in self._kept])) if kept else 0.0,
        }


def profile_from_ranks(
    workload: Workload,
    documents: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    executor: str,
    inner: Mapping[tuple[str, int], LinkCurve] | None = None,
    outer: Mapping[tuple[str, str], LinkCurve] | None = None,
    overhead_bytes: float = 0.0,
    memory_bytes_per_s: float = 1e10,
    note: str = "a launch",
) -> Profile:
    """The profile that the ranks of a launch make: device type and `KeptSteps.document` of each.

    Sizes are those of the workload; the links are given. Every rank's layers count for its device type, and
    together they must cover every kind of layer.

    Raises:
        InputError: `profile-incomplete`.
    """
    spans = [(name, spans_from_json(document), document) for name, document in documents]
    types = dict.fromkeys(name for name, _, _ in spans)
    trained_L = [layer.trainable_params for layer in workload.layers]

    def measured(type_name: str) -> DeviceMeasurements:
        own = [(each, document) for name, each, document in spans if name == type_name]
        per_param = [
            document["update_s"] / sum(trained_L[i] for i in each.forward)
            for each, document in own
            if sum(trained_L[i] for i in each.forward) > 0
        ]
        return DeviceMeasurements(
            spans=[each for each, _ in own],
            update_s_per_param=float(np.mean(per_param)) if per_param else 0.0,
            memory_bytes_per_s=memory_bytes_per_s,
        )

    profile = build_profile_from_spans(
        workload,
        {name: measured(name) for name in types},
        inner=inner,
        outer=outer,
        overhead_bytes=overhead_bytes,
        note=note,
    )
    ratio = wall_per_cpu([each for _, each, _ in spans])
    facts = ExecutorFacts(
        blocking_transfers=executor == DEEPSPEED,
        micro_batch_overhead_s=ratio * float(np.mean([document["outside_s"] for _, document in documents])),
        overhead_bytes=overhead_bytes,
        zero_levels=ALL_LEVELS,
        unequal_shares=executor == TORCH,
        recompute=True,
        origins={
            "blocking_transfers": Origin(kind=DECLARED, note="sends and receives of the engine's schedule"),
            "micro_batch_overhead_s": Origin(kind=MEASURED, note=note),
        },
    )
    return replace(profile, executors={executor: facts})
