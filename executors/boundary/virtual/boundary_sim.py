"""One simulated boundary: its members, its windows, and its exchange with the coordinator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from executors.boundary.outer.account import Traffic
from executors.boundary.outer.exchange import LocalCopy
from executors.boundary.outer.local import LocalTraining
from executors.boundary.outer.policy import BoundarySituation, Due, ParticipantSituation, Pull
from executors.boundary.outer.scheduler import Scheduler
from executors.boundary.outer.vectors import Vector, to_bytes, weighted_mean
from executors.boundary.virtual.agenda import Agenda, Rank
from executors.boundary.virtual.fleet import VirtualFleet
from executors.boundary.virtual.member import Member
from policies import windows
from policies.clipping import clip
from policies.window_state import Commitment, Entry, EventKind, Phase, WindowEvent, WindowRule, WindowState

NUM_STALENESS_BINS = 8
Ship = Callable[[int, Vector, int, float], None]


class BoundarySim:
    """Turns window events into acts in virtual time."""

    def __init__(
        self,
        boundary: int,
        fleet: VirtualFleet,
        scheduler: Scheduler,
        agenda: Agenda,
        *,
        start_P: Vector,
        train: LocalTraining,
        rng: np.random.Generator,
        ship: Ship,
    ) -> None:
        self._boundary = boundary
        self._fleet = fleet
        self._scheduler = scheduler
        self._agenda = agenda
        self._train = train
        self._rng = rng
        self._ship = ship
        copy = LocalCopy(now_P=start_P, anchor_P=start_P)
        self._copy = copy
        self._state = WindowState()
        self._num_releases = 0
        self.num_released = 0
        self.num_dropped = 0
        self.staleness_counts = [0] * NUM_STALENESS_BINS
        self.members = [
            Member(boundary=boundary, participant=i, step_s=p.step_s, num_examples=p.num_examples, copy=copy)
            for i, p in enumerate(fleet.boundaries[boundary].participants)
        ]
        self._by_identity = {member.identity: member for member in self.members}

    def start(self, at_s: float) -> None:
        """All members join and begin to train."""
        for member in self.members:
            self._transit(windows.join(self._rule(), self._state, member.identity, at_s=at_s), at_s)
        for member in self.members:
            self._go_on(member, at_s)

    def advance_all(self, at_s: float) -> None:
        """Every member's steps are taken up to now."""
        for member in self.members:
            self._advance(member, at_s)

    def on_new_cadence(self, at_s: float) -> None:
        """H has changed: members in training may be due earlier or later."""
        for member in self.members:
            self._go_on(member, at_s)

    def receive(self, w_P: Vector, version: int, at_s: float) -> None:
        """A global model arrives: it goes under the boundary's progress, and to those who waited for it."""
        self._copy = self._copy.receive(w_P, version=version)
        for member in self.members:
            if member.awaits_outer_step:
                member.awaits_outer_step = False
                self._pull(member, at_s)
        self._ship_if_due(at_s)

    def leave(self, participant: int, at_s: float) -> None:
        """A member goes away, with its work."""
        member = self.members[participant]
        if member.is_up:
            self._advance(member, at_s)
            member.is_up = False
            member.running_since_s = None
            member.turn += 1
            self._transit(windows.leave(self._rule(), self._state, member.identity, at_s=at_s), at_s)

    def come_back(self, participant: int, at_s: float) -> None:
        """A member returns under its identity; what it missed is pulled, what it held is offered again."""
        member = self.members[participant]
        if not member.is_up:
            member.is_up = True
            self._transit(windows.join(self._rule(), self._state, member.identity, at_s=at_s), at_s)
            if member.has_missed_pull:
                member.has_missed_pull = False
                self._pull(member, at_s)
            self._go_on(member, at_s)

    def _rule(self) -> WindowRule:
        policy, fleet = self._scheduler.policy, self._fleet
        deadline_s = self._scheduler.window_deadline_s or fleet.window_deadline_s
        return WindowRule(
            close_frac=policy.close_frac,
            deadline_s=min(deadline_s, fleet.window_deadline_s),
            min_cohort=fleet.min_cohort,
            extend_s=fleet.extend_s,
            staleness=policy.staleness,
        )

    def _steps_max(self, member: Member) -> int:
        policy = self._scheduler.policy
        return policy.num_ahead_steps if member.is_waiting else self._scheduler.num_local_steps

    def _advance(self, member: Member, at_s: float) -> None:
        member.advance(
            at_s,
            steps_max=self._steps_max(member),
            train=self._train,
            proximal=self._scheduler.policy.proximal,
        )

    def _go_on(self, member: Member, at_s: float) -> None:
        """Let the member do what is due, until it trains or waits."""
        if not member.is_up:
            return
        self._advance(member, at_s)
        member.turn += 1
        due = self._scheduler.due(
            ParticipantSituation(num_steps=member.num_steps, is_waiting=member.is_waiting)
        )
        if Due.COMMIT in due:
            member.running_since_s = at_s
            self._commit(member, at_s)
        elif Due.TRAIN in due:
            if member.running_since_s is None:
                member.running_since_s = at_s
            num_left = self._steps_max(member) - member.num_steps
            end_s = member.running_since_s + num_left * member.step_s
            self._agenda.add(end_s, partial(self._on_steps_done, member, member.turn))
        else:
            member.running_since_s = None

    def _on_steps_done(self, member: Member, turn: int, at_s: float) -> None:
        if member.turn == turn:
            self._go_on(member, at_s)

    def _commit(self, member: Member, at_s: float) -> None:
        update_id, _ = member.take_update()
        commitment = Commitment(
            identity=member.identity, update_id=update_id, base_version=member.base_version
        )
        turn = member.turn
        self._transit(windows.commit(self._rule(), self._state, commitment, at_s=at_s), at_s)
        if member.turn == turn:
            if self._scheduler.policy.pull is Pull.COMMIT:
                self._agenda.add(at_s, partial(self._pull, member), rank=Rank.PULL)
            self._go_on(member, at_s)

    def _pull(self, member: Member, at_s: float) -> None:
        """The member takes the boundary's newest model, on top of what it learned since its commit."""
        if not member.is_up:
            member.has_missed_pull = True
            return
        self._advance(member, at_s)
        policy = self._scheduler.policy
        newest_P = self._copy.anchor_P if policy.pull is Pull.COMMIT else self._copy.now_P
        member.copy = policy.apply(member.copy, newest_P, version=self._state.version)
        member.base_version = self._state.version
        member.is_waiting = policy.pull is Pull.COMMIT and len(member.unreleased) >= self._rule().held_max
        self._go_on(member, at_s)

    def _transit(self, step: windows.Step, at_s: float) -> None:
        self._state, events = step
        for event in events:
            self._on_window_event(event, at_s)

    def _on_window_event(self, event: WindowEvent, at_s: float) -> None:
        if event.deadline_s is not None:
            self._agenda.add(event.deadline_s, self._on_tick)
        if event.kind is EventKind.CLOSED:
            self._agenda.add(
                at_s + self._fleet.secure_sum_s, partial(self._on_summed, event.window, event.entries)
            )
        elif event.kind in (EventKind.DROPPED, EventKind.REFUSED):
            for entry in event.entries:
                self._on_lost(entry, at_s)

    def _on_tick(self, at_s: float) -> None:
        self._transit(windows.tick(self._rule(), self._state, at_s=at_s), at_s)

    def _on_lost(self, entry: Entry, at_s: float) -> None:
        """An update too old for any window: its participant starts afresh from the newest model."""
        member = self._by_identity[entry.commitment.identity]
        member.unreleased.pop(entry.commitment.update_id, None)
        self.num_dropped += 1
        if self._scheduler.policy.pull is not Pull.COMMIT:
            member.copy = member.copy.restart(self._copy.now_P, version=self._state.version)
            member.base_version = self._state.version
            member.num_steps = 0
        member.is_waiting = False
        self._agenda.add(at_s, partial(self._go_on, member))

    def _on_summed(self, window: int, entries: tuple[Entry, ...], at_s: float) -> None:
        """The masks are off: release the survivors' weighted mean, or abort below the cohort."""
        assert self._state.phase is Phase.CLOSED
        lost = [e for e in entries if self._is_lost(e)]
        inside = [e for e in entries if e not in lost]
        for entry in lost:
            self._take_down(self._by_identity[entry.commitment.identity], at_s)
        if len(inside) < self._fleet.min_cohort:
            self._transit(windows.abort(self._rule(), self._state, window=window, at_s=at_s), at_s)
            return
        release_P = self._sum(inside)
        survivors = {e.commitment.identity for e in inside}
        self._copy = self._copy.add(release_P)
        self._num_releases += 1
        self.num_released += len(inside)
        step = windows.settle(self._rule(), self._state, window=window, survivors=survivors, at_s=at_s)
        self._transit(step, at_s)
        self._ship_if_due(at_s)
        for entry in inside:
            self._after_release(self._by_identity[entry.commitment.identity], at_s)

    def _is_lost(self, entry: Entry) -> bool:
        # Drawn for everyone, so that the draws of one run do not depend on who is up.
        is_drawn = bool(self._rng.random() < self._fleet.dropout_frac)
        return is_drawn or not self._by_identity[entry.commitment.identity].is_up

    def _take_down(self, member: Member, at_s: float) -> None:
        if member.is_up:
            self.leave(member.participant, at_s)
            self._agenda.add(at_s + self._fleet.down_s, partial(self.come_back, member.participant))

    def _sum(self, entries: list[Entry]) -> Vector:
        """The staleness-weighted mean of the survivors' deltas, as the masked sum over the masked weight."""
        policy = self._scheduler.policy
        deltas, weights = [], []
        for entry in entries:
            member = self._by_identity[entry.commitment.identity]
            delta_P = member.unreleased.pop(entry.commitment.update_id)
            self._scheduler.account.add(Traffic.MASKED_UPDATE, to_bytes(delta_P))
            deltas.append(clip(delta_P, policy.clip).delta_P)
            weights.append(policy.weight(staleness=entry.staleness, num_examples=member.num_examples))
            self.staleness_counts[min(entry.staleness, NUM_STALENESS_BINS - 1)] += 1
        return weighted_mean(deltas, weights)

    def _after_release(self, member: Member, at_s: float) -> None:
        pull = self._scheduler.policy.pull
        if pull is Pull.RELEASE:
            self._pull(member, at_s)
        elif pull is Pull.OUTER_STEP:
            member.awaits_outer_step = True
        elif member.is_waiting:
            member.is_waiting = False
            self._go_on(member, at_s)

    def _ship_if_due(self, at_s: float) -> None:
        situation = BoundarySituation(num_releases=self._num_releases, is_in_flight=self._copy.is_in_flight)
        if Due.SHIP in self._scheduler.due(situation):
            self._num_releases = 0
            version = self._copy.version
            self._copy, delta_P = self._copy.send()
            self._ship(self._boundary, delta_P, version, at_s)
