"""The sum of a weight's gradients over the two stages that share it, however each of them holds it.

Legend of tensor suffixes: N elements, all tensors are flat.
"""

from __future__ import annotations

import torch

from executors.torch_native.collectives import sum_over
from executors.torch_native.groups import Group

CHUNK_BYTES_MAX = 32 * 2**20


def sum_tied(mine_N: torch.Tensor, first: int, length: int, group: Group) -> None:
    """Replace the elements that this rank holds by their sum over all ranks of the group that hold them.

    `mine_N` are elements from `first` on of the weight's `length`, row by row. Every rank adds what it has:
    the sum over its own sequences where gradients aren't sharded, its shard of the stage's sum where they
    are. The result is the same bit for bit on all ranks.
    """
    at_once = max(1, CHUNK_BYTES_MAX // mine_N.element_size())
    for start in range(0, length, at_once):
        sum_N = torch.zeros(min(at_once, length - start), dtype=mine_N.dtype, device=mine_N.device)
        low = max(start, first)
        high = min(start + len(sum_N), first + len(mine_N))
        theirs, own = slice(low - start, high - start), slice(low - first, high - first)
        if low < high:
            sum_N[theirs] = mine_N[own]
        sum_over(sum_N, group)
        if low < high:
            mine_N[own] = sum_N[theirs]
