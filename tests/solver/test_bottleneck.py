"""The steady-state solver against exhaustive enumeration, on small problems with arbitrary tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.interface import Cluster, Interval, StageCost, Strategy
from costmodels.workload import JOINT, ROUND_ROBIN, Job, LayerSpec, Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.objective import Replica, StageChoice, in_flight_counts, price_replica
from planner.problem import BoundaryProblem, Mode, Objective, ObjectiveKind
from planner.solve import bottleneck_labels, bottleneck_reach
from planner.solve.bottleneck import solve_bottleneck
from planner.solve.bottleneck_labels import Packer
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from policies.errors import EchelonError
from policies.policy import LayerTier, Policy, SpareKind, SpareRule

TIERS = ("open", "secret")
RICH = 30
"""A seed whose problems have several thresholds to refute and a best chain of several stages."""


class TableCostModel:
    """Whole seconds drawn from a hash of everything a stage or link depends on; some stages fit nowhere.

    Longer stages tend to take longer and wider clusters less, so that chains of several stages pay.
    """

    name = "tables"

    def __init__(self, seed: int, *, by_length: bool, tight_frac: float) -> None:
        self._seed = seed
        self._by_length = by_length
        self._tight_frac = tight_frac

    def _draw(self, *what: Hashable) -> random.Random:
        return random.Random(repr((self._seed, what)))

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        devices = tuple((d.type_name, d.tier_i) for d in cluster.devices)
        shape = (cluster.site.site_id, devices, strategy, micro_batch_size, in_flight)
        rng = self._draw("stage", shape, self.interval_key(interval))
        if rng.random() < self._tight_frac / 3:
            return None
        size = (interval[1] - interval[0]) * 12 // (len(devices) + 3)
        return StageCost(
            forward_s=float(rng.randint(1, 4) * size),
            backward_s=float(rng.randint(1, 6)),
            exposed_s=float(rng.randint(0, 2)),
            sync_s=1.0,
            shares=(1,) * strategy.dp,
            memory_bytes=({"all": rng.random()},) * len(devices),
            limit_bytes=(1.0 - self._tight_frac,) * len(devices),
        )

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        rng = self._draw("link", link.source_site_id, link.target_site_id, border, micro_batch_size)
        return float(rng.randint(0, 30))

    def interval_key(self, interval: Interval) -> Hashable:
        return interval[1] - interval[0] if self._by_length else interval


def random_fleet(rng: random.Random) -> Fleet:
    """Two to five devices of two types and clearances, in one to three sites; some sites have no link."""
    sites = [f"site-{i}" for i in range(rng.randint(1, 3))]
    hosts: list[Host] = []
    devices: list[Device] = []
    num_devices = rng.randint(2, 5)
    while len(devices) < num_devices:
        host = Host(host_id=f"h{len(hosts)}", site_id=rng.choice(sites), link_bytes_per_s=1.0)
        hosts.append(host)
        kind, tier_i = rng.choice(("fast", "slow")), rng.randint(0, 1)
        for _ in range(min(rng.choice((1, 1, 2)), num_devices - len(devices))):
            devices.append(
                Device(
                    device_id=f"d{len(devices)}",
                    host_id=host.host_id,
                    type_name=kind,
                    memory_bytes=1.0,
                    flop_per_s=(),
                    memory_bytes_per_s=1.0,
                    tier_i=tier_i,
                    usd_per_hour={"fast": 3.0, "slow": 1.0}[kind],
                )
            )
    return Fleet(
        name="random",
        tiers=TIERS,
        boundaries=("org",),
        sites=tuple(Site(site_id=s, boundary_id="org", fabric_bytes_per_s=1.0) for s in sites),
        hosts=tuple(hosts),
        devices=tuple(devices),
        links=tuple(
            Link(source_site_id=a, target_site_id=b, bytes_per_s=1.0)
            for a in sites
            for b in sites
            if a != b and rng.random() < 0.8
        ),
    )


def random_problem(seed: int, schedule: str, *, num_types: int = 2) -> BoundaryProblem:
    """A problem of at most five devices and four layers; every rule of the planner may be at work."""
    rng = random.Random(seed)
    fleet = random_fleet(rng)
    if num_types == 1:
        devices = (
            replace(d, type_name="only", tier_i=1, host_id="h0", usd_per_hour=2.0) for d in fleet.devices
        )
        fleet = replace(fleet, devices=tuple(devices))
    layer = LayerSpec(
        kind="layer",
        params=1,
        trainable_params=1,
        forward_flops_per_token=1.0,
        activation_bytes_per_token=1.0,
        input_bytes_per_token=1.0,
        output_bytes_per_token=1.0,
    )
    job = Job(
        sequence_tokens=7,
        sequences_per_step=rng.choice((2, 4, 12)),
        micro_batch_sizes=rng.choice(((1,), (2,), (1, 2))),
        max_stages=rng.choice((1, 2, 3, 4, 12)),
        schedule=schedule,
    )
    policy = Policy(
        replicas_max=1,
        tokens_tier=rng.choice((None, None, "secret")),
        layer_tiers=rng.choice(((), (), (LayerTier(start=1, stop=2, tier="secret"),))),
        usd_per_hour_max=rng.choice((None, None, 6.0)),
        spares=SpareRule(kind=rng.choice(tuple(SpareKind)), pool_min_devices=2),
    )
    rule = CandidateRule(
        cluster_devices_max=rng.choice((1, 2, 4)),
        mixed_classes_max=2,
        zero_levels=rng.choice(((0,), (0, 1))),
        tensor_parallel_max=2,
        every_host_multiple=True,
        tensor_parallel_across_hosts=rng.random() < 0.5,
    )
    return build_problem(
        fleet,
        Workload(model_name="random", layers=(layer,) * rng.choice((1, 2, 3, 4, 4, 5)), job=job),
        policy,
        TableCostModel(seed, by_length=rng.random() < 0.5, tight_frac=rng.choice((0.0, 0.2, 0.5))),
        objective=Objective(kind=ObjectiveKind.STEADY_STATE),
        rule=rule,
    ).boundaries[0]


def every_chain(
    problem: BoundaryProblem, mode: Mode, done: tuple[StageChoice, ...] = ()
) -> Iterator[tuple[StageChoice, ...]]:
    """All stage sequences that begin with `done`, within tiers and capacity rows."""
    start = done[-1].stop if done else 0
    if start == problem.num_layers:
        yield done
    for stop in range(start + 1, problem.num_layers + 1):
        for template_i in mode.templates:
            chain = (*done, StageChoice(template_i=template_i, start=start, stop=stop))
            cleared = problem.templates[template_i].tier_i >= max(problem.tier_required[start:stop])
            if cleared and len(chain) <= mode.max_stages and admissible(problem, chain):
                yield from every_chain(problem, mode, chain)


def admissible(problem: BoundaryProblem, stages: tuple[StageChoice, ...]) -> bool:
    used: Counter[int] = Counter()
    for stage in stages:
        used.update(dict(problem.templates[stage.template_i].usage))
    return all(sum(k * used[class_i] for class_i, k in row.coefficients) <= row.limit for row in problem.rows)


def best_by_enumeration(problem: BoundaryProblem) -> Replica | None:
    """Shortest step, then fewest, then cheapest devices."""
    found = []
    for mode in problem.modes:
        for stages in every_chain(problem, mode):
            replica = price_replica(problem, mode, stages)
            if replica is not None:
                found.append(replica)
    return min(found, key=rank, default=None)


def rank(replica: Replica) -> tuple[float, int, float]:
    return replica.step_s, sum(count for _, count in replica.usage), replica.usd_per_hour


def same_as_enumeration(problem: BoundaryProblem) -> BoundaryResult:
    result = solve_bottleneck(problem, Limits())
    expected = best_by_enumeration(problem)
    if expected is None:
        assert result.status is Status.INFEASIBLE
        assert result.replicas == ()
        return result
    (replica,) = result.replicas
    assert result.status is Status.OPTIMAL
    assert rank(replica) == rank(expected)
    assert admissible(problem, replica.stages)
    assert len(replica.stages) <= problem.modes[replica.mode_i].max_stages
    for stage in replica.stages:
        required = problem.tier_required[stage.start : stage.stop]
        assert problem.templates[stage.template_i].tier_i >= max(required)
    assert result.bound == result.value
    assert result.proof["infeasible_below_s"] == replica.step_s
    return result


@pytest.mark.parametrize("schedule", [JOINT, ROUND_ROBIN])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**31))
def test_equals_enumeration(schedule: str, seed: int) -> None:
    same_as_enumeration(random_problem(seed, schedule))


@pytest.mark.parametrize("schedule", [JOINT, ROUND_ROBIN])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_equals_enumeration_with_one_class(schedule: str, seed: int) -> None:
    problem = random_problem(seed, schedule, num_types=1)
    assert len(problem.classes) == 1
    same_as_enumeration(problem)


@pytest.mark.parametrize("schedule", [JOINT, ROUND_ROBIN])
def test_labels_and_counts_agree(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to decide a threshold give the same on one class, with any word width."""
    problems = [random_problem(seed, schedule, num_types=1) for seed in range(15)]
    by_counts = [solve_bottleneck(problem, Limits()) for problem in problems]
    monkeypatch.setattr(bottleneck_reach, "CountReach", bottleneck_reach.LabelReach)
    by_labels = [solve_bottleneck(problem, Limits()) for problem in problems]
    assert [r.value for r in by_counts] == [r.value for r in by_labels]
    assert [r.status for r in by_counts] == [r.status for r in by_labels]


