"""The order in which a stage runs forward and backward passes. Pure; one order for all ranks of a stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from planner.training import PipelineSchedule


class Direction(StrEnum):
    """Which way a pass runs."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of one micro-batch."""

    direction: Direction
    micro_batch: int


def passes(schedule: PipelineSchedule, *, stages_left: int, micro_batches: int) -> tuple[Pass, ...]:
    """The passes of one step of a stage with `stages_left` stages from itself to the last one.

    Raises:
        ValueError: the schedule is none that a stage runs as one piece.
    """
    if schedule is PipelineSchedule.ONE_FORWARD_ONE_BACKWARD:
        return one_forward_one_backward(stages_left, micro_batches)
    if schedule is PipelineSchedule.GPIPE:
        return one_forward_one_backward(micro_batches, micro_batches)
    raise ValueError(f"{schedule} has no order of whole stages")


def one_forward_one_backward(in_flight: int, micro_batches: int) -> tuple[Pass, ...]:
    """Forward until `in_flight` micro-batches are held, then backward and forward in turn, then the rest.

    The stage holds min(micro_batches, in_flight) micro-batches at most. With `in_flight` the number of stages
    left this is 1F1B (Narayanan et al., SOSP 2019, section 3.2, with a flush after every step); with all
    micro-batches it is GPipe, backward in the order of forward.
    """
    warm_up = min(in_flight - 1, micro_batches)
    order = [Pass(Direction.FORWARD, j) for j in range(warm_up)]
    for j in range(warm_up, micro_batches):
        order += [Pass(Direction.FORWARD, j), Pass(Direction.BACKWARD, j - warm_up)]
    order += [Pass(Direction.BACKWARD, j) for j in range(micro_batches - warm_up, micro_batches)]
    return tuple(order)


def in_flight_max(order: Iterable[Pass]) -> int:
    """The most micro-batches that are forward but not yet backward at any moment."""
    held = most = 0
    for one in order:
        held += 1 if one.direction is Direction.FORWARD else -1
        most = max(most, held)
    return most
