"""Sets of devices-taken-per-class vectors, packed into 64-bit words, with componentwise dominance.

Every class gets a field wide enough for twice its devices and one guard bit above it, so that adding two
admissible vectors never overflows a field and one subtraction compares all fields at once: u <= v holds in
every field exactly when (v | guards) - u keeps all guards.

Legend of array suffixes: N labels, W words, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.problem import BoundaryProblem

LabelArray = NDArray[np.int64]
WORD_BITS = 62
ROW_TOLERANCE_FRAC = 1e-9
"""Relative slack of capacity rows with non-integer coefficients, so that equality survives rounding."""
BLOCK = 512
"""Labels compared with all kept ones at a time; bounds the memory of one comparison."""


class Packer:
    """Turns device counts into labels and back; knows what the boundary's capacity rows admit."""

    def __init__(self, problem: BoundaryProblem) -> None:
        devices = [device_class.num_devices for device_class in problem.classes]
        self._field_bits = [(2 * count).bit_length() + 1 for count in devices]
        self._word: list[int] = []
        self._shift: list[int] = []
        used, word = 0, 0
        for bits in self._field_bits:
            if used + bits > WORD_BITS:
                used, word = 0, word + 1
            self._word.append(word)
            self._shift.append(used)
            used += bits
        self.num_words = word + 1
        self._guard_W = self._pack_one([1 << (bits - 1) for bits in self._field_bits])
        self._full_W = self._pack_one(devices)
        self._weight_RC = np.zeros((len(problem.rows), len(devices)))
        for r, row in enumerate(problem.rows):
            for class_i, coefficient in row.coefficients:
                self._weight_RC[r, class_i] = coefficient
        limit_R = np.array([row.limit * (1.0 + ROW_TOLERANCE_FRAC) for row in problem.rows])
        binds_R = self._weight_RC @ np.array(devices) > limit_R  # class rows hold by the width of the fields
        self._weight_RC, self._limit_R = self._weight_RC[binds_R], limit_R[binds_R]

    def _pack_one(self, counts: Sequence[int]) -> LabelArray:
        label_W = np.zeros(self.num_words, dtype=np.int64)
        for word, shift, count in zip(self._word, self._shift, counts, strict=True):
            label_W[word] += count << shift
        return label_W

    def pack(self, usage: Sequence[tuple[int, int]]) -> LabelArray:
        """One label (W) from (class, devices) pairs."""
        counts = [0] * len(self._shift)
        for class_i, count in usage:
            counts[class_i] = count
        return self._pack_one(counts)

    def unpack(self, labels_NW: LabelArray) -> NDArray[np.int64]:
        """Devices per class (N, C) of labels."""
        columns = [
            (labels_NW[:, word] >> shift) & ((1 << bits) - 1)
            for word, shift, bits in zip(self._word, self._shift, self._field_bits, strict=True)
        ]
        return np.stack(columns, axis=1)

    def admissible(self, labels_NW: LabelArray) -> LabelArray:
        """The labels that every capacity row admits."""
        kept_NW = labels_NW[self._below(labels_NW, self._full_W)]
        if len(self._limit_R) and len(kept_NW):
            load_NR = self.unpack(kept_NW) @ self._weight_RC.T
            kept_NW = kept_NW[(load_NR <= self._limit_R).all(axis=1)]
        return kept_NW

    def pareto(self, labels_NW: LabelArray) -> LabelArray:
        """The labels that no other label is below, each once, by total devices and then by word."""
        labels_NW = np.unique(labels_NW, axis=0) if self.num_words > 1 else np.unique(labels_NW)[:, None]
        if len(labels_NW) < 2:
            return labels_NW
        total_N = self.unpack(labels_NW).sum(axis=1)
        kept_NW = labels_NW[:0]
        for total in np.unique(total_N):
            level_NW = labels_NW[total_N == total]
            kept_NW = np.concatenate([kept_NW, level_NW[~self._dominated(level_NW, kept_NW)]])
        return kept_NW

    def _below(self, labels_NW: LabelArray, above_W: LabelArray) -> NDArray[np.bool_]:
        difference_NW = (above_W | self._guard_W) - labels_NW
        kept_N: NDArray[np.bool_] = ((difference_NW & self._guard_W) == self._guard_W).all(axis=1)
        return kept_N

    def _dominated(self, labels_NW: LabelArray, kept_NW: LabelArray) -> NDArray[np.bool_]:
        dominated_N = np.zeros(len(labels_NW), dtype=np.bool_)
        if len(kept_NW):
            for first in range(0, len(labels_NW), BLOCK):
                block_NW = labels_NW[first : first + BLOCK] | self._guard_W
                below = np.ones((len(block_NW), len(kept_NW)), dtype=np.bool_)
                for word in range(self.num_words):
                    guard = self._guard_W[word]
                    below &= ((block_NW[:, None, word] - kept_NW[None, :, word]) & guard) == guard
                dominated_N[first : first + BLOCK] = below.any(axis=1)
        return dominated_N
