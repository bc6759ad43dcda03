"""The sum of a weight's gradients over the two stages that share it, however each of them holds it.

Legend of tensor suffixes: V rows of the weight, H its columns, C rows summed at a time.
"""

from __future__ import annotations

import torch

from executors.torch_native.collectives import sum_over
from executors.torch_native.groups import Group

CHUNK_BYTES_MAX = 32 * 2**20


def sum_tied(mine_VH: torch.Tensor, first_row: int, num_rows: int, group: Group) -> None:
    """Replace the rows that this rank holds by their sum over all ranks of the group that hold them.

    `mine_VH` are rows from `first_row` on of the whole weight's `num_rows`. Every rank adds what it has, so a
    rank of unsharded weights gives its own micro-batch rows' gradients and one of sharded weights its shard of the
    stage's sum. The result is the same bit for bit on all of them.
    """
    width = mine_VH.shape[1]
    rows_at_once = max(1, CHUNK_BYTES_MAX // (width * mine_VH.element_size()))
    last_row = first_row + mine_VH.shape[0]
    for start in range(0, num_rows, rows_at_once):
        stop = min(start + rows_at_once, num_rows)
        sum_CH = torch.zeros(stop - start, width, dtype=mine_VH.dtype, device=mine_VH.device)
        low, high = max(start, first_row), min(stop, last_row)
        if low < high:
            sum_CH[low - start : high - start] = mine_VH[low - first_row : high - first_row]
        sum_over(sum_CH, group)
        if low < high:
            mine_VH[low - first_row : high - first_row] = sum_CH[low - start : high - start]
