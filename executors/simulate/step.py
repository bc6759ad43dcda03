"""One step of one replica, with its links to itself: the pure core that predictions are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from executors.simulate.events import Clock, Links
from executors.simulate.pipeline import StepRun, StepSetup, start_step
from executors.simulate.timeline import Span, StepTimeline
from executors.simulate.times import BorderTimes, Schedule, StageTimes, require_sound


def simulate_step(
    stages: Sequence[StageTimes],
    borders: Sequence[BorderTimes],
    num_micro_batches: int,
    *,
    schedule: Schedule = Schedule.ONE_FORWARD_ONE_BACKWARD,
    blocking: bool = False,
    receives_ahead: int | None = None,
    in_flight: Sequence[int] | None = None,
) -> StepTimeline:
    """Everything that happens in one step, event by event.

    Args:
        stages: seconds of each stage.
        borders: seconds of the transfers between every two of them, one less than stages.
        num_micro_batches: micro-batches of the step.
        schedule: order of forward and backward passes.
        blocking: whether a transfer holds its sender and its receiver (DeepSpeed over gloo). Else stages
            send and go on (torch executor).
        receives_ahead: with overlapped transfers, how many receives of a kind are posted before they are
            needed: 0 starts a transfer when its receiver gets there, 1 is what the torch executor does, None
            is no limit.
        in_flight: micro-batches each stage holds at most, instead of the schedule's own numbers; only with
            overlapped transfers.

    Raises:
        InputError: `simulation-times` with every fault.
    """
    require_sound(
        stages,
        borders,
        num_micro_batches,
        in_flight=in_flight,
        receives_ahead=receives_ahead,
        blocking=blocking,
    )
    setup = StepSetup(
        stages=tuple(stages),
        borders=tuple(borders),
        num_micro_batches=num_micro_batches,
        schedule=schedule,
        blocking=blocking,
        receives_ahead=receives_ahead,
        in_flight=None if in_flight is None else tuple(in_flight),
    )
    return run_alone(setup)[0]


def run_alone(setup: StepSetup) -> tuple[StepTimeline, Links]:
    """The step of a sound setup, and what its links did."""
    clock, links = Clock(), Links()
    ended_s: list[float] = []
    run = start_step(setup, clock, links, ended_s.append)
    run.begin(0.0)
    clock.run()
    return timeline_of(run, 0.0, ended_s[0]), links


def timeline_of(run: StepRun, start_s: float, end_s: float) -> StepTimeline:
    """What a step has recorded from its start to its end, counted from its start."""
    return StepTimeline(
        num_stages=len(run.setup.stages),
        num_micro_batches=run.setup.num_micro_batches,
        pipeline_s=min(run.pipeline_s, end_s) - start_s,
        step_s=end_s - start_s,
        work=_counted_from(run.work, start_s),
        transfers=_counted_from(run.transfers, start_s),
    )


def _counted_from(spans: Sequence[Span], start_s: float) -> tuple[Span, ...]:
    if start_s == 0.0:
        return tuple(spans)
    return tuple(
        Span(kind, row, i, begin_s - start_s, end_s - start_s) for kind, row, i, begin_s, end_s in spans
    )
