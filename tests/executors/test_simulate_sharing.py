"""Links that replicas share, against a second by second replay that shares no code."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import Case, cases

from executors.simulate.events import Clock, Links
from executors.simulate.pipeline import StepSetup, start_step
from executors.simulate.times import BorderTimes, StageTimes, TransferTimes

WIRES = ("a", "b")


@dataclass(slots=True)
class Wire:
    """A link in whole seconds: who waits, and who is on it until when."""

    queue: deque[tuple[int, str, int, int]] = field(default_factory=deque)
    on_it: tuple[int, str, int, int] | None = None
    left: int = 0


class SecondBySecond:
    """Replicas with overlapped transfers in whole seconds, each second looked at in turn."""

    def __init__(self, replicas: list[Case]) -> None:
        self.replicas = replicas
        self.wires: dict[str, Wire] = {}
        self.todo = [[self.order(r, s) for s in range(len(r[0]))] for r in replicas]
        self.doing: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.there: set[tuple[int, str, int, int]] = set()
        self.landing: dict[int, list[tuple[int, str, int, int]]] = {}
        self.ended = [0] * len(replicas)

    @staticmethod
    def order(replica: Case, s: int) -> deque[tuple[str, int]]:
        """One forward pass less ahead for each later stage."""
        count = replica[2]
        ahead = min(count, len(replica[0]) - s)
        passes = [("F", i) for i in range(ahead)]
        for i in range(count):
            passes.append(("B", i))
            if ahead + i < count:
                passes.append(("F", ahead + i))
        return deque(passes)

    def way(self, r: int, name: str, s: int) -> TransferTimes:
        """The transfer that a pass of stage s waits for."""
        border: BorderTimes = self.replicas[r][1][s - 1 if name == "F" else s]
        return border.forward if name == "F" else border.backward

    def run(self) -> list[int]:
        """The second at which each replica ends."""
        now = 0
        while any(any(stages) for stages in self.todo) or self.doing:
            self.land(now)
            self.finish(now)
            self.move(now)
            self.begin(now)
            now += 1
            assert now < 100_000
        return self.ended

    def land(self, now: int) -> None:
        self.there |= set(self.landing.pop(now, ()))

    def finish(self, now: int) -> None:
        for (r, s), (name, i, until) in sorted(self.doing.items()):
            if until == now:
                del self.doing[r, s]
                self.ended[r] = now
                to = s + 1 if name == "F" else s - 1
                if 0 <= to < len(self.todo[r]):
                    wire = self.way(r, name, to).link
                    self.wires.setdefault(wire, Wire()).queue.append((r, name, to, i))

    def move(self, now: int) -> None:
        for wire in self.wires.values():
            if wire.on_it is not None and wire.left == now:
                wire.on_it = None
            if wire.on_it is None and wire.queue:
                wire.on_it = wire.queue.popleft()
                way = self.way(*wire.on_it[:3])
                wire.left = now + int(way.occupied_s)
                self.landing.setdefault(wire.left + int(way.latency_s), []).append(wire.on_it)

    def begin(self, now: int) -> None:
        for r, stages in enumerate(self.todo):
            for s, passes in enumerate(stages):
                if (r, s) in self.doing or not passes:
                    continue
                name, i = passes[0]
                outside = s > 0 if name == "F" else s < len(stages) - 1
                if outside and (r, name, s, i) not in self.there:
                    continue
                passes.popleft()
                times: StageTimes = self.replicas[r][0][s]
                lasts = times.forward_s if name == "F" else times.backward_s
                self.doing[r, s] = (name, i, now + int(lasts))


@st.composite
def sharing(draw: st.DrawFn) -> list[Case]:
    """Replicas in whole seconds whose transfers go over one or two wires."""
    replicas = []
    for _ in range(draw(st.integers(1, 3))):
        stages, borders, count = draw(cases(stages_max=4, micro_batches_max=5, whole=True))
        wired = [
            BorderTimes(
                forward=_on(border.forward, draw(st.sampled_from(WIRES))),
                backward=_on(border.backward, draw(st.sampled_from(WIRES))),
            )
            for border in borders
        ]
        replicas.append((stages, wired, count))
    return replicas


def _on(way: TransferTimes, link: str) -> TransferTimes:
    return TransferTimes(occupied_s=way.occupied_s, latency_s=way.latency_s, link=link)


def simulated_s(replicas: list[Case]) -> list[float]:
    clock, links = Clock(), Links()
    ended: dict[int, float] = {}
    for r, (stages, borders, count) in enumerate(replicas):
        setup = StepSetup(stages=tuple(stages), borders=tuple(borders), num_micro_batches=count)
        start_step(setup, clock, links, partial(ended.__setitem__, r), r).begin(0.0)
    clock.run()
    return [ended[r] for r in range(len(replicas))]


@settings(max_examples=150)
@given(replicas=sharing())
def test_shared_links_serve_who_asks_first(replicas: list[Case]) -> None:
    assert simulated_s(replicas) == SecondBySecond(replicas).run()


def test_two_replicas_on_one_wire_are_slower_than_one() -> None:
    stages = [StageTimes(forward_s=1.0, backward_s=1.0)] * 2
    way = TransferTimes(occupied_s=3.0, link="a")
    replica: Case = (stages, [BorderTimes(forward=way, backward=way)], 3)
    alone, together = simulated_s([replica]), simulated_s([replica, replica])
    assert min(together) > alone[0]
    assert max(together) == pytest.approx(12 * 3.0 + 2 + 2, abs=4.0), "the wire is never idle for long"
