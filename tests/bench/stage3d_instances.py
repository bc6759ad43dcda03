"""Pipeline x data x tensor parallelism on identical devices: problems of others, posed to our planner.

A model is a graph of nodes; the docstring of its evaluator defines all terms. The planner works on chains, so
the nodes are put in a topological order and stages are intervals of it. Any stage partition whose edges never
go back is a sequence of intervals in some topological order (list the nodes stage by stage), so the best plan
over all orders is the best plan there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.chain_instances import SHARED
from bench.stage3d_costs import PLAIN, RECOMPUTED, Stage3dCostModel, Stage3dInstance
from costmodels.fleet import Device, Fleet, Host, Site
from costmodels.workload import ROUND_ROBIN, Job, LayerSpec, Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.objective import Replica, in_flight_counts
from planner.problem import BoundaryProblem, Objective, ObjectiveKind
from planner.solve.bottleneck import solve_bottleneck
from planner.solve.result import BoundaryResult, Limits, Status
from policies.policy import Policy

FOLDER = SHARED / "instances" / "stage3d"
MEMORIES, DEVICES = ("80g", "2g"), (8, 32, 64, 128, 512)
CASES = tuple(f"stage3d-bert32-{memory}-k{k}-n1920" for memory in MEMORIES for k in DEVICES)


def load_case(name: str) -> Stage3dInstance:
    """One of `CASES`."""
    case = json.loads((FOLDER / f"{name}.json").read_text())
    model = json.loads((FOLDER / f"{case['model']}.json").read_text())
    return Stage3dInstance(
        name=name,
        nodes=model["nodes"],
        edges=tuple((str(u), str(v), size_bytes) for u, v, size_bytes in model["edges"]),
        num_devices=case["devices"],
        memory_bytes=case["memory"],
        num_micro_batches=case["microbatches"],
        bytes_per_s=case["bandwidth"],
    )


def are_twins(instance: Stage3dInstance, u: str, v: str) -> bool:
    """Whether exchanging two nodes leaves the model as it is: then only orders with `u` in front matter."""
    swap = {u: v, v: u}

    def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
        ends = {
            end: {swap.get(w, w): size_bytes for w, size_bytes in options[end].items()}
            for end in ("sync_in", "sync_out")
        }
        return {**options, **ends}

    nodes = {
        swap.get(w, w): {
            t: {name: renamed(o) for name, o in options.items()} for t, options in by_degree.items()
        }
        for w, by_degree in instance.nodes.items()
    }
    edges = sorted((swap.get(a, a), swap.get(b, b), size_bytes) for a, b, size_bytes in instance.edges)
    return nodes == instance.nodes and edges == sorted(instance.edges)


def topological_orders(instance: Stage3dInstance) -> Iterator[tuple[str, ...]]:
    """All of them up to exchanging twins, the one that takes the earliest nodes first in front."""
    waits_for: dict[str, set[str]] = {v: set() for v in instance.nodes}
    for u, v, _ in instance.edges:
        waits_for[v].add(u)
    names = list(waits_for)
    sources = [v for v in names if not waits_for[v]]
    for i, u in enumerate(sources):
        for v in sources[i + 1 :]:
            if are_twins(instance, u, v):
                waits_for[v].add(u)

    def extend(done: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if len(done) == len(waits_for):
            yield done
        for v, before in waits_for.items():
            if v not in done and before <= set(done):
                yield from extend((*done, v))

    return extend(())


def build_fleet(instance: Stage3dInstance) -> Fleet:
    """Identical devices, one a host, on one fabric."""
    names = [f"d{i}" for i in range(instance.num_devices)]
    site = Site(site_id="all", boundary_id="fleet", fabric_bytes_per_s=instance.bytes_per_s)
    hosts = (Host(host_id=name, site_id="all", link_bytes_per_s=instance.bytes_per_s) for name in names)
    return Fleet(
        name=instance.name,
        tiers=("any",),
        boundaries=("fleet",),
        sites=(site,),
        hosts=tuple(hosts),
        devices=tuple(
            Device(
                device_id=name,
                host_id=name,
                type_name="device",
                memory_bytes=instance.memory_bytes,
                flop_per_s=(),
                memory_bytes_per_s=1.0,
                tier_i=0,
            )
            for name in names
        ),
    )


def build_stage3d_problem(instance: Stage3dInstance, order: Sequence[str]) -> BoundaryProblem:
    """One replica in steady state over one node order; a micro-batch counts as one token."""
    layer = LayerSpec(
        kind="node",
        params=1,
        trainable_params=1,
        forward_flops_per_token=1.0,
        activation_bytes_per_token=1.0,
        input_bytes_per_token=1.0,
        output_bytes_per_token=1.0,
    )
    job = Job(
        sequence_tokens=1,
        sequences_per_step=instance.num_micro_batches,
        micro_batch_sizes=(1,),
        max_stages=len(order),
        schedule=ROUND_ROBIN,
    )
    rule = CandidateRule(
        cluster_devices_max=instance.num_devices,
        zero_levels=(0,),
        tensor_parallel_max=max(instance.tensor_degrees),
        every_host_multiple=True,
        tensor_parallel_across_hosts=True,
    )
    return build_problem(
        build_fleet(instance),
        Workload(model_name=instance.name, layers=(layer,) * len(order), job=job),
        Policy(replicas_max=1),
        Stage3dCostModel(instance, order),
        objective=Objective(kind=ObjectiveKind.STEADY_STATE),
        rule=rule,
    ).boundaries[0]


def plan_of(problem: BoundaryProblem, replica: Replica) -> dict[str, Any]:
    """The plan in the evaluator's format."""
    model = problem.cost_model
    assert isinstance(model, Stage3dCostModel)
    stages = []
    counts = in_flight_counts(problem, problem.modes[replica.mode_i], replica.stages)
    for stage, in_flight in zip(replica.stages, counts, strict=True):
        strategy = problem.templates[stage.template_i].strategy
        interval = (stage.start, stage.stop)
        frontier = model.frontier(strategy.tp, interval)
        chosen = frontier.counts_G[int(np.searchsorted(frontier.upto_G, in_flight))]
        again = model.figures[strategy.tp].recomputed(interval, chosen)
        option = {model.order[i]: RECOMPUTED if i in again else PLAIN for i in range(*interval)}
        nodes = [int(v) for v in option]
        stages.append({"nodes": nodes, "d": strategy.dp, "t": strategy.tp, "option": option})
    return {"stages": stages}


