"""Buffered semi-asynchronous windows of one boundary, as a pure state machine: time comes in, events go out.

What is buffered are commitments ("I hold update u, trained from version v"), never vectors: weights and
staleness must be applied before masking, so they have to be known when the roster is frozen.

    idle --first commitment--> open --K ready or deadline--> closed (roster frozen)
    closed --settle or abort--> idle or open

- A window closes with at least `min_cohort` ready, at the K-th commitment or at its deadline. With fewer it
  is extended `extensions_max` times, then carried over: the next window starts with the same commitments.
- One commitment per identity and window: a second one waits for the next window.
- A commitment that misses a window, or drops out of a closed one, stays for the next. Each window that
  releases makes a new version, so what missed it is one version staler; a window that releases nothing ages
  nobody.
- Work older than the staleness rule allows is dropped, and the drop is an event.
- A member who leaves keeps its work; it is parked, and taken up again when the same identity returns.

Every accepted commitment therefore ends in exactly one of: released, burnt, dropped, or still held.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from policies.errors import EchelonError, InputError, PolicyRefusedError
from policies.window_state import Commitment, EventKind, Interval, Phase, WindowEvent, WindowRule, WindowState

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
        EchelonError: `window-not-closed` where that window is not the closed one, so nothing is released
            twice.
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

    An identity is burnt where shares of its secrets were already revealed: that update may not be summed
    again.

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
