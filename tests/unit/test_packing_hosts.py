"""Clusters counted per class on real hosts: the packing lemma, and the preferences that use its freedom."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.fleet import Device, Fleet, Host, Site
from costmodels.registry import cost_model
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.candidates import CandidateRule
from planner.objective import Replica, StageChoice, total_usage
from planner.packing_hosts import Former, Seat, Wish, seat_replicas
from planner.problem import BoundaryProblem, Template
from policies.errors import EchelonError
from policies.policy import Policy, SpareKind, SpareRule

GIB = 2.0**30


def workload() -> Workload:
    layer = LayerSpec(
        kind="block",
        params=10_000_000,
        trainable_params=10_000_000,
        forward_flops_per_token=2e7,
        activation_bytes_per_token=1e4,
        input_bytes_per_token=1e3,
        output_bytes_per_token=1e3,
    )
    job = Job(sequence_tokens=128, sequences_per_step=16, micro_batch_sizes=(16,))
    return Workload(model_name="toy", layers=(layer,) * 3, job=job)


def fleet_of(host_sizes: list[tuple[str, int]], mtbf_s: dict[str, float] | None = None) -> Fleet:
    """One site; each entry is a host with so many devices of a type."""
    hosts = tuple(Host(host_id=f"h{i}", site_id="s", link_bytes_per_s=1e11) for i in range(len(host_sizes)))
    devices = tuple(
        Device(
            device_id=f"h{i}/{k}",
            host_id=f"h{i}",
            type_name=name,
            memory_bytes=80 * GIB,
            flop_per_s=(("bf16", 1e14 if name == "a" else 2e14),),
            memory_bytes_per_s=1e12,
            tier_i=0,
            mtbf_s=(mtbf_s or {}).get(f"h{i}/{k}"),
        )
        for i, (name, size) in enumerate(host_sizes)
        for k in range(size)
    )
    return Fleet(
        name="f",
        tiers=("open",),
        boundaries=("b",),
        sites=(Site(site_id="s", boundary_id="b", fabric_bytes_per_s=1e10),),
        hosts=hosts,
        devices=devices,
    )


def problem_of(fleet: Fleet, rule: CandidateRule, kind: SpareKind = SpareKind.NONE) -> BoundaryProblem:
    work = workload()
    policy = Policy(spares=SpareRule(kind=kind))
    return build_problem(fleet, work, policy, cost_model("analytic", work), rule=rule).boundaries[0]


def replica_of(templates: list[Template]) -> Replica:
    stages = tuple(StageChoice(template_i=t.template_i, start=i, stop=i + 1) for i, t in enumerate(templates))
    usage = total_usage(templates)
    return Replica(mode_i=0, stages=stages, step_s=1.0, tokens_per_s=1.0, usd_per_hour=0.0, usage=usage)


def random_replicas(rng: random.Random, problem: BoundaryProblem) -> list[Replica]:
    """Replicas of random clusters until no cluster fits what is left of any class."""
    left = {c.class_i: c.num_devices for c in problem.classes}
    replicas: list[Replica] = []
    chosen: list[Template] = []
    while True:
        fitting = [t for t in problem.templates if all(left[c] >= n for c, n in t.usage)]
        if chosen and (len(chosen) == 3 or not fitting):
            replicas.append(replica_of(chosen))
            chosen = []
        if not fitting:
            return replicas
        chosen.append(rng.choice(fitting))
        for class_i, count in chosen[-1].usage:
            left[class_i] -= count


def parts_found(fleet: Fleet, problem: BoundaryProblem, devices: tuple[str, ...]) -> Counter[tuple[int, int]]:
    """(class, devices per host) of every host in use, counted."""
    class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
    per_host = Counter((class_of[d], fleet.device_by_id[d].host_id) for d in devices)
    return Counter((class_i, count) for (class_i, _), count in per_host.items())


def require_seated(fleet: Fleet, problem: BoundaryProblem, replica: Replica, seats: tuple[Seat, ...]) -> None:
    class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
    for stage, seat in zip(replica.stages, seats, strict=True):
        template = problem.templates[stage.template_i]
        wanted = Counter({(p.class_i, p.per_host): p.num_hosts for p in template.parts})
        assert parts_found(fleet, problem, seat.devices) == wanted
        listed = [class_of[d.device_id] for d in template.cluster.devices]
        assert [class_of[d] for d in seat.devices] == listed
        hosts = [fleet.device_by_id[d].host_id for d in seat.devices]
        runs = [key for key, _ in groupby(zip(listed, hosts, strict=True))]
        assert len(runs) == len(set(runs)) == sum(p.num_hosts for p in template.parts)
        spare = [class_of[d] for d in seat.spares]
        assert spare == ([] if template.spare_class_i is None else [template.spare_class_i])


def random_former(
    rng: random.Random, fleet: Fleet, problem: BoundaryProblem, replicas: list[Replica]
) -> Former:
    """Wishes for arbitrary devices, so that preferences pull every way."""
    found: dict[Wish, frozenset[str]] = {}
    ids = [d.device_id for d in fleet.devices]
    for replica in replicas:
        for stage in replica.stages:
            strategy = problem.templates[stage.template_i].strategy
            wish = ((stage.start, stage.stop), strategy.dp, strategy.tp, strategy.zero)
            found[wish] = frozenset(rng.sample(ids, rng.randint(0, len(ids))))
    return Former(devices=found)


@given(st.integers(0, 10**9))
def test_whatever_the_counts_allow_can_be_placed_on_the_real_hosts(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [(rng.choice("ab"), rng.choice((1, 2, 2, 3, 4, 4, 6, 8))) for _ in range(rng.randint(1, 2))]
    fleet = fleet_of([kind for kind in kinds for _ in range(rng.randint(1, 5))])
    rule = CandidateRule(mixed_classes_max=rng.choice((1, 2)), every_host_multiple=rng.random() < 0.5)
    kind = rng.choice((SpareKind.NONE, SpareKind.DEDICATED))
    problem = problem_of(fleet, rule, kind)
    replicas = random_replicas(rng, problem)
    former = random_former(rng, fleet, problem, replicas)
    seated = seat_replicas(fleet, problem, replicas, former)
    used = [d for seats in seated for seat in seats for d in (*seat.devices, *seat.spares)]
    assert len(used) == len(set(used))
    for replica, seats in zip(replicas, seated, strict=True):
        require_seated(fleet, problem, replica, seats)
    assert seat_replicas(fleet, problem, replicas, former) == seated


def test_more_than_there_is_is_refused() -> None:
    fleet = fleet_of([("a", 2)])
    problem = problem_of(fleet, CandidateRule())
    whole = next(t for t in problem.templates if t.parts[0].per_host == 2)
    with pytest.raises(EchelonError) as caught:
        seat_replicas(fleet, problem, [replica_of([whole]), replica_of([whole])])
    assert caught.value.code == "hosts-too-few"


def single(problem: BoundaryProblem) -> Template:
    """The cluster of one device of the first class."""
    return next(t for t in problem.templates if t.parts[0].num_devices == 1)


def test_a_replica_stays_on_the_hosts_it_uses_and_whole_hosts_stay_idle() -> None:
    fleet = fleet_of([("a", 4), ("a", 4)])
    problem = problem_of(fleet, CandidateRule())
    one = single(problem)
    seated = seat_replicas(fleet, problem, [replica_of([one, one]), replica_of([one, one])])
    hosts = [{fleet.device_by_id[d].host_id for seat in seats for d in seat.devices} for seats in seated]
    assert hosts == [{"h0"}, {"h0"}]


def test_reliable_devices_run_and_the_others_idle() -> None:
    fleet = fleet_of([("a", 2)], mtbf_s={"h0/0": 1.0, "h0/1": 2.0})
    problem = problem_of(fleet, CandidateRule())
    (seats,) = seat_replicas(fleet, problem, [replica_of([single(problem)])])
    assert seats[0].devices == ("h0/1",)


def test_devices_of_a_plan_to_keep_stay_where_they_were() -> None:
    fleet = fleet_of([("a", 4), ("a", 4), ("a", 4)])
    problem = problem_of(fleet, CandidateRule())
    one = single(problem)
    former = Former(devices={((1, 2), 1, 1, 0): frozenset({"h2/3"}), ((0, 1), 1, 1, 0): frozenset({"h1/2"})})
    (seats,) = seat_replicas(fleet, problem, [replica_of([one, one, one])], former)
    assert [seat.devices for seat in seats[:2]] == [("h1/2",), ("h2/3",)]


def test_a_cluster_priced_on_one_host_is_seated_on_one_host() -> None:
    """Host h1 holds both types; h0 and h2 one each."""
    fleet = fleet_of([("a", 1), ("a", 1), ("b", 1)])
    beside = replace(fleet.devices[2], device_id="h1/b", host_id="h1")
    fleet = replace(fleet, devices=(*fleet.devices, beside))
    problem = problem_of(fleet, CandidateRule(mixed_classes_max=2))
    mixed = next(t for t in problem.templates if len(t.parts) == 2)
    priced_together = len({d.host_id for d in mixed.cluster.devices}) == 1
    (seats,) = seat_replicas(fleet, problem, [replica_of([mixed])])
    hosts = {fleet.device_by_id[d].host_id for d in seats[0].devices}
    assert (len(hosts) == 1) == priced_together
