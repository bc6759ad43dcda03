"""Which device counts hold which layers: stage candidates without their times.

Clusters that take the same devices of the same classes stand in for each other here, so a fleet with many
strategies has few holders. Legend of array suffixes: H holders, A first layer, B border after the last layer,
Q micro-batches in flight (position 0 stands for one), C device classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import tabulate
from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem, Mode

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Devices that can serve as one stage.

    `width` tells data-parallel widths apart where they matter (else 0). `fits_QAB` says whether one of its
    strategies holds layers [a, b) with so many micro-batches in flight; `templates` lists them.
    """

    site_i: int
    usage_C: IntArray
    width: int
    templates: tuple[int, ...]
    fits_QAB: BoolArray

    def template_for(
        self, problem: BoundaryProblem, mode: Mode, interval: tuple[int, int], in_flight: int
    ) -> int:
        """The first of the holder's clusters on which the cost model confirms the stage, else the first."""
        for template_i in self.templates:
            template = problem.templates[template_i]
            cost = problem.cost_model.stage(
                template.cluster, interval, template.strategy, mode.micro_batch_size, in_flight
            )
            if cost is not None and cost.fits:
                return template_i
        return self.templates[0]


@dataclass(frozen=True, kw_only=True)
class ModeFits:
    """The holders of one mode. `linked_SS` tells which site may send to which."""

    problem: BoundaryProblem
    mode: Mode
    holders: tuple[Holder, ...]
    linked_SS: BoolArray
    round_robin: bool

    @property
    def max_stages(self) -> int:
        """Stages a replica of this mode may have."""
        return min(self.mode.max_stages, self.problem.num_layers)

    def fits_AB(self, holder: Holder, num_behind: int, width_behind: int) -> BoolArray:
        """What a holder can hold in front of so many stages of so many ranks together."""
        count = self.mode.num_micro_batches
        if self.round_robin:
            in_flight = -(-min(count, width_behind + holder.width) // holder.width)
        else:
            in_flight = min(count, num_behind + 1)
        at = min(in_flight, holder.fits_QAB.shape[0]) - 1
        return np.asarray(holder.fits_QAB[at])


def mode_fits(problem: BoundaryProblem) -> Iterator[ModeFits]:
    """The holders of every mode."""
    for mode in problem.modes:
        if mode.templates:
            yield fits_of(problem, mode)


def fits_of(problem: BoundaryProblem, mode: Mode) -> ModeFits:
    """The holders of a mode, cleared for what they hold."""
    intervals, kind_AB, cleared_by_tier = _intervals(problem)
    round_robin = problem.workload.job.schedule == ROUND_ROBIN
    depth = min(mode.max_stages, problem.num_layers)
    widest = max(problem.templates[i].strategy.dp for i in mode.templates)
    most = depth * widest if round_robin else depth
    groups: dict[tuple[int, tuple[tuple[int, int], ...], int], tuple[list[int], BoolArray]] = {}
    for template_i in mode.templates:
        template = problem.templates[template_i]
        table = tabulate(
            problem.cost_model,
            template.cluster,
            intervals,
            template.strategy,
            mode.micro_batch_size,
            min(mode.num_micro_batches, most),
        )
        fits_KQ = np.isfinite(table.busy_s_KQ)
        if not fits_KQ.any():
            continue
        key = (template.site_i, template.usage, template.strategy.dp if round_robin else 0)
        members, known_KQ = groups.setdefault(key, ([], np.zeros_like(fits_KQ)))
        members.append(template_i)
        known_KQ |= fits_KQ
    holders = []
    for (site_i, usage, width), (members, fits_KQ) in groups.items():
        usage_C = np.zeros(len(problem.classes), dtype=np.int64)
        for class_i, count in usage:
            usage_C[class_i] = count
        # One more row that never fits stands for intervals that are none.
        padded_KQ = np.vstack([fits_KQ, np.zeros((1, fits_KQ.shape[1]), dtype=bool)])
        fits_QAB = (
            np.moveaxis(padded_KQ[kind_AB], 2, 0) & cleared_by_tier[problem.templates[members[0]].tier_i]
        )
        if fits_QAB.any():
            holders.append(
                Holder(
                    site_i=site_i,
                    usage_C=usage_C,
                    width=width,
                    templates=tuple(members),
                    fits_QAB=np.ascontiguousarray(fits_QAB),
                )
            )
    linked_SS = np.array([[link is not None for link in row] for row in problem.links], dtype=bool)
    return ModeFits(
        problem=problem, mode=mode, holders=tuple(holders), linked_SS=linked_SS, round_robin=round_robin
    )


def _intervals(
    problem: BoundaryProblem,
) -> tuple[tuple[tuple[int, int], ...], IntArray, dict[int, BoolArray]]:
    """One interval of each kind, the kind of every interval, and which intervals each clearance may hold."""
    num_layers = problem.num_layers
    position: dict[Hashable, int] = {}
    first: list[tuple[int, int]] = []
    kind_AB = np.full((num_layers, num_layers + 1), -1, dtype=np.int64)
    tier_AB = np.full((num_layers, num_layers + 1), np.iinfo(np.int64).max, dtype=np.int64)
    for a in range(num_layers):
        tier_i = 0
        for b in range(a + 1, num_layers + 1):
            tier_i = max(tier_i, problem.tier_required[b - 1])
            key = problem.cost_model.interval_key((a, b))
            if key not in position:
                position[key] = len(first)
                first.append((a, b))
            kind_AB[a, b] = position[key]
            tier_AB[a, b] = tier_i
    kind_AB[kind_AB < 0] = len(first)
    tiers = {template.tier_i for template in problem.templates}
    return tuple(first), kind_AB, {tier_i: tier_AB <= tier_i for tier_i in tiers}
