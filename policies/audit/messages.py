"""The fields of every kind of message that may cross a boundary; `policies.envelope` writes and reads them.

Numbers, closed enumerations and digests only. No field can hold text or name a participant.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from policies.audit.record import Channel, Kind


class WindowState(IntEnum):
    """Where a boundary's window stands."""

    OPEN = 1
    EXTENDED = 2
    CLOSED = 3
    RELEASED = 4
    ABORTED = 5


class Reason(IntEnum):
    """Why a party joins, leaves, acknowledges or aborts."""

    PLANNED = 1
    RESUMED = 2
    DONE = 3
    DEADLINE = 4
    COHORT_TOO_SMALL = 5
    REFUSED = 6
    FAULT = 7


class Signals(IntEnum):
    """Bits of `BoundaryStatus.signals`: which of its four measurements are there."""

    SQUARED_NORM = 1
    PROJECTION = 2
    QUEUE_S = 4
    STEP_S = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryDelta:
    """A cohort's aggregate. `scale` is what an integer value of a ring payload is multiplied with."""

    base_version: int
    epoch: int
    cohort_size: int
    weight_sum: float
    tokens_sum: int
    clip_bound: float
    scale: float
    roster_root: bytes
    manifest_sha256: bytes
    payload_bytes: int
    payload_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryStatus:
    """How a boundary stands; absent measurements are 0.0 with their bit in `signals` unset."""

    base_version: int
    epoch: int
    window_state: WindowState
    is_ready: int
    signals: int
    squared_norm: float
    projection: float
    queue_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalState:
    """The new global adapter."""

    base_version: int
    manifest_sha256: bytes
    payload_bytes: int
    payload_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncDirective:
    """What the boundaries do next; `outer_rate_id` is a position in the run's table."""

    base_version: int
    num_steps: int
    window_deadline_s: float
    clip_bound: float
    outer_rate_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A boundary joins, or is let in."""

    base_version: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A boundary leaves, or is let go."""

    base_version: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The message `acked_sequence` of the other channel, of kind `acked_kind`, was taken."""

    acked_kind: Kind
    acked_sequence: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Window `epoch` ends without a release."""

    epoch: int
    reason: Reason


Message = BoundaryDelta | BoundaryStatus | GlobalState | SyncDirective | Join | Leave | Ack | Abort


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a message stands in its run: the boundary it is of, the way it goes, its number on that way."""

    boundary_id: int
    channel: Channel
    sequence: int