def test_labels_over_several_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck_labels, "WORD_BITS", 6)
    monkeypatch.setattr(bottleneck_labels, "BLOCK", 2)
    num_words = []
    for seed in range(30):
        problem = random_problem(seed, JOINT)
        num_words.append(Packer(problem).num_words)
        same_as_enumeration(problem)
    assert max(num_words) > 1


@given(counts=st.lists(st.tuples(*[st.integers(0, 1)] * 5), min_size=1, max_size=30))
def test_pareto_keeps_exactly_the_undominated(counts: list[tuple[int, ...]]) -> None:
    problem = next(p for p in (random_problem(s, JOINT) for s in range(99)) if len(p.classes) == 4)
    packer = Packer(problem)
    sizes = [c.num_devices for c in problem.classes]
    vectors = {tuple(min(x, size) for x, size in zip(row, sizes, strict=False)) for row in counts}
    labels_NW = np.stack([packer.pack(tuple(enumerate(v))) for v in vectors])
    kept = {tuple(row) for row in packer.unpack(packer.pareto(labels_NW)).tolist()}
    expected = {
        v
        for v in vectors
        if not any(u != v and all(a <= b for a, b in zip(u, v, strict=True)) for u in vectors)
    }
    assert kept == expected


def test_in_flight_rules() -> None:
    def counts(schedule: str, widths: list[int], num_micro_batches: int) -> list[int]:
        problem = random_problem(3, schedule)
        template = problem.templates[0]
        templates = tuple(replace(template, strategy=replace(template.strategy, dp=dp)) for dp in widths)
        mode = replace(problem.modes[0], num_micro_batches=num_micro_batches)
        stages = [StageChoice(template_i=i, start=i, stop=i + 1) for i in range(len(widths))]
        return in_flight_counts(replace(problem, templates=templates), mode, stages)

    assert counts(JOINT, [4, 2, 1], 12) == [3, 2, 1]
    assert counts(JOINT, [4, 2, 1], 2) == [2, 2, 1]
    assert counts(ROUND_ROBIN, [1, 4, 3, 2], 12) == [10, 3, 2, 1]
    assert counts(ROUND_ROBIN, [1, 2, 2], 4) == [4, 2, 1]


