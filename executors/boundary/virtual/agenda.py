"""What happens next in virtual time. Equal times are ordered by rank, then by order of entry."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum

Act = Callable[[float], None]


class Rank(IntEnum):
    """Order within one instant: what is under way ends before anybody takes the newer model."""

    NORMAL = 0
    PULL = 1


class Agenda:
    """A queue of acts; each is called with the time it was entered for."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Act]] = []
        self._num_entered = 0

    def add(self, at_s: float, act: Act, *, rank: Rank = Rank.NORMAL) -> None:
        """Enter an act."""
        heapq.heappush(self._heap, (at_s, int(rank), self._num_entered, act))
        self._num_entered += 1

    def pop(self) -> tuple[float, Act] | None:
        """The next act and its time; None when nothing is left."""
        if not self._heap:
            return None
        at_s, _, _, act = heapq.heappop(self._heap)
        return at_s, act
