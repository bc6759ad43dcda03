"""Reads the multipliers of a proof and turns them, with a factor, into a bound.

With prices mu per capacity row, rho per replica, nu per demanded replica and a factor f such that every
replica p obeys  t_p + nu <= f (mu . n_p + rho),  weak duality gives for any set of replicas

    sum t_p <= f (sum_r mu_r limit_r + rho replicas_max) - nu replicas_min.

Source: A. A. Farley, "A note on bounding a class of linear programming problems, including cutting stock
problems", Operations Research 38(5), 1990. When USD per hour are minimised under a target of G tokens/s, mu .
n_p includes the replica's own price, and  sum usd_p >= G / f - sum_r mu_r limit_r - rho replicas_max  (nu =
0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.check.columns import FloatArray
from planner.check.report import Findings
from planner.problem import BoundaryProblem, ObjectiveKind

COUPLING_ROW = "price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Multipliers:
    """`price_C` is the charge of one device of each class, `limit_sum` is sum_r mu_r limit_r.

    `coupling` is the multiplier of a price ceiling that several boundaries share (its limit is not in
    `limit_sum`).
    """

    price_C: FloatArray
    limit_sum: float
    rho: float
    nu: float
    factor: float
    coupling: float

    def bound(self, problem: BoundaryProblem) -> float:
        """The bound of one boundary: tokens/s, or USD per hour when these are minimised."""
        replicas = self.rho * (problem.replicas_max or 0)
        if problem.objective.kind is ObjectiveKind.PRICE:
            target = problem.objective.tokens_per_s_min or 0.0
            return target / self.factor - self.limit_sum - replicas if self.factor > 0.0 else math.inf
        return self.factor * (self.limit_sum + replicas) - self.nu * problem.replicas_min


def figure(value: object) -> float | None:
    """A finite number >= 0, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) and number >= 0.0 else None


def read_multipliers(
    problem: BoundaryProblem, proof: Mapping[str, Any], findings: Findings, place: str, *, coupled: bool
) -> Multipliers | None:
    """The multipliers of a boundary's proof; None, with reasons recorded, when they can't carry a bound."""
    figures: dict[str, float] = {}
    for key in ("rho", "nu", "factor"):
        number = figure(proof.get(key))
        if number is None:
            findings.add("proof-multipliers", f"{place}.{key}", proof.get(key), "a finite number >= 0")
        else:
            figures[key] = number
    prices = _read_prices(problem, proof.get("prices"), findings, f"{place}.prices", coupled)
    if prices is None or len(figures) < 3:
        return None
    if figures["rho"] > 0.0 and problem.replicas_max is None:
        findings.add(
            "proof-multipliers", f"{place}.rho", figures["rho"], "0 where replicas have no upper limit"
        )
        return None
    minimises_price = problem.objective.kind is ObjectiveKind.PRICE
    if figures["nu"] > 0.0 and minimises_price:
        findings.add("proof-multipliers", f"{place}.nu", figures["nu"], "0 when price is minimised")
        return None
    price_C = np.zeros(len(problem.classes))
    limit_sum = 0.0
    for row in problem.rows:
        price = prices.get(row.name, 0.0)
        limit_sum += price * row.limit
        for class_i, coefficient in row.coefficients:
            price_C[class_i] += price * coefficient
    coupling = prices.get(COUPLING_ROW, 0.0) if coupled else 0.0
    own_weight = coupling + (1.0 if minimises_price else 0.0)
    price_C += own_weight * np.array([c.device.usd_per_hour for c in problem.classes])
    return Multipliers(price_C=price_C, limit_sum=limit_sum, coupling=coupling, **figures)


def _read_prices(
    problem: BoundaryProblem, value: object, findings: Findings, place: str, coupled: bool
) -> dict[str, float] | None:
    if not isinstance(value, Mapping):
        findings.add("proof-multipliers", place, value, "one price per capacity row")
        return None
    known = {row.name for row in problem.rows} | ({COUPLING_ROW} if coupled else set())
    prices: dict[str, float] = {}
    for name, price in value.items():
        number = figure(price)
        if name not in known:
            findings.add(
                "proof-multipliers", f"{place}[{name}]", "unknown row", "a capacity row of the boundary"
            )
        elif number is None:
            findings.add("proof-multipliers", f"{place}[{name}]", price, "a finite number >= 0")
        else:
            prices[name] = number
    return prices if len(prices) == len(value) else None
