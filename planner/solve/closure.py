"""Exact closure of small fleets: list every replica that could improve the plan, pack them exactly.

With dual feasible multipliers and their bound U, a plan better than v can only use replicas whose slacks
sum to at most the gap between U and v. The slack limit grows from a small share of the gap until it covers
all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.boxes import Duals
from planner.solve.columns import Column, Shape, column_of
from planner.solve.labels import Band, BandSearch, Budget, LabelLimitError, SlackRule, StartIndex, band_of
from planner.solve.packing import Packing, better, pack
from planner.solve.pathdp import BoxView, PathDp, best_starts, least_load, run_path_dp
from planner.solve.pricing import Pricer
from planner.solve.tables import FloatArray, ModeTables

LOAD_RATIO = 1.03
STEP_RATIO = 1.2
FIRST_SHARE = 0.12
TIGHTENING_STEPS = 5
NEW_COLUMNS = 400


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
    """Lists real replicas by slack. Usage multipliers found for a band serve it again in later calls."""

    def __init__(self, pricer: Pricer) -> None:
        self.pricer = pricer
        self.problem = pricer.problem
        self.shape = pricer.shape
        self._roots = [_root(table) for table in pricer.tables]
        self._least_w: dict[tuple[int, float], float] = {}
        self._usage_2C: dict[tuple[int, int], FloatArray] = {}

    def _run(self, view: BoxView, slope: float, price_C: FloatArray, usage_2C: FloatArray | None) -> PathDp:
        rate_C, credit_S = price_C, np.zeros(self.shape.num_sites)
        if usage_2C is not None:
            rate_C = price_C + usage_2C.sum(axis=0)
            credit_S = self.shape.credit_S(usage_2C[0])
        self.pricer.num_dps += 1
        return run_path_dp(view, slope, self.shape.usage_JC @ rate_C, credit_S)

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
        for table_i, root in enumerate(self._roots):
            if root is not None:
                view = self.pricer.view_upto(table_i, root[1])
                least_price = self._run(view, 0.0, rule.price_C, None).value
                yield from self._box_searches(table_i, root, rule, slack_max - least_price, slack_max, budget)

    def _box_searches(
        self,
        table_i: int,
        box: tuple[float, float],
        rule: SlackRule,
        speed_slack: float,
        slack_max: float,
        budget: Budget,
    ) -> Iterator[BandSearch]:
        """Searches of one box: halved as long as it may hold something and is wide, then cut into bands.

        `speed_slack` is what the speed term may leave: the slack limit less the cheapest price of any path.
        """
        from_s, upto_s = box
        view = self.pricer.view_upto(table_i, upto_s)
        fill = view.tables.formula.fill
        if (table_i, upto_s) not in self._least_w:
            free_C = np.zeros(self.shape.devices_C.size)
            self._least_w[(table_i, upto_s)] = self._run(view, 1.0, free_C, None).value
        least_w = self._least_w[(table_i, upto_s)]
        if not isfinite(least_w):
            return
        low_w = least_w if fill > 0.0 else 0.0
        tokens = self.problem.tokens_per_step
        bands: list[tuple[Band, PathDp]] = []
        while True:
            high_w = (low_w + from_s) * STEP_RATIO - from_s
            band = band_of(rule, tokens, fill, from_s, low_w, high_w)
            if rule.constant - rule.speed_weight * tokens / (low_w + from_s) > speed_slack:
                break
            dp = self._run(view, band.slope, rule.price_C, None)
            if dp.value + band.base <= slack_max:
                bands.append((band, dp))
            if fill <= 0.0 or low_w > 1e4 * least_w:
                break
            low_w = high_w
        if bands and upto_s > from_s * LOAD_RATIO:
            middle = sqrt(from_s * upto_s)
            yield from self._box_searches(table_i, (from_s, middle), rule, speed_slack, slack_max, budget)
            yield from self._box_searches(table_i, (middle, upto_s), rule, speed_slack, slack_max, budget)
            return
        for number, (band, dp) in enumerate(bands):
            best, usage_2C = self._tightened(view, rule, band, slack_max, dp, (table_i, number))
            if best.value - self._once(usage_2C) + band.base <= slack_max:
                starts = StartIndex(view)
                yield BandSearch(
                    self.problem, self.shape, starts, best, rule, band, slack_max, budget, usage_2C=usage_2C
                )

    def _tightened(
        self,
        view: BoxView,
        rule: SlackRule,
        band: Band,
        slack_max: float,
        best: PathDp,
        key: tuple[int, int],
    ) -> tuple[PathDp, FloatArray | None]:
        """Completion bounds of a band, raised by usage multipliers until it is empty or they help no more."""
        best_value: float = best.value
        best_2C: FloatArray | None = None
        target = slack_max - band.base
        dp, usage_2C = best, self._usage_2C.get(key)
        if usage_2C is not None:
            dp = self._run(view, band.slope, rule.price_C, usage_2C)
        for step in range(TIGHTENING_STEPS):
            value = dp.value - self._once(usage_2C)
            if value > best_value:
                best, best_value, best_2C = dp, value, usage_2C
            if best_value > target:
                break
            column = column_of(self.problem, self.shape, dp, *best_starts(dp, 1, 0.0)[0])
            shortfall = (target - value + 1e-3 * abs(target)) * (0.95**step)
            raised_2C = self.pricer.raise_usage(usage_2C, column, shortfall)
            if column.real or raised_2C is None:
                break
            usage_2C = raised_2C
            dp = self._run(view, band.slope, rule.price_C, usage_2C)
        if best_2C is not None:
            self._usage_2C[key] = best_2C
        return best, best_2C

    def _once(self, usage_2C: FloatArray | None) -> float:
        return 0.0 if usage_2C is None else float(usage_2C[1] @ self.shape.devices_C)


def _root(tables: ModeTables) -> tuple[float, float] | None:
    """All loads a replica of this mode can have; None when it has no replica."""
    least_s = least_load(tables)
    if not isfinite(least_s):
        return None
    hops_s = tables.formula.repeats * tables.transfer_BSS[np.isfinite(tables.transfer_BSS)]
    most_s = max(float(tables.load_E.max()), float(hops_s.max(initial=0.0)))
    return float(np.nextafter(least_s, 0.0)), most_s * (1 + 1e-12)


def improve(enumerator: Enumerator, rule: SlackRule, slack_max: float, budget: Budget) -> list[Column]:
    """Real replicas with slack up to a negative limit, the most undervalued first.

    Raises:
        LabelLimitError: the budget ran out.
    """
    columns = enumerator.columns(rule, slack_max, budget)
    slack_P = [
        float(rule.price_C @ c.usage_C) + rule.constant - rule.speed_weight * c.tokens_per_s for c in columns
    ]
    return [columns[int(p)] for p in np.argsort(slack_P, kind="stable")[:NEW_COLUMNS]]


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
