"""The whole placement as one MILP per refinement in PuLP and CBC: an independent voice for small fleets.

Tokens/s of a replica is W / T, convex in its step time T, and a MILP can only maximise its chords: between
breakpoints of T the chord lies above W / T, so each MILP bounds the true optimum from above. The step times
of the plan found become breakpoints, where the chord is exact; the loop ends when the bound meets the best
plan.

PuLP's `status` is never taken for a proof, `sol_status` is; every plan is priced again from the cost model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from planner.objective import Replica, price_replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.pulp_path import PathData, Slot, path_data, variable
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.small_master import count_max_of, counted_tokens_per_s, objective_value
from policies.errors import EchelonError

BINARIES_MAX = 40_000
CLOSED_FRAC = 1e-7


class MilpTooLargeError(EchelonError):
    """The one-shot MILP would be hopeless at this size."""


@dataclass(slots=True, kw_only=True)
class _Search:
    """Best priced plan so far and the best proven bound, both signed so that more is better."""

    problem: BoundaryProblem
    limits: Limits
    deadline: float
    replicas: tuple[Replica, ...] = ()
    value: float = float("-inf")
    bound: float = float("inf")

    def offer(self, replicas: Sequence[Replica]) -> None:
        """Keep a plan when it is allowed and better."""
        target = self.problem.objective.tokens_per_s_min
        if self.problem.objective.kind is ObjectiveKind.PRICE and target is not None:
            speeds = [r.tokens_per_s for r in replicas]
            if counted_tokens_per_s(speeds, self.problem.speed_ratio_max) < target * (1.0 - 1e-9):
                return
        value = sign_of(self.problem) * objective_value(self.problem, replicas)
        if value > self.value:
            self.value, self.replicas = value, tuple(replicas)

    @property
    def closed(self) -> bool:
        """Whether no plan can be better than the one held."""
        return self.bound <= self.value + CLOSED_FRAC * abs(self.value)

    @property
    def out_of_time(self) -> bool:
        """Whether limits ask to stop."""
        if self.limits.should_stop():
            return True
        return not self.limits.deterministic and time.monotonic() > self.deadline


def solve_boundary(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """The best set of replicas by path MILPs; OPTIMAL within 1e-7, or FEASIBLE at the limits.

    Raises:
        MilpTooLargeError: `problem-too-large`.
    """
    data = path_data(problem)
    search = _Search(problem=problem, limits=limits, deadline=time.monotonic() + limits.deadline_s)
    num_slots = count_max_of(problem)
    if len(data.candidates) * num_slots > BINARIES_MAX:
        raise MilpTooLargeError(
            "problem-too-large",
            f"{len(data.candidates):,} stages times {num_slots} replicas exceed {BINARIES_MAX:,} binaries",
            hint="use --solver decomposition",
        )
    if max(1, problem.replicas_min) > num_slots or not data.candidates:
        return _result(search, Status.INFEASIBLE)
    fastest = fastest_replica(problem, data, search)
    if fastest is None:
        return _result(search, Status.UNKNOWN if search.out_of_time else Status.INFEASIBLE)
    if num_slots == 1 and problem.objective.kind is not ObjectiveKind.PRICE:
        search.offer([fastest])
        search.bound = fastest.tokens_per_s
        return _result(search, Status.OPTIMAL)
    return refine(problem, data, search, fastest.step_s)


def sign_of(problem: BoundaryProblem) -> float:
    """-1 when the objective is minimised."""
    return -1.0 if problem.objective.kind is ObjectiveKind.PRICE else 1.0


def refine(problem: BoundaryProblem, data: PathData, search: _Search, shortest_s: float) -> BoundaryResult:
    """MILPs over ever finer chords until the bound meets the plan."""
    breaks_s = [shortest_s * (1.0 - 1e-6)]
    while breaks_s[-1] < data.longest_s * 1.001:
        breaks_s.append(breaks_s[-1] * 1.5)
    for _ in range(max(1, search.limits.rounds)):
        model, slots = build_model(problem, data, breaks_s, shortest_s)
        status = _run(model, search)
        if status == "infeasible":
            return _result(search, Status.INFEASIBLE)
        if status == "stopped":
            break
        replicas = [r for r in (_priced(problem, slot) for slot in slots) if r is not None]
        scale = 1.0 if problem.objective.kind is ObjectiveKind.PRICE else problem.tokens_per_step / shortest_s
        search.bound = min(search.bound, -float(model.objective.value()) * scale)
        search.offer(replicas)
        if search.closed:
            return _result(search, Status.OPTIMAL)
        known = len(breaks_s)
        breaks_s = sorted({*breaks_s, *(r.step_s for r in replicas)})
        if len(breaks_s) == known:
            break
    return _result(search, Status.FEASIBLE if search.replicas else Status.UNKNOWN)


def fastest_replica(problem: BoundaryProblem, data: PathData, search: _Search) -> Replica | None:
    """The replica of least step time on the whole fleet, or None when there is none."""
    import pulp

    model = pulp.LpProblem("fastest", pulp.LpMinimize)
    slot = Slot(problem, data, model, 0, data.longest_s)
    keep_rows(problem, model, [slot])
    model += pulp.LpConstraint(pulp.lpSum(slot.starts), pulp.LpConstraintEQ, "one", 1)
    model.setObjective(pulp.LpAffineExpression(slot.step_terms()))
    return _priced(problem, slot) if _run(model, search) == "optimal" else None


def build_model(
    problem: BoundaryProblem, data: PathData, breaks_s: Sequence[float], scale_s: float
) -> tuple[Any, list[Slot]]:
    """The MILP with chords between these breakpoints. Speeds are in units of the fastest replica's."""
    import pulp

    model = pulp.LpProblem("placement", pulp.LpMinimize)
    slots = [Slot(problem, data, model, r, scale_s) for r in range(count_max_of(problem))]
    keep_rows(problem, model, slots)
    counted = []
    slowest = variable(model, "slowest_speed", upto=1.01) if problem.speed_ratio_max is not None else None
    for slot in slots:
        speed = chord_speed(model, slot, [t / scale_s for t in breaks_s])
        counted.append(speed)
        if slowest is not None and problem.speed_ratio_max is not None:
            counted[-1] = limit_speed_ratio(model, slot, speed, slowest, problem.speed_ratio_max)
    count = pulp.lpSum(start for slot in slots for start in slot.starts)
    model += (count >= max(1, problem.replicas_min), "replicas-min")
    for before, after in pairwise(slots):
        model += (pulp.lpSum(before.starts) >= pulp.lpSum(after.starts), f"order_{after.slot_i}")
    if problem.objective.kind is ObjectiveKind.PRICE:
        target = problem.objective.tokens_per_s_min or 0.0
        model += (pulp.lpSum(counted) >= target * scale_s / problem.tokens_per_step, "tokens-min")
        prices = {c.class_i: c.device.usd_per_hour for c in problem.classes}
        terms = [term for slot in slots for term in slot.usage_terms(prices)]
        model.setObjective(pulp.LpAffineExpression(terms))
    else:
        model.setObjective(pulp.LpAffineExpression([(speed, -1.0) for speed in counted]))
    return model, slots


