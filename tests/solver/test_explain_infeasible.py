"""Infeasible inputs with a known smallest conflict and known mends, judged by the exhaustive solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from costmodels.analytic import AnalyticCostModel
from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.explain.answer import INFEASIBLE, POSSIBLE, Explanation
from planner.explain.cases import Case, admissible, cases_of
from planner.explain.demands import demands_of, without
from planner.explain.infeasible import explain_infeasible
from planner.problem import Objective, ObjectiveKind, Problem
from planner.solve.registry import solver
from planner.solve.result import Limits, Status
from policies.policy import LayerTier, Policy, SpareKind, SpareRule

GIB = 2.0**30
TIERS = ("open", "inside", "secret")
PARAMS = 500_000_000
NUM_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A host: how many devices of how much memory, where, how cleared."""

    name: str
    count: int
    memory_gib: float
    site: str = "a"
    tier: str = "secret"
    usd_per_hour: float = 1.0


def fleet_of(*boxes: Box, links: tuple[tuple[str, str], ...] = (("a", "b"), ("b", "a"))) -> Fleet:
    """Hosts in sites; a site of one letter belongs to boundary `x`, others to that of their first letter."""
    names = list(dict.fromkeys(box.site for box in boxes))
    boundary = {name: "x" if len(name) == 1 else name[0] for name in names}
    return Fleet(
        name="test",
        tiers=TIERS,
        boundaries=tuple(dict.fromkeys(boundary.values())),
        sites=tuple(Site(site_id=n, boundary_id=boundary[n], fabric_bytes_per_s=1e10) for n in names),
        hosts=tuple(Host(host_id=box.name, site_id=box.site, link_bytes_per_s=3e10) for box in boxes),
        devices=tuple(
            Device(
                device_id=f"{box.name}/{i}",
                host_id=box.name,
                type_name=f"D{box.memory_gib:g}",
                memory_bytes=box.memory_gib * GIB,
                flop_per_s=(("bf16", 1e14),),
                memory_bytes_per_s=1e12,
                tier_i=TIERS.index(box.tier),
                usd_per_hour=box.usd_per_hour,
            )
            for box in boxes
            for i in range(box.count)
        ),
        links=tuple(
            Link(source_site_id=s, target_site_id=t, bytes_per_s=1e9)
            for s, t in links
            if {s, t} <= set(names)
        ),
    )


def workload_of(*, params: int = PARAMS, tp_max: int = 1, **job: Any) -> Workload:
    """Four equal layers of 8 GB of weights, gradients and optimiser state each, no tensor parallelism."""
    layer = LayerSpec(
        kind="block",
        params=params,
        trainable_params=params,
        forward_flops_per_token=2.0 * params,
        activation_bytes_per_token=1e5,
        input_bytes_per_token=8192.0,
        output_bytes_per_token=8192.0,
        tensor_parallel_max=tp_max,
    )
    settings: dict[str, Any] = {
        "sequence_tokens": 512,
        "sequences_per_step": 8,
        "micro_batch_sizes": (1,),
        "max_stages": 4,
        "sync_copies_bytes_per_param": 0.0,
    } | job
    return Workload(model_name="test", layers=(layer,) * NUM_LAYERS, job=Job(**settings))


