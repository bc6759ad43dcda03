"""The two limits boundaries can share, in one form: what a boundary uses of it, is worth, and can prove.

Both are maximised under "sum of used <= amount". A ceiling: used is USD per hour, value tokens/s. A target of
G tokens/s: used is minus tokens/s, the amount is -G, value is minus USD per hour. With multipliers scaled to
a factor f, the proof of one boundary says value <= base + slope * used:

    ceiling   base = f (sum_r mu_r limit_r + rho R) - nu k,   slope = f mu_price
    target    base = sum_r mu_r limit_r + rho R,              slope = 1 / f

Together, since all slopes are >= 0:  sum of values <= sum of bases + (largest slope) C, or - (smallest slope)
G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from planner.objective import Replica
from planner.problem import BoundaryProblem, CapacityRow, Objective, ObjectiveKind, Problem
from planner.solve.priced_proof import certified_at
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.shares import Cut, Option
from planner.solve.small_master import counted_tokens_per_s
from planner.solve.workers import Job

ROW = "price"
TINY_TOKENS_PER_S = 1e-6
NU_MAX = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedProof:
    """A boundary's proof in the form value <= base + slope * used."""

    base: float
    slope: float
    proof: Mapping[str, Any]


class Way(Protocol):
    """A shared limit. `upwards` says whether steeper slopes are on the safe side."""

    amount: float
    words: str
    unit: str
    upwards: bool

    def free(self, boundary: BoundaryProblem) -> BoundaryProblem:
        """The boundary as if it were alone with all of the amount."""
        ...

    def free_is_enough(self, results: Sequence[BoundaryResult]) -> bool:
        """Whether the free solves respect the limit together."""
        ...

    def free_proof(self, result: BoundaryResult) -> PricedProof | None:
        """What a free solve proves under the shared limit, if it proves anything."""
        ...

    def guesses(self, boundary: BoundaryProblem, result: BoundaryResult) -> list[Cut]:
        """First cuts, from the free solve and the replicas found; guesses until certified."""
        ...

    def ray(self, boundary: BoundaryProblem, result: BoundaryResult) -> Cut:
        """How a cut may be turned, from what the boundary owns and the free solve."""
        ...

    def out_of_reach(self, results: Sequence[BoundaryResult]) -> str | None:
        """Why no combination respects the limit, by the free solves' proofs; None if they don't say so."""
        ...

    def option(self, boundary: BoundaryProblem, replicas: Sequence[Replica]) -> Option:
        """Replicas as an option."""
        ...

    def sub(self, boundary: BoundaryProblem, share: float) -> BoundaryProblem:
        """The boundary with a share of its own."""
        ...

    def priced(self, boundary: BoundaryProblem, proof: Mapping[str, Any]) -> PricedProof | None:
        """A proof of `sub` as one of the boundary itself, the share taken out; None without multipliers."""
        ...

    def cut(self, priced: PricedProof) -> Cut:
        """The same as a cut, its multipliers scaled to factor one."""
        ...

    def multiplier(self, slopes: Sequence[float]) -> float:
        """The slope that holds for all boundaries."""
        ...


