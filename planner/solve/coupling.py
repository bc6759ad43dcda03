"""A price ceiling or a tokens/s target that several boundaries share.

The shared amount is divided, each boundary is solved with its own share, and the multipliers of those solves
tell how to divide better (Benders' cuts: R. Geoffrion, "Generalized Benders decomposition", JOTA 10(4),
1972). The plan is the best combination of everything found; the bound holds at any time and needs no
convergence: with the shared limit priced at one multiplier, boundaries are independent (Lagrangian
relaxation), and each proves its own part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf

from planner.objective import Replica
from planner.problem import BoundaryProblem, ObjectiveKind, Problem
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from planner.solve.shared_limits import (
    Ceiling,
    PricedProof,
    Target,
    Way,
    balanced,
    pick_proofs,
    proof_job,
    with_objective,
)
from planner.solve.shares import Cut, Side, choose, common_cuts, divide
from planner.solve.side_by_side import solve_boundaries
from planner.solve.workers import run_jobs
from policies.errors import EchelonError, InfeasibleError, NoPlanInTimeError

ROUNDS = 4
TOP_UPS = 3
SOLVERS = ("decomposition",)
FREE_FRAC, ROUND_FRAC, FINISH_FRAC = 0.25, 0.13, 0.15
"""Shares of the deadline: the solve without the limit, each round, and the common proof at the end."""


class SharedLimitError(EchelonError):
    """A limit that several boundaries share can't be met by the way of solving asked for."""

    exit_code = 7


def solve_coupled(
    problem: Problem,
    limits: Limits,
    *,
    solver: str,
    processes: int,
    incumbents: Sequence[Sequence[Replica] | None] | None = None,
) -> list[BoundaryResult]:
    """The result of every boundary under the shared limit, each with a proof that may price it.

    Raises:
        SharedLimitError: `shared-limit` for solvers without multipliers, and for step time under a shared
        ceiling. InfeasibleError: `infeasible` when the shared limit is proven out of reach.
        NoPlanInTimeError: `no-plan-in-time`.
    """
    if solver not in SOLVERS or problem.objective.kind is ObjectiveKind.STEP_TIME:
        what = f"solver {solver}" if solver not in SOLVERS else "objective step-time"
        raise SharedLimitError(
            "shared-limit",
            f"{len(problem.boundaries)} boundaries share one limit, which {what} can't divide among them",
            hint="use --solver decomposition with another objective than step-time, or plan them apart",
        )
    way: Way = Target(problem) if problem.objective.kind is ObjectiveKind.PRICE else Ceiling(problem)
    return _Run(problem, limits, way, solver, processes).solve(incumbents)


