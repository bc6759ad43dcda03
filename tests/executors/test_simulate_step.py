"""One step: worked out by hand, by another method, and what must hold of any."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import Case, cases, even_case, longest_path_s

from executors.simulate.programs import Action, blocking_program, compute_program
from executors.simulate.step import simulate_step
from executors.simulate.timeline import Kind, StepTimeline
from executors.simulate.times import (
    BorderTimes,
    Schedule,
    StageTimes,
    TransferTimes,
    even_border,
    in_flight_limits,
)
from policies.errors import InputError

WAYS: dict[str, Callable[[Case], StepTimeline]] = {
    "overlapped": lambda case: simulate_step(*case),
    "one-ahead": lambda case: simulate_step(*case, receives_ahead=1),
    "on-receive": lambda case: simulate_step(*case, receives_ahead=0),
    "blocking": lambda case: simulate_step(*case, blocking=True),
    "gpipe": lambda case: simulate_step(*case, schedule=Schedule.GPIPE),
    "gpipe-blocking": lambda case: simulate_step(*case, schedule=Schedule.GPIPE, blocking=True),
}


def test_two_stages_by_hand() -> None:
    stages = [StageTimes(forward_s=1.0, backward_s=2.0), StageTimes(forward_s=2.0, backward_s=2.5)]
    timeline = simulate_step(stages, [even_border(0.5)], 2)
    passes = {(s.kind, s.row, s.micro_batch): (s.start_s, s.end_s) for s in timeline.work}
    assert passes[Kind.FORWARD, 1, 0] == (1.5, 3.5)
    assert passes[Kind.BACKWARD, 1, 0] == (3.5, 6.0)
    assert passes[Kind.FORWARD, 1, 1] == (6.0, 8.0)
    assert passes[Kind.BACKWARD, 0, 0] == (6.5, 8.5)
    assert passes[Kind.BACKWARD, 1, 1] == (8.0, 10.5)
    assert passes[Kind.BACKWARD, 0, 1] == (11.0, 13.0)
    assert timeline.step_s == 13.0
    assert timeline.uses[0].idle_s == pytest.approx(13.0 - 2 * 3.0)
    assert timeline.uses[1].bubble_frac == pytest.approx(4.0 / 13.0)


def test_a_blocking_transfer_holds_both_sides() -> None:
    stages = [StageTimes(forward_s=1.0, backward_s=2.0)] * 2
    timeline = simulate_step(stages, [even_border(0.5)], 2, blocking=True)
    # F0, its activation, F0 and B0 below, gradient 0 and activation 1, F1 and B1 below, gradient 1, B1.
    assert timeline.step_s == 1 + 0.5 + 3 + 1 + 3 + 0.5 + 2
    assert [use.transfer_s for use in timeline.uses] == [2.0, 2.0]


def test_synchronisation_follows_the_own_last_pass_and_updates_wait_for_all() -> None:
    stages = [
        StageTimes(forward_s=1.0, backward_s=1.0, sync_s=1.0, update_s=2.0),
        StageTimes(forward_s=1.0, backward_s=1.0, sync_s=3.0, update_s=0.5),
    ]
    timeline = simulate_step(stages, [even_border(0.0)], 1)
    ends = {(s.kind, s.row): (s.start_s, s.end_s) for s in timeline.work if s.micro_batch < 0}
    assert ends == {
        (Kind.SYNC, 0): (4.0, 5.0),
        (Kind.SYNC, 1): (3.0, 6.0),
        (Kind.UPDATE, 0): (6.0, 8.0),
        (Kind.UPDATE, 1): (6.0, 6.5),
    }
    assert (timeline.pipeline_s, timeline.step_s) == (4.0, 8.0)


def test_transfers_queue_for_a_link_they_share() -> None:
    stages = [StageTimes(forward_s=1.0, backward_s=1.0)] * 2
    shared = TransferTimes(occupied_s=2.0, latency_s=1.0, link="wire")
    timeline = simulate_step(stages, [BorderTimes(forward=shared, backward=shared)], 2)
    assert [(s.kind, s.micro_batch, s.start_s, s.end_s) for s in timeline.transfers] == [
        (Kind.ACTIVATION, 0, 1.0, 3.0),
        (Kind.ACTIVATION, 1, 3.0, 5.0),
        (Kind.GRADIENT, 0, 6.0, 8.0),
        (Kind.GRADIENT, 1, 8.0, 10.0),
    ]
    assert timeline.step_s == 12.0


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=120)
@given(case=cases())
def test_the_step_is_the_longest_path_through_what_waits_for_what(way: str, case: Case) -> None:
    by_paths_s = longest_path_s(
        case,
        blocking="blocking" in way,
        gpipe="gpipe" in way,
        ahead={"one-ahead": 1, "on-receive": 0}.get(way),
    )
    assert WAYS[way](case).step_s == pytest.approx(by_paths_s, rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40)
@given(case=cases())
def test_nothing_is_lost_doubled_or_early(way: str, case: Case) -> None:
    stages, borders, count = case
    timeline = WAYS[way](case)
    passes = [s for s in timeline.work if s.kind in (Kind.FORWARD, Kind.BACKWARD)]
    assert len(passes) == len({(s.kind, s.row, s.micro_batch) for s in passes}) == 2 * count * len(stages)
    assert len(timeline.transfers) == 2 * count * len(borders)
    ended_s = {(s.kind, s.row, s.micro_batch): s.end_s for s in passes}
    for span in passes:
        before = span.row - 1 if span.kind is Kind.FORWARD else span.row + 1
        if 0 <= before < len(stages):
            assert span.start_s >= ended_s[span.kind, before, span.micro_batch]
    for stage in range(len(stages)):
        own = sorted((s for s in timeline.work if s.row == stage), key=lambda s: s.start_s)
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in pairwise(own)), "one thing at a time"
    for use, times in zip(timeline.uses, stages, strict=True):
        assert use.forward_s == pytest.approx(count * times.forward_s)
        assert use.backward_s == pytest.approx(count * times.backward_s)
        assert use.busy_s <= timeline.step_s * (1 + 1e-12)


@pytest.mark.parametrize("schedule", Schedule)
@given(case=cases(), extra=st.integers(0, 3))
def test_no_stage_holds_more_than_its_limit(schedule: Schedule, case: Case, extra: int) -> None:
    stages, borders, count = case
    limits = [limit + extra for limit in in_flight_limits(len(stages), count, schedule)]
    timeline = simulate_step(stages, borders, count, in_flight=limits)
    for stage, limit in enumerate(limits):
        held = most = 0
        moments = [(s.start_s, 1) for s in timeline.work if s.row == stage and s.kind is Kind.FORWARD]
        moments += [(s.end_s, -1) for s in timeline.work if s.row == stage and s.kind is Kind.BACKWARD]
        for _, change in sorted(moments):
            held += change
            most = max(most, held)
        assert most <= limit


@given(case=cases())
def test_waiting_less_is_never_slower(case: Case) -> None:
    free_s, ahead_s, late_s, held_s = (
        WAYS[way](case).step_s for way in ("overlapped", "one-ahead", "on-receive", "blocking")
    )
    slack = 1 + 1e-12
    assert free_s <= ahead_s * slack
    assert ahead_s <= late_s * slack
    assert free_s <= held_s * slack


@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_blocking_programs_hold_each_pass_and_transfer_once(num_stages: int, count: int) -> None:
    for schedule in Schedule:
        for stage in range(num_stages):
            program = blocking_program(stage, num_stages, count, schedule)
            limit = in_flight_limits(num_stages, count, schedule)[stage]
            passes = [entry for entry in program if entry[0] in (Action.FORWARD, Action.BACKWARD)]
            assert passes == compute_program(limit, count)
            num_borders = (stage > 0) + (stage < num_stages - 1)
            assert len(program) == len(set(program)) == 2 * count * (1 + num_borders)


def test_a_step_is_the_same_every_time() -> None:
    case = even_case([(1.0, 2.0), (1.1, 2.0), (0.9, 2.5)], [0.3, 0.7], 8)
    assert simulate_step(*case) == simulate_step(*case)


def test_what_can_not_be_run_is_refused_with_every_fault() -> None:
    with pytest.raises(InputError) as refused:
        simulate_step(
            [StageTimes(forward_s=-1.0, backward_s=float("nan"))] * 2,
            [],
            0,
            in_flight=[1, 2],
            receives_ahead=-1,
        )
    assert refused.value.code == "simulation-times"
    assert [fault.place for fault in refused.value.faults] == [
        "borders",
        "num_micro_batches",
        "receives_ahead",
        "stages[0].forward_s",
        "stages[0].backward_s",
        "stages[1].forward_s",
        "stages[1].backward_s",
        "in_flight",
    ]
    with pytest.raises(InputError, match="can't be simulated"):
        simulate_step([StageTimes(forward_s=1, backward_s=1)], [], 1, blocking=True, in_flight=[1])
