"""All device counts a small fleet can lend, and the exact packing of replicas over them.

Legend: U device counts (one number of devices per class, within every capacity row), C device classes, R
capacity rows, M replicas to choose from, K replicas so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.problem import BoundaryProblem
from planner.solve.columns import Shape
from planner.solve.small_kernels import below, packings
from planner.solve.tables import FloatArray, IntArray

BoolArray = NDArray[np.bool_]


class Lattice:
    """Device counts within the capacity rows: closed downwards, since no row has a negative coefficient."""

    def __init__(self, shape: Shape) -> None:
        devices_C = shape.devices_C
        grid_CU = np.indices(tuple(int(n) + 1 for n in devices_C)).reshape(devices_C.size, -1)
        fits_U = np.all(
            shape.coefficient_RC @ grid_CU <= (shape.limit_R * (1 + 1e-12) + 1e-9)[:, None], axis=0
        )
        self.count_UC: IntArray = np.ascontiguousarray(grid_CU[:, fits_U].T)
        self.total_U: IntArray = self.count_UC.sum(axis=1)
        self.usd_U: FloatArray = self.count_UC @ shape.usd_C
        wide_C = 2 * devices_C + 1  # the sum of two counts never carries over into the next class
        self._radix_C = np.concatenate(([1], np.cumprod(wide_C)[:-1])).astype(np.int64)
        self._code_U: IntArray = self.count_UC @ self._radix_C
        self._position = np.full(int(np.prod(wide_C)), self.size, dtype=np.int32)
        self._position[self._code_U] = np.arange(self.size)
        self.order_U: IntArray = np.argsort(-self.total_U, kind="stable")
        self._more_UC = self._position[self._code_U[:, None] + self._radix_C]
        self._dense = tuple(int(n) + 1 for n in devices_C)
        self._flat_U = np.ravel_multi_index(tuple(self.count_UC.T), self._dense)

    @property
    def size(self) -> int:
        """How many counts there are; also the position that stands for `outside`."""
        return int(self.count_UC.shape[0])

    def position(self, count_C: IntArray) -> int:
        """Where a count stands, or `size` when it breaks a row."""
        if np.any(count_C > np.array(self._dense) - 1):
            return self.size
        return int(self._position[int(count_C @ self._radix_C)])

    def sums(self, of_M: IntArray, onto_U: IntArray) -> NDArray[np.int32]:
        """Positions of `of_M[m] + onto_U[u]`, `size` where that breaks a row; shape (M, U)."""
        found: NDArray[np.int32] = self._position[self._code_U[of_M][:, None] + self._code_U[onto_U][None, :]]
        return found

    def added(self, one_N: IntArray, other_N: IntArray) -> NDArray[np.int32]:
        """Positions of `one_N[n] + other_N[n]`, `size` where that breaks a row."""
        found: NDArray[np.int32] = self._position[self._code_U[one_N] + self._code_U[other_N]]
        return found

    def packings(
        self, order_U: IntArray, column_M: IntArray, worth_M: FloatArray, end_K: FloatArray, bounded: bool
    ) -> FloatArray:
        """Most that more replicas can add, by count and replicas so far (planner.solve.small_kernels)."""
        return packings(order_U, self._code_U, self._position, column_M, worth_M, end_K, bounded)

    def most_within(self, value_U: FloatArray) -> FloatArray:
        """For each count the largest value of any count with no more devices of any class."""
        dense = np.full(self._dense, -np.inf)
        dense.reshape(-1)[self._flat_U] = value_U
        for axis in range(dense.ndim):
            np.maximum.accumulate(dense, axis=axis, out=dense)
        most_U: FloatArray = dense.reshape(-1)[self._flat_U]
        return most_U

    def below(self, wanted_U: BoolArray) -> BoolArray:
        """Counts with no more devices than some wanted one."""
        return below(wanted_U, self.order_U, self._more_UC)

    def undominated(self, value_U: FloatArray) -> IntArray:
        """Positive values that no count with fewer devices reaches."""
        most = np.full(self._dense, -np.inf)
        most.reshape(-1)[self._flat_U] = self.most_within(value_U)
        least = np.zeros(self._dense)
        for axis in range(most.ndim):
            ahead = [slice(None)] * most.ndim
            behind = [slice(None)] * most.ndim
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            np.maximum(least[tuple(ahead)], most[tuple(behind)], out=least[tuple(ahead)])
        return np.flatnonzero(value_U > least.reshape(-1)[self._flat_U])


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A best packing: total speed as counted, and the device counts of its replicas."""

    tokens_per_s: float
    counts: tuple[int, ...]


