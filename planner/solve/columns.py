"""Replica columns: priced paths with the devices they take, and the pool that collects them.

Legend: P columns of the pool, C device classes, R capacity rows, J templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem
from planner.solve.tables import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One replica that the fleet can form: `fill_s` for one micro-batch through all stages."""

    mode_i: int
    stages: tuple[StageChoice, ...]
    step_s: float
    tokens_per_s: float
    fill_s: float
    load_s: float
    usage_C: IntArray

    @property
    def key(self) -> tuple[int, tuple[StageChoice, ...]]:
        """What makes two columns the same."""
        return (self.mode_i, self.stages)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Constant arrays of a boundary problem that all parts of the solver share."""

    usage_JC: IntArray
    coefficient_RC: FloatArray
    limit_R: FloatArray
    devices_C: IntArray
    usd_C: FloatArray
    site_C: IntArray
    num_sites: int

    def credit_S(self, visit_C: FloatArray) -> FloatArray:
        """What one visit to each site gets back: lambda_c * N_c over the site's classes."""
        credit_S = np.zeros(self.num_sites)
        np.add.at(credit_S, self.site_C, visit_C * self.devices_C)
        return credit_S


def build_shape(problem: BoundaryProblem) -> Shape:
    """Usage, capacity and price of a problem as arrays."""
    num_classes = len(problem.classes)
    usage_JC = np.zeros((len(problem.templates), num_classes), dtype=np.int64)
    for template in problem.templates:
        for class_i, count in template.usage:
            usage_JC[template.template_i, class_i] = count
    coefficient_RC = np.zeros((len(problem.rows), num_classes))
    for r, row in enumerate(problem.rows):
        for class_i, coefficient in row.coefficients:
            coefficient_RC[r, class_i] = coefficient
    return Shape(
        usage_JC=usage_JC,
        coefficient_RC=coefficient_RC,
        limit_R=np.array([row.limit for row in problem.rows]),
        devices_C=np.array([c.num_devices for c in problem.classes], dtype=np.int64),
        usd_C=np.array([c.device.usd_per_hour for c in problem.classes]),
        site_C=np.array([c.site_i for c in problem.classes], dtype=np.int64),
        num_sites=len(problem.site_ids),
    )


def fits(shape: Shape, usage_C: IntArray, limit_R: FloatArray) -> bool:
    """Whether the devices of one or more replicas respect every capacity row."""
    return bool(np.all(shape.coefficient_RC @ usage_C <= limit_R * (1 + 1e-12) + 1e-9))


def to_replica(problem: BoundaryProblem, column: Column) -> Replica:
    """The column priced afresh by the cost model itself, which is what a plan states."""
    replica = price_replica(problem, problem.modes[column.mode_i], column.stages)
    if replica is None:
        raise RuntimeError(f"table and cost model disagree about {column.stages}")
    return replica


class Pool:
    """Replicas in the order they were found, each faster than all before it that take the same devices."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self._fastest: dict[bytes, float] = {}
        self._usage_PC = np.zeros((0, 0), dtype=np.int64)
        self._rate_P = np.zeros(0)

    def add(self, column: Column) -> bool:
        """Keep a column that is faster than those on the same devices; says whether it was."""
        key = column.usage_C.tobytes()
        if column.tokens_per_s <= self._fastest.get(key, 0.0):
            return False
        self._fastest[key] = column.tokens_per_s
        self.columns.append(column)
        return True

    def extend(self, columns: Iterable[Column]) -> int:
        """How many of the columns were kept."""
        return sum(self.add(column) for column in columns)

    def rates_P(self) -> FloatArray:
        """Tokens per second of every column."""
        self._catch_up()
        return self._rate_P

    def usage_PC(self) -> IntArray:
        """Devices taken by every column."""
        self._catch_up()
        return self._usage_PC

    def _catch_up(self) -> None:
        fresh = self.columns[self._rate_P.size :]
        if fresh:
            usage_PC = np.array([column.usage_C for column in fresh], dtype=np.int64)
            self._usage_PC = np.concatenate([self._usage_PC, usage_PC]) if self._rate_P.size else usage_PC
            self._rate_P = np.append(self._rate_P, [column.tokens_per_s for column in fresh])


def total_tokens_per_s(columns: Sequence[Column], speed_ratio_max: float | None) -> float:
    """Speed of a set of replicas; with a speed ratio the faster ones are held to ratio times the slowest."""
    rates = [column.tokens_per_s for column in columns]
    if speed_ratio_max is None or not rates:
        return sum(rates)
    ceiling = speed_ratio_max * min(rates)
    return sum(min(rate, ceiling) for rate in rates)
