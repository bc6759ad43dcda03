"""One call from inputs to a plan: cost model, problem, spill-over, solve, assembly.

Nothing is read or written here.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

from costmodels.interface import CostModel
from costmodels.registry import cost_model
from costmodels.workload import Workload
from planner.assemble import assemble
from planner.build import build_problem, without_owners
from planner.candidates import CandidateRule
from planner.canonical import Inputs
from planner.certificate import EXACT_KINDS
from planner.former import former_devices, former_replicas
from planner.objective import Replica
from planner.plan import Plan
from planner.problem import Objective, ObjectiveKind, Problem
from planner.solve.result import BoundaryResult, Limits, Status, excess_frac
from planner.solve.run import is_coupled, solve_problem
from planner.solve.side_by_side import PROCESSES
from planner.solve.small_master import objective_value
from policies.errors import InfeasibleError, NoPlanInTimeError

VERSIONED = ("echelon", "numpy", "numba", "ortools", "pulp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for besides the inputs. `warm_start` and `keep` are earlier plans.

    `cost_model_settings` come on top of what the inputs say to a built-in cost model (`cost_settings`). A
    warm start enters as incumbent. A plan to keep does so too, stands when it is good enough, and decides
    which hosts are taken where there is a choice.
    """

    solver: str = "decomposition"
    objective: Objective = field(default_factory=Objective)
    executor: str = "any"
    cost_model: str = "analytic"
    cost_model_settings: Mapping[str, Any] | None = None
    rule: CandidateRule | None = None
    warm_start: Plan | None = None
    keep: Plan | None = None
    failover: bool = True


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The plan, the problem it answers, and what the solver said.

    `spilled` tells that devices of spill-over owners are used. `former_used` says whether an earlier plan
    could enter as incumbent, None when there was none.
    """

    plan: Plan
    problem: Problem
    results: tuple[BoundaryResult, ...]
    spilled: bool
    former_used: bool | None


def solve_inputs(inputs: Inputs, request: Request, limits: Limits, *, processes: int = PROCESSES) -> Answer:
    """The best plan found within `limits`, with its certificate.

    Devices of the policy's spill-over owners are used only where the plan without them is proven impossible
    or falls short of the policy's tokens/s; half of the deadline goes to finding out. With `processes` 0
    everything runs in this process.

    Raises:
        InputError, PolicyRefusedError, EchelonError: the problem is refused.
        InfeasibleError: `infeasible`, proven.
        NoPlanInTimeError: `no-plan-in-time`.
    """
    spill_over = inputs.policy.spill_over
    if spill_over is None:
        return _solve_once(inputs, request, limits, (), processes)
    started_s = time.monotonic()
    first: Answer | None = None
    try:
        half = replace(limits, deadline_s=limits.deadline_s / 2.0)
        first = _solve_once(inputs, request, half, spill_over.owners, processes)
    except InfeasibleError:
        pass
    wanted = spill_over.tokens_per_s_below or 0.0
    if first is not None and (first.plan.tokens_per_s >= wanted or limits.should_stop()):
        return first
    left_s = limits.deadline_s - (time.monotonic() - started_s)
    try:
        rest = replace(limits, deadline_s=max(0.0, left_s))
        second = _solve_once(inputs, request, rest, (), processes)
    except NoPlanInTimeError:
        if first is None:
            raise
        return first
    return replace(second, spilled=True)


def cost_settings(inputs: Inputs, request: Request) -> dict[str, Any]:
    """The cost model's settings: what the inputs say to a built-in one, under those asked for.

    That is the memory the fleet reserves and, for the analytic one, whether the boundary plane's copies are
    held because something crosses a boundary.
    """
    asked = dict(request.cost_model_settings or {})
    if request.cost_model == "measured":
        return {"memory_reserve_frac": inputs.fleet.memory_reserve_frac} | asked
    if request.cost_model != "analytic":
        return asked
    names = inputs.policy.boundaries if inputs.policy.boundaries is not None else inputs.fleet.boundaries
    said = {"memory_reserve_frac": inputs.fleet.memory_reserve_frac, "sync_layer": len(names) > 1}
    return said | asked


def plan_settings(inputs: Inputs, request: Request, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """`Plan.settings`: what the referee builds the problem from again, besides the inputs."""
    settings: dict[str, Any] = {
        "objective": request.objective.kind.value,
        "tokens_per_s_min": request.objective.tokens_per_s_min,
        "executor": request.executor,
        "cost_model": request.cost_model,
        "cost_model_settings": cost_settings(inputs, request),
        "rule": None if request.rule is None else asdict(request.rule),
    }
    return settings | ({"without_owners": list(without)} if without else {})


def stated_limits(request: Request, limits: Limits) -> dict[str, Any]:
    """`Certificate.limits`: no clock binds a deterministic solve, so none is stated."""
    return {
        "solver": request.solver,
        "deterministic": limits.deterministic,
        "deadline_s": None if limits.deterministic else limits.deadline_s,
        "max_excess_frac": limits.max_excess_frac,
        "rounds": limits.rounds,
    }


def stated_versions() -> dict[str, str]:
    """Versions of what figures depend on, as far as installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _solve_once(
    inputs: Inputs, request: Request, limits: Limits, owners: Sequence[str], processes: int
) -> Answer:
    problem = problem_of(inputs, request, without=owners)
    _require_devices(problem)
    known = _former(problem, request)
    results = solve_problem(problem, limits, solver=request.solver, processes=processes, incumbents=known)
    _require_plan(results)
    if request.keep is not None:
        results = _kept(problem, results, known, limits.max_excess_frac)
    plan = assemble(
        problem,
        results,
        inputs,
        settings=plan_settings(inputs, request, without=owners),
        limits=stated_limits(request, limits),
        versions=stated_versions(),
        seed=limits.seed,
        former=None if request.keep is None else former_devices(request.keep),
        failover=request.failover,
    )
    asked = request.warm_start is not None or request.keep is not None
    return Answer(
        plan=plan,
        problem=problem,
        results=tuple(results),
        spilled=False,
        former_used=all(replicas is not None for replicas in known) if asked else None,
    )


