"""One step of one replica as events: stages follow their programs, transfers follow their links."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from executors.simulate.events import Clock, Links
from executors.simulate.programs import Action, Program, blocking_program, compute_program
from executors.simulate.timeline import Kind, Span
from executors.simulate.times import BorderTimes, Schedule, StageTimes, in_flight_limits

_SENDS = (Action.SEND_ACTIVATION, Action.SEND_GRADIENT)
_ACTIVATIONS = (Action.SEND_ACTIVATION, Action.RECEIVE_ACTIVATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSetup:
    """How a replica runs a step; see `simulate_step` for the fields."""

    stages: tuple[StageTimes, ...]
    borders: tuple[BorderTimes, ...]
    num_micro_batches: int
    schedule: Schedule = Schedule.ONE_FORWARD_ONE_BACKWARD
    blocking: bool = False
    receives_ahead: int | None = None
    in_flight: tuple[int, ...] | None = None

    def programs(self) -> list[Program]:
        """What each stage does, in order."""
        num_stages, count = len(self.stages), self.num_micro_batches
        if self.blocking:
            return [blocking_program(s, num_stages, count, self.schedule) for s in range(num_stages)]
        limits = self.in_flight or in_flight_limits(num_stages, count, self.schedule)
        return [compute_program(limit, count) for limit in limits]


class StepRun(ABC):
    """A step under way: what stages and links did so far stands in `work` and `transfers`.

    Args:
        setup: the replica's step.
        clock: where its events go.
        links: the links it shares with others. One without a name belongs to this rank alone.
        on_end: called with the time of the end.
        rank: the order of replicas whose events fall on the same time.
    """

    def __init__(
        self, setup: StepSetup, clock: Clock, links: Links, on_end: Callable[[float], None], rank: int = 0
    ) -> None:
        self.setup = setup
        self.work: list[Span] = []
        self.transfers: list[Span] = []
        self.pipeline_s = 0.0
        self._clock, self._links, self._on_end, self._rank = clock, links, on_end, rank
        self._order = [(rank, stage) for stage in range(len(setup.stages))]
        self._cancelled = False
        self._num_stages = len(setup.stages)
        self._programs = setup.programs()
        self._position = [0] * self._num_stages
        self._advance = [partial(self._go_on, s) for s in range(self._num_stages)]
        self._computed = [partial(self._pass_done, s) for s in range(self._num_stages)]
        self._unsynced = self._unended = self._num_stages

    def begin(self, now_s: float) -> None:
        """Let all stages start."""
        for stage in range(self._num_stages):
            self._resume(stage, now_s)

    def cancel(self, now_s: float) -> None:
        """Stop in the middle; what was under way is cut at this time."""
        self._cancelled = True
        self.work = cut_spans(self.work, now_s)
        self.transfers = cut_spans(self.transfers, now_s)

    @abstractmethod
    def _attempt(self, stage: int, action: Action, i: int, now_s: float) -> None:
        """Do the next entry of a stage's program, or note what it waits for."""

    @abstractmethod
    def _pass_on(self, stage: int, now_s: float) -> None:
        """Do what follows a pass at once."""

    def _resume(self, stage: int, time_s: float) -> None:
        self._clock.at(time_s, self._order[stage], self._advance[stage])

    def _go_on(self, stage: int, now_s: float) -> None:
        if self._cancelled:
            return
        program, position = self._programs[stage], self._position[stage]
        if position == len(program):
            self._synchronise(stage, now_s)
        else:
            self._attempt(stage, *program[position], now_s)

    def _compute(self, stage: int, action: Action, i: int, now_s: float) -> None:
        times = self.setup.stages[stage]
        if action is Action.FORWARD:
            end_s, kind = now_s + times.forward_s, Kind.FORWARD
        else:
            end_s, kind = now_s + times.backward_s, Kind.BACKWARD
        self.work.append(Span(kind, stage, i, now_s, end_s))
        self._position[stage] += 1
        self._clock.at(end_s, self._order[stage], self._computed[stage])

    def _pass_done(self, stage: int, now_s: float) -> None:
        if not self._cancelled:
            self._pass_on(stage, now_s)
            self._go_on(stage, now_s)

    def _carry(self, border: int, kind: Kind, i: int, now_s: float) -> float:
        """Seconds at which the data is there, if its transfer is asked for now."""
        times = self.setup.borders[border]
        way = times.forward if kind is Kind.ACTIVATION else times.backward
        link = way.link or f"{self._rank}.{border}.{kind}"
        start_s = self._links.hold(link, now_s, way.occupied_s)
        left_s = start_s + way.occupied_s
        self.transfers.append(Span(kind, border, i, start_s, left_s))
        return left_s + way.latency_s

    def _synchronise(self, stage: int, now_s: float) -> None:
        self.pipeline_s = max(self.pipeline_s, now_s)
        sync_s = self.setup.stages[stage].sync_s
        if sync_s > 0.0:
            self.work.append(Span(Kind.SYNC, stage, -1, now_s, now_s + sync_s))
        self._clock.at(now_s + sync_s, self._order[stage], self._synchronised)

    def _synchronised(self, now_s: float) -> None:
        self._unsynced -= 1
        if self._unsynced or self._cancelled:
            return
        for stage, times in enumerate(self.setup.stages):
            if times.update_s > 0.0:
                self.work.append(Span(Kind.UPDATE, stage, -1, now_s, now_s + times.update_s))
            self._clock.at(now_s + times.update_s, self._order[stage], self._updated)

    def _updated(self, now_s: float) -> None:
        self._unended -= 1
        if not self._unended and not self._cancelled:
            self._on_end(now_s)


