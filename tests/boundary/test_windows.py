"""Windows: when they close, who is in them, and what happens to work that misses them."""

from __future__ import annotations

import pytest

from policies import windows
from policies.errors import EchelonError, InputError, PolicyRefusedError
from policies.staleness import StalenessRule
from policies.window_state import (
    Commitment,
    EventKind,
    Interval,
    Phase,
    WindowEvent,
    WindowRule,
    WindowState,
)

RULE = WindowRule(close_at=3, deadline_s=10.0, extend_s=5.0, extensions_max=1)
NAMES = ("a", "b", "c", "d", "e")


class Log:
    """A state with the events so far, for short tests."""

    def __init__(self, rule: WindowRule = RULE, names: tuple[str, ...] = NAMES) -> None:
        self.rule = rule
        self.state = WindowState()
        self.events: list[WindowEvent] = []
        for name in names:
            self.take(windows.join(rule, self.state, name, at_s=0.0))

    def take(self, step: windows.Step) -> tuple[WindowEvent, ...]:
        self.state, events = step
        self.events += events
        return events

    def commit(
        self, name: str, update_id: int, *, at_s: float = 0.0, base: int | None = None
    ) -> tuple[WindowEvent, ...]:
        base = self.state.version if base is None else base
        commitment = Commitment(identity=name, update_id=update_id, base_version=base)
        return self.take(windows.commit(self.rule, self.state, commitment, at_s=at_s))

    def phase(self) -> Phase:
        return self.state.phase

    def tick(self, at_s: float) -> tuple[WindowEvent, ...]:
        return self.take(windows.tick(self.rule, self.state, at_s=at_s))

    def settle(self, survivors: str, *, at_s: float = 1.0) -> tuple[WindowEvent, ...]:
        window = self.state.window
        return self.take(
            windows.settle(self.rule, self.state, window=window, survivors=set(survivors), at_s=at_s)
        )


def kinds(events: tuple[WindowEvent, ...]) -> list[EventKind]:
    return [event.kind for event in events]


def names(event: WindowEvent) -> str:
    return "".join(entry.commitment.identity for entry in event.entries)


def test_a_window_opens_with_the_first_commitment_and_closes_at_k() -> None:
    log = Log()
    assert kinds(log.commit("a", 1)) == [EventKind.OPENED]
    assert log.commit("b", 1) == ()
    closed = log.commit("c", 1)
    assert kinds(closed) == [EventKind.CLOSED]
    assert names(closed[0]) == "abc"
    assert log.phase() is Phase.CLOSED


def test_it_closes_at_its_deadline_with_a_cohort() -> None:
    log = Log(WindowRule(close_frac=1.0, deadline_s=10.0))
    for name in "abc":
        log.commit(name, 1)
    assert log.tick(9.9) == ()
    assert windows.next_wake_s(log.state, at_s=9.9) == 10.0
    assert names(log.tick(10.0)[0]) == "abc"


def test_below_the_cohort_it_is_extended_then_carried_over() -> None:
    log = Log()
    log.commit("a", 1)
    log.commit("b", 1)
    assert kinds(log.tick(10.0)) == [EventKind.EXTENDED]
    carried = log.tick(15.0)
    assert kinds(carried) == [EventKind.CARRIED_OVER, EventKind.OPENED]
    assert names(carried[0]) == "ab"
    assert log.state.window == 1
    closed = log.commit("c", 1, at_s=16.0)
    assert [entry.staleness for entry in closed[0].entries] == [0, 0, 0]


def test_a_second_commitment_of_one_identity_waits_for_the_next_window() -> None:
    log = Log()
    log.commit("a", 1)
    log.commit("a", 2)
    log.commit("b", 1)
    assert log.phase() is Phase.OPEN
    assert names(log.commit("c", 1)[0]) == "abc"
    log.settle("abc")
    assert [c.update_id for c in log.state.held] == [2]
    assert log.state.entry(log.state.held[0]).staleness == 1


def test_late_work_goes_to_the_next_window_one_version_staler() -> None:
    log = Log()
    for name in "abc":
        log.commit(name, 1)
    log.commit("d", 1)
    log.settle("abc")
    log.commit("a", 2)
    closed = log.commit("b", 2)
    assert {e.commitment.identity: e.staleness for e in closed[0].entries} == {"d": 1, "a": 0, "b": 0}


def test_who_drops_out_of_a_closed_window_keeps_its_work_and_leads_the_next() -> None:
    log = Log(WindowRule(close_at=4, deadline_s=10.0))
    for name in "abcd":
        log.commit(name, 1)
    events = log.settle("abc")
    assert kinds(events) == [EventKind.RELEASED, EventKind.RETURNED, EventKind.OPENED]
    assert names(events[1]) == "d"
    assert log.state.entry(log.state.held[0]).staleness == 1


