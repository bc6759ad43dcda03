"""Where the planner's closed form is the simulated step, what bounds the step, and how far they are apart."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import Case, cases, even_case

from executors.simulate.bounds import (
    blocking_form_s,
    closed_form_is_exact,
    closed_form_s,
    cycle_form_s,
    cycle_s,
    lower_bound_s,
)
from executors.simulate.step import simulate_step
from executors.simulate.times import Schedule, StageTimes, even_border

EXACT = 1e-9


@st.composite
def exact_cases(draw: st.DrawFn) -> Case:
    """A slowest last stage, backward 1 to 3 times forward, transfers that use up all the slack there is."""
    num_stages = draw(st.integers(2, 7))
    busy = []
    for s in range(num_stages):
        busy_s = 1.0 if s + 1 == num_stages else draw(st.sampled_from((1.0, 0.999, 0.9, 0.5, 0.1, 0.01)))
        ratio = draw(st.sampled_from((1.0, 2.0, 3.0)) | st.floats(1.0, 3.0))
        busy.append((busy_s / (1.0 + ratio), busy_s * ratio / (1.0 + ratio)))
    trips = [draw(st.floats(0.0, 2.0)) for _ in range(num_stages - 1)]
    scale, low = 1.0, 0.0
    for _ in range(30):
        stages, borders, _ = even_case(busy, [trip * scale for trip in trips], 1)
        if cycle_s(stages, borders) <= 1.0 and all(border.round_trip_s <= 1.0 for border in borders):
            low = scale
            break
        scale *= 0.8
    return even_case(busy, [trip * low for trip in trips], draw(st.integers(2, 16)))


@settings(max_examples=120)
@given(case=exact_cases(), ahead=st.sampled_from((None, 1)))
def test_the_closed_form_is_the_step_where_it_is_said_to_be(case: Case, ahead: int | None) -> None:
    assert closed_form_is_exact(*case)
    simulated_s = simulate_step(*case, receives_ahead=ahead).step_s
    assert simulated_s == pytest.approx(closed_form_s(*case), rel=EXACT)


@settings(max_examples=120)
@given(case=cases(stages_max=6, ratio=(1.0, 3.0)), ahead=st.sampled_from((None, 1)))
def test_no_random_case_is_called_exact_and_is_not(case: Case, ahead: int | None) -> None:
    if closed_form_is_exact(*case):
        simulated_s = simulate_step(*case, receives_ahead=ahead).step_s
        assert simulated_s == pytest.approx(closed_form_s(*case), rel=EXACT)


@pytest.mark.parametrize("num_stages", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_equal_stages_without_transfers_are_exact(num_stages: int, count: int) -> None:
    case = even_case([(1.0, 2.0)] * num_stages, [0.0] * (num_stages - 1), count)
    assert closed_form_is_exact(*case)
    assert simulate_step(*case).step_s == closed_form_s(*case) == 3.0 * (num_stages + count - 1)
    assert simulate_step(*case, schedule=Schedule.GPIPE).step_s == 3.0 * (num_stages + count - 1)


def test_one_micro_batch_is_exact_whatever_the_stages() -> None:
    case = even_case([(3.0, 0.1), (0.2, 5.0)], [7.0], 1)
    assert closed_form_is_exact(*case)
    assert simulate_step(*case).step_s == pytest.approx(closed_form_s(*case), rel=EXACT)


@pytest.mark.parametrize(
    ("busy", "trips", "why"),
    [
        ([(1, 2), (0.5, 1)], [0.0], "the slowest stage isn't the last: its successors' drain is hidden"),
        ([(1, 2), (1, 2)], [0.5], "two slowest neighbours wait for the transfers between them"),
        ([(0.1, 0.2), (0.1, 0.2)], [3.0], "a slow border counts once in each direction, not both at once"),
        ([(0.03, 0.07), (0.03, 0.07), (0.3, 0.7)], [1.5, 0.0], "a border slower than all stages, with slack"),
        ([(3.0, 0.0), (0.0, 3.0), (1.0, 0.04), (3.0, 0.17)], [0.0] * 3, "passes of opposite lengths"),
    ],
    ids=["first-slowest", "transfers", "slow-border", "slow-border-with-slack", "ratios"],
)
def test_where_a_condition_fails_the_closed_form_is_off(
    busy: list[tuple[float, float]], trips: list[float], why: str
) -> None:
    case = even_case(busy, trips, 10)
    assert not closed_form_is_exact(*case)
    assert simulate_step(*case).step_s != pytest.approx(closed_form_s(*case), rel=1e-4), why


def test_own_synchronisation_is_exact_only_behind_the_first_stage() -> None:
    first = [
        StageTimes(forward_s=1, backward_s=2, sync_s=1, update_s=1),
        StageTimes(forward_s=1, backward_s=2),
    ]
    assert closed_form_is_exact(first, [even_border(0.0)], 4)
    assert simulate_step(first, [even_border(0.0)], 4).step_s == closed_form_s(first, [even_border(0.0)], 4)
    last = first[::-1]
    assert not closed_form_is_exact(last, [even_border(0.0)], 4)
    assert simulate_step(last, [even_border(0.0)], 4).step_s < closed_form_s(last, [even_border(0.0)], 4)


@settings(max_examples=60)
@given(case=cases(stages_max=6))
def test_no_step_beats_the_lower_bound(case: Case) -> None:
    stages, _, count = case
    bound_s = lower_bound_s(*case) * (1 - EXACT)
    steps = [
        simulate_step(*case),
        simulate_step(*case, schedule=Schedule.GPIPE),
        simulate_step(*case, receives_ahead=0),
        simulate_step(*case, in_flight=[count] * len(stages)),
        simulate_step(*case, in_flight=[1] * len(stages)),
    ]
    assert min(step.step_s for step in steps) >= bound_s
    held_s = lower_bound_s(*case, blocking=True)
    assert held_s * (1 - EXACT) <= simulate_step(*case, blocking=True).step_s
    assert held_s * (1 - EXACT) <= simulate_step(*case, blocking=True, schedule=Schedule.GPIPE).step_s


@settings(max_examples=50)
@given(case=cases(stages_max=4, ratio=(1.0, 3.0)))
def test_a_long_step_takes_the_cycle_time_per_micro_batch(case: Case) -> None:
    stages, borders, _ = case
    steps_s = [simulate_step(stages, borders, count).step_s for count in (40, 52)]
    per_micro_batch_s = (steps_s[1] - steps_s[0]) / 12
    one_way_s = max((w.occupied_s for b in borders for w in (b.forward, b.backward)), default=0.0)
    assert per_micro_batch_s == pytest.approx(max(cycle_s(stages, borders), one_way_s), rel=1e-6)


@given(case=cases(stages_max=2, ratio=(1.0, 3.0)))
def test_blocking_over_one_border_adds_two_transfers_per_micro_batch(case: Case) -> None:
    """docs/simulator.md, section 4: with the last stage slowest exactly, otherwise at most that."""
    stages, borders, count = case
    free = [even_border(0.0) for _ in borders]
    transfers_s = count * sum(border.round_trip_s for border in borders)
    said_s = closed_form_s(stages, free, count) + transfers_s
    simulated_s = simulate_step(stages, borders, count, blocking=True).step_s
    assert blocking_form_s(*case) == pytest.approx(said_s, rel=EXACT)
    if all(a.busy_s <= b.busy_s for a, b in pairwise(stages)):
        assert simulated_s == pytest.approx(said_s, rel=EXACT)
    else:
        assert simulated_s <= said_s * (1 + EXACT)
        without_s = simulate_step(stages, free, count, blocking=True).step_s
        assert simulated_s == pytest.approx(without_s + transfers_s, rel=EXACT), "nothing is hidden"


def test_how_far_the_forms_are_off_between_equal_stages() -> None:
    """Equal stages and a border that takes a part of a stage's time, sixteen micro-batches."""
    off = {}
    for part in (0.05, 0.2, 0.5):
        case = even_case([(1.0, 2.0)] * 6, [3.0 * part] * 5, 16)
        simulated_s = simulate_step(*case).step_s
        off[part] = (simulated_s / closed_form_s(*case) - 1, simulated_s / cycle_form_s(*case) - 1)
    assert [round(planner, 3) for planner, _ in off.values()] == sorted(round(p, 3) for p, _ in off.values())
    assert off[0.5][0] > 0.2, "the planner's form hides transfers that are not hidden"
    assert statistics.mean(abs(cycle) for _, cycle in off.values()) < 0.01


@pytest.mark.parametrize(
    ("one_way_s", "measured_s"),
    [(0.0013, 0.289), (0.0110, 0.447), (0.0548, 1.120)],
    ids=["fast", "100M", "20M"],
)
def test_blocking_meets_what_deepspeed_took_over_throttled_links(one_way_s: float, measured_s: float) -> None:
    """Two gloo ranks, eight micro-batches, 131,072 bytes each way; without transfers 273 ms were measured.

    Profiled stage times (21.3 and 22.9 ms per micro-batch) are scaled to that.
    """
    profiled_s = (0.02133, 0.02288)
    scale = 0.273 / (profiled_s[0] + 8 * profiled_s[1])
    busy = [(s * scale / 3.0, s * scale * 2.0 / 3.0) for s in profiled_s]
    case = even_case(busy, [2.0 * one_way_s], 8)
    assert simulate_step(*case, blocking=True).step_s == pytest.approx(measured_s, rel=0.03)
    if one_way_s > 0.01:
        assert simulate_step(*case).step_s < 0.8 * measured_s, "nothing of it was hidden"
