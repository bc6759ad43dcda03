"""Which rows of a micro-batch a rank holds, and who sends which rows to whom. Pure.

A rank of a stage is named by its grid coordinates (data-parallel, tensor-parallel). Tensor-parallel ranks of
one data-parallel rank hold the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Coordinates = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Rows of the micro-batch that one rank sends to one rank of a neighbouring stage."""

    source: Coordinates
    target: Coordinates
    rows: range


def row_ranges(shares: Sequence[int]) -> tuple[range, ...]:
    """Rows of each data-parallel rank, in rank order."""
    stops = list(accumulate(shares))
    return tuple(range(stop - share, stop) for share, stop in zip(shares, stops, strict=True))


def common(first: range, second: range) -> range:
    """Rows in both ranges; possibly empty."""
    start, stop = max(first.start, second.start), min(first.stop, second.stop)
    return range(start, max(start, stop))


def transfers(
    source_shares: Sequence[int], source_tp: int, target_shares: Sequence[int], target_tp: int
) -> tuple[Transfer, ...]:
    """All transfers of one micro-batch over one border, in one direction.

    Every target rank gets each of its rows once. Senders that hold the same rows share the work:
    tensor-parallel rank t of the target hears from rank t mod `source_tp`.
    """
    found: list[Transfer] = []
    for target_i, wanted in enumerate(row_ranges(target_shares)):
        for source_i, held in enumerate(row_ranges(source_shares)):
            rows = common(held, wanted)
            if not rows:
                continue
            for tp_i in range(target_tp):
                source = (source_i, tp_i % source_tp)
                found.append(Transfer(source=source, target=(target_i, tp_i), rows=rows))
    return tuple(found)
