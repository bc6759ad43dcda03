"""Search for real replicas: fronts with true device counts, led by relaxed costs of what is still to come.

Legend: see single_arrays.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from planner.objective import StageChoice
from planner.solve.single_arrays import BEFORE, BORDER, ENTRY, FILL, PEAK, SYNC, Costs, Fronts, Room, View
from planner.solve.single_label_kernels import extend_labels

LABELS = 2_000_000
COMPARED = 200
BUFFER = (20_000, 200)
"""Least size of the buffer for one state, and its size per front kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best replica below the limit, if any; no chain that was given up runs below `missed_s`.

    `num_fronts` were kept.
    """

    step_s: float
    stages: tuple[StageChoice, ...]
    missed_s: float
    num_fronts: int


class LabelSearch:
    """Memory for fronts, used again by every search."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._kept = _fronts(LABELS, room.guard_X.size)
        self._found = _fronts(0, room.guard_X.size)

    def run(
        self,
        view: View,
        costs: Costs,
        once: float,
        from_s: float,
        below_s: float,
        width: int,
        should_stop: Callable[[], bool],
    ) -> Found:
        """The best replica found below `below_s` seconds per step, its load in the view and above `from_s`.

        `costs` are those of the relaxed path problem with multipliers whose unconditional part is `once`. At
        most `width` fronts per stages left, border and site.
        """
        num_stages, num_layers, num_sites = costs.stage_QLS.shape
        size = max(BUFFER[0], BUFFER[1] * width)
        if self._found.figure_ZF.shape[0] < size:
            self._found = _fronts(size, self.room.guard_X.size)
        range_2BS = np.zeros((2, num_layers + 1, num_sites), dtype=np.int64)
        next_2BS = np.zeros_like(range_2BS)
        at, missed = 0, inf
        best_s, best_z = below_s, -1
        for q in range(num_stages - 1, -1, -1):
            if should_stop():
                return Found(step_s=inf, stages=(), missed_s=-inf, num_fronts=at)
            at, dropped = extend_labels(
                q,
                view,
                costs,
                self.room,
                from_s,
                below_s + once,
                width,
                COMPARED,
                range_2BS,
                next_2BS,
                at,
                self._kept,
                self._found,
            )
            missed = min(missed, dropped - once)
            range_2BS, next_2BS = next_2BS, range_2BS
        for first, num in range_2BS[:, num_layers].T.tolist():
            steps_Z = self._kept.figure_ZF[first : first + num, (FILL, PEAK, SYNC)].sum(axis=1)
            if num and steps_Z.min() < best_s:
                best_s, best_z = float(steps_Z.min()), first + int(steps_Z.argmin())
        if best_z < 0:
            return Found(step_s=inf, stages=(), missed_s=missed, num_fronts=at)
        stages = self._stages(view, best_z)
        return Found(step_s=best_s, stages=stages, missed_s=missed, num_fronts=at)

    def _stages(self, view: View, z: int) -> tuple[StageChoice, ...]:
        """The chain of a front, first stage first."""
        parts: list[tuple[int, int]] = []
        while z >= 0:
            origin_I = self._kept.origin_ZI[z]
            parts.append((int(view.template_E[origin_I[ENTRY]]), int(origin_I[BORDER])))
            z = int(origin_I[BEFORE])
        parts.reverse()
        starts = [0, *(border for _, border in parts)]
        return tuple(
            StageChoice(template_i=template_i, start=start, stop=stop)
            for (template_i, stop), start in zip(parts, starts, strict=False)
        )


def _fronts(num: int, num_words: int) -> Fronts:
    return Fronts(
        figure_ZF=np.empty((num, 5)),
        used_ZX=np.empty((num, num_words), dtype=np.int64),
        origin_ZI=np.empty((num, 4), dtype=np.int64),
    )
