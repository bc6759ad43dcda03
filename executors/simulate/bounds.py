"""Closed forms of a step beside the simulated one, and the conditions under which they agree.

c_s is the busy time of stage s (from 0), x_b the round trip over border b (between stages b and b + 1), m
the number of micro-batches. All of it holds for `1f1b`; docs/simulator.md tells what is proven from what was
tested.
"""

from __future__ import annotations

from collections.abc import Sequence

from executors.simulate.times import BorderTimes, StageTimes
from planner.objective import step_time_s
from planner.problem import StepFormula

RATIO_MIN, RATIO_MAX = 1.0, 3.0
_SLACK = 1e-12


def closed_form_s(
    stages: Sequence[StageTimes], borders: Sequence[BorderTimes], num_micro_batches: int
) -> float:
    """The planner's step time: sum c + sum x + (m - 1) max(c, x) + the longest synchronisation and update."""
    formula = StepFormula(fill=1.0, repeats=float(num_micro_batches - 1), sync=True)
    ends_s = [stage.sync_s + stage.update_s for stage in stages]
    return step_time_s(
        formula, [stage.busy_s for stage in stages], [border.round_trip_s for border in borders], ends_s
    )


def lower_bound_s(
    stages: Sequence[StageTimes],
    borders: Sequence[BorderTimes],
    num_micro_batches: int,
    *,
    blocking: bool = False,
) -> float:
    """Seconds that no schedule of these stages can beat.

    Stage s can't begin before the first micro-batch has come down to it, has m of them to work on, and the
    last gradient has to go up again: max_s (sum_{j<s} (c_j + x_j) + m c_s). Blocking transfers hold the stage
    too: + (m - 1) x_{s-1} + m x_s.
    """
    count, reach_s, longest_s = num_micro_batches, 0.0, 0.0
    for s, stage in enumerate(stages):
        held_s = count * stage.busy_s
        if blocking:
            held_s += (count - 1) * borders[s - 1].round_trip_s if s > 0 else 0.0
            held_s += count * borders[s].round_trip_s if s < len(borders) else 0.0
        longest_s = max(longest_s, reach_s + held_s)
        reach_s += stage.busy_s + (borders[s].round_trip_s if s < len(borders) else 0.0)
    return longest_s + stages[0].sync_s + max(stage.update_s for stage in stages)


def cycle_s(stages: Sequence[StageTimes], borders: Sequence[BorderTimes]) -> float:
    """Seconds per micro-batch of a long `1f1b` step with overlapped transfers over links of their own.

    A neighbourhood of k stages holds one micro-batch per stage, each of which has to go down and up again:
    max over s <= r of (sum_{j=s..r} c_j + sum_{j=s..r-1} x_j) / (r - s + 1). The planner's form takes
    max(c, x) instead, which is less as soon as transfers between nearly equal stages take time.
    """
    longest_s = 0.0
    for first in range(len(stages)):
        total_s = 0.0
        for last in range(first, len(stages)):
            total_s += stages[last].busy_s
            longest_s = max(longest_s, total_s / (last - first + 1))
            total_s += borders[last].round_trip_s if last < len(borders) else 0.0
    return longest_s


def cycle_form_s(
    stages: Sequence[StageTimes], borders: Sequence[BorderTimes], num_micro_batches: int
) -> float:
    """The planner's form with `cycle_s` in place of the slowest stage or border."""
    once_s = sum(stage.busy_s for stage in stages) + sum(border.round_trip_s for border in borders)
    ends_s = max(stage.sync_s + stage.update_s for stage in stages)
    return once_s + (num_micro_batches - 1) * cycle_s(stages, borders) + ends_s


def blocking_form_s(
    stages: Sequence[StageTimes], borders: Sequence[BorderTimes], num_micro_batches: int
) -> float:
    """A closed form for blocking transfers: each holds both its stages.

    sum c + sum x + (m - 1) max_s (c_s + x_{s-1} + x_s) + the longest synchronisation and update. With one
    border that is the pipeline without transfers + m round trips.
    """
    trips_s = [border.round_trip_s for border in borders]
    held_s = [stage.busy_s + sum(trips_s[max(0, s - 1) : s + 1]) for s, stage in enumerate(stages)]
    ends_s = max(stage.sync_s + stage.update_s for stage in stages)
    once_s = sum(stage.busy_s for stage in stages) + sum(trips_s)
    return once_s + (num_micro_batches - 1) * max(held_s) + ends_s


def closed_form_is_exact(
    stages: Sequence[StageTimes], borders: Sequence[BorderTimes], num_micro_batches: int
) -> bool:
    """Whether the planner's form equals the simulated step with overlapped transfers over their own links.

    At least one receive of a kind is posted ahead.

    True where one of these holds, and either no stage synchronises on its own or the first stage's
    synchronisation and update are the longest:
    - there is one micro-batch, or one stage;
    - the last stage is (one of) the slowest, no border takes longer than it, no neighbourhood has a longer
      cycle (`cycle_s`), and every stage's backward pass takes 1 to 3 times its forward pass.
    """
    first = stages[0]
    if any(stage.sync_s > 0.0 for stage in stages) and any(
        stage.sync_s > first.sync_s or stage.update_s > first.update_s for stage in stages
    ):
        return False
    if num_micro_batches == 1 or len(stages) == 1:
        return True
    last_s = stages[-1].busy_s
    most_s = last_s * (1.0 + _SLACK)
    ratios = all(
        RATIO_MIN * stage.forward_s <= stage.backward_s * (1.0 + _SLACK)
        and stage.backward_s <= RATIO_MAX * stage.forward_s * (1.0 + _SLACK)
        for stage in stages
    )
    trips = all(border.round_trip_s <= most_s for border in borders)
    return ratios and trips and cycle_s(stages, borders) <= most_s
