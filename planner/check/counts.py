"""Device counts as a dense grid, and the best packing of one speed per count over the capacity rows.

Legend: C device classes, U device counts (0..N_c of every class, the last class fastest), R capacity rows, P
pairs of counts whose sum stays on the grid.
"""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from planner.check.columns import FloatArray, IntArray
from planner.check.report import REL_TOLERANCE
from planner.problem import BoundaryProblem, ObjectiveKind

PAIRS_MAX = 12_000_000


class CountGrid:
    """All device counts of a boundary; `inside_U` tells which keep every capacity row."""

    def __init__(self, problem: BoundaryProblem) -> None:
        self.problem = problem
        self.shape = tuple(c.num_devices + 1 for c in problem.classes)
        self.size = prod(self.shape)
        self.count_UC: IntArray = np.indices(self.shape).reshape(len(self.shape), -1).T.astype(np.int64)
        row_RC = np.zeros((len(problem.rows), len(self.shape)))
        for r, row in enumerate(problem.rows):
            for class_i, coefficient in row.coefficients:
                row_RC[r, class_i] += coefficient
        limit_R = np.array([row.limit for row in problem.rows])
        within_UR = self.count_UC @ row_RC.T <= limit_R + REL_TOLERANCE * np.abs(limit_R)
        self.inside_U: NDArray[np.bool_] = within_UR.all(axis=1)
        self.usd_U: FloatArray = self.count_UC @ np.array([c.device.usd_per_hour for c in problem.classes])

    def codes(self, usage_NC: IntArray) -> IntArray:
        """Positions of device counts, which must be on the grid."""
        code_N: IntArray = np.ravel_multi_index(tuple(usage_NC.T), self.shape)
        return code_N

    def most_within(self, value_U: FloatArray) -> FloatArray:
        """For each count the largest value of any count with no more devices of any class."""
        dense = value_U.reshape(self.shape).copy()
        for axis in range(dense.ndim):
            np.maximum.accumulate(dense, axis=axis, out=dense)
        return dense.reshape(-1)

    def box_around(self, wanted_U: NDArray[np.bool_]) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
        """The shape of the smallest grid that holds the wanted counts, and which counts lie on it."""
        box_C = self.count_UC[wanted_U].max(axis=0) + 1
        in_box_U: NDArray[np.bool_] = (self.count_UC < box_C).all(axis=1)
        return tuple(box_C.tolist()), in_box_U

    @cached_property
    def pairs(self) -> tuple[IntArray, IntArray, IntArray]:
        """Pairs of counts (one, rest) ordered by their sum, and where the pairs of each count begin."""
        one_P, rest_P = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        for size in self.shape:
            one, rest = np.divmod(np.arange(size * size), size)
            fits = one + rest < size
            one_P = (one_P[:, None] * size + one[fits]).reshape(-1)
            rest_P = (rest_P[:, None] * size + rest[fits]).reshape(-1)
        order_P = np.argsort(one_P + rest_P, kind="stable")
        one_P, rest_P = one_P[order_P], rest_P[order_P]
        return one_P, rest_P, np.searchsorted(one_P + rest_P, np.arange(self.size))


def num_pairs(problem: BoundaryProblem) -> int:
    """How many pairs of device counts a packing goes through for every replica."""
    return prod((c.num_devices + 1) * (c.num_devices + 2) // 2 for c in problem.classes)


def better_packing(grid: CountGrid, speed_U: FloatArray, value: float | None) -> float | None:
    """The value of a set of replicas, one speed per device count, that is better than `value`, or None.

    Without a value any set that meets the demands is better. With a speed ratio r the slowest speed is split
    into ranges: counts slower than a range are dropped, faster ones count at most r times its upper end,
    which is never too little, and exact once the range is one speed.
    """
    ratio = grid.problem.speed_ratio_max
    found = _unthrottled(grid, speed_U, value)
    if found is None or ratio is None:
        return found
    speeds = np.unique(speed_U[speed_U > 0.0])
    ranges = [(0, len(speeds) - 1)]
    while ranges:
        low, high = ranges.pop()
        slow_U = speed_U < speeds[low]
        found = _unthrottled(grid, np.where(slow_U, 0.0, np.minimum(speed_U, ratio * speeds[high])), value)
        if found is not None and low == high:
            return found
        if found is not None:
            middle = (low + high) // 2
            ranges += [(low, middle), (middle + 1, high)]
    return None


def _unthrottled(grid: CountGrid, speed_U: FloatArray, value: float | None) -> float | None:
    """A better set without a speed ratio: sets grow by one replica, the fastest per device count is kept."""
    problem = grid.problem
    num_max = problem.replicas_max
    if num_max is None:
        num_max = int(grid.count_UC[-1].sum())
    one_P, rest_P, first_U = grid.pairs
    item_U = np.where(speed_U > 0.0, speed_U, -np.inf)
    total_U = np.full(grid.size, -np.inf)
    total_U[0] = 0.0
    for count in range(1, num_max + 1):
        with np.errstate(over="ignore"):
            total_U = np.maximum.reduceat(item_U[one_P] + total_U[rest_P], first_U)
        if not (total_U > -np.inf).any():
            return None
        if count >= max(1, problem.replicas_min):
            found = _better(grid, total_U, value)
            if found is not None:
                return found
    return None


def _better(grid: CountGrid, total_U: FloatArray, value: float | None) -> float | None:
    good_U = grid.inside_U & (total_U > -np.inf)
    if grid.problem.objective.kind is ObjectiveKind.PRICE:
        good_U &= total_U >= (grid.problem.objective.tokens_per_s_min or 0.0)
        if value is not None:
            good_U &= grid.usd_U < value - REL_TOLERANCE * abs(value)
        return float(grid.usd_U[good_U].min()) if good_U.any() else None
    if value is not None:
        good_U &= total_U > value + REL_TOLERANCE * abs(value)
    return float(total_U[good_U].max()) if good_U.any() else None
