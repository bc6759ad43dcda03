"""Better plans by taking a few replicas apart: their devices are priced and packed anew.

Legend: P columns, C device classes, R capacity rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Shape
from planner.solve.generation import Generator, worth
from planner.solve.master import master_over, mixed
from planner.solve.packing import pack
from planner.solve.sweep import Goal
from planner.solve.tables import FloatArray

FEWEST, MOST = 2, 5
"""Replicas taken apart at a time."""
TOLERANCE = 0.15
COLLECT_FRAC = 0.85
PACKED_COLUMNS = 300
PACK_LIMIT = 0.5
OWN_SHARE = 0.7
"""Of the multipliers of what is left; the rest are those of the whole fleet, so that no device is free."""


class Neighbourhood:
    """Moves from plan to plan. Repeatable: choices come from a seeded generator."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, generator: Generator, seed: int) -> None:
        self.problem = problem
        self.shape = shape
        self.generator = generator
        self._random = random.Random(seed)  # noqa: S311 - no secret hangs on it

    def move(
        self, plan: Sequence[Column], duals: Duals, should_stop: Callable[[], bool], deadline_s: float | None
    ) -> tuple[Column, ...]:
        """Take a few replicas apart and put their devices together again; the better of the two plans."""
        freed = self._choose(plan, duals)
        kept = [column for i, column in enumerate(plan) if i not in freed]
        used_C = (
            np.sum([column.usage_C for column in kept], axis=0) if kept else np.zeros_like(plan[0].usage_C)
        )
        left_R = np.maximum(self.shape.limit_R - self.shape.coefficient_RC @ used_C, 0.0)
        rest, left = self._rest(len(kept)), replace(self.shape, limit_R=left_R)
        self._price(rest, left, duals, should_stop)
        columns = self._candidates(duals, left_R)
        if not columns:
            return tuple(plan)
        packing = pack(
            rest,
            left,
            columns,
            hint=[plan[i] for i in freed],
            deadline_s=deadline_s,
            deterministic_limit=PACK_LIMIT,
        )
        return tuple(plan) if packing is None else (*kept, *packing.columns)

    def _price(
        self, rest: BoundaryProblem, left: Shape, duals: Duals, should_stop: Callable[[], bool]
    ) -> None:
        """New replicas on what is left, at the multipliers of the master over known ones that fit there."""
        columns = self._candidates(duals, left.limit_R)
        if columns:
            master = master_over(rest, left, max(column.tokens_per_s for column in columns))
            for column in columns:
                master.add(column)
            usd_C = self.shape.usd_C if self.generator.minimise else None
            duals = mixed(self.shape, master.solve().duals, duals, 1.0 - OWN_SHARE, usd_C)
        known = max((worth(column, duals) for column in columns), default=1e-9)
        goal = Goal(
            factor=known * (1.0 + TOLERANCE),
            tolerance=TOLERANCE,
            collect_frac=COLLECT_FRAC,
            columns_max=self.generator.columns_max,
        )
        self.generator.pool.extend(self.generator.sweeper.search(duals, goal, left.limit_R, should_stop))

    def _choose(self, plan: Sequence[Column], duals: Duals) -> list[int]:
        """Places of the replicas to take apart: one at random, and others likely to share classes with it.

        Replicas that give little for the price of their devices come first.
        """
        count = min(len(plan), self._random.randint(FEWEST, MOST))
        loss_P = np.array([float(duals.price_C @ c.usage_C) + duals.rho - c.tokens_per_s for c in plan])
        weight_P = np.maximum(loss_P, 0.0) + 0.05 * max(1e-12, float(np.abs(loss_P).max()))
        chosen: list[int] = []
        shared_P = np.ones(len(plan))
        while len(chosen) < count:
            odds_P = weight_P * shared_P
            odds_P[chosen] = 0.0
            chosen.append(self._random.choices(range(len(plan)), weights=odds_P.tolist())[0])
            usage_C = np.sum([plan[i].usage_C for i in chosen], axis=0)
            shared_P = np.array([0.1 + float(np.count_nonzero(c.usage_C * usage_C)) for c in plan])
        return chosen

    def _candidates(self, duals: Duals, left_R: FloatArray) -> list[Column]:
        """The most promising known replicas that what is left can hold."""
        columns = self.generator.pool.columns
        usage_PC = self.generator.pool.usage_PC()
        fits_P = np.all(usage_PC @ self.shape.coefficient_RC.T <= left_R * (1 + 1e-12) + 1e-9, axis=1)
        slack_P = usage_PC @ duals.price_C - self.generator.pool.rates_P()
        inside = np.flatnonzero(fits_P)
        best = inside[np.argsort(slack_P[inside], kind="stable")[:PACKED_COLUMNS]]
        return [columns[int(p)] for p in np.sort(best)]

    def _rest(self, num_kept: int) -> BoundaryProblem:
        """The problem of the devices that were freed."""
        problem = self.problem
        fewest = max(0, problem.replicas_min - num_kept)
        most = None if problem.replicas_max is None else problem.replicas_max - num_kept
        return replace(problem, replicas_min=fewest, replicas_max=most)
