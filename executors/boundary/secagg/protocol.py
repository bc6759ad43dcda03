"""What any secure aggregation offers to the services around it, and what it needs from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from executors.boundary.secagg.fixed_point import Aggregate

RandomBytes = Callable[[int], bytes]


class Journal(Protocol):
    """Memory that survives a crash. Every call is durable before it returns."""

    def record(self, kind: str, key: str, value: bytes) -> None:
        """Keep a value for good; a second, different value under the same kind and key is refused."""

    def seen(self, kind: str, key: str) -> bytes | None:
        """The value kept, or None."""

    def highest_epoch(self, name: str) -> int:
        """The greatest epoch begun under `name`, -1 where there was none."""

    def begin_epoch(self, name: str, epoch: int) -> None:
        """Burn every epoch up to this one under `name`."""


class UpdateFate(Enum):
    """Where a participant's update is after a window."""

    NOT_SENT = "not-sent"  # never left: free for a later window
    RETURNED = "returned"  # a quorum agreed on a set without it: free for a later window
    SPENT = "spent"  # it is, or may be, in an aggregate: never to be sent again


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A frame for one participant, by name, or for all (None)."""

    to: str | None
    frame: bytes


class MaskedVector(Protocol):
    """A masked update on its way: bytes made once, sent as often as the link needs."""

    def chunks(self, start_byte: int = 0) -> Iterator[bytes]:
        """CHUNK frames from a byte offset on; the same offset always gives the same bytes."""

    def trailer(self) -> bytes:
        """The frame that ends the upload."""


class ParticipantSide(Protocol):
    """One participant's half of a protocol."""

    def enrol(self, descriptor: bytes, *, now_s: float) -> bytes:
        """Join a window."""

    def receive(self, frame: bytes, *, now_s: float) -> bytes | None:
        """Take any frame of the aggregator; what to answer, if anything."""

    def mask(
        self, update_N: NDArray[np.float32], *, weight: float, update_id: str, now_s: float
    ) -> MaskedVector:
        """The update, hidden."""

    def reveal(self, frame: bytes, *, now_s: float) -> bytes:
        """What opens the sum, and nothing but the sum; at most once in a window."""


class AggregatorSide(Protocol):
    """The aggregator's half of a protocol."""

    def receive(self, frame: bytes | memoryview, *, sender: str, now_s: float) -> None:
        """Take one frame of an authenticated participant."""

    def advance(self, *, now_s: float) -> list[Outgoing]:
        """Frames that are due now; none while there is something left to wait for."""

    def combine(self) -> Aggregate:
        """The result, once."""
