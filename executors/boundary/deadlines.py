"""How long to wait, and for whom: every wait of the boundary plane ends, and its error names the one awaited.

Pure: the time comes in as `now_s`, any monotonic clock in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from policies.errors import ExecutorFailedError


class WaitEndedError(ExecutorFailedError):
    """A wait ended without what was waited for. `awaited` is whom, `what` is what, `limit_s` the limit."""

    def __init__(self, code: str, message: str, *, awaited: str, what: str, limit_s: float) -> None:
        super().__init__(code, message, hint=f"look at {awaited} and at the link to it, or allow more time")
        self.awaited = awaited
        self.what = what
        self.limit_s = limit_s


class Wait(Protocol):
    """What a waiting loop asks."""

    def left_s(self, now_s: float) -> float:
        """Seconds that may still pass, above 0.

        Raises:
            WaitEndedError: none are left.
        """
        ...

    def moved(self, num_bytes: int, now_s: float) -> None:
        """Take note that so many bytes went through."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A fixed end, at `at_s` of the clock; `limit_s` is how long it was when it was set."""

    awaited: str
    what: str
    at_s: float
    limit_s: float

    def left_s(self, now_s: float) -> float:
        """Seconds until the end.

        Raises:
            WaitEndedError: `deadline-passed`, naming the one awaited.
        """
        left_s = self.at_s - now_s
        if left_s > 0.0:
            return left_s
        raise WaitEndedError(
            "deadline-passed",
            f"waited {self.limit_s:.3g} s for {self.what} from {self.awaited}, in vain",
            awaited=self.awaited,
            what=self.what,
            limit_s=self.limit_s,
        )

    def moved(self, num_bytes: int, now_s: float) -> None:
        """Bytes don't move a fixed end."""


def deadline_in(limit_s: float, *, awaited: str, what: str, now_s: float) -> Deadline:
    """The deadline `limit_s` seconds from now."""
    return Deadline(awaited=awaited, what=what, at_s=now_s + limit_s, limit_s=limit_s)


class Progress:
    """A wait that lasts as long as bytes come: `min_bytes` in each `stall_s`, and no later than `end`.

    A floor in bytes and not in messages, so that neither heartbeats nor a trickle pass as progress.
    """

    __slots__ = ("_awaited", "_end", "_min_bytes", "_moved_bytes", "_stall_s", "_what", "_window_start_s")

    def __init__(
        self, *, awaited: str, what: str, stall_s: float, min_bytes: int, now_s: float, end: Deadline | None
    ) -> None:
        self._awaited = awaited
        self._what = what
        self._stall_s = stall_s
        self._min_bytes = min_bytes
        self._end = end
        self._moved_bytes = 0
        self._window_start_s = now_s

    def moved(self, num_bytes: int, now_s: float) -> None:
        """Count the bytes; a window that has its share ends and the next one begins."""
        self._moved_bytes += num_bytes
        if self._moved_bytes >= self._min_bytes:
            self._moved_bytes = 0
            self._window_start_s = now_s

    def left_s(self, now_s: float) -> float:
        """Seconds until the transfer counts as stalled, or until its end, whichever is nearer.

        Raises:
            WaitEndedError: `transfer-stalled` or `deadline-passed`, naming the one awaited.
        """
        left_s = self._window_start_s + self._stall_s - now_s
        if left_s <= 0.0:
            moved = f"{self._moved_bytes:,} bytes in {self._stall_s:.3g} s, the floor is {self._min_bytes:,}"
            raise WaitEndedError(
                "transfer-stalled",
                f"{self._what} with {self._awaited} moved {moved}",
                awaited=self._awaited,
                what=self._what,
                limit_s=self._stall_s,
            )
        return left_s if self._end is None else min(left_s, self._end.left_s(now_s))
