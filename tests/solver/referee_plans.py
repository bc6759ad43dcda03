"""Plans, proofs and best values of micro problems, made by exhaustion: what the referee is judged by."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from costmodels.interface import StageCost
from planner.candidates import cluster_of
from planner.canonical import Inputs, input_documents
from planner.plan import (
    BoundaryPlan,
    Certificate,
    Excluded,
    GraphEdge,
    GraphNode,
    Plan,
    ReplicaPlan,
    StagePlan,
)
from planner.problem import BoundaryProblem, Mode, ObjectiveKind, Problem, Template


@dataclass(frozen=True, kw_only=True)
class Real:
    """One replica that really fits: stages as (template, first layer, end), step time, device counts."""

    mode: Mode
    stages: tuple[tuple[Template, int, int], ...]
    step_s: float
    usage: tuple[int, ...]


def micro_batches_held(problem: BoundaryProblem, mode: Mode, widths: Sequence[int]) -> int:
    """In flight at the first of the remaining stages, whose data-parallel widths are given."""
    count = mode.num_micro_batches
    if problem.workload.job.schedule == "round-robin":
        return math.ceil(min(count, sum(widths)) / widths[0])
    return min(count, len(widths))


def real_replicas(problem: BoundaryProblem, mode: Mode) -> Iterator[Real]:
    """Every replica of a mode, by plain recursion and one cost model call per stage."""
    have = [c.num_devices for c in problem.classes]
    size = mode.micro_batch_size
    formula = problem.formula(mode)

    def chains(
        layer: int, left: int, stages: tuple[tuple[Template, int, int], ...], used: tuple[int, ...]
    ) -> Iterator[tuple[tuple[tuple[Template, int, int], ...], tuple[int, ...]]]:
        if layer == problem.num_layers:
            if left == 0:
                yield stages, used
            return
        if left == 0:
            return
        for template in (problem.templates[i] for i in mode.templates):
            more = list(used)
            for class_i, number in template.usage:
                more[class_i] += number
            if any(a > b for a, b in zip(more, have, strict=True)):
                continue
            if stages and problem.links[stages[-1][0].site_i][template.site_i] is None:
                continue
            for stop in range(layer + 1, problem.num_layers + 1):
                if max(problem.tier_required[layer:stop]) <= template.tier_i:
                    yield from chains(stop, left - 1, (*stages, (template, layer, stop)), tuple(more))

    for num_stages in range(1, min(mode.max_stages, problem.num_layers) + 1):
        for stages, used in chains(0, num_stages, (), (0,) * len(have)):
            costs: list[StageCost] = []
            for i, (template, first, stop) in enumerate(stages):
                held = micro_batches_held(problem, mode, [t.strategy.dp for t, _, _ in stages[i:]])
                cost = problem.cost_model.stage(
                    template.cluster, (first, stop), template.strategy, size, held
                )
                if cost is None or not cost.fits:
                    break
                costs.append(cost)
            if len(costs) < num_stages:
                continue
            moves = []
            for (a, _, border), (b, _, _) in pairwise(stages):
                link = problem.links[a.site_i][b.site_i]
                assert link is not None
                moves.append(problem.cost_model.transfer_s(link, border, size))
            busy = [c.forward_s + c.backward_s + c.exposed_s for c in costs]
            step_s = formula.fill * (sum(busy) + sum(moves)) + formula.repeats * max([*busy, *moves])
            step_s += max(c.sync_s for c in costs) if formula.sync else 0.0
            yield Real(mode=mode, stages=stages, step_s=step_s, usage=used)


def best_per_usage(problem: BoundaryProblem) -> list[Real]:
    """The fastest replica for each vector of device counts."""
    best: dict[tuple[int, ...], Real] = {}
    for mode in problem.modes:
        for real in real_replicas(problem, mode):
            if real.usage not in best or real.step_s < best[real.usage].step_s:
                best[real.usage] = real
    return list(best.values())


def within_rows(problem: BoundaryProblem, usage: Sequence[int]) -> bool:
    """Whether device counts keep every capacity row."""
    return all(
        sum(k * usage[class_i] for class_i, k in row.coefficients) <= row.limit * (1 + 1e-12)
        for row in problem.rows
    )


def worth(problem: BoundaryProblem, chosen: Sequence[Real]) -> float:
    """Tokens/s of a set of replicas, the faster ones throttled to the speed ratio."""
    speeds = [problem.tokens_per_step / real.step_s for real in chosen]
    cap = problem.speed_ratio_max * min(speeds) if problem.speed_ratio_max is not None else float("inf")
    return sum(min(speed, cap) for speed in speeds)


def usd_per_hour(problem: BoundaryProblem, usage: Sequence[int]) -> float:
    """Price of the devices in use."""
    return sum(n * c.device.usd_per_hour for n, c in zip(usage, problem.classes, strict=True))


def best_set(problem: BoundaryProblem) -> tuple[float, tuple[Real, ...]] | None:
    """The best value of the objective (tokens/s where step time is minimised) and a set that reaches it."""
    reals = best_per_usage(problem)
    minimise = problem.objective.kind is ObjectiveKind.PRICE
    best: tuple[float, tuple[Real, ...]] | None = None

    def grow(first: int, chosen: tuple[Real, ...], used: tuple[int, ...]) -> None:
        nonlocal best
        if len(chosen) >= max(1, problem.replicas_min):
            value = usd_per_hour(problem, used) if minimise else worth(problem, chosen)
            target = problem.objective.tokens_per_s_min or 0.0
            good = not minimise or worth(problem, chosen) >= target
            if good and (best is None or (value < best[0] if minimise else value > best[0])):
                best = (value, chosen)
        if problem.replicas_max is not None and len(chosen) >= problem.replicas_max:
            return
        for i in range(first, len(reals)):
            more = tuple(a + b for a, b in zip(used, reals[i].usage, strict=True))
            if within_rows(problem, more):
                grow(i, (*chosen, reals[i]), more)

    grow(0, (), (0,) * len(problem.classes))
    return best


def seat(
    problem: BoundaryProblem, chosen: Sequence[Real]
) -> dict[tuple[int, int], tuple[list[str], list[str]]]:
    """Real devices and dedicated spares of every (replica, stage), whole hosts first."""
    free = {c.class_i: [list(host) for host in c.hosts] for c in problem.classes}
    wanted = [
        (part, (r, s), template)
        for r, real in enumerate(chosen)
        for s, (template, _, _) in enumerate(real.stages)
        for part in template.parts
    ]
    wanted.sort(key=lambda item: (-item[0].num_hosts, -item[0].per_host))
    parts: dict[tuple[tuple[int, int], int], list[str]] = {}
    for part, key, _template in wanted:
        hosts = [h for h in free[part.class_i] if len(h) >= part.per_host]
        hosts.sort(key=len)
        taken: list[str] = []
        for host in hosts[: part.num_hosts]:
            taken += [host.pop(0) for _ in range(part.per_host)]
        assert len(taken) == part.num_devices
        parts[(key, part.class_i)] = taken
    seats: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
    for r, real in enumerate(chosen):
        for s, (template, _, _) in enumerate(real.stages):
            devices = [d for part in template.parts for d in parts[((r, s), part.class_i)]]
            spares: list[str] = []
            if template.spare_class_i is not None:
                spares = [next(h for h in free[template.spare_class_i] if h).pop(0)]
            seats[(r, s)] = (devices, spares)
    return seats


def replica_plan(
    problem: Problem,
    boundary: BoundaryProblem,
    real: Real,
    name: str,
    seats: Sequence[tuple[list[str], list[str]]],
) -> ReplicaPlan:
    """A replica on real devices with the figures of the cost model."""
    stages = []
    size, count = real.mode.micro_batch_size, real.mode.num_micro_batches
    for i, (template, first, stop) in enumerate(real.stages):
        devices, spares = seats[i]
        members = tuple(problem.fleet.device_by_id[d] for d in devices)
        site = problem.fleet.site_of(members[0])
        held = micro_batches_held(boundary, real.mode, [t.strategy.dp for t, _, _ in real.stages[i:]])
        strategy = template.strategy
        cost = problem.cost_model.stage(
            cluster_of(problem.fleet, site, members), (first, stop), strategy, size, held
        )
        assert cost is not None
        move_s = 0.0
        if i + 1 < len(real.stages):
            link = boundary.links[template.site_i][real.stages[i + 1][0].site_i]
            assert link is not None
            move_s = problem.cost_model.transfer_s(link, stop, size)
        stages.append(
            StagePlan(
                index=i,
                layers=(first, stop),
                devices=tuple(devices),
                dp=strategy.dp,
                tp=strategy.tp,
                zero=strategy.zero,
                micro_batch_shares=cost.shares,
                ranks=tuple(
                    tuple(devices[k * strategy.tp : (k + 1) * strategy.tp]) for k in range(strategy.dp)
                ),
                recompute=cost.recompute_layers,
                in_flight=held,
                head=devices[0],
                spares=tuple(spares),
                memory_bytes={
                    d: {**kinds, "limit": limit}
                    for d, kinds, limit in zip(devices, cost.memory_bytes, cost.limit_bytes, strict=True)
                },
                compute_s=cost.forward_s + cost.backward_s,
                comm_s=cost.exposed_s,
                sync_s=cost.sync_s,
                transfer_s=move_s,
            )
        )
    return ReplicaPlan(
        id=name,
        executor=real.mode.executor,
        tokens_per_s=boundary.tokens_per_step / real.step_s,
        step_time_s=real.step_s,
        micro_batches=count,
        micro_batch_size=size,
        stages=tuple(stages),
    )


def boundary_plan(problem: Problem, boundary: BoundaryProblem, chosen: Sequence[Real]) -> BoundaryPlan:
    """The replicas of one boundary with its idle devices and its aggregator."""
    seats = seat(boundary, chosen)
    replicas = tuple(
        replica_plan(
            problem, boundary, real, f"{boundary.name}-r{r}", [seats[(r, s)] for s in range(len(real.stages))]
        )
        for r, real in enumerate(chosen)
    )
    taken = {d for devices, spares in seats.values() for d in (*devices, *spares)}
    idle = [d for c in boundary.classes for host in c.hosts for d in host if d not in taken]
    hosts = [h.host_id for h in problem.fleet.hosts if h.site_id in boundary.site_ids]
    return BoundaryPlan(
        name=boundary.name,
        aggregator={"host": hosts[0], "standby": hosts[1] if len(hosts) > 1 else None},
        replicas=replicas,
        excluded=tuple(Excluded(device=d, reason="not-needed") for d in idle),
    )


def graph_of(boundaries: Sequence[BoundaryPlan]) -> tuple[tuple[GraphNode, ...], tuple[GraphEdge, ...]]:
    """Nodes and edges of the planned stages, aggregators and coordinator."""
    nodes = [GraphNode(id="coordinator", kind="coordinator", boundary="global")]
    edges: list[GraphEdge] = []
    for boundary in boundaries:
        hub = f"{boundary.name}/aggregator"
        nodes.append(GraphNode(id=hub, kind="aggregator", boundary=boundary.name))
        edges.append(GraphEdge(source=hub, target="coordinator", kind="aggregate-delta", crossing=True))
        for replica in boundary.replicas:
            names = [f"{replica.id}/{stage.index}" for stage in replica.stages]
            nodes += [GraphNode(id=name, kind="stage", boundary=boundary.name) for name in names]
            edges.append(GraphEdge(source=names[0], target=hub, kind="masked-update", crossing=False))
            for a, b in pairwise(names):
                edges.append(GraphEdge(source=a, target=b, kind="activation", crossing=False))
                edges.append(GraphEdge(source=b, target=a, kind="gradient", crossing=False))
    return tuple(nodes), tuple(edges)


def make_plan(
    inputs: Inputs,
    problem: Problem,
    chosen: Sequence[Sequence[Real]],
    *,
    value: float,
    bound: float,
    proof: dict[str, Any],
    settings: dict[str, Any],
) -> Plan:
    """A whole plan with its certificate."""
    boundaries = tuple(
        boundary_plan(problem, boundary, reals)
        for boundary, reals in zip(problem.boundaries, chosen, strict=True)
    )
    minimise = problem.objective.kind in (ObjectiveKind.PRICE, ObjectiveKind.STEP_TIME)
    nodes, edges = graph_of(boundaries)
    return Plan(
        inputs=input_documents(inputs),
        job=inputs.workload.job.name,
        tokens_per_step=inputs.workload.job.tokens_per_step,
        settings=settings,
        certificate=Certificate(
            objective=problem.objective.kind.value,
            value=value,
            bound=bound,
            excess_frac=max(0.0, (value / bound if minimise else bound / value) - 1.0),
            covers="candidates",
            stop="done",
            proof=proof,
            seed=0,
            versions={},
            limits={},
        ),
        boundaries=boundaries,
        nodes=nodes,
        edges=edges,
    )


def charges(rng: random.Random, problem: BoundaryProblem) -> dict[str, float]:
    """Usage charges at random on some classes, small beside the prices."""
    num_classes = len(problem.classes)
    return {
        str(c): rng.uniform(0.0, 0.3) for c in rng.sample(range(num_classes), rng.randint(0, num_classes))
    }


def random_boxes(
    rng: random.Random, problem: BoundaryProblem, *, charged: bool = False
) -> list[dict[str, Any]]:
    """Boxes and cuts at random: any of them make a true proof, of whatever strength.

    With `charged` often nothing but a cut with usage charges bounds the price, so that these have to be
    right.
    """
    modes = []
    for mode in problem.modes:
        edges = sorted({round(rng.uniform(0.01, 30.0), 3) for _ in range(rng.randint(0, 3))})
        if problem.objective.kind is ObjectiveKind.STEADY_STATE:
            # Without fill time only an empty first box keeps the ratio finite.
            edges = [1e-6, *edges]
        boxes = []
        for upto in (*edges, None):
            price_cut: dict[str, Any] = {"w": 0.0, "c": 1.0, "visit": {}, "once": {}}
            if charged and rng.random() < 0.7:
                price_cut |= {"visit": charges(rng, problem), "once": charges(rng, problem)}
            cuts: list[dict[str, Any]] = [price_cut, {"w": 1.0, "c": 0.0, "visit": {}}]
            for _ in range(rng.randint(0, 2)):
                weights = {"w": rng.uniform(0.0, 3.0), "c": rng.choice((0.0, rng.uniform(0.1, 2.0)))}
                cuts.append({**weights, "visit": charges(rng, problem), "once": charges(rng, problem)})
            boxes.append({"upto_s": upto, "cuts": cuts})
        modes.append({"mode": mode.mode_i, "boxes": boxes})
    return modes


def random_prices(rng: random.Random, problem: BoundaryProblem) -> dict[str, float]:
    """Prices at random, positive on every class; small ones where a device's own price counts as well."""
    by = 0.01 if problem.objective.kind is ObjectiveKind.PRICE else 1.0
    prices = {row.name: by * rng.uniform(0.1, 3.0) for row in problem.rows if row.name.startswith("class")}
    others = [row.name for row in problem.rows if not row.name.startswith("class")]
    return prices | {name: by * rng.choice((0.0, rng.uniform(0.0, 1.0))) for name in others}
