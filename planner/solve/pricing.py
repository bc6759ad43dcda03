"""Pricing of replicas: one scalarised shortest path per load box, tightened by usage multipliers.

A relaxed path may use a class more often than it has devices. Usage multipliers make that dear without
making any real path dearer; they are found by cutting planes and remembered per box. There are two for each
class: one charged per visit to the class's site, with N_c handed back per visit, and one charged over the
whole path, with N_c handed back once. The first is strong where a path stays in one site, the second where it
comes back.

Legend: C device classes, S sites; `usage_2C` holds the visit multipliers and the once multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, isfinite, log

import numpy as np

from planner.problem import BoundaryProblem
from planner.solve.boxes import Box, Cut, Duals, Vertex, box_edges, tangent
from planner.solve.bundle import UsageBundle
from planner.solve.columns import Column, Shape, column_of
from planner.solve.pathdp import BoxView, best_starts, build_view, least_load, run_path_dp
from planner.solve.tables import FloatArray, ModeTables

BOX_RATIO = 1.35
PATHS_PER_DP = 3
PATHS_WITHIN_FRAC = 0.03
LEARNING_STEPS = 4
ANGLES = (3.0, 1.0 / 3.0)
VIEW_BYTES_MAX = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A relaxed least cost and the paths found on the way, best first."""

    value: float
    columns: tuple[Column, ...]


