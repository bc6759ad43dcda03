"""What a rank spends its time on, by kind of work, and by layer where asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Kind(StrEnum):
    """What a rank does. Waiting for others counts with the work that waits."""

    FORWARD = "forward"
    BACKWARD = "backward"
    SEND = "send"
    RECEIVE = "receive"
    SYNC = "sync"
    OPTIMISER = "optimiser"


AFTER_PASSES = (Kind.OPTIMISER, Kind.SYNC)
"""What a step does once, behind its passes."""


@dataclass(slots=True)
class Spent:
    """Seconds of a kind of work: on the wall clock, and of this thread's CPU time."""

    wall_s: float = 0.0
    thread_s: float = 0.0
    num_spans: int = 0


class Clock(Protocol):
    """Takes the time of what an engine does."""

    def span(self, kind: Kind, micro_batch: int | None = None) -> AbstractContextManager[None]:
        """A context around one piece of work; `micro_batch` is None for work of the whole step."""
        ...


class NoClock:
    """Takes no time."""

    def span(self, kind: Kind, micro_batch: int | None = None) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()


class StepWatch(Protocol):
    """Looks on while an engine trains a step."""

    def step(self) -> AbstractContextManager[None]:
        """A context around one whole step."""
        ...


class NoWatch:
    """Looks away."""

    def step(self) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()


class StepClock:
    """Adds up wall and CPU seconds per kind. Spans don't nest."""

    def __init__(self) -> None:
        self._spent: dict[Kind, Spent] = defaultdict(Spent)

    @contextmanager
    def span(self, kind: Kind, micro_batch: int | None = None) -> Iterator[None]:
        """Add the seconds inside this context to its kind."""
        wall_s, thread_s = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            spent = self._spent[kind]
            spent.thread_s += time.thread_time() - thread_s
            spent.wall_s += time.perf_counter() - wall_s
            spent.num_spans += 1

    def take(self) -> Mapping[Kind, Spent]:
        """What was spent since the last call; begins anew."""
        taken = dict(self._spent)
        self._spent.clear()
        return taken
