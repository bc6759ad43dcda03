"""Virtual time: things happen in the order of their times, links serve who asks first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

Happening = Callable[[float], None]
Order = tuple[int, int]
"""Replica and stage."""


@dataclass(slots=True)
class Clock:
    """What is still to happen.

    At equal times the lower replica goes first, then its lower stage (-1 for the replica as a whole), then
    what was asked for first.
    """

    now_s: float = 0.0
    _heap: list[tuple[float, Order, int, Happening]] = field(default_factory=list)
    _asked: int = 0

    def at(self, time_s: float, order: Order, happening: Happening) -> None:
        """Call `happening(time_s)` when it is that time."""
        self._asked += 1
        heapq.heappush(self._heap, (time_s, order, self._asked, happening))

    def run(self, tick: Callable[[float], None] | None = None) -> None:
        """Let everything happen that was asked for, and what that asks for; `tick` hears of the time."""
        heap = self._heap
        count = 0
        while heap:
            time_s, _, _, happening = heapq.heappop(heap)
            self.now_s = time_s
            happening(time_s)
            count += 1
            if tick is not None and count % 4096 == 0:
                tick(time_s)


@dataclass(slots=True)
class Links:
    """Links by name. Each carries one transfer at a time, first come, first served."""

    free_s: dict[str, float] = field(default_factory=dict)
    held_s: dict[str, float] = field(default_factory=dict)
    waited_s: dict[str, float] = field(default_factory=dict)

    def hold(self, link: str, now_s: float, occupied_s: float) -> float:
        """When a transfer that is ready now gets the link; it keeps it for `occupied_s`."""
        start_s = max(now_s, self.free_s.get(link, 0.0))
        self.free_s[link] = start_s + occupied_s
        self.held_s[link] = self.held_s.get(link, 0.0) + occupied_s
        self.waited_s[link] = self.waited_s.get(link, 0.0) + (start_s - now_s)
        return start_s
