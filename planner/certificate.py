"""The certificate of a plan: its value, what no plan can pass, and the evidence; docs/certificate.md.

The referee derives the same figures with code of its own (planner/check/certificate.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

from planner.plan import BoundaryPlan, Certificate, ReplicaPlan
from planner.problem import BoundaryProblem, ObjectiveKind, Problem
from planner.solve.result import BoundaryResult, excess_frac

COUPLING_ROW = "price"
NO_PROOF: Mapping[str, Any] = {"kind": "none"}
EXACT_KINDS = ("closure", "ceilings", "threshold")
MINIMISED = (ObjectiveKind.PRICE, ObjectiveKind.STEP_TIME)


def build_certificate(
    problem: Problem,
    results: Sequence[BoundaryResult],
    boundaries: Sequence[BoundaryPlan],
    *,
    limits: Mapping[str, Any],
    versions: Mapping[str, str],
    seed: int,
) -> Certificate:
    """Value and bound over all boundaries, with the proofs; no bound where one boundary has no proof."""
    own = [
        boundary_value(boundary, plan) for boundary, plan in zip(problem.boundaries, boundaries, strict=True)
    ]
    proofs = [proof_of(result, value) for result, value in zip(results, own, strict=True)]
    value = plan_value(problem, boundaries)
    bound = total_bound(problem, proofs)
    stops = list(dict.fromkeys(result.stop for result in results))
    return Certificate(
        objective=problem.objective.kind.value,
        value=value,
        bound=bound,
        excess_frac=None if bound is None else excess_of(problem, value, bound),
        covers="candidates",
        stop=", ".join(stops),
        proof={result.boundary: proof for result, proof in zip(results, proofs, strict=True)},
        seed=seed,
        versions=dict(versions),
        limits=dict(limits),
    )


def excess_of(problem: Problem, value: float, bound: float) -> float:
    """How much better the best could be, in the direction of the objective."""
    return excess_frac(value, bound, maximise=problem.objective.kind not in MINIMISED)


def boundary_value(boundary: BoundaryProblem, plan: BoundaryPlan) -> float:
    """One boundary's value in the unit of its proof: USD per hour for price, else tokens/s."""
    if boundary.objective.kind is ObjectiveKind.PRICE:
        return usd_per_hour(boundary, plan.replicas)
    return counted_tokens_per_s(boundary, plan.replicas)


def plan_value(problem: Problem, boundaries: Sequence[BoundaryPlan]) -> float:
    """What the plan is worth: tokens/s, USD per hour, or seconds per step."""
    pairs = list(zip(problem.boundaries, boundaries, strict=True))
    if problem.objective.kind is ObjectiveKind.PRICE:
        return sum(usd_per_hour(boundary, plan.replicas) for boundary, plan in pairs)
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        return sum(max(r.step_time_s for r in plan.replicas) for _, plan in pairs)
    return sum(counted_tokens_per_s(boundary, plan.replicas) for boundary, plan in pairs)


def counted_tokens_per_s(boundary: BoundaryProblem, replicas: Sequence[ReplicaPlan]) -> float:
    """Tokens/s together; what is faster than the speed ratio allows counts as throttled."""
    speeds = [replica.tokens_per_s for replica in replicas]
    cap = inf if boundary.speed_ratio_max is None else boundary.speed_ratio_max * min(speeds)
    return sum(min(speed, cap) for speed in speeds)


def usd_per_hour(boundary: BoundaryProblem, replicas: Sequence[ReplicaPlan]) -> float:
    """Price of the devices in use, dedicated spares included."""
    price = {d: c.device.usd_per_hour for c in boundary.classes for host in c.hosts for d in host}
    return sum(
        price[d] for replica in replicas for stage in replica.stages for d in (*stage.devices, *stage.spares)
    )


def proof_of(result: BoundaryResult, value: float) -> Mapping[str, Any]:
    """The boundary's evidence in plain JSON; exact proofs state the value itself as their bound."""
    proof: dict[str, Any] = _plain(result.proof)
    kind = proof.get("kind", "none")
    if kind in EXACT_KINDS:
        return proof | {"bound": value}
    return dict(NO_PROOF) if kind == "none" or result.bound is None else proof


def total_bound(problem: Problem, proofs: Sequence[Mapping[str, Any]]) -> float | None:
    """The bound over all boundaries, in the objective's unit; None as soon as one of them proves nothing.

    Maximising: bounds add up, plus a shared ceiling C at the dearest multiplier, lambda C with
    lambda = max_b f_b mu_b. One target G for several boundaries: USD >= G min_b (1 / f_b) - sum_b (mu_b .
    limits_b + rho_b R_b), since every token/s costs at least the cheapest boundary's price for it.
    """
    if any(proof["kind"] == "none" for proof in proofs):
        return None
    pairs = list(zip(problem.boundaries, proofs, strict=True))
    several = len(pairs) > 1
    if problem.objective.kind is ObjectiveKind.PRICE and several:
        return _shared_target_bound(problem, pairs)
    bounds = [float(proof["bound"]) for proof in proofs]
    if problem.objective.kind is ObjectiveKind.STEP_TIME:
        steps = [
            b.tokens_per_step / bound if bound > 0 else inf
            for (b, _), bound in zip(pairs, bounds, strict=True)
        ]
        return _finite(sum(steps))
    shared = 0.0
    if several and problem.usd_per_hour_max is not None:
        shared = problem.usd_per_hour_max * max(coupling_of(proof) for proof in proofs)
    return _finite(sum(bounds) + shared)


def coupling_of(proof: Mapping[str, Any]) -> float:
    """A boundary's multiplier of the shared price ceiling, in tokens/s per USD per hour."""
    return float(proof.get("factor", 0.0)) * float(proof.get("prices", {}).get(COUPLING_ROW, 0.0))


def limit_sum(boundary: BoundaryProblem, proof: Mapping[str, Any]) -> float:
    """sum_r mu_r limit_r + rho R over the boundary's own rows."""
    prices = proof.get("prices", {})
    rows = sum(prices.get(row.name, 0.0) * row.limit for row in boundary.rows)
    return float(rows + float(proof.get("rho", 0.0)) * (boundary.replicas_max or 0))


def _shared_target_bound(
    problem: Problem, pairs: Sequence[tuple[BoundaryProblem, Mapping[str, Any]]]
) -> float | None:
    if any(proof["kind"] != "dual" for _, proof in pairs):
        return None
    target = problem.objective.tokens_per_s_min or 0.0
    usd_per_rate = min(1.0 / proof["factor"] if proof["factor"] > 0.0 else inf for _, proof in pairs)
    return _finite(target * usd_per_rate - sum(limit_sum(boundary, proof) for boundary, proof in pairs))


def _finite(number: float) -> float | None:
    return float(number) if isfinite(number) else None


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own, so that the plan is JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        return value.item()
    return value
