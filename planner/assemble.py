"""From solver results to the plan: devices, heads, spares, aggregators, failovers, graph, certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from planner.canonical import Inputs, input_documents
from planner.certificate import build_certificate
from planner.failover import build_failover
from planner.graph import build_graph
from planner.heads import aggregator_hosts, stage_head
from planner.kinds import LayerKinds, layer_kinds
from planner.objective import Replica
from planner.packing_hosts import Former, Seat, seat_replicas
from planner.plan import BoundaryPlan, Plan, ReplicaPlan
from planner.problem import BoundaryProblem, Problem
from planner.realise import SeatedStage, realise_replica
from planner.solve.result import BoundaryResult
from planner.spares import excluded_devices
from policies.errors import EchelonError


def assemble(
    problem: Problem,
    results: Sequence[BoundaryResult],
    inputs: Inputs,
    *,
    settings: Mapping[str, Any],
    limits: Mapping[str, Any],
    versions: Mapping[str, str],
    seed: int = 0,
    former: Former | None = None,
    failover: bool = True,
) -> Plan:
    """The plan that `results` describe, one for each boundary of `problem` and in its order.

    `settings` are what `problem` was built with (`plan_settings`), `limits` what the solver was given.
    Devices of a `former` plan stay where they are when the choice of hosts allows it. `failover` False leaves
    the replacements after a failure out.

    Raises:
        EchelonError: `hosts-too-few` or `replica-misfit` when a result is no plan of this problem.
    """
    kinds = layer_kinds(problem.cost_model, problem.workload.num_layers) if failover else None
    boundaries = tuple(
        boundary_plan(problem, boundary, result.replicas, former=former, kinds=kinds)
        for boundary, result in zip(problem.boundaries, results, strict=True)
    )
    nodes, edges = build_graph(boundaries)
    return Plan(
        inputs=input_documents(inputs),
        job=inputs.workload.job.name,
        tokens_per_step=inputs.workload.job.tokens_per_step,
        settings=dict(settings),
        certificate=build_certificate(
            problem, results, boundaries, limits=limits, versions=versions, seed=seed
        ),
        boundaries=boundaries,
        nodes=nodes,
        edges=edges,
    )


def boundary_plan(
    problem: Problem,
    boundary: BoundaryProblem,
    replicas: Sequence[Replica],
    *,
    former: Former | None = None,
    kinds: LayerKinds | None = None,
) -> BoundaryPlan:
    """The replicas of one boundary on real devices, fastest first, with its aggregator and its idle devices.

    Replacements after a failure need the `kinds` of the problem's layers; without them there are none.

    Raises:
        EchelonError: as `assemble`.
    """
    ordered = sorted(replicas, key=lambda r: (-r.tokens_per_s, r.usage, r.stages))
    seats = seat_replicas(problem.fleet, boundary, ordered, former)
    planned = tuple(
        _replica_plan(problem, boundary, replica, seats[i], f"{boundary.name}-r{i}")
        for i, replica in enumerate(ordered)
    )
    running = {d for replica in planned for stage in replica.stages for d in stage.devices}
    dedicated = {d for replica in planned for stage in replica.stages for d in stage.spares}
    plan = BoundaryPlan(
        name=boundary.name,
        aggregator=aggregator_hosts(problem.fleet, boundary.site_ids, running),
        replicas=planned,
        excluded=excluded_devices(problem.fleet, boundary, problem.policy.spares, running, dedicated),
    )
    return plan if kinds is None else build_failover(problem, boundary, plan, kinds)


def _replica_plan(
    problem: Problem, boundary: BoundaryProblem, replica: Replica, seats: Sequence[Seat], replica_id: str
) -> ReplicaPlan:
    stages = [
        SeatedStage(
            template_i=choice.template_i,
            start=choice.start,
            stop=choice.stop,
            devices=seat.devices,
            spares=seat.spares,
        )
        for choice, seat in zip(replica.stages, seats, strict=True)
    ]
    planned = realise_replica(
        problem.fleet,
        boundary,
        boundary.modes[replica.mode_i],
        stages,
        replica_id=replica_id,
        choose_head=partial(stage_head, problem.fleet),
    )
    if planned is None:
        raise EchelonError(
            "replica-misfit",
            f"replica {replica_id} doesn't fit its devices: {', '.join(d for s in seats for d in s.devices)}",
            hint="the cost model and the candidate list disagree: this is a bug",
        )
    return planned
