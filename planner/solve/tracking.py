"""Which device classes a sweep counts exactly, and the work arrays for that.

Where no usage multipliers make a cut strong enough, paths that use a class too often balance others that use
it less. Counting that class exactly takes such paths away; each further class multiplies the work.

Legend: see sweep.py; I tracked classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from planner.solve.path_kernels import Devices
from planner.solve.paths import Paths
from planner.solve.tables import FloatArray
from planner.solve.tracked_kernels import Net, TrackedScratch, new_net, new_tracked, num_budgets

CLASSES_MAX = 3
BUDGETS_MAX = 128
"""Combinations of devices left that a search may tell apart."""
KEPT_MAX = 3


class Charges(NamedTuple):
    """What a cut charges for devices: `usage_2C` per visit and once, nothing for tracked classes.

    `full_2C` also says what tracked classes were charged before they were tracked.
    """

    usage_2C: FloatArray
    full_2C: FloatArray
    tracked: tuple[int, ...]

    def tracking(self, tracked: tuple[int, ...]) -> Charges:
        """Other tracked classes, the same charges else."""
        return Charges(without(self.full_2C, tracked), self.full_2C, tracked)

    def at(self, usage_2C: FloatArray) -> Charges:
        """Other charges, the same tracked classes."""
        full_2C = usage_2C.copy()
        full_2C[:, list(self.tracked)] = self.full_2C[:, list(self.tracked)]
        return Charges(usage_2C, full_2C, self.tracked)


def no_charges(num_classes: int) -> Charges:
    """Devices are free and none is tracked."""
    nothing_2C = np.zeros((2, num_classes))
    return Charges(nothing_2C, nothing_2C, ())


class Tracker:
    """Chooses classes for one mode and keeps the work arrays of the last choices."""

    def __init__(self, paths: Paths, devices: Devices) -> None:
        self._paths, self._devices = paths, devices
        self._kept: dict[tuple[int, ...], TrackedScratch] = {}
        self._net: Net | None = None

    @property
    def net(self) -> Net:
        """Room for the arcs of a search."""
        if self._net is None:
            self._net = new_net(self._paths)
        return self._net

    def scratch(self, tracked: tuple[int, ...]) -> TrackedScratch:
        """Work arrays for these classes."""
        kept = self._kept.pop(tracked, None)
        if kept is None:
            kept = new_tracked(self._paths, self._devices, tracked)
        self._kept[tracked] = kept
        while len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        return kept

    def more(self, tracked: tuple[int, ...], worth_C: FloatArray) -> tuple[int, ...]:
        """The tracked classes and the one of most worth besides; empty when there is none to add.

        Where that is too much work, those tracked for the longest time make room.
        """
        for c in np.argsort(-worth_C, kind="stable").tolist():
            if worth_C[c] <= 0.0:
                break
            if c in tracked:
                continue
            for start in range(len(tracked) + 1):
                choice = (*tracked[start:], int(c))
                if len(choice) <= CLASSES_MAX and num_budgets(self._devices, choice) <= BUDGETS_MAX:
                    return choice
        return ()


def without(usage_2C: FloatArray, tracked: Sequence[int]) -> FloatArray:
    """The usage multipliers with none on tracked classes."""
    rest_2C = usage_2C.copy()
    rest_2C[:, list(tracked)] = 0.0
    return rest_2C
