"""Exact closure of small fleets: list every replica that could improve the plan, pack them exactly.

With dual feasible multipliers and their bound U, a plan better than v can only use replicas whose slacks sum to at
most the gap between U and v. The slack limit grows from a small share of the gap until it covers all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals, box_edges
from planner.solve.columns import Column, Shape
from planner.solve.labels import BandSearch, Budget, LabelLimitError, SlackRule, StartIndex, band_of
from planner.solve.packing import Packing, better, pack
from planner.solve.pathdp import BoxView, build_view, least_load, run_path_dp
from planner.solve.tables import ModeTables

LOAD_RATIO = 1.1
FILL_RATIO = 1.2
FIRST_SHARE = 0.12


@dataclass(frozen=True, kw_only=True)
class Closed:
    """The best plan found; `proven` when no other plan is better."""

    packing: Packing | None
    proven: bool


def slack_rule(problem: BoundaryProblem, duals: Duals, factor: float) -> SlackRule:
    """Slack in the objective's unit, from multipliers and a factor no replica's worth passes.

    tokens: f * (price + rho) - nu - t >= 0; price: price + rho - t / f >= 0.
    """
    if problem.objective.kind is ObjectiveKind.PRICE:
        return SlackRule(price_C=duals.price_C, constant=duals.rho, speed_weight=1.0 / factor)
    return SlackRule(price_C=factor * duals.price_C, constant=factor * duals.rho - duals.nu, speed_weight=1.0)


class Enumerator:
    """Lists real replicas by slack."""

    def __init__(self, problem: BoundaryProblem, shape: Shape, tables: tuple[ModeTables, ...]) -> None:
        self.problem = problem
        self.shape = shape
        self.boxes = [
            (from_s, StartIndex(view), view) for table in tables for from_s, view in _views(table)
        ]

    def columns(self, rule: SlackRule, slack_max: float, budget: Budget) -> list[Column]:
        """All real replicas with slack <= slack_max, less those another on the same devices beats.

        Raises:
            LabelLimitError: the budget ran out.
        """
        best: dict[bytes, Column] = {}
        for search in self._searches(rule, slack_max, budget):
            for column in search.run():
                key = column.usage_C.tobytes()
                if key not in best or column.tokens_per_s > best[key].tokens_per_s:
                    best[key] = column
        return list(best.values())

    def _searches(self, rule: SlackRule, slack_max: float, budget: Budget) -> Iterator[BandSearch]:
        price_J = self.shape.usage_JC @ rule.price_C
        free_J = np.zeros_like(price_J)
        none_S = np.zeros(self.shape.num_sites)
        tokens = self.problem.tokens_per_step
        for from_s, starts, view in self.boxes:
            fill = view.tables.formula.fill
            least_w = run_path_dp(view, 1.0, free_J, none_S).value
            if not isfinite(least_w):
                continue
            least_price = run_path_dp(view, 0.0, price_J, none_S).value
            low_w = least_w if fill > 0.0 else 0.0
            while True:
                band = band_of(rule, tokens, fill, from_s, low_w, low_w * FILL_RATIO)
                speed_price = rule.speed_weight * tokens / (low_w + from_s)
                if least_price + rule.constant - speed_price > slack_max:
                    break
                dp = run_path_dp(view, band.slope, price_J, none_S)
                if dp.value + band.base <= slack_max:
                    yield BandSearch(self.problem, self.shape, starts, dp, rule, band, slack_max, budget)
                if fill <= 0.0 or low_w > 1e4 * least_w:
                    break
                low_w = band.high_w


def _views(tables: ModeTables) -> Iterator[tuple[float, BoxView]]:
    least_s = least_load(tables)
    if not isfinite(least_s):
        return
    hops_s = tables.formula.repeats * tables.transfer_BSS[np.isfinite(tables.transfer_BSS)]
    most_s = max(float(tables.load_E.max()), float(hops_s.max(initial=0.0)))
    edges = box_edges(least_s, most_s, LOAD_RATIO)
    for low, high in zip(edges, edges[1:], strict=False):
        yield float(low), build_view(tables, high)


def close(
    problem: BoundaryProblem,
    shape: Shape,
    enumerator: Enumerator,
    *,
    duals: Duals,
    factor: float,
    bound: float,
    incumbent: tuple[Column, ...],
    value: float | None,
    labels_max: int,
    should_stop: Callable[[], bool],
) -> Closed:
    """Prove the best plan, or report the best one met before the labels ran out."""
    rule = slack_rule(problem, duals, factor)
    best = Packing(columns=incumbent, value=value, optimal=False) if value is not None else None
    gap = abs(bound - value) if value is not None else abs(bound)
    scale = max(abs(bound), 1e-12)
    slack_max = FIRST_SHARE * gap + 1e-6 * scale if value is not None else 0.05 * gap
    while True:
        try:
            budget = Budget(labels_left=labels_max, should_stop=should_stop)
            columns = enumerator.columns(rule, slack_max, budget)
        except LabelLimitError:
            return Closed(packing=best, proven=False)
        packing = pack_with_ratio(problem, shape, columns, best) if columns else None
        if packing is not None and (best is None or better(problem, packing.value, best.value)):
            best = packing
        needed = (abs(bound - best.value) if best is not None else abs(bound)) + 1e-6 * scale
        if slack_max >= needed:
            return Closed(packing=best, proven=packing is None or packing.optimal)
        slack_max = min(needed, slack_max * 3.0)


def pack_with_ratio(
    problem: BoundaryProblem, shape: Shape, columns: list[Column], best: Packing | None
) -> Packing | None:
    """Exact packing; under a speed ratio every possible slowest speed is tried that could still win."""
    hint = best.columns if best is not None else ()
    free = pack(problem, shape, columns, hint=hint, deterministic_limit=60.0)
    ratio = problem.speed_ratio_max
    if free is None or ratio is None:
        return free
    rates = sorted({column.tokens_per_s for column in free.columns})
    if rates[-1] <= ratio * rates[0]:
        return free
    found: Packing | None = None
    optimal = free.optimal
    for slowest in sorted({column.tokens_per_s for column in columns}):
        fast = [column for column in columns if column.tokens_per_s >= slowest]
        packing = pack(problem, shape, fast, slowest_tokens_per_s=slowest, deterministic_limit=60.0)
        if packing is not None:
            optimal = optimal and packing.optimal
            if found is None or better(problem, packing.value, found.value):
                found = packing
    if found is None:
        return None
    return Packing(columns=found.columns, value=found.value, optimal=optimal)
