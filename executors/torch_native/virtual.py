"""Where layers stand when a rank holds several pieces of the chain. Pure.

Interleaved schedules give each device two pieces, one from each half of the chain, so that the pipeline fills
in half the time. A device keeps as many layers as the plan gives it, but others.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import ReplicaPlan
from planner.training import PipelineSchedule

PIECES = {PipelineSchedule.INTERLEAVED: 2, PipelineSchedule.ZERO_BUBBLE: 1}
"""Pieces per device of the schedules that `torch.distributed.pipelining` runs."""


def piece_layers(replica: ReplicaPlan, schedule: PipelineSchedule) -> tuple[range, ...]:
    """Layers of each piece in the order of the chain; stage s holds pieces s, s + stages, ...

    Of two pieces the first gets the larger half of the stage's layers.
    """
    counts = [stop - start for start, stop in (stage.layers for stage in replica.stages)]
    num_pieces = PIECES[schedule]
    lengths = [(count + num_pieces - 1 - i) // num_pieces for i in range(num_pieces) for count in counts]
    return _intervals(lengths)


def own_pieces(replica: ReplicaPlan, schedule: PipelineSchedule, stage_i: int) -> dict[int, range]:
    """Pieces of one stage by their position in the chain of pieces."""
    pieces = piece_layers(replica, schedule)
    return {i: pieces[i] for i in range(stage_i, len(pieces), len(replica.stages))}


def held_layers(replica: ReplicaPlan, schedule: PipelineSchedule, stage_i: int) -> tuple[int, ...]:
    """Layers that a stage's ranks hold under a schedule, in the order of the chain."""
    if PIECES.get(schedule, 1) == 1 or len(replica.stages) == 1:
        return tuple(range(*replica.stages[stage_i].layers))
    return tuple(i for piece in own_pieces(replica, schedule, stage_i).values() for i in piece)


def pieces_in_flight(replica: ReplicaPlan, schedule: PipelineSchedule, stage_i: int) -> int:
    """The most passes of pieces that a device of a stage holds at a time.

    GPipe holds every micro-batch. The zero-bubble schedule holds as many on each stage as 1F1B on the first
    one (Qi et al. 2023, arXiv:2401.10241, ZB-H1). Interleaved 1F1B warms up with all micro-batches of a round
    on all but the last piece, and two more for each stage behind (Narayanan et al. 2021, arXiv:2104.04473).
    """
    count, num_stages = replica.micro_batches, len(replica.stages)
    if schedule is PipelineSchedule.GPIPE:
        return count
    if schedule is PipelineSchedule.ZERO_BUBBLE:
        return min(count, num_stages)
    if schedule is PipelineSchedule.INTERLEAVED:
        in_round = count // max(1, count // num_stages)
        num_pieces = PIECES[schedule]
        return min(num_pieces * count, (num_pieces - 1) * in_round + 2 * (num_stages - 1 - stage_i) + 1)
    return min(count, num_stages - stage_i)


def _intervals(lengths: Sequence[int]) -> tuple[range, ...]:
    found: list[range] = []
    start = 0
    for length in lengths:
        found.append(range(start, start + length))
        start += length
    return tuple(found)
