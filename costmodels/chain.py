"""A layer chain seen as counts of identical layers, and what an interval of it holds.

Costs are sums over counts, never over positions, so intervals with equal counts get equal figures to the last
bit. Legend of array suffixes: J layer kinds, K intervals, L layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, Interval
from costmodels.workload import LayerSpec, Workload

NUM_REMEMBERED = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contents:
    """What each of K intervals holds.

    `params_K` and `trainable_K` count weights that share storage within the interval once. `tied_away_K`
    counts trainable weights whose other copy lies outside. `derived` keeps what was computed from these.
    Compared by identity.
    """

    count_JK: FloatArray
    present_JK: NDArray[np.bool_]
    num_layers_K: FloatArray
    params_K: FloatArray
    trainable_K: FloatArray
    tied_away_K: FloatArray
    tensor_parallel_max_K: FloatArray
    derived: dict[Hashable, object] = field(default_factory=dict)

    @property
    def num_intervals(self) -> int:
        """How many intervals there are."""
        return len(self.params_K)


class LayerChain:
    """The layers of a workload, grouped in kinds, with prefix counts.

    Layers are of one kind when they agree in every figure, whatever their `kind` says.
    """

    def __init__(self, workload: Workload) -> None:
        figures = [replace(layer, kind="") for layer in workload.layers]
        self.kinds: tuple[LayerSpec, ...] = tuple(dict.fromkeys(figures))
        position = {kind: j for j, kind in enumerate(self.kinds)}
        one_LJ = np.zeros((len(figures), len(self.kinds)), dtype=np.int64)
        one_LJ[np.arange(len(figures)), [position[layer] for layer in figures]] = 1
        self._before_LJ: NDArray[np.int64] = np.vstack([np.zeros_like(one_LJ[:1]), one_LJ.cumsum(axis=0)])
        self._before = [tuple(row) for row in self._before_LJ.tolist()]
        self._ties = tuple(
            (i, layer.tied_to, layer) for i, layer in enumerate(workload.layers) if layer.tied_to is not None
        )
        self._remembered: dict[int, tuple[tuple[Interval, ...], Contents]] = {}
        self._single: dict[Interval, Contents] = {}

    @property
    def num_layers(self) -> int:
        """Length of the chain."""
        return len(self._before) - 1

    def key(self, interval: Interval) -> Hashable:
        """Counts of each kind, and which ends of each pair of tied layers are inside."""
        start, stop = interval
        counts = tuple(
            last - first for first, last in zip(self._before[start], self._before[stop], strict=True)
        )
        return counts, tuple((start <= i < stop, start <= home < stop) for i, home, _ in self._ties)

    def contents(self, intervals: Sequence[Interval]) -> Contents:
        """What each interval holds; a tuple seen lately (the same object) is answered from memory."""
        if not isinstance(intervals, tuple):
            return self._count(intervals)
        known = self._remembered.get(id(intervals))
        if known is None:
            while len(self._remembered) >= NUM_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            # Keeping the tuple itself makes sure its id isn't given to another object.
            known = self._remembered[id(intervals)] = (intervals, self._count(intervals))
        return known[1]

    def contents_of_one(self, interval: Interval) -> Contents:
        """What one interval holds, as arrays of length one."""
        known = self._single.get(interval)
        if known is None:
            known = self._single[interval] = self._count((interval,))
        return known

    def _count(self, intervals: Sequence[Interval]) -> Contents:
        ends_K2 = np.array(intervals, dtype=np.int64).reshape(-1, 2)
        start_K, stop_K = ends_K2[:, 0], ends_K2[:, 1]
        if len(ends_K2) and not ((start_K >= 0) & (start_K < stop_K) & (stop_K <= self.num_layers)).all():
            raise ValueError(f"intervals must be [a, b) with 0 <= a < b <= {self.num_layers}")
        count_JK = (self._before_LJ[stop_K] - self._before_LJ[start_K]).T.astype(np.float64)
        params_K = np.zeros(len(ends_K2))
        trainable_K = np.zeros(len(ends_K2))
        tied_away_K = np.zeros(len(ends_K2))
        limit_K = np.full(len(ends_K2), np.inf)
        for count_K, kind in zip(count_JK, self.kinds, strict=True):
            params_K += count_K * kind.params
            trainable_K += count_K * kind.trainable_params
            limit_K = np.where(count_K > 0, np.minimum(limit_K, kind.tensor_parallel_max), limit_K)
        for i, home, layer in self._ties:
            copy_K = (start_K <= i) & (i < stop_K)
            home_K = (start_K <= home) & (home < stop_K)
            params_K -= np.where(copy_K & home_K, layer.shared_params, 0)
            trainable_K -= np.where(copy_K & home_K, layer.shared_trainable_params, 0)
            tied_away_K += np.where(copy_K ^ home_K, layer.shared_trainable_params, 0)
        return Contents(
            count_JK=np.ascontiguousarray(count_JK),
            present_JK=np.ascontiguousarray(count_JK > 0),
            num_layers_K=(stop_K - start_K).astype(np.float64),
            params_K=params_K,
            trainable_K=trainable_K,
            tied_away_K=tied_away_K,
            tensor_parallel_max_K=limit_K,
        )
