"""One boundary's proof: which kind it is, and the bound it really supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.check.dual import DualCheck
from planner.check.multipliers import figure, read_multipliers
from planner.check.rate import best_rates, boundary_rate_bound, least_usd_per_rate
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.problem import BoundaryProblem, ObjectiveKind

KINDS = ("dual", "closure", "ceilings", "threshold", "rate", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What one boundary's proof supports.

    `bound` is tokens/s, or USD per hour where price is minimised; None for a proof of kind `none`.
    `usd_per_rate` and `deduction` say the same for price with several boundaries: USD >= usd_per_rate *
    tokens/s - deduction. `coupling` is the multiplier of a price ceiling shared by all boundaries, already
    times the factor.
    """

    kind: str
    bound: float | None
    coupling: float = 0.0
    usd_per_rate: float = 0.0
    deduction: float = 0.0
    note: str = ""


@dataclass(slots=True, kw_only=True)
class ProofCheck:
    """Repeats the proof of one boundary. `value` is what its replicas were found to be worth."""

    problem: BoundaryProblem
    value: float
    coupled: bool
    alone: bool
    findings: Findings
    place: str
    report: Reporter | None = None

    def run(self, proof: object) -> Proven | None:
        """What the proof supports; None, with the reasons recorded, when it doesn't hold."""
        kind = proof.get("kind") if isinstance(proof, Mapping) else None
        if not isinstance(proof, Mapping) or kind not in KINDS:
            self.findings.add("proof-kind", f"{self.place}.kind", kind, f"one of {', '.join(KINDS)}")
            return None
        if kind == "none":
            return Proven(kind="none", bound=None)
        if kind == "dual":
            return self._dual(proof)
        if kind == "rate":
            return self._rate(proof)
        if not self.alone:
            limit = "a dual or rate proof where boundaries share a price target"
            self.findings.add("proof-kind", f"{self.place}.kind", kind, limit)
            return None
        exact = {"closure": self._closure, "ceilings": self._ceilings, "threshold": self._threshold}
        return exact[kind](proof)

    def _dual(self, proof: Mapping[str, Any]) -> Proven | None:
        multipliers = read_multipliers(self.problem, proof, self.findings, self.place, coupled=self.coupled)
        if multipliers is None:
            return None
        walk = DualCheck(
            problem=self.problem,
            multipliers=multipliers,
            findings=self.findings,
            place=self.place,
            report=self.report,
        )
        factor = walk.run(proof.get("modes"))
        if factor is None:
            return None
        walk.require_factor(factor)
        bound = multipliers.bound(self.problem)
        self._require_bound(proof, bound)
        rho_sum = multipliers.rho * (self.problem.replicas_max or 0)
        return Proven(
            kind="dual",
            bound=bound,
            coupling=multipliers.factor * multipliers.coupling,
            usd_per_rate=1.0 / multipliers.factor if multipliers.factor > 0.0 else float("inf"),
            deduction=multipliers.limit_sum + rho_sum,
            note=f"{walk.num_paths} path problems repeated",
        )

    def _rate(self, proof: Mapping[str, Any]) -> Proven | None:
        rate_C = best_rates(self.problem, self.report)
        derived, stated = boundary_rate_bound(self.problem, rate_C), figure(proof.get("bound"))
        minimises = self.problem.objective.kind is ObjectiveKind.PRICE
        if stated is None or (derived - stated) * (-1.0 if minimises else 1.0) > REL_TOLERANCE * derived:
            limit = f"at {'most' if minimises else 'least'} {derived!r}"
            self.findings.add("proof-bound", f"{self.place}.bound", proof.get("bound"), limit)
            return None
        usd_per_rate = min(least_usd_per_rate(self.problem, rate_C), _per_target(self.problem, stated))
        return Proven(
            kind="rate", bound=stated, usd_per_rate=usd_per_rate, note="rates of single devices only"
        )

    def _closure(self, proof: Mapping[str, Any]) -> Proven | None:
        from planner.check.closure import ClosureCheck

        multipliers = read_multipliers(self.problem, proof, self.findings, self.place, coupled=False)
        if multipliers is None:
            return None
        walk = ClosureCheck(
            problem=self.problem,
            multipliers=multipliers,
            value=self.value,
            findings=self.findings,
            place=self.place,
            report=self.report,
        )
        if not walk.run():
            return None
        self._require_bound(proof, self.value)
        return Proven(kind="closure", bound=self.value, note=f"{walk.num_replicas} replicas re-enumerated")

    def _ceilings(self, proof: Mapping[str, Any]) -> Proven | None:
        from planner.check.ceilings import CeilingsCheck

        walk = CeilingsCheck(
            problem=self.problem,
            value=self.value,
            findings=self.findings,
            place=self.place,
            report=self.report,
        )
        if not walk.run(proof.get("ceilings")):
            return None
        self._require_bound(proof, self.value)
        return Proven(kind="ceilings", bound=self.value, note=f"{walk.num_labels} chains gone through")

    def _threshold(self, _proof: Mapping[str, Any]) -> Proven | None:
        from planner.check.threshold import no_faster_replica

        if not no_faster_replica(self.problem, self.value, self.findings, self.place, self.report):
            return None
        return Proven(kind="threshold", bound=self.value, note="no faster replica is reachable")

    def _require_bound(self, proof: Mapping[str, Any], derived: float) -> None:
        stated = proof.get("bound")
        if isinstance(stated, bool) or not isinstance(stated, int | float):
            self.findings.add("proof-bound", f"{self.place}.bound", stated, derived)
        else:
            self.findings.require_equal("proof-bound", f"{self.place}.bound", float(stated), derived)


def _per_target(problem: BoundaryProblem, usd_per_hour: float) -> float:
    target = problem.objective.tokens_per_s_min
    return usd_per_hour / target if target else float("inf")