class Pricer:
    """Prices replicas of one boundary; counts its shortest-path runs in `num_dps`."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, tables: Sequence[ModeTables]) -> None:
        self.problem = problem
        self.shape = shape
        self.tables = tuple(tables)
        self.num_dps = 0
        self._views: dict[tuple[int, float], BoxView] = {}
        self._view_bytes = 0
        self.boxes = [box for i in range(len(self.tables)) for box in self._build_boxes(i)]

    def _build_boxes(self, table_i: int) -> list[Box]:
        tables = self.tables[table_i]
        least_s = least_load(tables)
        if not isfinite(least_s):
            return [self.new_box(table_i, 0.0, inf)]
        hops_s = tables.formula.repeats * tables.transfer_BSS[np.isfinite(tables.transfer_BSS)]
        most_s = max(float(tables.load_E.max()), float(hops_s.max(initial=0.0)))
        edges = box_edges(least_s, most_s, BOX_RATIO)
        return [self.new_box(table_i, low, high) for low, high in zip([0.0, *edges], edges, strict=False)]

    def any_path(self) -> bool:
        """Whether any replica exists, even in the relaxation."""
        return any(self.view(box).entry_E.size > 0 and self.fill_cut(box).value < inf for box in self.boxes)

    def refine(self, least_worth: float, ratio: float) -> None:
        """Cut boxes worth at least `least_worth` into equal parts whose edges are within `ratio`."""
        boxes: list[Box] = []
        for box in self.boxes:
            wide = isfinite(box.upto_s) and box.from_s > 0.0 and box.upto_s > box.from_s * ratio
            if not wide or box.worth < least_worth:
                boxes.append(box)
                continue
            parts = ceil(log(box.upto_s / box.from_s) / log(ratio))
            edges = [box.from_s * (box.upto_s / box.from_s) ** (k / parts) for k in range(parts)] + [
                box.upto_s
            ]
            for low, high in pairwise(edges):
                part = self.new_box(box.table_i, low, high)
                part.theta, part.usage_2C, part.worth = box.theta, box.usage_2C, box.worth
                boxes.append(part)
        self.boxes = boxes

    def new_box(self, table_i: int, from_s: float, upto_s: float) -> Box:
        """A box nothing is known about yet."""
        return Box(table_i=table_i, from_s=from_s, upto_s=upto_s)

    def view(self, box: Box) -> BoxView:
        """The box's part of the tables."""
        return self.view_upto(box.table_i, box.upto_s)

    def view_upto(self, table_i: int, upto_s: float) -> BoxView:
        """The tables up to a load, kept for the most recently used ones."""
        key = (table_i, upto_s)
        view = self._views.pop(key, None)
        if view is None:
            view = build_view(self.tables[table_i], upto_s)
            self._view_bytes += view.num_bytes
            while self._view_bytes > VIEW_BYTES_MAX and self._views:
                self._view_bytes -= self._views.pop(next(iter(self._views))).num_bytes
        self._views[key] = view
        return view

    def run(
        self, box: Box, duals: Duals, time_weight: float, price_weight: float, usage_2C: FloatArray | None
    ) -> Priced:
        """Least relaxed cost in a box, and the best path from each of a few start sites."""
        self.num_dps += 1
        rate_C = price_weight * duals.price_C
        credit_S = np.zeros(self.shape.num_sites)
        once = 0.0
        if usage_2C is not None:
            rate_C = rate_C + usage_2C.sum(axis=0)
            credit_S = self.shape.credit_S(usage_2C[0])
            once = float(usage_2C[1] @ self.shape.devices_C)
        dp = run_path_dp(self.view(box), time_weight, self.shape.usage_JC @ rate_C, credit_S)
        if not isfinite(dp.value):
            return Priced(value=inf, columns=())
        starts = best_starts(dp, PATHS_PER_DP, PATHS_WITHIN_FRAC)
        columns = tuple(column_of(self.problem, self.shape, dp, q, s) for q, s in starts)
        return Priced(value=dp.value - once, columns=columns)

    def fill_cut(self, box: Box) -> Cut:
        """`w >= least fill time`, which no price changes; computed once per box."""
        if box.fill_cut is None:
            no_price = Duals(row_R=np.zeros(0), rho=0.0, nu=0.0, price_C=np.zeros(self.shape.devices_C.size))
            value = self.run(box, no_price, 1.0, 0.0, None).value
            box.fill_cut = Cut(time_weight=1.0, price_weight=0.0, value=value, usage_2C=None)
        return box.fill_cut

    def worth(self, column: Column, duals: Duals) -> float:
        """H of a replica at its true step time."""
        price = float(duals.price_C @ column.usage_C) + duals.rho
        return inf if price <= 0.0 else (column.tokens_per_s + duals.nu) / price

    def overuse_2C(self, column: Column) -> FloatArray:
        """Slopes of the usage terms: devices used less N_c per visit to their site, and less N_c once."""
        sites = [self.problem.templates[stage.template_i].site_i for stage in column.stages]
        visits_S = np.zeros(self.shape.num_sites)
        for i, site_i in enumerate(sites):
            if i == 0 or sites[i - 1] != site_i:
                visits_S[site_i] += 1.0
        per_visit_C = column.usage_C - visits_S[self.shape.site_C] * self.shape.devices_C
        return np.stack([per_visit_C, column.usage_C - self.shape.devices_C]).astype(np.float64)

    def raise_usage(self, usage_2C: FloatArray | None, column: Column, shortfall: float) -> FloatArray | None:
        """One Polyak step towards lifting the value by `shortfall`; None when no class is overused."""
        slope_2C = self.overuse_2C(column)
        old_2C = np.zeros_like(slope_2C) if usage_2C is None else usage_2C
        slope_2C[(old_2C <= 0.0) & (slope_2C < 0.0)] = 0.0
        norm = float((slope_2C * slope_2C).sum())
        if norm == 0.0 or shortfall <= 0.0:
            return None
        return np.maximum(old_2C + shortfall / norm * slope_2C, 0.0)

    def theta(self, box: Box, worth: float) -> float:
        """A good price per second to start with: the remembered tangent, or that of the quickest path."""
        if box.theta is not None:
            return box.theta
        vertex = Vertex(worth=worth, fill_s=self.fill_cut(box).value, price=0.0)
        return tangent(self.problem.tokens_per_step, box.from_s, vertex, worth)

    def price_box(self, box: Box, duals: Duals, worth: float, *, learn: bool = True) -> list[Column]:
        """Good paths of one box at its remembered angle; remembers the new angle and worth.

        With `learn`, visit multipliers are raised while the best path is one the fleet can't form.
        """
        if self.fill_cut(box).value == inf:
            box.worth = 0.0
            return []
        fills = self.tables[box.table_i].formula.fill > 0.0
        theta = self.theta(box, worth) if fills else 0.0
        priced = self.run(box, duals, theta, 1.0, box.usage_2C)
        columns = list(priced.columns)
        if not columns:
            box.worth = 0.0
            return []
        if learn and not columns[0].real:
            columns += self.tighten(box, duals, theta, worth, priced, LEARNING_STEPS)[1]
        best = max(columns, key=lambda column: self.worth(column, duals))
        box.worth = self.worth(best, duals)
        if isfinite(box.worth) and box.worth > 0.0:
            box.theta = self.problem.tokens_per_step / (best.step_s**2 * box.worth)
        return columns

    def look_around(self, box: Box, duals: Duals) -> list[Column]:
        """Paths at a steeper and a flatter angle; the box turns to the better one's."""
        if box.theta is None or self.fill_cut(box).value == inf:
            return []
        columns: list[Column] = []
        for factor in ANGLES:
            columns += self.run(box, duals, box.theta * factor, 1.0, box.usage_2C).columns
        best = max(columns, key=lambda column: self.worth(column, duals), default=None)
        if best is not None and box.worth < self.worth(best, duals) < inf:
            box.worth = self.worth(best, duals)
            box.theta = self.problem.tokens_per_step / (best.step_s**2 * box.worth)
        return columns

    def tighten(
        self, box: Box, duals: Duals, theta: float, worth: float, start: Priced, steps: int
    ) -> tuple[list[Cut], list[Column]]:
        """Search usage multipliers until a real path comes first or no worth above `worth` is left.

        Returns cuts of increasing value and all paths met. The box remembers the best multipliers, or none
        when nothing was gained.
        """
        cuts: list[Cut] = []
        columns: list[Column] = []
        first, best = start.columns[0], start.value
        target = theta * first.fill_s + self._fair_price(box, duals, first, worth)
        cap = 4.0 * abs(target) / max(1.0, float(self.shape.devices_C.min()))
        bundle = UsageBundle(self.shape.devices_C.size, cap)
        usage_2C, fresh = box.usage_2C, start.columns
        for _ in range(steps):
            for column in fresh:
                cost = theta * column.fill_s + float(duals.price_C @ column.usage_C)
                bundle.add(cost, self.overuse_2C(column))
            proposal = bundle.propose(usage_2C)
            if proposal is None or proposal[1] <= best + 0.05 * (target - best):
                break
            priced = self.run(box, duals, theta, 1.0, proposal[0])
            fresh = priced.columns
            columns += fresh
            if priced.value > best:
                best, usage_2C = priced.value, proposal[0]
                cuts.append(Cut(time_weight=theta, price_weight=1.0, value=best, usage_2C=usage_2C))
            if fresh[0].real or best >= target:
                break
        box.usage_2C = usage_2C if cuts else None
        return cuts, columns

    def _fair_price(self, box: Box, duals: Duals, column: Column, worth: float) -> float:
        """The price at which a path with this fill time would be worth no more than `worth`."""
        return (self.problem.tokens_per_step / (box.from_s + column.fill_s) + duals.nu) / worth - duals.rho