def cost_model_of(inputs: Inputs, request: Request) -> Callable[[Workload], CostModel]:
    """What makes the cost model asked for, under its settings, of any workload."""
    settings = cost_settings(inputs, request)
    return lambda workload: cost_model(request.cost_model, workload, **settings)


def problem_of(inputs: Inputs, request: Request, *, without: Sequence[str] = ()) -> Problem:
    """The problem that inputs and request pose, less the devices of some owners."""
    return build_problem(
        without_owners(inputs.fleet, without) if without else inputs.fleet,
        inputs.workload,
        inputs.policy,
        cost_model_of(inputs, request)(inputs.workload),
        objective=request.objective,
        executor=request.executor,
        rule=request.rule,
    )


def _require_devices(problem: Problem) -> None:
    """Every boundary has devices, and some cluster of them that the executor can run."""
    because = [f"boundary {b.name} has no devices" for b in problem.boundaries if not b.classes]
    because += [
        f"no cluster of devices in boundary {b.name} can run a micro-batch of the job"
        for b in problem.boundaries
        if b.classes and not any(mode.templates for mode in b.modes)
    ]
    if because:
        raise InfeasibleError("infeasible", "no placement satisfies all rules", because=because)


def _require_plan(results: Sequence[BoundaryResult]) -> None:
    """Every boundary has replicas, or the solve ends here."""
    without = [result for result in results if not result.replicas]
    proven = [result.boundary for result in without if result.status is Status.INFEASIBLE]
    if proven:
        raise InfeasibleError(
            "infeasible",
            "no placement satisfies all rules",
            because=[f"boundary {name} can't hold the replicas asked of it" for name in proven],
        )
    if without:
        names = ", ".join(result.boundary for result in without)
        raise NoPlanInTimeError(
            "no-plan-in-time",
            f"no plan was found for {names}, and none is proven impossible ({without[0].stop})",
            hint="give a longer --deadline, or another --solver",
        )


def _former(problem: Problem, request: Request) -> list[tuple[Replica, ...] | None]:
    """The better incumbent of the earlier plans for each boundary; the one to keep comes first."""
    found: list[tuple[Replica, ...] | None] = []
    for boundary in problem.boundaries:
        replicas = None
        for plan in (request.keep, request.warm_start):
            if plan is not None and replicas is None:
                replicas = former_replicas(problem.fleet, boundary, plan)
        found.append(replicas)
    return found


def _kept(
    problem: Problem,
    results: Sequence[BoundaryResult],
    known: Sequence[tuple[Replica, ...] | None],
    max_excess_frac: float,
) -> list[BoundaryResult]:
    """With a plan to keep, its replicas stand in every boundary where they are proven good enough.

    An exact proof says that nothing better than its own value exists, so there only equals stand in.
    """
    if is_coupled(problem):
        return list(results)
    kept = []
    for boundary, result, replicas in zip(problem.boundaries, results, known, strict=True):
        if replicas and result.bound is not None:
            value = objective_value(boundary, replicas)
            exact = result.proof.get("kind") in EXACT_KINDS
            minimise = problem.objective.kind is ObjectiveKind.PRICE
            excess = excess_frac(value, result.bound, maximise=not minimise)
            if excess <= (1e-9 if exact else max_excess_frac):
                result = replace(result, replicas=replicas, value=value)
        kept.append(result)
    return kept