def problem_of(fleet: Fleet, workload: Workload | None = None, **kwargs: Any) -> Problem:
    """The problem of a fleet, full fine-tuning of four layers unless told otherwise."""
    workload = workload or workload_of()
    policy = kwargs.pop("policy", Policy())
    return build_problem(fleet, workload, policy, AnalyticCostModel(workload), **kwargs)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A problem without a plan, the members of its conflict, how one mend begins, words of the reasons."""

    name: str
    build: Callable[[], Problem]
    members: tuple[str, ...]
    mend: str
    words: tuple[str, ...] = ()


BIG, SMALL = 40.0, 12.0
"""One holds all four layers of 8 GB, the other one layer."""
COHORT = Policy(min_cohort=3, drop_tolerance=1)
THREE = tuple(
    Box(name=f"{b}h{i}", count=1, memory_gib=BIG, site=f"{b}-room")
    for b in "pqr"
    for i in range(3 if b == "p" else 4)
)

CASES = (
    Known(
        name="nobody-may-see-tokens",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=2, memory_gib=BIG, tier="inside")),
            policy=Policy(tokens_tier="secret"),
        ),
        members=("see.tokens",),
        mend="clear h (2 x D40) for tier `secret`",
        words=("layer 0", "`secret`", "no device of x"),
    ),
    Known(
        name="nobody-may-hold-a-layer",
        build=lambda: problem_of(
            fleet_of(
                Box(name="h", count=2, memory_gib=BIG, tier="inside"),
                Box(name="g", count=1, memory_gib=BIG, tier="open"),
            ),
            policy=Policy(tokens_tier="inside", layer_tiers=(LayerTier(start=1, stop=3, tier="secret"),)),
        ),
        members=("layer_tiers[0]",),
        mend="clear h (2 x D40) for tier `secret`",
        words=("layers 1-2", "`secret`"),
    ),
    Known(
        name="too-little-memory-in-all",
        build=lambda: problem_of(fleet_of(Box(name="h", count=2, memory_gib=SMALL))),
        members=("memory",),
        mend="give each of the 2 D12",
        words=("29.8 GiB", "2 devices", "24 GiB"),
    ),
    Known(
        name="one-layer-too-large",
        build=lambda: problem_of(fleet_of(Box(name="h", count=8, memory_gib=6.0))),
        members=("memory", "micro_batch_sizes"),
        mend="allow micro-batches of 2",
        words=("layer 0 is", "too large for every cluster"),
    ),
    Known(
        name="cleared-devices-too-small",
        build=lambda: problem_of(
            fleet_of(
                Box(name="h", count=1, memory_gib=4.0), Box(name="g", count=4, memory_gib=BIG, tier="open")
            ),
            policy=Policy(tokens_tier="secret"),
        ),
        members=("see.tokens", "memory"),
        mend="clear g (4 x D40) for tier `secret`",
        words=("only 1 x D4 on h has it",),
    ),
    Known(
        name="too-few-stages",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=4, memory_gib=SMALL)),
            workload_of(max_stages=3, sequences_per_step=1),
        ),
        members=("memory", "max_stages"),
        mend="allow max_stages 4",
        words=("3 stages, and 4 are needed",),
    ),
    Known(
        name="no-link",
        build=lambda: problem_of(
            fleet_of(
                Box(name="h", count=2, memory_gib=SMALL),
                Box(name="g", count=2, memory_gib=SMALL, site="b"),
                links=(),
            )
        ),
        members=("memory", "links"),
        mend="link a and b in both directions",
        words=("no link joins a and b",),
    ),
    Known(
        name="deepspeed-pipelines-of-equal-width",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=8, memory_gib=7.0)),
            workload_of(tp_max=2, sequences_per_step=1),
            executor="deepspeed",
        ),
        members=("memory", "executor"),
        mend="take `--executor any`",
        words=("`deepspeed`",),
    ),
    Known(
        name="price-ceiling",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=4, memory_gib=SMALL, usd_per_hour=0.7)),
            policy=Policy(usd_per_hour_max=2.5),
        ),
        members=("memory", "price_max"),
        mend="allow price_max 2.80 USD/h",
        words=("2.5 USD/h", "2.80 USD/h"),
    ),
    Known(
        name="cohort",
        build=lambda: problem_of(fleet_of(*THREE), policy=COHORT),
        members=("cohort.min", "cohort.drop_tolerance"),
        mend="lower cohort.drop_tolerance to 0",
        words=("4 replicas in p", "3 replicas"),
    ),
    Known(
        name="dedicated-spares",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=1, memory_gib=BIG)),
            policy=Policy(spares=SpareRule(kind=SpareKind.DEDICATED)),
        ),
        members=("spares",),
        mend="pool the spares",
        words=("spares dedicated",),
    ),
    Known(
        name="pooled-spares",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=4, memory_gib=SMALL)),
            policy=Policy(spares=SpareRule(kind=SpareKind.POOLED, per_pool=1, pool_min_devices=4)),
        ),
        members=("memory", "spares"),
        mend="hold back no spares",
        words=("spares pooled",),
    ),
    Known(
        name="one-replica-for-a-cohort",
        build=lambda: problem_of(
            fleet_of(*THREE, Box(name="ph9", count=1, memory_gib=BIG, site="p-room")),
            policy=replace(COHORT, replicas_max=3),
        ),
        members=("cohort.min", "cohort.drop_tolerance", "replicas_max"),
        mend="lower cohort.drop_tolerance to 0",
        words=("replicas_max allows 3 replicas",),
    ),
    Known(
        name="target-out-of-reach",
        build=lambda: problem_of(
            fleet_of(Box(name="h", count=2, memory_gib=BIG)),
            objective=Objective(kind=ObjectiveKind.PRICE, tokens_per_s_min=1e9),
        ),
        members=("tokens_per_s_min",),
        mend="ask for ",
        words=("1e+09 tokens/s",),
    ),
)


@cache
def explained(name: str) -> tuple[Known, Problem, Explanation]:
    """A case with its explanation, made once."""
    known = next(case for case in CASES if case.name == name)
    problem = known.build()
    return known, problem, explain_infeasible(problem)


def exists(case: Case) -> bool:
    """Whether exhaustive search finds a plan; the judge of these tests."""
    problem = admissible(case)
    assert problem is not None
    status = solver("bruteforce")(problem, Limits()).status
    assert status in (Status.OPTIMAL, Status.INFEASIBLE)
    return status is Status.OPTIMAL


def case_of(problem: Problem, boundary: str) -> Case:
    return next(case for case in cases_of(problem) if case.boundary == boundary)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_known_conflict_is_told(name: str) -> None:
    known, _, found = explained(name)
    assert found.status == INFEASIBLE
    conflict = found.conflicts[0]
    assert conflict.members == known.members
    assert conflict.minimal
    assert conflict.smallest
    assert len(conflict.methods) == 2
    text = " / ".join(conflict.because)
    for word in known.words:
        assert word in text


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_the_conflict_is_one_and_no_member_can_be_left_out(name: str) -> None:
    _, problem, found = explained(name)
    for conflict in found.conflicts:
        case = case_of(problem, conflict.boundary)
        others = tuple(d for d in demands_of(case) if d.name not in conflict.members)
        alone = without(case, others)
        assert not exists(alone)
        for demand in demands_of(case):
            if demand.name in conflict.members:
                assert exists(demand.drop(alone)), demand.name


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_mends_mend_and_slightly_less_does_not(name: str) -> None:
    known, problem, found = explained(name)
    texts = [mend.text for mend in found.conflicts[0].mends]
    assert any(text.startswith(known.mend) for text in texts), texts
    case = case_of(problem, found.conflicts[0].boundary)
    for mend in found.conflicts[0].mends:
        if mend.demand == "boundaries":
            continue
        assert exists(mend.apply(case)), mend.text
        if mend.less is not None and mend.tight:
            assert not exists(mend.less(case)), mend.text


def test_what_can_be_planned_is_not_called_impossible() -> None:
    found = explain_infeasible(problem_of(fleet_of(Box(name="h", count=4, memory_gib=SMALL))))
    assert found.status == POSSIBLE
    assert found.conflicts == ()


def test_the_boundary_that_fails_may_be_left_out_when_enough_remain() -> None:
    boxes = tuple(
        Box(name=f"{b}h{i}", count=1, memory_gib=BIG, site=f"{b}-room")
        for b in "pqrs"
        for i in range(3 if b == "p" else 4)
    )
    found = explain_infeasible(problem_of(fleet_of(*boxes), policy=COHORT))
    texts = [mend.text for mend in found.conflicts[0].mends]
    assert "leave p out of `boundaries`, which the other 3 can do without" in texts
    _, _, three = explained("cohort")
    assert not any("leave" in mend.text for mend in three.conflicts[0].mends)


def test_a_boundary_without_devices_is_named() -> None:
    fleet = fleet_of(Box(name="h", count=2, memory_gib=BIG))
    found = explain_infeasible(problem_of(replace(fleet, devices=())))
    assert found.status == INFEASIBLE
    assert found.because == ("boundary x has no devices",)
