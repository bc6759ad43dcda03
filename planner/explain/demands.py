"""The demands a case makes, each of which can be dropped on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from costmodels.fleet import Link
from costmodels.workload import Workload
from planner.explain.cases import Case
from planner.problem import ObjectiveKind
from policies.policy import LayerTier, SpareKind, SpareRule

SEQUENCES_MAX = 64
"""No micro-batch is made larger than this when their sizes are left open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A family of demands. `name` is stable, `place` says where the user states it; `drop` takes it away."""

    name: str
    place: str
    drop: Callable[[Case], Case]


def demands_of(case: Case) -> tuple[Demand, ...]:
    """Every demand the case makes beside the devices there are, in the order in which they are told."""
    return (
        *_tier_demands(case),
        *_job_demands(case),
        *_fleet_demands(case),
        *_count_demands(case),
        *_value_demands(case),
    )


def without(case: Case, dropped: tuple[Demand, ...]) -> Case:
    """The case without some of its demands."""
    for demand in dropped:
        case = demand.drop(case)
    return case


def _tier_demands(case: Case) -> list[Demand]:
    policy = case.policy
    position = {tier: i for i, tier in enumerate(case.fleet.tiers)}
    found = []
    for kind in ("tokens", "labels", "activations", "weights"):
        tier = getattr(policy, f"{kind}_tier")
        if tier is not None and position[tier] > 0:
            found.append(Demand(name=f"see.{kind}", place=f"policy: see.{kind}", drop=_seen_by_all(kind)))
    for i, rule in enumerate(policy.layer_tiers):
        if position[rule.tier] > 0:
            found.append(
                Demand(name=f"layer_tiers[{i}]", place=f"policy: layer_tiers[{i}]", drop=_unlayered(rule))
            )
    return found


def _seen_by_all(kind: str) -> Callable[[Case], Case]:
    def drop(case: Case) -> Case:
        tiers: dict[str, Any] = {f"{kind}_tier": None}
        return replace(case, policy=replace(case.policy, **tiers))

    return drop


def _unlayered(rule: LayerTier) -> Callable[[Case], Case]:
    def drop(case: Case) -> Case:
        rules = tuple(other for other in case.policy.layer_tiers if other is not rule)
        return replace(case, policy=replace(case.policy, layer_tiers=rules))

    return drop


def _job_demands(case: Case) -> list[Demand]:
    job = case.workload.job
    found = [
        Demand(
            name="memory", place="fleet: memory of the devices", drop=lambda given: replace(given, roomy=True)
        )
    ]
    sizes = all_sizes(case.workload)
    if set(sizes) != set(job.micro_batch_sizes):
        found.append(
            Demand(
                name="micro_batch_sizes",
                place="model: job.micro_batch_sizes",
                drop=lambda given: with_job(given, micro_batch_sizes=all_sizes(given.workload)),
            )
        )
    if job.max_stages < case.workload.num_layers:
        found.append(
            Demand(
                name="max_stages",
                place="model: job.max_stages",
                drop=lambda given: with_job(given, max_stages=given.workload.num_layers),
            )
        )
    if case.executor not in ("any", "torch"):
        found.append(
            Demand(name="executor", place="--executor", drop=lambda given: replace(given, executor="any"))
        )
    return found


def with_job(
    case: Case, *, micro_batch_sizes: tuple[int, ...] | None = None, max_stages: int | None = None
) -> Case:
    """The case with other micro-batch sizes or another limit on stages."""
    job = case.workload.job
    if micro_batch_sizes is not None:
        job = replace(job, micro_batch_sizes=micro_batch_sizes)
    if max_stages is not None:
        job = replace(job, max_stages=max_stages)
    return replace(case, workload=replace(case.workload, job=job))


def all_sizes(workload: Workload) -> tuple[int, ...]:
    """Every micro-batch size the step can be cut into, up to a limit, and those that are given."""
    job = workload.job
    possible = {s for s in range(1, SEQUENCES_MAX + 1) if job.sequences_per_step % s == 0}
    return tuple(sorted(possible | set(job.micro_batch_sizes)))


def _fleet_demands(case: Case) -> list[Demand]:
    sites = case.own_sites
    missing = any(a != b and (a, b) not in case.fleet.link_by_ends for a in sites for b in sites)
    limits_speed = case.objective.kind is ObjectiveKind.PRICE and len(sites) > 1
    if missing or limits_speed:
        return [Demand(name="links", place="fleet: links", drop=_linked)]
    return []


def _linked(case: Case) -> Case:
    """Every two sites of the boundary joined by links that take no time worth mentioning."""
    sites = case.own_sites
    other = tuple(
        link for link in case.fleet.links if not {link.source_site_id, link.target_site_id} <= set(sites)
    )
    fast = tuple(
        Link(source_site_id=a, target_site_id=b, bytes_per_s=1e15) for a in sites for b in sites if a != b
    )
    return replace(case, fleet=replace(case.fleet, links=other + fast))


def _count_demands(case: Case) -> list[Demand]:
    found = []
    if case.num_boundaries > 1:
        if case.policy.min_cohort > 1:
            found.append(
                Demand(
                    name="cohort.min",
                    place="policy: cohort.min",
                    drop=lambda given: replace(given, policy=replace(given.policy, min_cohort=1)),
                )
            )
        if case.policy.drop_tolerance > 0:
            found.append(
                Demand(
                    name="cohort.drop_tolerance",
                    place="policy: cohort.drop_tolerance",
                    drop=lambda given: replace(given, policy=replace(given.policy, drop_tolerance=0)),
                )
            )
    if case.policy.replicas_max is not None:
        found.append(
            Demand(
                name="replicas_max",
                place="policy: replicas_max",
                drop=lambda given: replace(given, policy=replace(given.policy, replicas_max=None)),
            )
        )
    if case.objective.kind is ObjectiveKind.STEP_TIME:
        found.append(
            Demand(
                name="one-replica",
                place="--objective step-time",
                drop=lambda given: replace(
                    given, objective=replace(given.objective, kind=ObjectiveKind.TOKENS)
                ),
            )
        )
    if case.policy.spares.kind is not SpareKind.NONE:
        found.append(
            Demand(
                name="spares",
                place="policy: spares",
                drop=lambda given: replace(given, policy=replace(given.policy, spares=SpareRule())),
            )
        )
    return found


def _value_demands(case: Case) -> list[Demand]:
    found = []
    if case.policy.usd_per_hour_max is not None and case.num_boundaries == 1:
        found.append(
            Demand(
                name="price_max",
                place="policy: price_max",
                drop=lambda given: replace(given, policy=replace(given.policy, usd_per_hour_max=None)),
            )
        )
    if case.objective.kind is ObjectiveKind.PRICE:
        found.append(
            Demand(
                name="tokens_per_s_min",
                place="--tokens-per-s-min",
                drop=lambda given: replace(
                    given,
                    objective=replace(given.objective, kind=ObjectiveKind.TOKENS, tokens_per_s_min=None),
                ),
            )
        )
        if case.policy.speed_ratio_max is not None:
            found.append(
                Demand(
                    name="speed_ratio_max",
                    place="policy: speed_ratio_max",
                    drop=lambda given: replace(given, policy=replace(given.policy, speed_ratio_max=None)),
                )
            )
    return found