class _Run:
    """One coupled solve: sides with their cuts and options, and the proofs a bound may be made of."""

    def __init__(self, problem: Problem, limits: Limits, way: Way, solver: str, processes: int) -> None:
        self.boundaries = problem.boundaries
        self.limits = limits
        self.way = way
        self.solver = solver
        self.processes = processes
        self.started_s = time.monotonic()
        self.sides = [Side(least=inf, most=0.0) for _ in self.boundaries]
        self.proofs: list[list[PricedProof]] = [[] for _ in self.boundaries]

    def solve(self, incumbents: Sequence[Sequence[Replica] | None] | None) -> list[BoundaryResult]:
        """One result per boundary, within the shared limit together; `incumbents` are plans known before."""
        for side, boundary, known in zip(
            self.sides, self.boundaries, incumbents or [None] * len(self.boundaries), strict=True
        ):
            if known:
                side.options.append(self.way.option(boundary, known))
        for kind in (ObjectiveKind.TOKENS, ObjectiveKind.PRICE):
            self._learn(self._solved([with_objective(b, kind) for b in self.boundaries], "greedy", 0.05))
        free = [self.way.free(boundary) for boundary in self.boundaries]
        found = self._solved(free, self.solver, FREE_FRAC)
        self._learn(found)
        if self.way.free_is_enough(found):
            return [self._as_own(b, result) for b, result in zip(self.boundaries, found, strict=True)]
        self._prove_free(found)
        shares = self._first_shares(found)
        for number in range(ROUNDS):
            if self._stop() or (number and self._good_enough(shares)):
                break
            self._round(shares)
            before, shares = shares, divide(self.sides, self.way.amount)[0]
            if shares == before:
                break
        self._spend_rest()
        return self._answer()

    def _spend_rest(self) -> None:
        """Offer what the best combination leaves of the amount to each boundary, while one gains by it."""
        for _ in range(TOP_UPS):
            chosen = choose(self.sides, self.way.amount)
            if chosen is None or self._stop() or self._good_enough(divide(self.sides, self.way.amount)[0]):
                return
            rest = self.way.amount - sum(option.used for option in chosen)
            self._round([option.used + rest for option in chosen])
            again = choose(self.sides, self.way.amount)
            if again is None or sum(o.value for o in again) <= sum(o.value for o in chosen):
                return

    def _solved(self, problems: Sequence[BoundaryProblem], solver: str, frac: float) -> list[BoundaryResult]:
        left_s = self.limits.deadline_s - (time.monotonic() - self.started_s)
        limits = replace(
            self.limits,
            deadline_s=max(0.01, min(left_s, frac * self.limits.deadline_s)),
            report=self._note,
        )
        return solve_boundaries(problems, limits, solver=solver, processes=self.processes)

    def _note(self, progress: Progress) -> None:
        """Progress of a part says nothing about the whole; only the best combination does."""
        chosen = choose(self.sides, self.way.amount)
        value = None if chosen is None else abs(sum(option.value for option in chosen))
        elapsed_s = time.monotonic() - self.started_s
        self.limits.report(replace(progress, elapsed_s=elapsed_s, value=value, bound=None))

    def _stop(self) -> bool:
        late = time.monotonic() - self.started_s > self.limits.deadline_s * (1.0 - FINISH_FRAC)
        return self.limits.should_stop() or (late and not self.limits.deterministic)

    def _learn(self, results: Sequence[BoundaryResult]) -> None:
        """New options, and the range of sensible shares they span."""
        for side, boundary, result in zip(self.sides, self.boundaries, results, strict=True):
            if result.replicas:
                side.options.append(self.way.option(boundary, result.replicas))
            if side.options:
                side.least = min(option.used for option in side.options)
                side.most = max(option.used for option in side.options)

    def _prove_free(self, results: Sequence[BoundaryResult]) -> None:
        """What the free solves say about prices and speeds, proven or guessed."""
        for i, (boundary, result) in enumerate(zip(self.boundaries, results, strict=True)):
            self.sides[i].ray = self.way.ray(boundary, result)
            self.sides[i].cuts += self.way.guesses(boundary, result)
            proof = self.way.free_proof(result)
            if proof is not None:
                self.proofs[i].append(proof)

    def _first_shares(self, results: Sequence[BoundaryResult]) -> list[float]:
        """In proportion to what each boundary would like, but never below its least."""
        lacking = [r.boundary for r, side in zip(results, self.sides, strict=True) if not side.options]
        if lacking:
            raise self._hopeless(results, lacking)
        least = sum(side.least for side in self.sides)
        if least > self.way.amount:
            raise self._out_of_reach(results)
        room = sum(side.most - side.least for side in self.sides)
        part = min(1.0, (self.way.amount - least) / room) if room > 0.0 else 0.0
        return [side.least + part * (side.most - side.least) for side in self.sides]

    def _hopeless(self, results: Sequence[BoundaryResult], lacking: Sequence[str]) -> EchelonError:
        if any(result.status is Status.INFEASIBLE for result in results):
            return InfeasibleError(
                "infeasible",
                "no placement satisfies all rules",
                because=[f"boundary {name} can't hold the replicas asked of it" for name in lacking],
            )
        return NoPlanInTimeError(
            "no-plan-in-time",
            f"no plan was found for {', '.join(lacking)}, and none is proven impossible",
            hint="give a longer --deadline",
        )

    def _out_of_reach(self, results: Sequence[BoundaryResult]) -> EchelonError:
        """Even the most frugal combination found passes the limit: proven, or at least not found."""
        reason = self.way.out_of_reach(results)
        if reason is None and isinstance(self.way, Ceiling):
            frugal = [with_objective(b, ObjectiveKind.PRICE) for b in self.boundaries]
            reason = self.way.too_dear(self._solved(frugal, self.solver, FREE_FRAC))
        if reason is not None:
            return InfeasibleError("infeasible", "no placement satisfies all rules", because=[reason])
        return NoPlanInTimeError(
            "no-plan-in-time",
            f"no plan was found within {self.way.words}, and none is proven impossible",
            hint="give a longer --deadline, or relax the limit",
        )

    def _round(self, shares: Sequence[float]) -> None:
        """Every boundary under its share: options and cuts."""
        subs = [self.way.sub(b, share) for b, share in zip(self.boundaries, shares, strict=True)]
        results = self._solved(subs, self.solver, ROUND_FRAC)
        self._learn(results)
        for i, (boundary, result) in enumerate(zip(self.boundaries, results, strict=True)):
            priced = self.way.priced(boundary, result.proof)
            if priced is not None:
                self._add_cut(self.sides[i], boundary, self.way.cut(priced))
                if result.proof.get("kind") == "dual":
                    self.proofs[i].append(priced)

    def _add_cut(self, side: Side, boundary: BoundaryProblem, cut: Cut) -> None:
        """Keep a cut whose multipliers are of use."""
        largest = max((abs(option.value) for option in side.options), default=0.0)
        if balanced(boundary, cut.multipliers, largest):
            side.cuts.append(cut)

    def _good_enough(self, shares: Sequence[float]) -> bool:
        """Whether the best combination is as good as all cuts allow at the best division."""
        chosen = choose(self.sides, self.way.amount)
        if chosen is None or any(not side.cuts for side in self.sides):
            return False
        value = sum(option.value for option in chosen)
        height = sum(side.height(share) for side, share in zip(self.sides, shares, strict=True))
        return height - value <= self.limits.max_excess_frac * abs(value)

    def _answer(self) -> list[BoundaryResult]:
        chosen = choose(self.sides, self.way.amount)
        if chosen is None:
            raise self._out_of_reach([])
        self._prove_together()
        picks = pick_proofs(self.proofs, self.way)
        multiplier = 0.0 if picks is None else self.way.multiplier([pick.slope for pick in picks])
        stop = f"shared {self.way.words}: multiplier {multiplier:.6g} {self.way.unit}"
        return [
            BoundaryResult(
                boundary=boundary.name,
                status=Status.FEASIBLE,
                replicas=option.replicas,
                value=abs(option.value),
                bound=None if picks is None else float(picks[i].proof["bound"]),
                proof={"kind": "none"} if picks is None else picks[i].proof,
                stop=stop,
            )
            for i, (boundary, option) in enumerate(zip(self.boundaries, chosen, strict=True))
        ]

    def _prove_together(self) -> None:
        """One proof per boundary, at one common multiplier of the shared limit."""
        cuts = common_cuts(self.sides, self.way.amount, upwards=self.way.upwards)
        if cuts is None or self.limits.should_stop():
            return
        jobs = [
            proof_job(self.way, boundary, cut, [o.replicas for o in side.options])
            for boundary, side, cut in zip(self.boundaries, self.sides, cuts, strict=True)
        ]
        left_s = max(1.0, self.limits.deadline_s - (time.monotonic() - self.started_s))
        limits = replace(self.limits, deadline_s=left_s * self.processes / len(jobs))
        results = run_jobs(
            jobs,
            lambda _position, _waiting: limits,
            lambda _position, _progress: None,
            should_stop=self.limits.should_stop,
            processes=self.processes,
        )
        for i, (boundary, result) in enumerate(zip(self.boundaries, results, strict=True)):
            priced = None if result is None else self.way.priced(boundary, result.proof)
            if priced is not None:
                self.proofs[i].append(priced)

    def _as_own(self, boundary: BoundaryProblem, result: BoundaryResult) -> BoundaryResult:
        return replace(result, boundary=boundary.name)
