"""The best steps of a rank, kept while a launch runs: its layers are a profile afterwards. No torch here.

A worker gives its engine a chain that a `LayerClock` watches (`ClockedChain`) and that clock, wraps each step
in `KeptSteps.step`, and writes `KeptSteps.document` down at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from executors.profiling.layer_clock import LayerClock
from executors.profiling.spans import BOTH, LayerSpans
from executors.training.clock import AFTER_PASSES

NUM_KEPT = 8
EVERY = 4
"""One step in so many is watched, from the third on: watching takes about a hundredth of a small step."""
FIRST = 2
CPU = 1


class KeptSteps:
    """Of every few steps of a rank those whose layers took the fewest CPU seconds, `NUM_KEPT` at most."""

    def __init__(
        self, clock: LayerClock, *, micro_batch_size: int, micro_batches: int, every: int = EVERY
    ) -> None:
        self._clock = clock
        self._every, self._num_seen = every, 0
        self._size, self._count = micro_batch_size, micro_batches
        self._kept: list[tuple[float, LayerSpans, float, float]] = []
        # Evaluations pass through the same layers and are no steps.
        clock.running = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step: watch its layers if it is due, and keep them if it is among the best."""
        due = self._num_seen >= FIRST and (self._num_seen - FIRST) % self._every == 0
        self._num_seen += 1
        if not due:
            yield
            return
        begin_s = time.thread_time()
        self._clock.running = True
        try:
            yield
        finally:
            self._clock.running = False
        self._keep(time.thread_time() - begin_s)

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

    def _keep(self, cpu_s: float) -> None:
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
