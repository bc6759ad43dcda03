"""Collectives on flat tensors, under the names that the installed torch has for them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from executors.torch_native.groups import Group

# torch renamed these two and warns about the old names.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def sum_over(flat_N: torch.Tensor, group: Group) -> None:
    """Replace the tensor by its sum over the group; None is a group of one."""
    if group is not None:
        dist.all_reduce(flat_N, group=group)


def sum_shard(flat_N: torch.Tensor, group: Group) -> torch.Tensor:
    """This rank's equal share of the sum over the group. The length must divide by the group's size."""
    if group is None:
        return flat_N
    shard = torch.empty(flat_N.numel() // group.size(), dtype=flat_N.dtype, device=flat_N.device)
    _reduce_scatter(shard, flat_N, group=group)
    return shard


def join_shards(shard_N: torch.Tensor, group: Group) -> torch.Tensor:
    """The shards of all ranks of the group, one after another."""
    if group is None:
        return shard_N
    flat = torch.empty(shard_N.numel() * group.size(), dtype=shard_N.dtype, device=shard_N.device)
    _all_gather(flat, shard_N.contiguous(), group=group)
    return flat
