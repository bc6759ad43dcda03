"""Rule, state and events of the windows of one boundary; the transitions are in policies.windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from policies.errors import InputError
from policies.staleness import StalenessRule

COHORT_FLOOR = 3


class Phase(StrEnum):
    """Where the current window stands."""

    IDLE = "idle"
    OPEN = "open"
    CLOSED = "closed"


class EventKind(StrEnum):
    """What a transition tells the outside."""

    OPENED = "opened"
    EXTENDED = "extended"
    CARRIED_OVER = "carried-over"
    CLOSED = "closed"
    RELEASED = "released"
    ABORTED = "aborted"
    RETURNED = "returned"
    BURNT = "burnt"
    DROPPED = "dropped"
    REFUSED = "refused"
    PARKED = "parked"
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A participation window of one member: from `start_s` up to, not including, `stop_s`."""

    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """When a window closes and who may be in it.

    `close_frac`: K is this share of the members present, rounded up, never below `min_cohort`; `close_at`
    caps K with a number. `held_max`: commitments of one identity held at a time, the frozen one included.

    Raises:
        InputError: `window-rule` where a setting is out of range; a cohort below 3 lets a member subtract
            itself.
    """

    close_frac: float = 1.0
    close_at: int | None = None
    deadline_s: float = 60.0
    min_cohort: int = COHORT_FLOOR
    extend_s: float = 30.0
    extensions_max: int = 2
    held_max: int = 2
    staleness: StalenessRule = field(default_factory=StalenessRule)

    def __post_init__(self) -> None:
        checks = (
            ("close_frac", self.close_frac, 0.0 < self.close_frac <= 1.0, "above 0, at most 1"),
            (
                "close_at",
                self.close_at,
                self.close_at is None or self.close_at >= self.min_cohort,
                "at least min_cohort",
            ),
            (
                "deadline_s",
                self.deadline_s,
                math.isfinite(self.deadline_s) and self.deadline_s > 0,
                "finite, above 0",
            ),
            ("min_cohort", self.min_cohort, self.min_cohort >= COHORT_FLOOR, f"at least {COHORT_FLOOR}"),
            (
                "extend_s",
                self.extend_s,
                math.isfinite(self.extend_s) and self.extend_s > 0,
                "finite, above 0",
            ),
            ("extensions_max", self.extensions_max, self.extensions_max >= 0, "at least 0"),
            ("held_max", self.held_max, self.held_max >= 1, "at least 1"),
        )
        for name, value, is_fine, limit in checks:
            if not is_fine:
                raise InputError(
                    "window-rule",
                    f"window rule: {name} is {value}, allowed is {limit}",
                    hint="set it within range",
                )

    def num_to_close(self, num_present: int) -> int:
        """K: the number of ready members at which the window closes before its deadline."""
        wanted = math.ceil(self.close_frac * num_present - 1e-9)
        if self.close_at is not None:
            wanted = min(wanted, self.close_at)
        return max(wanted, self.min_cohort)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """One update held ready by `identity`; `update_id` rises with each update of that identity."""

    identity: str
    update_id: int
    base_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A commitment and the versions it is behind at the time of the event."""

    commitment: Commitment
    staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEvent:
    """One thing that happened; `deadline_s` is that of an opened or extended window."""

    kind: EventKind
    window: int
    version: int
    at_s: float
    entries: tuple[Entry, ...] = ()
    deadline_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowState:
    """Everything a restart needs. `held` is in order of arrival; `roster` is frozen while closed.

    `version` is the number of releases so far; `window` the current window, which an abort burns as well.
    `last_update` remembers the newest update accepted from each identity, so that none is taken twice.
    """

    phase: Phase = Phase.IDLE
    window: int = 0
    version: int = 0
    deadline_s: float | None = None
    num_extensions: int = 0
    members: Mapping[str, tuple[Interval, ...]] = field(default_factory=dict)
    held: tuple[Commitment, ...] = ()
    roster: tuple[Commitment, ...] = ()
    parked: tuple[Commitment, ...] = ()
    last_update: Mapping[str, int] = field(default_factory=dict)

    def is_present(self, identity: str, at_s: float) -> bool:
        """Whether the identity is a member, and inside one of its participation windows if it has any."""
        hours = self.members.get(identity)
        if hours is None:
            return False
        return not hours or any(span.start_s <= at_s < span.stop_s for span in hours)

    def ready(self, at_s: float) -> tuple[Commitment, ...]:
        """The oldest held commitment of each member present: what would be in the window if it closed now."""
        first: dict[str, Commitment] = {}
        for commitment in self.held:
            if commitment.identity not in first and self.is_present(commitment.identity, at_s):
                first[commitment.identity] = commitment
        return tuple(first.values())

    def entry(self, commitment: Commitment) -> Entry:
        """The commitment with its staleness against the current version."""
        return Entry(commitment=commitment, staleness=self.version - commitment.base_version)