class OverlappedStep(StepRun):
    """Stages send and go on. A transfer starts when the data is made and its receive is posted."""

    def __init__(
        self, setup: StepSetup, clock: Clock, links: Links, on_end: Callable[[float], None], rank: int = 0
    ) -> None:
        super().__init__(setup, clock, links, on_end, rank)
        num_stages, count = self._num_stages, setup.num_micro_batches
        ahead = count if setup.receives_ahead is None else setup.receives_ahead
        self._ahead = ahead
        # Per kind of pass (0 forward, 1 backward) and stage: micro-batches whose data the neighbour has made,
        # whose receives are posted, and the seconds at which data are there.
        self._made = [[0] * num_stages, [0] * num_stages]
        self._posted = [[ahead] * num_stages, [ahead] * num_stages]
        self._there: list[list[list[float]]] = [[[] for _ in range(num_stages)] for _ in range(2)]
        self._asleep = [False] * num_stages

    def _attempt(self, stage: int, action: Action, i: int, now_s: float) -> None:
        neighbour = stage - 1 if action is Action.FORWARD else stage + 1
        if 0 <= neighbour < self._num_stages:
            self._post(stage, action, i + 1, now_s)
            there = self._there[action][stage]
            if i >= len(there):
                self._asleep[stage] = True
                return
            if there[i] > now_s:
                self._resume(stage, there[i])
                return
            self._post(stage, action, i + 1 + self._ahead, now_s)
        self._compute(stage, action, i, now_s)

    def _pass_on(self, stage: int, now_s: float) -> None:
        action, _ = self._programs[stage][self._position[stage] - 1]
        receiver = stage + 1 if action is Action.FORWARD else stage - 1
        if 0 <= receiver < self._num_stages:
            self._made[action][receiver] += 1
            self._start(receiver, action, now_s)

    def _post(self, stage: int, action: Action, until: int, now_s: float) -> None:
        """Post the receives of all micro-batches before `until`."""
        if until > self._posted[action][stage]:
            self._posted[action][stage] = until
            self._start(stage, action, now_s)

    def _start(self, receiver: int, action: Action, now_s: float) -> None:
        """Start every transfer that is made and posted and not yet under way; wake who waits for it."""
        there = self._there[action][receiver]
        border, kind = (
            (receiver - 1, Kind.ACTIVATION) if action is Action.FORWARD else (receiver, Kind.GRADIENT)
        )
        while len(there) < min(self._made[action][receiver], self._posted[action][receiver]):
            i = len(there)
            there.append(self._carry(border, kind, i, now_s))
            if self._asleep[receiver]:
                wanted = self._programs[receiver][self._position[receiver]]
                if wanted == (action, i):
                    self._asleep[receiver] = False
                    self._resume(receiver, there[i])


class BlockingStep(StepRun):
    """Sender and receiver meet for each transfer, and both are held until the data is there."""

    def __init__(
        self, setup: StepSetup, clock: Clock, links: Links, on_end: Callable[[float], None], rank: int = 0
    ) -> None:
        super().__init__(setup, clock, links, on_end, rank)
        self._waiting: dict[tuple[int, Kind, int], int] = {}

    def _attempt(self, stage: int, action: Action, i: int, now_s: float) -> None:
        if action is Action.FORWARD or action is Action.BACKWARD:
            self._compute(stage, action, i, now_s)
            return
        kind = Kind.ACTIVATION if action in _ACTIVATIONS else Kind.GRADIENT
        towards_next = (kind is Kind.ACTIVATION) == (action in _SENDS)
        border = stage if towards_next else stage - 1
        peer = self._waiting.pop((border, kind, i), None)
        if peer is None:
            self._waiting[border, kind, i] = stage
            return
        there_s = self._carry(border, kind, i, now_s)
        for member in (stage, peer):
            self.work.append(Span(kind, member, i, now_s, there_s))
            self._position[member] += 1
            self._resume(member, there_s)

    def _pass_on(self, stage: int, now_s: float) -> None:
        """Nothing: what a pass made is sent where the program says so."""


def start_step(
    setup: StepSetup, clock: Clock, links: Links, on_end: Callable[[float], None], rank: int = 0
) -> StepRun:
    """A step of the setup's kind, ready to begin."""
    kind = BlockingStep if setup.blocking else OverlappedStep
    return kind(setup, clock, links, on_end, rank)


def cut_spans(spans: list[Span], end_s: float) -> list[Span]:
    """What of the spans lies before a time."""
    return [
        span if span.end_s <= end_s else span._replace(end_s=end_s) for span in spans if span.start_s < end_s
    ]