class Ceiling:
    """USD per hour that all boundaries together may cost; tokens/s are maximised."""

    unit = "tokens/s per USD per hour"
    upwards = False

    def __init__(self, problem: Problem) -> None:
        self.amount = problem.usd_per_hour_max or 0.0
        self.words = f"price ceiling of {self.amount:g} USD per hour"

    def free(self, boundary: BoundaryProblem) -> BoundaryProblem:
        """The boundary without the ceiling."""
        return boundary

    def free_is_enough(self, results: Sequence[BoundaryResult]) -> bool:
        """Whether what is best for each boundary is cheap enough."""
        usd = sum(replica.usd_per_hour for result in results for replica in result.replicas)
        return all(result.replicas for result in results) and usd <= self.amount

    def free_proof(self, result: BoundaryResult) -> PricedProof | None:
        """No plan of the boundary passes its own bound, whatever it costs. Exact proofs speak of one plan."""
        if result.bound is None or result.proof.get("kind") != "dual":
            return None
        return PricedProof(base=result.bound, slope=0.0, proof={**result.proof, "bound": result.bound})

    def guesses(self, boundary: BoundaryProblem, result: BoundaryResult) -> list[Cut]:
        """The free bound (or devices at their rates), and USD at what the best replica gives for one."""
        per_usd = (r.tokens_per_s / r.usd_per_hour for r in result.replicas if r.usd_per_hour)
        dearest = max(per_usd, default=0.0)
        only_price = {"prices": {ROW: dearest}, "rho": 0.0, "nu": 0.0}
        return [free_or_rates(boundary, result), Cut(base=0.0, slope=dearest, multipliers=only_price)]

    def ray(self, boundary: BoundaryProblem, result: BoundaryResult) -> Cut:
        """USD per hour can be charged on the devices there are instead: used <= price of them all."""
        usd = {c.class_i: c.device.usd_per_hour for c in boundary.classes}
        prices = {f"class[{class_i}]": price for class_i, price in usd.items()}
        return Cut(
            base=sum(usd[c.class_i] * c.num_devices for c in boundary.classes),
            slope=-1.0,
            multipliers={"prices": {**prices, ROW: -1.0}, "rho": 0.0, "nu": 0.0},
        )

    def out_of_reach(self, results: Sequence[BoundaryResult]) -> str | None:
        """Speeds say nothing about prices."""
        return None

    def too_dear(self, cheapest: Sequence[BoundaryResult]) -> str | None:
        """Why the ceiling is out of reach, from solves that minimised each boundary's price."""
        if any(result.status is Status.INFEASIBLE for result in cheapest):
            names = [result.boundary for result in cheapest if result.status is Status.INFEASIBLE]
            return f"{', '.join(names)} can't hold the replicas asked of it"
        bounds = [result.bound for result in cheapest if result.bound is not None]
        if len(bounds) < len(cheapest) or sum(bounds) <= self.amount:
            return None
        return (
            f"the replicas asked of all boundaries cost at least {sum(bounds):.4g} USD per hour,"
            f" the ceiling is {self.amount:g}"
        )

    def option(self, boundary: BoundaryProblem, replicas: Sequence[Replica]) -> Option:
        """Price and speed of replicas."""
        return Option(
            used=sum(replica.usd_per_hour for replica in replicas),
            value=counted_tokens_per_s([r.tokens_per_s for r in replicas], boundary.speed_ratio_max),
            replicas=tuple(replicas),
        )

    def sub(self, boundary: BoundaryProblem, share: float) -> BoundaryProblem:
        """The boundary with a ceiling of its own."""
        prices = tuple((c.class_i, c.device.usd_per_hour) for c in boundary.classes)
        return replace(
            boundary, rows=(*boundary.rows, CapacityRow(name=ROW, coefficients=prices, limit=share))
        )

    def priced(self, boundary: BoundaryProblem, proof: Mapping[str, Any]) -> PricedProof | None:
        """The proof with its bound less the ceiling's part."""
        if "factor" not in proof:
            return None
        factor = float(proof["factor"])
        base = factor * own_limits(boundary, proof) - float(proof["nu"]) * boundary.replicas_min
        slope = factor * float(proof["prices"].get(ROW, 0.0))
        return PricedProof(base=base, slope=slope, proof={**proof, "bound": base})

    def cut(self, priced: PricedProof) -> Cut:
        """The same as a cut."""
        return Cut(base=priced.base, slope=priced.slope, multipliers=_scaled(priced.proof))

    def multiplier(self, slopes: Sequence[float]) -> float:
        """The dearest."""
        return max(slopes)


class Target:
    """Tokens/s that all boundaries together must reach; USD per hour are minimised."""

    unit = "USD per hour per token/s"
    upwards = True

    def __init__(self, problem: Problem) -> None:
        target = problem.objective.tokens_per_s_min or 0.0
        self.amount = -target
        self.words = f"target of {target:g} tokens/s"

    def free(self, boundary: BoundaryProblem) -> BoundaryProblem:
        """As fast as the boundary can be."""
        return with_objective(boundary, ObjectiveKind.TOKENS)

    def free_is_enough(self, results: Sequence[BoundaryResult]) -> bool:
        """Never: the fastest plan is rarely the cheapest."""
        return False

    def free_proof(self, result: BoundaryResult) -> PricedProof | None:
        """Speed alone says nothing about prices."""
        return None

    def guesses(self, boundary: BoundaryProblem, result: BoundaryResult) -> list[Cut]:
        """Every token/s costs what it costs on the cheapest replica."""
        cheapest = min((r.usd_per_hour / r.tokens_per_s for r in result.replicas), default=0.0)
        return [Cut(base=0.0, slope=cheapest, multipliers={"prices": {}, "rho": 0.0, "nu": 0.0})]

    def ray(self, boundary: BoundaryProblem, result: BoundaryResult) -> Cut:
        """No plan is faster than the free solve proves: tokens/s <= f (mu . limits + rho R)."""
        multipliers = {**free_or_rates(boundary, result).multipliers, "nu": 0.0}
        return Cut(base=own_limits(boundary, multipliers), slope=1.0, multipliers=multipliers)

    def out_of_reach(self, results: Sequence[BoundaryResult]) -> str | None:
        """Whether the boundaries' proven speeds together miss the target."""
        bounds = [result.bound for result in results if result.bound is not None]
        if not results or len(bounds) < len(results) or sum(bounds) >= -self.amount:
            return None
        reached = f"all boundaries together reach at most {sum(bounds):,.4g} tokens/s"
        return f"{reached}, the target is {-self.amount:,g}"

    def option(self, boundary: BoundaryProblem, replicas: Sequence[Replica]) -> Option:
        """Speed and price of replicas."""
        speeds = [replica.tokens_per_s for replica in replicas]
        return Option(
            used=-counted_tokens_per_s(speeds, boundary.speed_ratio_max),
            value=-sum(replica.usd_per_hour for replica in replicas),
            replicas=tuple(replicas),
        )

    def sub(self, boundary: BoundaryProblem, share: float) -> BoundaryProblem:
        """The boundary with a target of its own."""
        target = max(TINY_TOKENS_PER_S, -share)
        return replace(boundary, objective=Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=target))

    def priced(self, boundary: BoundaryProblem, proof: Mapping[str, Any]) -> PricedProof | None:
        """The proof with its bound at the whole target, as the boundary's own problem states it."""
        if float(proof.get("factor", 0.0)) <= 0.0:
            return None
        base, slope = own_limits(boundary, proof), 1.0 / float(proof["factor"])
        return PricedProof(base=base, slope=slope, proof={**proof, "bound": -self.amount * slope - base})

    def cut(self, priced: PricedProof) -> Cut:
        """The same as a cut."""
        return Cut(base=priced.base, slope=priced.slope, multipliers=_unscaled(priced.proof))

    def multiplier(self, slopes: Sequence[float]) -> float:
        """The cheapest."""
        return min(slopes)


