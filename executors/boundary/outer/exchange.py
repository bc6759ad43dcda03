"""One copy of the model that keeps training while its delta is away: a boundary's, or a participant's.

At send the delta is `now - anchor`; training goes on. When a newer model w arrives, the copy becomes
w + (now - at_send) and w the anchor: what was learned meanwhile is kept and is part of the next delta, what
was sent is in w already. One exchange is in flight at a time.
Legend: P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from executors.boundary.outer.vectors import Vector
from policies.errors import EchelonError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCopy:
    """`now_P`: as trained; `anchor_P`: the model last received; `at_send_P`: as sent, while in flight."""

    now_P: Vector
    anchor_P: Vector
    version: int = 0
    at_send_P: Vector | None = None

    @property
    def is_in_flight(self) -> bool:
        """Whether a delta was sent whose answer has not arrived."""
        return self.at_send_P is not None

    def move_to(self, now_P: Vector) -> LocalCopy:
        """The copy after more training."""
        return replace(self, now_P=now_P)

    def add(self, delta_P: Vector) -> LocalCopy:
        """The copy moved by a released delta."""
        return replace(self, now_P=(self.now_P + delta_P).astype(np.float32))

    def send(self) -> tuple[LocalCopy, Vector]:
        """The copy with an exchange in flight, and the delta to send.

        Raises:
            EchelonError: `exchange-in-flight` where one is under way: its progress would be sent twice.
        """
        if self.at_send_P is not None:
            raise EchelonError(
                "exchange-in-flight",
                "an exchange is still in flight",
                hint="send after the answer has arrived",
            )
        return replace(self, at_send_P=self.now_P), (self.now_P - self.anchor_P).astype(np.float32)

    def receive(self, w_P: Vector, *, version: int) -> LocalCopy:
        """The copy on top of the received model; progress since the send is kept bit for bit as a difference.

        Without a send before it, everything since the anchor is kept: nothing of it was in any delta.
        """
        base_P = self.anchor_P if self.at_send_P is None else self.at_send_P
        now_P = w_P if self.now_P is base_P else (w_P + (self.now_P - base_P)).astype(np.float32)
        return LocalCopy(now_P=now_P, anchor_P=w_P, version=version)

    def restart(self, w_P: Vector, *, version: int) -> LocalCopy:
        """The received model alone, for participants who start afresh."""
        return LocalCopy(now_P=w_P, anchor_P=w_P, version=version)