class Packer:
    """Exact packing of one speed per device count, under the limits on replicas and the speed ratio."""

    def __init__(self, problem: BoundaryProblem, lattice: Lattice) -> None:
        self.lattice = lattice
        self.ratio = problem.speed_ratio_max
        self.fewest = max(1, problem.replicas_min)
        self.most = problem.replicas_max
        top = self.fewest if self.most is None else self.most
        self.num_states = top + 1

    def to_go(self, value_U: FloatArray, allowed_U: BoolArray | None = None) -> FloatArray:
        """Most that more replicas can add to k replicas on given devices, -inf if no end is admitted.

        Shape (K, U + 1). Without a limit on replicas the last k stands for that many or more. `allowed_U`
        restricts the devices in use, and must be closed downwards.
        """
        column_M = self.lattice.undominated(value_U)
        order_U = self.lattice.order_U
        if allowed_U is not None:
            order_U = order_U[allowed_U[order_U]]
        end_K = np.where(np.arange(self.num_states) >= self.fewest, 0.0, -np.inf)
        go_UK = self.lattice.packings(order_U, column_M, value_U[column_M], end_K, self.most is not None)
        return go_UK.T

    def best(
        self, value_U: FloatArray, allowed_U: BoolArray | None = None, beat: float = -np.inf
    ) -> Choice | None:
        """A packing of most tokens/s, or None when none is admitted or none beats `beat`."""
        free = self._unthrottled(value_U, allowed_U)
        if free is None or free.tokens_per_s <= beat or self.ratio is None:
            return free if free is not None and free.tokens_per_s > beat else None
        speeds = np.unique(value_U[self.lattice.undominated(value_U)])
        found: Choice | None = None
        ranges = [(free.tokens_per_s, 0, speeds.size - 1)]
        while ranges:
            ranges.sort()
            bound, low, high = ranges.pop()
            if bound <= beat:
                break
            if low == high:
                choice = self._between(value_U, allowed_U, float(speeds[low]), float(speeds[low]))
                if choice is not None and choice.tokens_per_s > beat:
                    found, beat = choice, choice.tokens_per_s
                continue
            middle = (low + high) // 2
            for one, other in ((low, middle), (middle + 1, high)):
                choice = self._between(value_U, allowed_U, float(speeds[one]), float(speeds[other]))
                if choice is not None and choice.tokens_per_s > beat:
                    ranges.append((choice.tokens_per_s, one, other))
        return found

    def _between(
        self, value_U: FloatArray, allowed_U: BoolArray | None, slowest: float, most: float
    ) -> Choice | None:
        """Upper bound on packings whose slowest replica runs at slowest..most; exact when both are equal."""
        counted_U = np.where(value_U >= slowest, np.minimum(value_U, (self.ratio or np.inf) * most), 0.0)
        return self._unthrottled(counted_U, allowed_U)

    def _unthrottled(self, value_U: FloatArray, allowed_U: BoolArray | None) -> Choice | None:
        go_KU = self.to_go(value_U, allowed_U)
        if not np.isfinite(go_KU[0, 0]):
            return None
        column_M = self.lattice.undominated(value_U)
        counts: list[int] = []
        used, k = 0, 0
        while k < self.fewest or go_KU[k, used] > 0.0:
            following = min(k + 1, self.num_states - 1)
            next_M = self.lattice.sums(column_M, np.array([used]))[:, 0]
            m = int((value_U[column_M] + go_KU[following, next_M]).argmax())
            counts.append(int(column_M[m]))
            used, k = int(next_M[m]), following
        return Choice(tokens_per_s=float(go_KU[0, 0]), counts=tuple(counts))


def cheapest(packer: Packer, value_U: FloatArray, target: float, below_usd: float) -> Choice | None:
    """A packing of at least `target` tokens/s that costs least; None when all cost `below_usd` or more."""
    lattice = packer.lattice
    levels: Sequence[float] = np.unique(lattice.usd_U[lattice.usd_U < below_usd]).tolist()
    beat = float(np.nextafter(target, -np.inf))
    low, high, found = 0, len(levels), None
    while low < high:
        middle = (low + high) // 2
        choice = packer.best(value_U, lattice.usd_U <= levels[middle], beat)
        if choice is None:
            low = middle + 1
        else:
            high, found = middle, choice
    return found