class TieCostModel(TableCostModel):
    """Eight seconds per step at best: in micro-batches of one on two devices, of two on one device."""

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        cost = super().stage(cluster, interval, strategy, micro_batch_size, in_flight)
        busy_s = {(1, 1): 5.0, (1, 2): 2.0, (2, 1): 4.0, (2, 2): 4.0}[micro_batch_size, len(cluster.devices)]
        return None if cost is None else replace(cost, forward_s=busy_s, backward_s=0.0, exposed_s=0.0)


def test_ties_between_modes_go_to_fewer_devices() -> None:
    fleet = Fleet(
        name="pair",
        tiers=TIERS,
        boundaries=("org",),
        sites=(Site(site_id="s", boundary_id="org", fabric_bytes_per_s=1.0),),
        hosts=(Host(host_id="h", site_id="s", link_bytes_per_s=1.0),),
        devices=tuple(
            Device(
                device_id=f"d{i}",
                host_id="h",
                type_name="only",
                memory_bytes=1.0,
                flop_per_s=(),
                memory_bytes_per_s=1.0,
                tier_i=0,
            )
            for i in range(2)
        ),
    )
    workload = random_problem(RICH, JOINT).workload
    workload = replace(
        workload,
        layers=workload.layers[:1],
        job=Job(sequence_tokens=7, sequences_per_step=4, micro_batch_sizes=(1, 2)),
    )
    problem = build_problem(
        fleet,
        workload,
        Policy(replicas_max=1),
        TieCostModel(0, by_length=True, tight_frac=0.0),
        objective=Objective(kind=ObjectiveKind.STEADY_STATE),
    ).boundaries[0]
    (replica,) = solve_bottleneck(problem, Limits()).replicas
    assert replica.step_s == 8.0
    assert problem.modes[replica.mode_i].micro_batch_size == 2
    assert replica.usage == ((0, 1),)