def test_below_the_cohort_nothing_is_released_and_an_abort_returns_all_but_the_burnt() -> None:
    log = Log()
    for name in "abc":
        log.commit(name, 1)
    with pytest.raises(PolicyRefusedError) as refused:
        log.settle("ab")
    assert refused.value.code == "cohort-too-small"
    events = log.take(windows.abort(log.rule, log.state, window=0, at_s=2.0, burnt={"b"}, reason="too few"))
    assert kinds(events)[:3] == [EventKind.ABORTED, EventKind.BURNT, EventKind.RETURNED]
    assert (names(events[1]), names(events[2])) == ("b", "ac")
    assert (log.state.version, log.state.window) == (0, 1)
    assert log.commit("b", 1)[0].reason == "already-taken"


def test_a_window_is_settled_once_and_only_with_its_roster() -> None:
    log = Log()
    for name in "abc":
        log.commit(name, 1)
    with pytest.raises(InputError):
        log.settle("abce")
    log.settle("abc")
    for act in (lambda: log.settle("abc"), lambda: windows.abort(log.rule, log.state, window=0, at_s=1.0)):
        with pytest.raises(EchelonError) as refused:
            act()
        assert refused.value.code == "window-not-closed"


def test_too_stale_work_is_dropped_and_said_so() -> None:
    log = Log(WindowRule(close_at=3, deadline_s=10.0, staleness=StalenessRule(staleness_max=1)))
    log.take(windows.join(log.rule, log.state, "f", at_s=0.0, hours=(Interval(start_s=50.0, stop_s=60.0),)))
    log.commit("f", 1)
    events: tuple[WindowEvent, ...] = ()
    for round_id in (1, 2):
        for name in "abc":
            log.commit(name, round_id)
        events = log.settle("abc")
    assert EventKind.DROPPED in kinds(events)
    dropped = next(event for event in events if event.kind is EventKind.DROPPED)
    assert (names(dropped), dropped.entries[0].staleness, dropped.reason) == ("f", 2, "staleness above 1")


@pytest.mark.parametrize(
    ("name", "update_id", "base", "reason"),
    [
        ("z", 1, 0, "not-a-member"),
        ("a", 1, 0, "already-taken"),
        ("b", 1, 1, "unknown-version"),
        ("b", 1, -1, "unknown-version"),
        ("a", 3, 0, "too-many-held"),
    ],
)
def test_commitments_are_refused_with_a_reason(name: str, update_id: int, base: int, reason: str) -> None:
    log = Log()
    log.commit("a", 1)
    log.commit("a", 2)
    before = log.state
    events = log.commit(name, update_id, base=base)
    assert (kinds(events), events[0].reason) == ([EventKind.REFUSED], reason)
    assert log.state is before


def test_who_leaves_and_returns_by_identity_finds_its_work_again() -> None:
    log = Log()
    log.commit("a", 1)
    assert kinds(log.take(windows.leave(log.rule, log.state, "a", at_s=1.0))) == [EventKind.PARKED]
    assert log.phase() is Phase.IDLE
    for name in "bcd":
        log.commit(name, 1)
    log.settle("bcd")
    back = log.take(windows.join(log.rule, log.state, "a", at_s=3.0))
    assert kinds(back) == [EventKind.RESUMED, EventKind.OPENED]
    assert back[0].entries[0].staleness == 1


def test_who_leaves_while_frozen_and_drops_out_is_parked() -> None:
    log = Log(WindowRule(close_at=4, deadline_s=10.0))
    for name in "abcd":
        log.commit(name, 1)
    log.take(windows.leave(log.rule, log.state, "d", at_s=1.0))
    log.settle("abc")
    assert (log.state.held, [c.identity for c in log.state.parked]) == ((), ["d"])


def test_outside_its_participation_window_a_member_is_not_in_any() -> None:
    log = Log(names=("a", "b", "c"))
    night = (Interval(start_s=100.0, stop_s=200.0),)
    log.take(windows.join(log.rule, log.state, "n", at_s=0.0, hours=night))
    log.commit("n", 1, at_s=1.0)
    assert log.phase() is Phase.IDLE
    assert windows.next_wake_s(log.state, at_s=1.0) == 100.0
    log.commit("a", 1, at_s=2.0)
    log.commit("b", 1, at_s=2.0)
    assert log.phase() is Phase.OPEN
    log.tick(12.0)
    assert [name for name in "abn" if log.state.is_present(name, 100.0)] == ["a", "b", "n"]
    assert names(log.tick(100.0)[-1]) == "nab"
    assert not log.state.is_present("n", 200.0)


def test_with_fewer_present_k_follows_but_never_below_the_cohort() -> None:
    rule = WindowRule(close_frac=0.75)
    assert [rule.num_to_close(n) for n in (8, 5, 4, 2)] == [6, 4, 3, 3]
    assert WindowRule(close_frac=1.0, close_at=4).num_to_close(10) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"min_cohort": 2},
        {"close_frac": 0.0},
        {"deadline_s": 0.0},
        {"close_at": 2},
        {"held_max": 0},
        {"extend_s": -1.0},
    ],
)
def test_rules_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError) as refused:
        WindowRule(**change)  # type: ignore[arg-type]
    assert refused.value.code == "window-rule"
