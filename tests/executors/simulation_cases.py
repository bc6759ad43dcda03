"""Random step times, plans without a search, and a step worked out without events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import strategies as st

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.registry import cost_model
from costmodels.workload import Job, LayerSpec, Workload
from executors.simulate.times import BorderTimes, StageTimes, TransferTimes, even_border
from planner.assemble import assemble
from planner.build import build_problem
from planner.canonical import Inputs
from planner.objective import Replica, StageChoice, price_replica
from planner.plan import Plan
from planner.problem import BoundaryProblem
from planner.solve.result import BoundaryResult, Status
from planner.solving import Request, plan_settings
from policies.policy import Policy

Case = tuple[list[StageTimes], list[BorderTimes], int]

LAYER = LayerSpec(
    kind="block",
    params=50_000_000,
    trainable_params=50_000_000,
    forward_flops_per_token=1e9,
    activation_bytes_per_token=4e4,
    input_bytes_per_token=4e3,
    output_bytes_per_token=4e3,
)


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    stages_max: int = 5,
    micro_batches_max: int = 10,
    ratio: tuple[float, float] = (0.0, 4.0),
    whole: bool = False,
) -> Case:
    """Stages of any speed, backward passes of a ratio to forward, borders of any speed."""
    seconds = st.integers(1, 9).map(float) if whole else st.floats(0.01, 3.0)
    num_stages = draw(st.integers(1, stages_max))
    stages = []
    for _ in range(num_stages):
        forward_s = draw(seconds)
        backward_s = draw(seconds) if whole else forward_s * draw(st.floats(*ratio))
        stages.append(StageTimes(forward_s=forward_s, backward_s=backward_s))
    least = draw(st.sampled_from((0.0, 0.1, 1.0, 3.0)))
    borders = []
    for _ in range(num_stages - 1):
        ways = [
            TransferTimes(
                occupied_s=draw(seconds) if whole else least * draw(st.floats(0.0, 1.0)),
                latency_s=float(draw(st.integers(0, 4))) if whole else least * draw(st.floats(0.0, 0.5)),
            )
            for _ in range(2)
        ]
        borders.append(BorderTimes(forward=ways[0], backward=ways[1]))
    return stages, borders, draw(st.integers(1, micro_batches_max))


def even_case(busy: Sequence[tuple[float, float]], trips_s: Sequence[float], count: int) -> Case:
    """Stages by (forward, backward) seconds and borders by their round trips."""
    stages = [StageTimes(forward_s=f, backward_s=b) for f, b in busy]
    return stages, [even_border(trip_s / 2.0) for trip_s in trips_s], count


Node = tuple[str, int, int]


def longest_path_s(
    case: Case, *, blocking: bool = False, ahead: int | None = None, gpipe: bool = False
) -> float:
    """Seconds of a step as the longest path through what waits for what, by relaxing until nothing moves.

    Nodes are passes ("F", "B", stage, micro-batch) and transfers ("A", "G", border, micro-batch). An edge
    says that a node starts no sooner than so many seconds after another has ended, or has started.
    """
    stages, borders, count = case
    duration_s: dict[Node, float] = {}
    after: list[tuple[Node, Node, float]] = []
    after_start: list[tuple[Node, Node]] = []
    for s, times in enumerate(stages):
        duration_s |= {("F", s, i): times.forward_s for i in range(count)}
        duration_s |= {("B", s, i): times.backward_s for i in range(count)}
    for b, border in enumerate(borders):
        for i in range(count):
            for name, way, source, target in (
                ("A", border.forward, ("F", b, i), ("F", b + 1, i)),
                ("G", border.backward, ("B", b + 1, i), ("B", b, i)),
            ):
                node = (name, b, i)
                duration_s[node] = way.total_s if blocking else way.occupied_s
                after.append((source, node, 0.0))
                after.append((node, target, 0.0 if blocking else way.latency_s))
                if not blocking and i > 0:
                    after.append(((name, b, i - 1), node, 0.0))
    for s in range(len(stages)):
        order = _order(s, len(stages), count, blocking=blocking, gpipe=gpipe)
        after += [(a, b, 0.0) for a, b in pairwise(order)]
        if blocking or ahead is None:
            continue
        passes = [node for node in order if node[0] in "FB"]
        for before, node in zip([None, *passes], passes, strict=False):
            name, b = ("A", s - 1) if node[0] == "F" else ("G", s)
            if not 0 <= b < len(borders):
                continue
            if ahead == 0 and before is not None:
                after.append((before, (name, b, node[2]), 0.0))
            if ahead > 0 and node[2] + ahead < count:
                after_start.append((node, (name, b, node[2] + ahead)))
    start_s = dict.fromkeys(duration_s, 0.0)
    moved = True
    while moved:
        moved = False
        edges = [(target, start_s[a] + duration_s[a] + lag_s) for a, target, lag_s in after]
        edges += [(target, start_s[a]) for a, target in after_start]
        for node, earliest_s in edges:
            if earliest_s > start_s[node]:
                start_s[node], moved = earliest_s, True
    return max(start_s[node] + duration_s[node] for node in duration_s)


def _order(s: int, num_stages: int, count: int, *, blocking: bool, gpipe: bool) -> list[Node]:
    """What a stage takes part in, in order, by slots: even ones are forward for even stages."""
    order: list[Node] = []

    def add(name: str, place: int, i: int) -> None:
        if 0 <= i < count and (name in "FB" or (blocking and 0 <= place < num_stages - 1)):
            order.append((name, place, i))

    if gpipe:
        for i in range(count):
            add("A", s - 1, i)
            add("F", s, i)
            add("A", s, i)
        for i in range(count):
            add("G", s, i)
            add("B", s, i)
            add("G", s - 1, i)
        return order
    for slot in range(2 * (count + num_stages)):
        is_forward = (slot - s) % 2 == 0
        # The border over which a stage meets a neighbour in this slot, and what crosses it then.
        border = s - 1 if is_forward else s
        below = border + 1
        if (slot - below) % 2 == 0:
            add("G", border, (slot - 1 + below + 1) // 2 - num_stages)
            add("A", border, (slot - below) // 2)
        if is_forward:
            add("F", s, (slot - s) // 2)
        else:
            add("B", s, (slot + s + 1) // 2 - num_stages)
    return order


def two_site_fleet(pairs: int, *, spares: int = 1, back_bytes_per_s: float = 1.25e8) -> Fleet:
    """`pairs` one-device hosts in each of two linked sites, and idle ones of the same kind on the left."""
    rows = [("left", i) for i in range(pairs + spares)] + [("right", i) for i in range(pairs)]
    hosts = tuple(Host(host_id=f"{s}-{i}", site_id=s, link_bytes_per_s=16e9) for s, i in rows)
    return Fleet(
        name="two-sites",
        tiers=("open",),
        boundaries=("lab",),
        sites=tuple(Site(site_id=s, boundary_id="lab", fabric_bytes_per_s=1.25e9) for s in ("left", "right")),
        hosts=hosts,
        devices=tuple(
            Device(
                device_id=f"{host.host_id}/0",
                host_id=host.host_id,
                type_name="T4",
                memory_bytes=5e9,
                flop_per_s=(("bf16", 4e13),),
                memory_bytes_per_s=3e11,
                tier_i=0,
            )
            for host in hosts
        ),
        links=(
            Link(source_site_id="left", target_site_id="right", bytes_per_s=1.25e8, latency_s=0.01),
            Link(source_site_id="right", target_site_id="left", bytes_per_s=back_bytes_per_s, latency_s=0.01),
        ),
    )


def two_site_plan(
    fleet: Fleet,
    num_replicas: int,
    *,
    cut: int = 4,
    executor: str = "torch",
    failover: bool = True,
    sequences: int = 16,
) -> Plan:
    """Replicas of eight layers, each from a device on the left to one on the right."""
    job = Job(
        name="tune",
        sequence_tokens=512,
        sequences_per_step=sequences,
        micro_batch_sizes=(1,),
        recompute=False,
    )
    workload = Workload(model_name="eight", layers=(LAYER,) * 8, job=job)
    inputs = Inputs(fleet=fleet, workload=workload, policy=Policy())
    request = Request(solver="greedy", executor=executor)
    problem = build_problem(
        fleet, workload, inputs.policy, cost_model("analytic", workload), executor=executor
    )
    (boundary,) = problem.boundaries
    replica = _replica(boundary, executor, cut)
    result = BoundaryResult(
        boundary="lab",
        status=Status.FEASIBLE,
        replicas=(replica,) * num_replicas,
        value=replica.tokens_per_s * num_replicas,
        bound=None,
        proof={},
        stop="given",
    )
    return assemble(
        problem,
        [result],
        inputs,
        settings=plan_settings(inputs, request),
        limits={},
        versions={},
        failover=failover,
    )


def _replica(boundary: BoundaryProblem, executor: str, cut: int) -> Replica:
    mode = next(
        m
        for m in boundary.modes
        if m.micro_batch_size == 1 and m.executor == executor and m.width in (None, 1) and m.max_stages >= 2
    )
    single = {
        boundary.site_ids[t.site_i]: t.template_i
        for t in (boundary.templates[i] for i in mode.templates)
        if len(t.cluster.devices) == 1
    }
    stages = [
        StageChoice(template_i=single["left"], start=0, stop=cut),
        StageChoice(template_i=single["right"], start=cut, stop=8),
    ]
    replica = price_replica(boundary, mode, stages)
    assert replica is not None
    return replica