def keep_rows(problem: BoundaryProblem, model: Any, slots: Sequence[Slot]) -> None:
    """`class[c]`, `pool[..]`, `price`: weighted devices of all replicas and stages <= limit."""
    import pulp

    for r, row in enumerate(problem.rows):
        weights = dict(row.coefficients)
        terms = [term for slot in slots for term in slot.usage_terms(weights)]
        limit = row.limit + 1e-9 * max(1.0, abs(row.limit))
        model += pulp.LpConstraint(pulp.LpAffineExpression(terms), pulp.LpConstraintLE, f"row_{r}", limit)


def chord_speed(model: Any, slot: Slot, breaks: Sequence[float]) -> Any:
    """`chord`: speed <= the chord of 1/T over the segment that holds the step time; 0 when empty.

    One segment k is open (d_k) when the slot is used; T <= sum_k (lo_k d_k + u_k), u_k <= (hi_k - lo_k) d_k,
    speed = sum_k (d_k / lo_k - u_k (1/lo_k - 1/hi_k) / (hi_k - lo_k)).
    """
    import pulp

    r = slot.slot_i
    speed = variable(model, f"speed_{r}", upto=1.01)
    opened, reach, worth = [], [], [(speed, -1.0)]
    for k, (low, high) in enumerate(pairwise(breaks)):
        d = variable(model, f"d_{r}_{k}", binary=True)
        u = variable(model, f"u_{r}_{k}")
        model += (u <= (high - low) * d, f"segment_{r}_{k}")
        opened.append((d, 1.0))
        reach += [(d, low), (u, 1.0)]
        worth += [(d, 1.0 / low), (u, -1.0 / (low * high))]
    used = pulp.lpSum(slot.starts)
    model += (pulp.LpAffineExpression(opened) == used, f"open_{r}")
    step = pulp.LpAffineExpression(slot.step_terms())
    model += (pulp.LpAffineExpression(reach) >= step, f"reach_{r}")
    model += (pulp.LpAffineExpression(worth) >= 0, f"chord_{r}")
    return speed


def limit_speed_ratio(model: Any, slot: Slot, speed: Any, slowest: Any, ratio_max: float) -> Any:
    """`speed-ratio`: counted <= speed, counted <= ratio * slowest, slowest <= speed of all in use."""
    import pulp

    counted = variable(model, f"counted_{slot.slot_i}", upto=1.01)
    model += (counted <= speed, f"counted_{slot.slot_i}")
    model += (counted <= ratio_max * slowest, f"speed-ratio_{slot.slot_i}")
    used = pulp.lpSum(slot.starts)
    model += (slowest <= speed + 1.01 - 1.01 * used, f"slowest_{slot.slot_i}")
    return counted


def _priced(problem: BoundaryProblem, slot: Slot) -> Replica | None:
    picked = slot.chosen()
    return None if picked is None else price_replica(problem, picked[0], picked[1])


def _run(model: Any, search: _Search) -> str:
    """`optimal`, `infeasible` or `stopped`; a solution at a time limit counts as stopped."""
    import pulp

    seconds = None if search.limits.deterministic else max(1.0, search.deadline - time.monotonic())
    bundled = str(pulp.PULP_CBC_CMD.pulp_cbc_path)
    path = bundled if Path(bundled).exists() else None
    model.solve(pulp.COIN_CMD(path=path, msg=False, gapRel=0.0, gapAbs=0.0, threads=1, timeLimit=seconds))
    if model.sol_status == pulp.LpSolutionOptimal:
        return "optimal"
    return "infeasible" if model.sol_status == pulp.LpSolutionInfeasible else "stopped"


def _result(search: _Search, status: Status) -> BoundaryResult:
    proven = status in (Status.OPTIMAL, Status.INFEASIBLE)
    value = objective_value(search.problem, search.replicas) if search.replicas else None
    bound = None if abs(search.bound) == float("inf") else sign_of(search.problem) * search.bound
    return BoundaryResult(
        boundary=search.problem.name,
        status=status,
        replicas=search.replicas,
        value=value,
        bound=bound,
        proof={"kind": "closure"} if proven else {"kind": "none"},
        stop="proven" if proven else "limits reached",
    )
