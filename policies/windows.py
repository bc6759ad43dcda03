"""Buffered semi-asynchronous windows of one boundary, as a pure state machine: time comes in, events go out.

What is buffered are commitments ("I hold update u, trained from version v"), never vectors: weights and staleness
must be applied before masking, so they have to be known when the roster is frozen.

    idle --first commitment--> open --K ready or deadline--> closed (roster frozen) --settle or abort--> idle/open

- A window closes with at least `min_cohort` ready, at the K-th commitment or at its deadline. With fewer it is
  extended `extensions_max` times, then carried over: the next window starts with the same commitments.
- One commitment per identity and window: a second one waits for the next window.
- A commitment that misses a window, or drops out of a closed one, stays for the next. Each window that releases
  makes a new version, so what missed it is one version staler; a window that releases nothing ages nobody.
- Work older than the staleness rule allows is dropped, and the drop is an event.
- A member who leaves keeps its work; it is parked, and taken up again when the same identity returns.

Every accepted commitment therefore ends in exactly one of: released, burnt, dropped, or still held.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from policies.errors import EchelonError, InputError, PolicyRefusedError
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

    `close_frac`: K is this share of the members present, rounded up, never below `min_cohort`; `close_at` caps K
    with a number. `held_max`: commitments of one identity held at a time, the frozen one included.

    Raises:
        InputError: `window-rule` where a setting is out of range; a cohort below 3 lets a member subtract itself.
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
        """Whether the identity is a member and inside one of its participation windows (none given: always)."""
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


Step = tuple[WindowState, tuple[WindowEvent, ...]]


def join(
    rule: WindowRule, state: WindowState, identity: str, *, at_s: float, hours: tuple[Interval, ...] = ()
) -> Step:
    """The identity takes part from now on; work it left parked is taken up again, or dropped if too old."""
    mine = tuple(c for c in state.parked if c.identity == identity)
    state = replace(
        state,
        members={**state.members, identity: hours},
        parked=tuple(c for c in state.parked if c.identity != identity),
        held=state.held + mine,
    )
    events = (_event(state, EventKind.RESUMED, at_s, mine),) if mine else ()
    return _settle_down(rule, state, at_s, events)


def leave(rule: WindowRule, state: WindowState, identity: str, *, at_s: float) -> Step:
    """The identity takes part no longer; what it holds is parked. A frozen roster still names it."""
    mine = tuple(c for c in state.held if c.identity == identity)
    state = replace(
        state,
        members={name: hours for name, hours in state.members.items() if name != identity},
        held=tuple(c for c in state.held if c.identity != identity),
        parked=state.parked + mine,
    )
    events = (_event(state, EventKind.PARKED, at_s, mine),) if mine else ()
    return _settle_down(rule, state, at_s, events)


def commit(rule: WindowRule, state: WindowState, commitment: Commitment, *, at_s: float) -> Step:
    """The commitment is held, or refused with a reason; a refused update stays with its participant."""
    reason = _reason_to_refuse(rule, state, commitment)
    if reason:
        return state, (_event(state, EventKind.REFUSED, at_s, (commitment,), reason=reason),)
    state = replace(
        state,
        held=(*state.held, commitment),
        last_update={**state.last_update, commitment.identity: commitment.update_id},
    )
    return _settle_down(rule, state, at_s, ())


def tick(rule: WindowRule, state: WindowState, *, at_s: float) -> Step:
    """What the passing of time alone brings about: windows open, close, are extended or carried over."""
    return _settle_down(rule, state, at_s, ())


def settle(
    rule: WindowRule, state: WindowState, *, window: int, survivors: Collection[str], at_s: float
) -> Step:
    """The closed window released the sum over `survivors`; the others of its roster keep their work.

    Raises:
        EchelonError: `window-not-closed` where that window is not the closed one, so nothing is released twice.
        PolicyRefusedError: `cohort-too-small` where fewer than `min_cohort` survive.
        InputError: `not-in-roster` where a survivor was not in the frozen roster.
    """
    _require_closed(state, window)
    strangers = sorted(set(survivors) - {c.identity for c in state.roster})
    if strangers:
        raise InputError(
            "not-in-roster", f"window {window}: {strangers} are not in its roster", hint="abort it"
        )
    inside = tuple(c for c in state.roster if c.identity in survivors)
    if len(inside) < rule.min_cohort:
        raise PolicyRefusedError(
            "cohort-too-small",
            f"window {window}: {len(inside)} survivors, the policy asks for {rule.min_cohort}",
            hint="abort the window; its work is carried to the next one",
        )
    released = _event(state, EventKind.RELEASED, at_s, inside)
    left = tuple(c for c in state.roster if c.identity not in survivors)
    return _after_closed(rule, replace(state, version=state.version + 1), left, at_s, (released,))


def abort(
    rule: WindowRule,
    state: WindowState,
    *,
    window: int,
    at_s: float,
    burnt: Collection[str] = (),
    reason: str = "",
) -> Step:
    """The closed window releases nothing; its work returns, except that of `burnt` identities.

    An identity is burnt where shares of its secrets were already revealed: that update may not be summed again.

    Raises:
        EchelonError: `window-not-closed` where that window is not the closed one.
    """
    _require_closed(state, window)
    events = [_event(state, EventKind.ABORTED, at_s, state.roster, reason=reason)]
    lost = tuple(c for c in state.roster if c.identity in burnt)
    if lost:
        events.append(_event(state, EventKind.BURNT, at_s, lost, reason=reason))
    left = tuple(c for c in state.roster if c.identity not in burnt)
    return _after_closed(rule, state, left, at_s, tuple(events))


def next_wake_s(state: WindowState, *, at_s: float) -> float | None:
    """The next time at which `tick` may change something, None where only an event can."""
    times = [state.deadline_s] if state.phase is Phase.OPEN and state.deadline_s is not None else []
    for identity in {c.identity for c in state.held}:
        times += [t for span in state.members[identity] for t in (span.start_s, span.stop_s) if t > at_s]
    return min(times, default=None)


def _reason_to_refuse(rule: WindowRule, state: WindowState, commitment: Commitment) -> str:
    identity = commitment.identity
    if identity not in state.members:
        return "not-a-member"
    if commitment.update_id <= state.last_update.get(identity, -1):
        return "already-taken"
    if not 0 <= commitment.base_version <= state.version:
        return "unknown-version"
    if sum(c.identity == identity for c in (*state.held, *state.roster)) >= rule.held_max:
        return "too-many-held"
    if not rule.staleness.keeps(state.version - commitment.base_version):
        return "too-stale"
    return ""


def _settle_down(rule: WindowRule, state: WindowState, at_s: float, events: tuple[WindowEvent, ...]) -> Step:
    state, events = _drop_too_stale(rule, state, at_s, events)
    if state.phase is Phase.CLOSED:
        return state, events
    ready = state.ready(at_s)
    if state.phase is Phase.OPEN and not ready:
        state = replace(state, phase=Phase.IDLE, deadline_s=None, num_extensions=0)
    if state.phase is Phase.IDLE and ready:
        state, events = _open(rule, state, at_s, events)
    if state.phase is not Phase.OPEN or state.deadline_s is None:
        return state, events
    num_present = sum(state.is_present(identity, at_s) for identity in state.members)
    is_due = at_s >= state.deadline_s
    if len(ready) >= rule.num_to_close(num_present) or (is_due and len(ready) >= rule.min_cohort):
        return _close(state, ready, at_s, events)
    return _extend(rule, state, ready, at_s, events) if is_due else (state, events)


def _drop_too_stale(
    rule: WindowRule, state: WindowState, at_s: float, events: tuple[WindowEvent, ...]
) -> Step:
    old = tuple(c for c in state.held if not rule.staleness.keeps(state.version - c.base_version))
    if not old:
        return state, events
    limit = f"staleness above {rule.staleness.staleness_max}"
    events += (_event(state, EventKind.DROPPED, at_s, old, reason=limit),)
    return replace(state, held=tuple(c for c in state.held if c not in old)), events


def _open(rule: WindowRule, state: WindowState, at_s: float, events: tuple[WindowEvent, ...]) -> Step:
    deadline_s = at_s + rule.deadline_s
    state = replace(state, phase=Phase.OPEN, deadline_s=deadline_s, num_extensions=0)
    return state, (*events, _event(state, EventKind.OPENED, at_s, (), deadline_s=deadline_s))


def _close(
    state: WindowState, ready: tuple[Commitment, ...], at_s: float, events: tuple[WindowEvent, ...]
) -> Step:
    held = tuple(c for c in state.held if c not in ready)
    state = replace(state, phase=Phase.CLOSED, deadline_s=None, num_extensions=0, roster=ready, held=held)
    return state, (*events, _event(state, EventKind.CLOSED, at_s, ready))


def _extend(
    rule: WindowRule,
    state: WindowState,
    ready: tuple[Commitment, ...],
    at_s: float,
    events: tuple[WindowEvent, ...],
) -> Step:
    reason = f"{len(ready)} ready, {rule.min_cohort} needed"
    if state.num_extensions < rule.extensions_max:
        deadline_s = at_s + rule.extend_s
        state = replace(state, deadline_s=deadline_s, num_extensions=state.num_extensions + 1)
        more = _event(state, EventKind.EXTENDED, at_s, ready, deadline_s=deadline_s, reason=reason)
        return state, (*events, more)
    carried = _event(state, EventKind.CARRIED_OVER, at_s, ready, reason=reason)
    return _open(rule, replace(state, window=state.window + 1), at_s, (*events, carried))


def _after_closed(
    rule: WindowRule,
    state: WindowState,
    left: tuple[Commitment, ...],
    at_s: float,
    events: tuple[WindowEvent, ...],
) -> Step:
    here = tuple(c for c in left if c.identity in state.members)
    gone = tuple(c for c in left if c.identity not in state.members)
    if left:
        events += (_event(state, EventKind.RETURNED, at_s, left),)
    state = replace(
        state,
        phase=Phase.IDLE,
        window=state.window + 1,
        roster=(),
        held=here + state.held,
        parked=gone + state.parked,
    )
    return _settle_down(rule, state, at_s, events)


def _require_closed(state: WindowState, window: int) -> None:
    if state.phase is not Phase.CLOSED or state.window != window:
        raise EchelonError(
            "window-not-closed",
            f"window {window} is not closed: the current window is {state.window}, {state.phase}",
            hint="a window is settled or aborted once, after its roster was frozen",
        )


def _event(
    state: WindowState,
    kind: EventKind,
    at_s: float,
    commitments: tuple[Commitment, ...],
    *,
    deadline_s: float | None = None,
    reason: str = "",
) -> WindowEvent:
    return WindowEvent(
        kind=kind,
        window=state.window,
        version=state.version,
        at_s=at_s,
        entries=tuple(state.entry(c) for c in commitments),
        deadline_s=deadline_s,
        reason=reason,
    )
