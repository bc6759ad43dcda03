"""Every path of a mode, one by one, from problem and cost model alone: the measure of compiled searches.

A path may use a class more often than it has devices; it is real when the capacity rows allow it.

Legend: C device classes, P paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import StageCost
from planner.objective import StageChoice, step_time_s
from planner.problem import BoundaryProblem, Mode
from solver.micro_fleets import CONDITIONS, Condition, micro_case

PATHS_MAX = 20_000
Chain = tuple[StageChoice, ...]


@dataclass(frozen=True, kw_only=True)
class AllPaths:
    """Fill seconds, load and step seconds of all paths; devices used and visits to the site of each class."""

    chains: list[Chain]
    fill_P: NDArray[np.float64]
    load_P: NDArray[np.float64]
    step_P: NDArray[np.float64]
    usage_PC: NDArray[np.float64]
    visits_PC: NDArray[np.float64]
    real_P: NDArray[np.bool_]


def all_paths(problem: BoundaryProblem, mode: Mode) -> AllPaths | None:
    """All paths of a mode; None when there are too many to list."""
    lister = _Lister(problem, mode)
    chains: list[Chain] = []
    for chain in lister.chains(()):
        chains.append(chain)
        if len(chains) > PATHS_MAX:
            return None
    times = np.array([lister.times(chain) for chain in chains]).reshape(-1, 3)
    num_classes = len(problem.classes)
    usage_PC = np.array([lister.usage_C(chain) for chain in chains]).reshape(-1, num_classes)
    return AllPaths(
        chains=chains,
        fill_P=times[:, 0],
        load_P=times[:, 1],
        step_P=times[:, 2],
        usage_PC=usage_PC,
        visits_PC=np.array([lister.visits_C(chain) for chain in chains]).reshape(-1, num_classes),
        real_P=np.array([lister.is_real(usage_C) for usage_C in usage_PC], dtype=bool),
    )


class _Lister:
    def __init__(self, problem: BoundaryProblem, mode: Mode) -> None:
        self.problem, self.mode = problem, mode
        self._costs: dict[tuple[StageChoice, int], StageCost | None] = {}

    def chains(self, tail: Chain) -> Iterator[Chain]:
        """All ways to put stages before the given last ones."""
        if tail and tail[0].start == 0:
            yield tail
        elif len(tail) < self.mode.max_stages:
            stop = tail[0].start if tail else self.problem.num_layers
            for template_i in self.mode.templates:
                for start in range(stop):
                    stage = StageChoice(template_i=template_i, start=start, stop=stop)
                    linked = not tail or self._link_s(stage, tail[0]) is not None
                    if linked and self._cost(stage, len(tail) + 1) is not None:
                        yield from self.chains((stage, *tail))

    def times(self, chain: Chain) -> tuple[float, float, float]:
        """Fill seconds, load and step seconds."""
        formula = self.problem.formula(self.mode)
        costs = [self._cost(stage, len(chain) - i) for i, stage in enumerate(chain)]
        busy_s = [cost.busy_s for cost in costs if cost is not None]
        sync_s = [cost.sync_s for cost in costs if cost is not None]
        hops_s = [self._link_s(before, after) or 0.0 for before, after in pairwise(chain)]
        loads_s = [formula.repeats * hop_s for hop_s in hops_s]
        for busy, sync in zip(busy_s, sync_s, strict=True):
            loads_s.append(formula.repeats * busy + (sync if formula.sync else 0.0))
        fill_s = formula.fill * (sum(busy_s) + sum(hops_s))
        return fill_s, max(loads_s), step_time_s(formula, busy_s, hops_s, sync_s)

    def usage_C(self, chain: Chain) -> list[float]:
        """Devices taken of each class."""
        usage_C = [0.0] * len(self.problem.classes)
        for stage in chain:
            for class_i, count in self.problem.templates[stage.template_i].usage:
                usage_C[class_i] += count
        return usage_C

    def visits_C(self, chain: Chain) -> list[float]:
        """How often the site of each class is entered."""
        sites = [self.problem.templates[stage.template_i].site_i for stage in chain]
        entered = [sites[0], *(after for before, after in pairwise(sites) if after != before)]
        return [float(entered.count(c.site_i)) for c in self.problem.classes]

    def is_real(self, usage_C: NDArray[np.float64]) -> bool:
        """Whether every capacity row holds."""
        return all(
            sum(weight * usage_C[class_i] for class_i, weight in row.coefficients) <= row.limit + 1e-9
            for row in self.problem.rows
        )

    def _link_s(self, before: StageChoice, after: StageChoice) -> float | None:
        templates = self.problem.templates
        link = self.problem.links[templates[before.template_i].site_i][templates[after.template_i].site_i]
        if link is None:
            return None
        return self.problem.cost_model.transfer_s(link, after.start, self.mode.micro_batch_size)

    def _cost(self, stage: StageChoice, stages_left: int) -> StageCost | None:
        in_flight = min(self.mode.num_micro_batches, stages_left)
        if (stage, in_flight) not in self._costs:
            self._costs[(stage, in_flight)] = self._stage(stage, in_flight)
        return self._costs[(stage, in_flight)]

    def _stage(self, stage: StageChoice, in_flight: int) -> StageCost | None:
        template = self.problem.templates[stage.template_i]
        layers = (stage.start, stage.stop)
        if template.tier_i < max(self.problem.tier_required[stage.start : stage.stop]):
            return None
        cost = self.problem.cost_model.stage(
            template.cluster, layers, template.strategy, self.mode.micro_batch_size, in_flight
        )
        return cost if cost is not None and cost.fits else None


def listable(seeds: range, conditions: tuple[Condition, ...] = CONDITIONS) -> list[tuple[int, Condition]]:
    """Seeds with conditions in turn."""
    return [(seed, conditions[seed % len(conditions)]) for seed in seeds]


def problem_of(seed: int, condition: Condition) -> BoundaryProblem:
    """The problem of a seed; every third has the analytic cost model, the others arbitrary tables."""
    return micro_case(seed, condition, foreign=seed % 3 != 0).problem()
