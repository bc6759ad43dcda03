"""Which candidate cluster runs given layers fastest, each priced once for all stages of a plan.

Legend of array suffixes: T candidate clusters, A stages asked about, K intervals, Q micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import Interval, TabulatedCostModel
from planner.problem import BoundaryProblem

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A stage: layers [a, b), micro-batches in flight, and their size."""

    layers: Interval
    in_flight: int
    micro_batch_size: int


class Quickest:
    """Busy seconds of clusters for stages of one plan; what was asked once is remembered.

    `stages` are those that will be asked about: a cost model with tables prices them all in one call.
    """

    def __init__(self, problem: BoundaryProblem, stages: Iterable[Wanted]) -> None:
        self._problem = problem
        self._asked = list(dict.fromkeys(stages))
        self._position = {stage: i for i, stage in enumerate(self._asked)}
        shape = (len(self._asked), len(problem.templates))
        self._busy_s_AT = np.full(shape, np.nan)
        self._tier_T = np.array([t.tier_i for t in problem.templates], dtype=np.int64)
        self._intervals = tuple(dict.fromkeys(stage.layers for stage in self._asked))

    def of(self, stage: Wanted, able_T: BoolArray) -> int | None:
        """The first of the fastest clusters among the able ones; None where none of them holds the layers."""
        start, stop = stage.layers
        cleared_T = able_T & (self._tier_T >= max(self._problem.tier_required[start:stop]))
        candidates = np.flatnonzero(cleared_T)
        if candidates.size == 0:
            return None
        row = self._position[stage]
        for template_i in candidates[np.isnan(self._busy_s_AT[row, candidates])].tolist():
            self._price(row, template_i)
        busy_s = self._busy_s_AT[row, candidates]
        best = int(busy_s.argmin())
        return int(candidates[best]) if np.isfinite(busy_s[best]) else None

    def _price(self, row: int, template_i: int) -> None:
        model, template, stage = (
            self._problem.cost_model,
            self._problem.templates[template_i],
            self._asked[row],
        )
        if isinstance(model, TabulatedCostModel):
            self._price_all(model, stage.micro_batch_size, template_i)
            return
        cost = model.stage(
            template.cluster, stage.layers, template.strategy, stage.micro_batch_size, stage.in_flight
        )
        self._busy_s_AT[row, template_i] = cost.busy_s if cost is not None and cost.fits else np.inf

    def _price_all(self, model: TabulatedCostModel, micro_batch_size: int, template_i: int) -> None:
        """One cluster on every stage with this size of micro-batch."""
        template = self._problem.templates[template_i]
        rows = [i for i, stage in enumerate(self._asked) if stage.micro_batch_size == micro_batch_size]
        depth = max(self._asked[i].in_flight for i in rows)
        position = {interval: k for k, interval in enumerate(self._intervals)}
        table = model.stage_table(
            template.cluster, self._intervals, template.strategy, micro_batch_size, depth
        )
        intervals = [position[self._asked[i].layers] for i in rows]
        in_flight = [self._asked[i].in_flight - 1 for i in rows]
        self._busy_s_AT[rows, template_i] = table.busy_s_KQ[intervals, in_flight]