def with_objective(boundary: BoundaryProblem, kind: ObjectiveKind) -> BoundaryProblem:
    """The boundary alone under another objective; price asks for hardly any speed."""
    if boundary.objective.kind is ObjectiveKind.STEADY_STATE and kind is ObjectiveKind.TOKENS:
        return boundary
    target = TINY_TOKENS_PER_S if kind is ObjectiveKind.PRICE else None
    return replace(boundary, objective=Objective(kind=kind, tokens_per_s_min=target))


def own_limits(boundary: BoundaryProblem, proof: Mapping[str, Any]) -> float:
    """sum_r mu_r limit_r + rho R over the boundary's own rows."""
    rows = sum(float(proof["prices"].get(row.name, 0.0)) * row.limit for row in boundary.rows)
    return rows + float(proof["rho"]) * (boundary.replicas_max or 0)


def pick_proofs(proofs: Sequence[Sequence[PricedProof]], way: Way) -> list[PricedProof] | None:
    """One proof per boundary so that together they prove the most; None where a boundary has none.

    Every slope is tried as the common one; a boundary may use any proof on its safe side.
    """
    if any(not of_one for of_one in proofs):
        return None
    best: tuple[float, list[PricedProof]] | None = None
    for common in {proof.slope for of_one in proofs for proof in of_one}:
        picks = []
        for of_one in proofs:
            able = [p for p in of_one if way.multiplier([p.slope, common]) == common]
            if able:
                picks.append(min(able, key=lambda p: (p.base, p.slope)))
        if len(picks) == len(proofs):
            total = sum(p.base for p in picks) + way.multiplier([p.slope for p in picks]) * way.amount
            if best is None or total < best[0]:
                best = (total, picks)
    return None if best is None else best[1]


def proof_job(way: Way, boundary: BoundaryProblem, cut: Cut, known: Sequence[Sequence[Replica]]) -> Job:
    """A certificate under given multipliers, to be made in a process of its own."""
    sub = way.sub(boundary, way.amount)

    def work(_boundary: BoundaryProblem, limits: Limits) -> BoundaryResult:
        return certified_at(sub, cut.multipliers, [r for replicas in known for r in replicas], limits)

    return Job(boundary=boundary, work=work)


def balanced(boundary: BoundaryProblem, multipliers: Mapping[str, Any], value: float) -> bool:
    """Whether multipliers speak of prices rather than of too few replicas.

    Where devices or money barely suffice, what one replica more is worth knows no limit, and the charges that
    take it away again don't either. Such multipliers are sound, but a certificate made with them is weak.
    """
    return float(multipliers["nu"]) * boundary.replicas_min <= NU_MAX * value


def free_or_rates(boundary: BoundaryProblem, result: BoundaryResult) -> Cut:
    """The free solve's bound as a cut; where no proof came in time, devices valued by their rates.

    Those are scaled by the replicas found: a guess, of which only a certificate with its multipliers makes a
    bound.
    """
    proven = result.bound is not None and result.value is not None and "factor" in result.proof
    if proven and balanced(boundary, _scaled(result.proof), result.value or 0.0):
        return Cut(base=result.bound or 0.0, slope=0.0, multipliers=_scaled(result.proof))
    dtype = boundary.workload.job.dtype
    rate = {c.class_i: max(c.device.rate_flop_per_s(dtype), 1.0) for c in boundary.classes}
    worth = max((r.tokens_per_s / sum(rate[c] * n for c, n in r.usage) for r in result.replicas), default=1.0)
    prices = {f"class[{class_i}]": worth * per_device for class_i, per_device in rate.items()}
    multipliers = {"prices": prices, "rho": 0.0, "nu": 0.0}
    return Cut(base=own_limits(boundary, multipliers), slope=0.0, multipliers=multipliers)


def _scaled(proof: Mapping[str, Any]) -> Mapping[str, Any]:
    factor = float(proof.get("factor", 1.0))
    prices = {name: factor * float(mu) for name, mu in proof.get("prices", {}).items()}
    rho, nu = factor * float(proof.get("rho", 0.0)), float(proof.get("nu", 0.0))
    return {"prices": prices, "rho": rho, "nu": nu}


def _unscaled(proof: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"prices": dict(proof["prices"]), "rho": proof["rho"], "nu": proof["nu"]}
