"""Takes the time of every layer inside an engine's own forward and backward passes.

A pass is cut at the borders of its layers: by a hook behind each layer's forward, and on the gradient of each
layer's output. What a pass does beside its layers (the loss) counts with the layer it happens in, so the
seconds of the layers add up to those of the passes. Needs nothing of torch itself but the hooks of its
modules and tensors.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from executors.profiling.spans import LayerSpans, Span
from executors.training.clock import Clock, Kind, NoClock


class Watch(Protocol):
    """Takes marks in the course of the work and says later how far they are apart."""

    def mark(self) -> Any:
        """A mark at this point of the work."""
        ...

    def between(self, begin: Any, end: Any) -> Span:
        """Seconds between two marks; may wait until the work before `end` is done."""
        ...


class CpuWatch:
    """Wall clock and CPU time of the calling thread."""

    def mark(self) -> tuple[float, float]:
        """Both clocks."""
        return time.perf_counter(), time.thread_time()

    def between(self, begin: tuple[float, float], end: tuple[float, float]) -> Span:
        """Their differences."""
        return end[0] - begin[0], end[1] - begin[1]


class CudaWatch:
    """Events in the current stream of a GPU: the host runs ahead of it."""

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def mark(self) -> Any:
        """A recorded event."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> Span:
        """Seconds of the stream between both events."""
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1e3
        return seconds, seconds


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass over the layers: its kind, where it began and ended, and the marks at layer borders."""

    kind: Kind
    begin: Any
    end: Any
    borders: tuple[tuple[int, Any], ...]


class LayerClock:
    """A clock for an engine that also cuts its passes at the borders of the layers it was shown.

    `inner` takes the same spans, for instance to add them up by kind. Only passes while `running` count.
    """

    def __init__(self, watch: Watch | None = None, inner: Clock | None = None) -> None:
        self._watch: Watch = watch or CpuWatch()
        self._inner: Clock = inner or NoClock()
        self._layers: set[int] = set()
        self._passes: list[_Pass] = []
        self._others: dict[Kind, list[tuple[Any, Any]]] = defaultdict(list)
        self._open: tuple[Kind, list[tuple[int, Any]]] | None = None
        self.running = True

    def attach(self, layer_i: int, layer: Any) -> Any:
        """Watch this layer of the chain; returns it."""
        self._layers.add(layer_i)
        layer.register_forward_hook(lambda _module, _given, output: self._passed(layer_i, output))
        return layer

    @contextmanager
    def span(self, kind: Kind, micro_batch: int | None = None) -> Iterator[None]:
        """Take the time of one piece of work."""
        with self._inner.span(kind, micro_batch):
            if not self.running:
                yield
                return
            borders: list[tuple[int, Any]] = []
            self._open = (kind, borders) if kind in (Kind.FORWARD, Kind.BACKWARD) else None
            begin = self._watch.mark()
            try:
                yield
            finally:
                end = self._watch.mark()
                passed, self._open = self._open, None
                if passed is None:
                    self._others[kind].append((begin, end))
                else:
                    self._passes.append(_Pass(kind, begin, end, tuple(borders)))

    def take(self, *, micro_batch_size: int, micro_batches: int) -> LayerSpans:
        """The layers' seconds since the last call, in order of time; begins anew."""
        layers = sorted(self._layers)
        ways: dict[Kind, dict[int, list[Span]]] = {
            kind: {i: [] for i in layers} for kind in (Kind.FORWARD, Kind.BACKWARD)
        }
        for one in self._passes:
            for i, span in self._cut(one).items():
                ways[one.kind][i].append(span)
        self._passes.clear()
        for i in layers:
            # Layers before the first trained weight have no backward pass.
            missing = len(ways[Kind.FORWARD][i]) - len(ways[Kind.BACKWARD][i])
            ways[Kind.BACKWARD][i] += [(0.0, 0.0)] * missing
        return LayerSpans(
            micro_batch_size=micro_batch_size,
            micro_batches=micro_batches,
            forward=ways[Kind.FORWARD],
            backward=ways[Kind.BACKWARD],
        )

    def take_others(self) -> Mapping[Kind, list[Span]]:
        """Seconds of all work that isn't a pass, in order of time; begins anew."""
        taken = {kind: [self._watch.between(*pair) for pair in pairs] for kind, pairs in self._others.items()}
        self._others.clear()
        return taken

    def _passed(self, layer_i: int, output: Any) -> None:
        """A layer's forward is over: mark the border, and have its gradient's arrival marked too."""
        if not self.running:
            return
        if self._open is not None and self._open[0] is Kind.FORWARD:
            self._open[1].append((layer_i, self._watch.mark()))
        if output.requires_grad:
            output.register_hook(lambda _gradient: self._arrived(layer_i))

    def _arrived(self, layer_i: int) -> None:
        """The gradient of a layer's output is there: the layers behind it are done."""
        if self._open is not None and self._open[0] is Kind.BACKWARD:
            self._open[1].append((layer_i, self._watch.mark()))

    def _cut(self, one: _Pass) -> dict[int, Span]:
        """Seconds of each layer in a pass, with what comes before the first border and after the last one.

        In backward the first border is the gradient of the last layer's own output: it ends the loss alone,
        which counts with that layer.
        """
        spans: dict[int, Span] = {}
        begin = one.begin
        if one.kind is Kind.FORWARD:
            for position, (i, mark) in enumerate(one.borders):
                end = one.end if position == len(one.borders) - 1 else mark
                spans[i] = self._watch.between(begin, end)
                begin = mark
            return spans
        current: int | None = None
        for i, mark in one.borders:
            if current is not None:
                spans[current] = self._watch.between(begin, mark)
                begin = mark
            current = i
        if current is not None:
            spans[current] = self._watch.between(begin, one.end)
        return spans