def solve_all_orders(
    instance: Stage3dInstance, limits: Limits
) -> tuple[BoundaryProblem, BoundaryResult, int]:
    """The best plan over all node orders with a bound that covers them all, and how many orders there are.

    Each further order is only asked for something faster than the best plan so far. `limits` hold for each
    order.
    """
    orders = list(topological_orders(instance))
    best_problem = build_stage3d_problem(instance, orders[0])
    best = solve_bottleneck(best_problem, limits)
    results = [best]
    for order in orders[1:]:
        problem = build_stage3d_problem(instance, order)
        faster_than_s = best.replicas[0].step_s if best.replicas else float("inf")
        results.append(solve_bottleneck(problem, limits, faster_than_s=faster_than_s))
        if results[-1].replicas:
            best_problem, best = problem, results[-1]
    proven = all(result.status in (Status.OPTIMAL, Status.INFEASIBLE) for result in results)
    if not best.replicas:
        status = Status.INFEASIBLE if proven else Status.UNKNOWN
        return best_problem, replace(best, status=status), len(orders)
    bounds = [result.bound for result in results if result.status is not Status.INFEASIBLE]
    bound = None if None in bounds else max(b for b in (best.value, *bounds) if b is not None)
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return best_problem, replace(best, bound=bound, status=status), len(orders)
