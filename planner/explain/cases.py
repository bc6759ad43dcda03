"""A boundary's question with its inputs at hand, so that demands can be dropped and mends applied to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from costmodels.fleet import Device, Fleet
from costmodels.interface import (
    Cluster,
    CostModel,
    Interval,
    StageCost,
    Strategy,
    TabulatedCostModel,
    priced_for,
)
from costmodels.registry import cost_model
from costmodels.workload import Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.problem import BoundaryProblem, Objective, Problem
from policies.errors import EchelonError
from policies.policy import Policy

ModelOf = Callable[[Workload], CostModel]
ROOMY_FACTOR = 4096.0
"""Devices this many times larger stand for memory without limit; their bytes stay exact in float64."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one boundary is asked, as its inputs.

    `num_boundaries` take part in all, `rule` None is the default one. `roomy`: memory is without limit.
    """

    boundary: str
    num_boundaries: int
    fleet: Fleet
    workload: Workload
    policy: Policy
    objective: Objective
    executor: str
    rule: CandidateRule | None
    model_of: ModelOf
    roomy: bool = False

    @property
    def devices(self) -> tuple[Device, ...]:
        """The boundary's devices, in the fleet's order."""
        return tuple(d for d in self.fleet.devices if self.fleet.boundary_of(d) == self.boundary)

    @property
    def own_sites(self) -> tuple[str, ...]:
        """The boundary's sites, in the fleet's order."""
        return tuple(site.site_id for site in self.fleet.sites if site.boundary_id == self.boundary)

    def problem(self) -> BoundaryProblem:
        """The boundary's placement problem under these inputs."""
        policy = replace(self.policy, boundaries=(self.boundary,))
        if self.num_boundaries > 1:
            policy = replace(policy, usd_per_hour_max=None)
        model = priced_for(self.model_of(self.workload), self.executor)
        fleet = self.fleet
        if self.roomy:
            if isinstance(model, TabulatedCostModel):
                fleet = scaled_memory(fleet, ROOMY_FACTOR)
            else:
                model = _Unlimited(model)
        built = build_problem(
            fleet,
            self.workload,
            policy,
            model,
            objective=self.objective,
            executor=self.executor,
            rule=self.rule,
        ).boundaries[0]
        return replace(built, replicas_min=self.policy.replicas_min(num_boundaries=self.num_boundaries))


class _Unlimited:
    """A cost model under which every stage fits."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self.name = model.name
        self.transfer_s = model.transfer_s
        self.interval_key = model.interval_key

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """The model's own cost with limits no stage reaches."""
        cost = self._model.stage(cluster, interval, strategy, micro_batch_size, in_flight)
        return (
            None if cost is None else replace(cost, limit_bytes=tuple(float("inf") for _ in cost.limit_bytes))
        )


def cases_of(
    problem: Problem, *, rule: CandidateRule | None = None, model_of: ModelOf | None = None
) -> tuple[Case, ...]:
    """One case for each boundary of a problem.

    `rule` is the candidate rule the problem was built with, None for the default one. `model_of` makes the
    cost model for a changed workload; without it the problem's own model serves as long as only stages and
    micro-batch sizes change, and its registered name otherwise.
    """
    return tuple(
        Case(
            boundary=boundary.name,
            num_boundaries=len(problem.boundaries),
            fleet=problem.fleet,
            workload=problem.workload,
            policy=problem.policy,
            objective=problem.objective,
            executor=problem.executor,
            rule=rule,
            model_of=model_of or _model_of(problem),
        )
        for boundary in problem.boundaries
    )


def _model_of(problem: Problem) -> ModelOf:
    def build(workload: Workload) -> CostModel:
        """The cost model of a changed workload; the same one where nothing it reads changed."""
        same_job = replace(
            workload.job,
            max_stages=problem.workload.job.max_stages,
            micro_batch_sizes=problem.workload.job.micro_batch_sizes,
        )
        if workload.layers == problem.workload.layers and same_job == problem.workload.job:
            return problem.cost_model
        return cost_model(problem.cost_model.name, workload)

    return build


def scaled_memory(fleet: Fleet, factor: float) -> Fleet:
    """The fleet with every device's memory times `factor`."""
    return replace(
        fleet, devices=tuple(replace(d, memory_bytes=d.memory_bytes * factor) for d in fleet.devices)
    )


def admissible(case: Case) -> BoundaryProblem | None:
    """The case's problem, or None where the inputs are refused as such."""
    try:
        return case.problem()
    except EchelonError:
        return None
