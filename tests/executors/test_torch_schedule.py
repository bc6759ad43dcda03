"""The order of passes: what it holds, and that no widths make ranks wait for each other in a circle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.torch_native.rows import row_ranges, transfers
from executors.torch_native.schedule import Direction, Pass, in_flight_max, passes
from planner.training import PipelineSchedule

WHOLE = (PipelineSchedule.ONE_FORWARD_ONE_BACKWARD, PipelineSchedule.GPIPE)
SENDS_MAX = 2  # as executors.torch_native.exchange keeps them; that module needs torch
counts = st.integers(1, 9)


@given(schedule=st.sampled_from(WHOLE), stages_left=counts, micro_batches=counts)
def test_every_micro_batch_passes_forward_then_backward_in_order(
    schedule: PipelineSchedule, stages_left: int, micro_batches: int
) -> None:
    order = passes(schedule, stages_left=stages_left, micro_batches=micro_batches)
    for direction in Direction:
        mine = [one.micro_batch for one in order if one.direction is direction]
        assert mine == list(range(micro_batches))
    for j in range(micro_batches):
        assert order.index(Pass(Direction.FORWARD, j)) < order.index(Pass(Direction.BACKWARD, j))


@given(stages_left=counts, micro_batches=counts)
def test_a_stage_holds_as_many_micro_batches_as_the_planner_counts(
    stages_left: int, micro_batches: int
) -> None:
    one_by_one = passes(
        PipelineSchedule.ONE_FORWARD_ONE_BACKWARD, stages_left=stages_left, micro_batches=micro_batches
    )
    assert in_flight_max(one_by_one) == min(micro_batches, stages_left)
    gpipe = passes(PipelineSchedule.GPIPE, stages_left=stages_left, micro_batches=micro_batches)
    assert in_flight_max(gpipe) == micro_batches


def test_the_last_stage_takes_turns_from_the_start() -> None:
    order = passes(PipelineSchedule.ONE_FORWARD_ONE_BACKWARD, stages_left=1, micro_batches=2)
    forward, backward = Direction.FORWARD, Direction.BACKWARD
    assert order == (Pass(forward, 0), Pass(backward, 0), Pass(forward, 1), Pass(backward, 1))


@pytest.mark.parametrize("schedule", [PipelineSchedule.INTERLEAVED, PipelineSchedule.ZERO_BUBBLE])
def test_schedules_of_several_pieces_per_stage_have_no_such_order(schedule: PipelineSchedule) -> None:
    with pytest.raises(ValueError, match="no order of whole stages"):
        passes(schedule, stages_left=2, micro_batches=2)


@st.composite
def shares(draw: st.DrawFn, rows: int) -> tuple[int, ...]:
    """A split of the rows over some ranks, none of which gets nothing."""
    borders = draw(st.sets(st.integers(1, rows - 1), max_size=rows - 1)) if rows > 1 else set()
    ends = [0, *sorted(borders), rows]
    return tuple(b - a for a, b in pairwise(ends))


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[tuple[int, ...], int, tuple[int, ...], int]:
    """Two stages that split the same rows."""
    rows = draw(st.integers(1, 8))
    widths = st.sampled_from([1, 2, 4])
    return draw(shares(rows)), draw(widths), draw(shares(rows)), draw(widths)


@given(neighbours())
def test_every_rank_gets_each_of_its_rows_once_from_a_rank_that_holds_it(
    case: tuple[tuple[int, ...], int, tuple[int, ...], int],
) -> None:
    source_shares, source_tp, target_shares, target_tp = case
    got: Counter[tuple[tuple[int, int], int]] = Counter()
    held, wanted = row_ranges(source_shares), row_ranges(target_shares)
    for one in transfers(source_shares, source_tp, target_shares, target_tp):
        assert one.rows
        assert one.source[1] < source_tp
        assert set(one.rows) <= set(held[one.source[0]])
        got.update(((one.target), row) for row in one.rows)
    assert got == Counter(
        ((i, t), row) for i, rows in enumerate(wanted) for t in range(target_tp) for row in rows
    )


@dataclass
class SimulatedRank:
    """Where a rank is in its step. `expected` counts micro-batches it has made room for, per direction."""

    operations: list[tuple[str, int, Direction]]
    expected: dict[Direction, int]
    at: int = 0
    sent: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))

    @property
    def done(self) -> bool:
        return self.at == len(self.operations)


Place = tuple[int, int, int]
Stages = Sequence[tuple[tuple[int, ...], int]]


class Simulation:
    """A step in which a transfer ends only when both sides are there.

    A rank keeps at most `sends_max` sends open while it goes on (0: it waits for each), and makes room for
    `ahead` micro-batches before it needs them.
    """

    def __init__(
        self, schedule: PipelineSchedule, stages: Stages, micro_batches: int, *, sends_max: int, ahead: int
    ) -> None:
        self.sends_max, self.ahead = sends_max, ahead
        self.ranks: dict[Place, SimulatedRank] = {}
        self.peers: dict[tuple[Place, str, Direction], list[Place]] = {}
        for s, (widths, tp) in enumerate(stages):
            order = passes(schedule, stages_left=len(stages) - s, micro_batches=micro_batches)
            operations = _operations(order, s, len(stages))
            for place in ((s, i, t) for i in range(len(widths)) for t in range(tp)):
                self.ranks[place] = SimulatedRank(operations, dict.fromkeys(Direction, ahead))
        for s in range(len(stages) - 1):
            self._connect(stages, s, s + 1, Direction.FORWARD)
            self._connect(stages, s + 1, s, Direction.BACKWARD)

    def run(self) -> bool:
        """Whether every rank gets to the end."""
        while sum(self._advance(place) for place in self.ranks):
            pass
        return all(rank.done for rank in self.ranks.values())

    def _connect(self, stages: Stages, a: int, b: int, direction: Direction) -> None:
        for one in transfers(*stages[a], *stages[b]):
            source, target = (a, *one.source), (b, *one.target)
            self.peers.setdefault((source, "send", direction), []).append(target)
            self.peers.setdefault((target, "receive", direction), []).append(source)

    def _advance(self, place: Place) -> bool:
        rank = self.ranks[place]
        if rank.done:
            return False
        action, j, direction = rank.operations[rank.at]
        if action == "receive":
            rank.expected[direction] = max(rank.expected[direction], j + 1)
            sources = self.peers.get((place, "receive", direction), [])
            if any(self.ranks[source].sent[direction] <= j for source in sources):
                return False
            rank.expected[direction] = j + 1 + self.ahead
        elif action == "send":
            if rank.sent[direction] <= j and self._num_open(place, direction) >= max(1, self.sends_max):
                return False
            rank.sent[direction] = j + 1
            if self.sends_max == 0 and self._num_open(place, direction):
                return False
        elif any(self._num_open(place, one) for one in Direction):
            return False
        rank.at += 1
        return True

    def _num_open(self, place: Place, direction: Direction) -> int:
        """Sends that not every target has made room for."""
        targets = self.peers.get((place, "send", direction), [])
        ready = min((self.ranks[target].expected[direction] for target in targets), default=1 << 30)
        return max(0, self.ranks[place].sent[direction] - ready)


def _operations(order: Sequence[Pass], s: int, num_stages: int) -> list[tuple[str, int, Direction]]:
    """Receive, compute, send for each pass, and wait at the end until everything has left."""
    found: list[tuple[str, int, Direction]] = []
    for one in order:
        begins, ends = (0, num_stages - 1)[:: 1 if one.direction is Direction.FORWARD else -1]
        if s != begins:
            found.append(("receive", one.micro_batch, one.direction))
        if s != ends:
            found.append(("send", one.micro_batch, one.direction))
    return [*found, ("finish", 0, Direction.FORWARD)]


@st.composite
def pipelines(draw: st.DrawFn) -> list[tuple[tuple[int, ...], int]]:
    """Up to six stages of any widths."""
    rows = draw(st.integers(1, 6))
    stage = st.tuples(shares(rows), st.sampled_from([1, 2]))
    return draw(st.lists(stage, min_size=1, max_size=6))


@given(
    schedule=st.sampled_from(WHOLE),
    stages=pipelines(),
    micro_batches=st.integers(1, 8),
    sends_max=st.sampled_from([SENDS_MAX, 1, 0]),
)
def test_no_widths_make_ranks_wait_for_each_other_in_a_circle(
    schedule: PipelineSchedule, stages: Stages, micro_batches: int, sends_max: int
) -> None:
    assert Simulation(schedule, stages, micro_batches, sends_max=sends_max, ahead=1).run()


def test_the_simulation_sees_a_circle() -> None:
    stages = [((2,), 1), ((1, 1), 1), ((2,), 1)]
    one_by_one = PipelineSchedule.ONE_FORWARD_ONE_BACKWARD
    assert not Simulation(one_by_one, stages, 4, sends_max=0, ahead=0).run()
    assert Simulation(one_by_one, stages, 4, sends_max=1, ahead=0).run()
