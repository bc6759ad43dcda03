"""Layer intervals that cost the same everywhere, told apart once for everything that puts a plan together.

Cost models remember tables by the tuple of intervals they were asked for, so who shares `LayerKinds` shares
tables too.

Legend of array suffixes: L borders 0..num_layers (rows: first layer, columns: end).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import CostModel, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKinds:
    """One interval of each kind, and the kind of every [row, column); -1 is no interval at all."""

    intervals: tuple[Interval, ...]
    kind_LL: NDArray[np.int64]


def layer_kinds(cost_model: CostModel, num_layers: int) -> LayerKinds:
    """The kinds of all intervals of a chain of so many layers, numbered by first appearance."""
    position: dict[Hashable, int] = {}
    intervals: list[Interval] = []
    kind_LL = np.full((num_layers + 1, num_layers + 1), -1, dtype=np.int64)
    for start in range(num_layers):
        for stop in range(start + 1, num_layers + 1):
            key = cost_model.interval_key((start, stop))
            if key not in position:
                position[key] = len(intervals)
                intervals.append((start, stop))
            kind_LL[start, stop] = position[key]
    return LayerKinds(intervals=tuple(intervals), kind_LL=kind_LL)
