"""The process groups that a script's rank may need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from executors.training.place import GROUP_TIMEOUT

Grid = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGroups:
    """Groups with this rank in them, of one member where it is alone.

    `stage` holds all ranks of its stage, `data_parallel` those with its layers and its part of them,
    `tensor_parallel` those that share its rows. `pipeline` holds the ranks at its place of every stage, None
    where the grids of stages differ. Members are in ascending order of ranks.
    """

    stage: Any
    data_parallel: Any
    tensor_parallel: Any
    pipeline: Any


def build_groups(ranks: Grid, me: int) -> RankGroups:
    """Make every group of the replica, in the same order on all ranks, and keep this rank's."""
    members = {
        "stage": [[rank for row in stage for rank in row] for stage in ranks],
        "data_parallel": [list(column) for stage in ranks for column in zip(*stage, strict=True)],
        "tensor_parallel": [list(row) for stage in ranks for row in stage],
        "pipeline": _pipelines(ranks),
    }
    found: dict[str, Any] = dict.fromkeys(members)
    for name, groups in members.items():
        for each in groups:
            group = dist.new_group(sorted(each), timeout=GROUP_TIMEOUT)
            if me in each:
                found[name] = group
    # Members of small groups don't wait for the others, whose store is gone when rank 0 ends early.
    dist.barrier()
    return RankGroups(**found)


def _pipelines(ranks: Grid) -> list[list[int]]:
    """Ranks at the same place of all stages; none where the grids differ."""
    shapes = {(len(stage), len(stage[0])) for stage in ranks}
    if len(shapes) > 1:
        return []
    ((dp, tp),) = shapes
    return [[stage[d][t] for stage in ranks] for d in range(dp) for t in range(tp)]
