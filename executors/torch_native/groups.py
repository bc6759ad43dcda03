"""The process groups of a replica. Every rank makes all of them, in the same order, and keeps its own."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from executors.layout import Layout, Rank
from planner.plan import ReplicaPlan

Group = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """The groups between a stage and the next one: one per direction, so that neither waits for the other."""

    activations: Group
    gradients: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This rank's groups; None where it would be alone.

    `data` joins the data-parallel ranks with this rank's tensor-parallel coordinate, `tensor` the
    tensor-parallel ranks of its data-parallel rank, `tied` all ranks of the two stages that share a weight.
    `borders` is by the stage before the border.
    """

    data: Group = None
    tensor: Group = None
    tied: Group = None
    borders: dict[int, Border] = field(default_factory=dict)


def build_groups(
    replica: ReplicaPlan,
    layout: Layout,
    me: Rank,
    tied_stages: tuple[int, int] | None,
    *,
    device: torch.device,
    timeout_s: float,
) -> Groups:
    """Make every group of the replica, connected and ready. Collective over the default group."""
    timeout = datetime.timedelta(seconds=timeout_s)

    def group_of(ranks: list[int]) -> Group:
        group = dist.new_group(ranks, timeout=timeout) if len(ranks) > 1 else None
        if group is None or me.rank not in ranks:
            return None
        # NCCL connects at a group's first use and waits for all members then; in the middle of a step that
        # would be a circle.
        dist.all_reduce(torch.zeros(1, device=device), group=group)
        return group

    data = tensor = tied = None
    borders: dict[int, Border] = {}
    for stage in replica.stages:
        members = layout.of_stage(stage.index)
        for tp_i in range(stage.tp):
            found = group_of([one.rank for one in members if one.tp_i == tp_i])
            data = data if found is None else found
        for dp_i in range(stage.dp):
            found = group_of([one.rank for one in members if one.dp_i == dp_i])
            tensor = tensor if found is None else found
        if stage.index + 1 < len(replica.stages):
            both = sorted(one.rank for one in (*members, *layout.of_stage(stage.index + 1)))
            border = Border(activations=group_of(both), gradients=group_of(both))
            if me.rank in both:
                borders[stage.index] = border
    if tied_stages is not None:
        tied = group_of(sorted(one.rank for i in tied_stages for one in layout.of_stage(i)))
    return Groups(data=data, tensor=tensor, tied=tied, borders=borders)
