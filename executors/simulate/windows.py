"""Windows of one boundary in virtual time: replicas come, wait, and go on together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from executors.simulate.options import WindowRule

Release = Callable[[int, float, float], None]


@dataclass(slots=True, kw_only=True)
class BoundaryWindows:
    """Who has come to the present window. `release(replica, came_s, closed_s)` lets a replica go on."""

    rule: WindowRule
    running: set[int]
    release: Release
    closed: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    _waiting: list[tuple[int, float]] = field(default_factory=list)
    _due_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._due_s = self.rule.seconds or 0.0

    def is_due(self, now_s: float, num_steps_since: int) -> bool:
        """Whether a replica that has just ended a step comes to the window."""
        if self.rule.num_steps is not None:
            return num_steps_since >= self.rule.num_steps
        return now_s >= self._due_s

    def come(self, replica: int, now_s: float) -> None:
        """The replica waits for the close, which may be now."""
        self._waiting.append((replica, now_s))
        self._close_if_complete(now_s)

    def leave(self, replica: int, now_s: float) -> None:
        """The replica runs no more, so nobody waits for it."""
        self.running.discard(replica)
        self._close_if_complete(now_s)

    def _close_if_complete(self, now_s: float) -> None:
        wanted = len(self.running) if self.rule.quorum is None else min(self.rule.quorum, len(self.running))
        if not self._waiting or len(self._waiting) < wanted:
            return
        came, self._waiting = self._waiting, []
        self.closed.append((now_s, tuple(replica for replica, _ in came)))
        if self.rule.seconds is not None:
            # The next multiple after now: a late window doesn't drag the following ones behind it.
            self._due_s = (now_s // self.rule.seconds + 1.0) * self.rule.seconds
        for replica, came_s in came:
            self.release(replica, came_s, now_s)
