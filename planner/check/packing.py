"""Is there a better set of the given replicas? Exact search over device counts, one replica more at a time.

Two sets of equally many replicas on the same devices have the same future and the same price, so only the
faster one is kept; sets whose slacks already add up to more than a better set may have are dropped. Legend: N
replicas, F sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.check.columns import FloatArray, IntArray
from planner.check.multipliers import Multipliers
from planner.check.report import REL_TOLERANCE
from planner.problem import BoundaryProblem, ObjectiveKind

CHUNK = 1_000_000
MAX_SETS = 4_000_000


class PackingTooLargeError(Exception):
    """More sets than the referee is ready to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Replicas by device counts and speed."""

    usage_NC: IntArray
    tokens_per_s_N: FloatArray

    @staticmethod
    def none(num_classes: int) -> Replicas:
        """No replica at all."""
        return Replicas(usage_NC=np.zeros((0, num_classes), dtype=np.int64), tokens_per_s_N=np.zeros(0))


def better_set(
    problem: BoundaryProblem, replicas: Replicas, multipliers: Multipliers, value: float, slack_max: float
) -> float | None:
    """The value of a set that is better than `value`, or None when there is none.

    With a speed ratio r the slowest speed t0 is split into ranges: replicas slower than the range are
    dropped, faster ones count at most r times its upper end, which is never too little, and exact once the
    range is one speed.
    """
    search = _Search(problem, multipliers, value, slack_max)
    ratio = problem.speed_ratio_max
    if ratio is None:
        return search.best(replicas.usage_NC, replicas.tokens_per_s_N)
    speeds = np.unique(replicas.tokens_per_s_N)
    ranges = [(0, len(speeds) - 1)] if len(speeds) else []
    while ranges:
        low, high = ranges.pop()
        within_N = replicas.tokens_per_s_N >= speeds[low]
        capped_N = np.minimum(replicas.tokens_per_s_N[within_N], ratio * speeds[high])
        found = search.best(replicas.usage_NC[within_N], capped_N)
        if found is not None and low == high:
            return found
        if found is not None:
            middle = (low + high) // 2
            ranges += [(low, middle), (middle + 1, high)]
    return None


class _Search:
    """Sets of replicas by growing number; the first better one ends it."""

    def __init__(
        self, problem: BoundaryProblem, multipliers: Multipliers, value: float, slack_max: float
    ) -> None:
        self._problem = problem
        self._multipliers = multipliers
        self._value = value
        self._slack_max = slack_max
        self._usd_C = np.array([c.device.usd_per_hour for c in problem.classes])
        self._row_RC = np.zeros((len(problem.rows), len(problem.classes)))
        for r, row in enumerate(problem.rows):
            for class_i, coefficient in row.coefficients:
                self._row_RC[r, class_i] += coefficient
        limits = np.array([row.limit for row in problem.rows])
        self._limit_R = limits + REL_TOLERANCE * np.abs(limits)

    def best(self, usage_NC: IntArray, tokens_per_s_N: FloatArray) -> float | None:
        """The value of some better set of these replicas, each usable many times."""
        problem = self._problem
        num_max = problem.replicas_max
        if num_max is None:
            num_max = sum(c.num_devices for c in problem.classes)
        sets_FC = np.zeros((1, len(problem.classes)), dtype=np.int64)
        speed_F = np.zeros(1)
        for count in range(1, num_max + 1):
            sets_FC, speed_F = self._one_more(sets_FC, speed_F, usage_NC, tokens_per_s_N, count)
            if not len(speed_F):
                return None
            if count >= max(1, problem.replicas_min):
                found = self._better(sets_FC, speed_F)
                if found is not None:
                    return found
        return None

    def _better(self, sets_FC: IntArray, speed_F: FloatArray) -> float | None:
        margin = REL_TOLERANCE * abs(self._value)
        if self._problem.objective.kind is ObjectiveKind.PRICE:
            usd_F = sets_FC @ self._usd_C
            good_F = speed_F >= (self._problem.objective.tokens_per_s_min or 0.0)
            good_F &= usd_F < self._value - margin
            return float(usd_F[good_F].min()) if good_F.any() else None
        top = float(speed_F.max())
        return top if top > self._value + margin else None

    def _one_more(
        self,
        sets_FC: IntArray,
        speed_F: FloatArray,
        usage_NC: IntArray,
        tokens_per_s_N: FloatArray,
        count: int,
    ) -> tuple[IntArray, FloatArray]:
        """All sets with one more replica that fit and are within the slack; the fastest per device counts."""
        step = max(1, CHUNK // max(1, len(usage_NC) * sets_FC.shape[1]))
        parts: list[tuple[IntArray, FloatArray]] = []
        for at in range(0, len(speed_F), step):
            crossed_FC = (sets_FC[at : at + step, None, :] + usage_NC[None, :, :]).reshape(
                -1, sets_FC.shape[1]
            )
            total_F = (speed_F[at : at + step, None] + tokens_per_s_N[None, :]).reshape(-1)
            kept_F = (crossed_FC @ self._row_RC.T <= self._limit_R).all(axis=1)
            kept_F &= self._slack(crossed_FC, total_F, count) <= self._slack_max
            parts.append(_fastest_sets(crossed_FC[kept_F], total_F[kept_F]))
            if sum(len(part[1]) for part in parts) > MAX_SETS:
                raise PackingTooLargeError
        if not parts:
            return sets_FC[:0], speed_F[:0]
        return _fastest_sets(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))

    def _slack(self, sets_FC: IntArray, speed_F: FloatArray, count: int) -> FloatArray:
        multipliers = self._multipliers
        price_F = sets_FC @ multipliers.price_C + count * multipliers.rho
        slack_F: FloatArray = multipliers.factor * price_F - count * multipliers.nu - speed_F
        return slack_F


def _fastest_sets(sets_FC: IntArray, speed_F: FloatArray) -> tuple[IntArray, FloatArray]:
    if len(speed_F) < 2:
        return sets_FC, speed_F
    order_F = np.lexsort((-speed_F, *sets_FC.T))
    new_F = np.ones(len(order_F), dtype=bool)
    new_F[1:] = (np.diff(sets_FC[order_F], axis=0) != 0).any(axis=1)
    return sets_FC[order_F[new_F]], speed_F[order_F[new_F]]
