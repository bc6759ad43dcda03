"""Random schedules: updates are released at most once, none is lost, a window has an identity once."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from policies import windows
from policies.staleness import StalenessRule
from policies.window_state import Commitment, EventKind, Interval, Phase, WindowRule, WindowState

NAMES = tuple("abcdef")
Key = tuple[str, int]


class Schedules(RuleBasedStateMachine):
    """Any order of joining, leaving, committing, waiting, settling and aborting."""

    def __init__(self) -> None:
        super().__init__()
        self.rule = WindowRule(
            close_frac=0.75,
            deadline_s=10.0,
            extend_s=4.0,
            extensions_max=1,
            staleness=StalenessRule(staleness_max=3),
        )
        self.state = WindowState()
        self.now_s = 0.0
        self.accepted: set[Key] = set()
        self.ended: Counter[Key] = Counter()
        self.released: Counter[Key] = Counter()
        self.next_id = dict.fromkeys(NAMES, 1)

    def take(self, step: windows.Step) -> None:
        before = self.state
        self.state, events = step
        for event in events:
            keys = [(e.commitment.identity, e.commitment.update_id) for e in event.entries]
            if event.kind is EventKind.CLOSED:
                assert len({name for name, _ in keys}) == len(keys) >= self.rule.min_cohort
                assert all(self.rule.staleness.keeps(e.staleness) for e in event.entries)
                assert all(self.state.is_present(name, self.now_s) for name, _ in keys)
            if event.kind is EventKind.RELEASED:
                assert before.phase is Phase.CLOSED
                self.released.update(keys)
            if event.kind is EventKind.DROPPED:
                assert all(e.staleness > 3 for e in event.entries)
            if event.kind in (EventKind.RELEASED, EventKind.BURNT, EventKind.DROPPED):
                self.ended.update(keys)

    @rule(name=st.sampled_from(NAMES), start=st.floats(0, 30), length=st.floats(1, 60), always=st.booleans())
    def join(self, name: str, start: float, length: float, always: bool) -> None:
        hours = () if always else (Interval(start_s=self.now_s + start, stop_s=self.now_s + start + length),)
        self.take(windows.join(self.rule, self.state, name, at_s=self.now_s, hours=hours))

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        self.take(windows.leave(self.rule, self.state, name, at_s=self.now_s))

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=6), age=st.integers(0, 4))
    def commit(self, names: list[str], age: int) -> None:
        for name in names:
            base = max(0, self.state.version - age)
            commitment = Commitment(identity=name, update_id=self.next_id[name], base_version=base)
            self.state, events = windows.commit(self.rule, self.state, commitment, at_s=self.now_s)
            if not any(event.kind is EventKind.REFUSED for event in events):
                self.accepted.add((name, self.next_id[name]))
                self.next_id[name] += 1
            self.take((self.state, events))

    @rule(name=st.sampled_from(NAMES), back=st.integers(1, 3))
    def replay(self, name: str, back: int) -> None:
        old = Commitment(
            identity=name, update_id=max(0, self.next_id[name] - back), base_version=self.state.version
        )
        state, events = windows.commit(self.rule, self.state, old, at_s=self.now_s)
        if self.next_id[name] > 1:
            assert [event.kind for event in events] == [EventKind.REFUSED]
            assert state is self.state

    @rule(wait_s=st.floats(0.1, 30.0))
    def wait(self, wait_s: float) -> None:
        wake_s = windows.next_wake_s(self.state, at_s=self.now_s)
        self.now_s = (
            self.now_s + wait_s if wake_s is None else max(self.now_s, min(self.now_s + wait_s, wake_s))
        )
        self.take(windows.tick(self.rule, self.state, at_s=self.now_s))

    @precondition(lambda self: self.state.phase is Phase.CLOSED)
    @rule(data=st.data())
    def settle_or_abort(self, data: st.DataObject) -> None:
        roster = [c.identity for c in self.state.roster]
        survivors = data.draw(st.sets(st.sampled_from(roster)))
        window = self.state.window
        if len(survivors) >= self.rule.min_cohort:
            step = windows.settle(self.rule, self.state, window=window, survivors=survivors, at_s=self.now_s)
        else:
            step = windows.abort(self.rule, self.state, window=window, at_s=self.now_s, burnt=survivors)
        self.take(step)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        held = Counter(
            (c.identity, c.update_id) for c in (*self.state.held, *self.state.roster, *self.state.parked)
        )
        assert held + self.ended == Counter(self.accepted)
        assert all(count == 1 for count in self.released.values())

    @invariant()
    def an_open_window_knows_its_deadline(self) -> None:
        assert (self.state.deadline_s is not None) == (self.state.phase is Phase.OPEN)
        assert bool(self.state.roster) == (self.state.phase is Phase.CLOSED)


Schedules.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSchedules = Schedules.TestCase