def test_only_faster_replicas_count() -> None:
    problem = random_problem(RICH, JOINT)
    best = solve_bottleneck(problem, Limits())
    step_s = best.replicas[0].step_s
    none = solve_bottleneck(problem, Limits(), faster_than_s=step_s)
    assert none.status is Status.INFEASIBLE
    assert none.proof == {"kind": "threshold", "infeasible_below_s": step_s}
    again = solve_bottleneck(problem, Limits(), faster_than_s=step_s * 1.01)
    assert again.value == best.value


@pytest.mark.parametrize("schedule", [JOINT, ROUND_ROBIN])
def test_stopped_early_is_honest(schedule: str) -> None:
    """Whenever the search is interrupted, the bound covers the best plan and no proof is claimed wrongly."""
    problem = random_problem(RICH, schedule)
    best = solve_bottleneck(problem, Limits())
    assert best.value is not None
    seen = set()
    for asked_max in range(60):
        asked: list[None] = []

        def should_stop(asked: list[None] = asked, asked_max: int = asked_max) -> bool:
            asked.append(None)
            return len(asked) > asked_max

        result = solve_bottleneck(problem, Limits(should_stop=should_stop))
        seen.add(result.status)
        assert result.bound is None or result.bound >= best.value
        assert result.value is None or result.value <= best.value
        if result.status is Status.OPTIMAL:
            assert result.value == best.value
        if result.status is Status.FEASIBLE:
            assert result.stop == "interrupted"
            assert result.bound is not None
    assert {Status.UNKNOWN, Status.FEASIBLE} <= seen


def test_deadline_and_determinism() -> None:
    problem = random_problem(RICH, JOINT)
    late = solve_bottleneck(problem, Limits(deadline_s=0.0))
    assert (late.status, late.stop, late.replicas, late.bound) == (Status.UNKNOWN, "deadline", (), None)
    counted = solve_bottleneck(problem, Limits(deadline_s=0.0, deterministic=True))
    assert counted == solve_bottleneck(problem, Limits())


def test_good_enough_and_progress() -> None:
    problem = random_problem(RICH, JOINT)
    best = solve_bottleneck(problem, Limits())
    steps: list[Progress] = []
    loose = solve_bottleneck(problem, Limits(max_excess_frac=10.0, report=steps.append))
    assert loose.stop == "excess"
    assert loose.value is not None
    assert best.value is not None
    assert loose.bound is not None
    assert loose.value < best.value <= loose.bound
    assert steps
    assert steps[-1].value == loose.value


def test_refuses_other_problems() -> None:
    problem = random_problem(1, JOINT)
    for other in (
        replace(problem, replicas_max=None),
        replace(problem, replicas_min=2),
        replace(problem, objective=Objective(kind=ObjectiveKind.STEP_TIME)),
    ):
        with pytest.raises(EchelonError) as caught:
            solve_bottleneck(other, Limits())
        assert caught.value.code == "not-one-steady-replica"


def test_refuses_a_table_that_differs_from_single_figures() -> None:
    class TwoFaced(TableCostModel):
        asked = 0

        def stage(
            self,
            cluster: Cluster,
            interval: Interval,
            strategy: Strategy,
            micro_batch_size: int,
            in_flight: int,
        ) -> StageCost | None:
            self.asked += 1
            cost = super().stage(cluster, interval, strategy, micro_batch_size, in_flight)
            return None if cost is None else replace(cost, forward_s=cost.forward_s + self.asked)

    problem = replace(random_problem(RICH, JOINT), cost_model=TwoFaced(11, by_length=False, tight_frac=0.0))
    with pytest.raises(EchelonError) as caught:
        solve_bottleneck(problem, Limits())
    assert caught.value.code == "cost-model-inconsistent"
