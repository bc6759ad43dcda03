"""Where layers stand when a rank holds several pieces of the chain. Pure.

Interleaved schedules give each device two pieces, one from each half of the chain, so that the pipeline fills in
half the time. A device keeps as many layers as the plan gives it, but others.
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


def _intervals(lengths: Sequence[int]) -> tuple[range, ...]:
    found: list[range] = []
    start = 0
    for length in lengths:
        found.append(range(start, start + length))
        start += length
    return tuple(found)
