"""One replica of a plan: its chain of layers, how it is run, and its figures on the real devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from costmodels.interface import StageCost
from planner.check.fleet_view import BoundaryView, in_flight
from planner.check.report import Findings
from planner.check.stages import StageSite, check_cost, check_tier, place_stage
from planner.plan import ReplicaPlan
from planner.problem import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedReplica:
    """What a replica is found to be worth; `usage` counts devices per class, dedicated spares included."""

    step_s: float
    tokens_per_s: float
    usd_per_hour: float
    usage: Counter[int]


def check_replica(
    view: BoundaryView, replica: ReplicaPlan, findings: Findings, place: str, *, with_spares: bool
) -> DerivedReplica | None:
    """The replica's own figures; None when it is too broken to be priced. Every fault is recorded.

    `with_spares` asks for the dedicated spare of each stage; the replacement after a failure has none.
    """
    if not _check_chain(view, replica, findings, place):
        return None
    sites: list[StageSite] = []
    usage: Counter[int] = Counter()
    for i, stage in enumerate(replica.stages):
        here = f"{place}.stages[{i}]"
        check_tier(view, stage, findings, here)
        site = place_stage(view, stage, findings, here)
        if site is not None:
            sites.append(site)
            usage.update(view.class_of[device_id] for device_id in stage.devices)
            usage.update(_check_spares(view, site, findings, here, wanted=with_spares))
    if len(sites) < len(replica.stages):
        return None
    mode = _find_mode(view, replica, sites, findings, place)
    if mode is None:
        return None
    return _price(view, replica, mode, sites, usage, findings, place)


def _check_chain(view: BoundaryView, replica: ReplicaPlan, findings: Findings, place: str) -> bool:
    """`layers`, `tied-layers`: stages in order hold each layer of the chain exactly once."""
    before = len(findings.violations)
    reached = 0
    for i, stage in enumerate(replica.stages):
        findings.require_same("layers", f"{place}.stages[{i}].index", stage.index, i)
        first, stop = stage.layers
        if first != reached or stop <= first:
            findings.add(
                "layers", f"{place}.stages[{i}].layers", stage.layers, f"a range from layer {reached}"
            )
        reached = max(reached, stop)
    if reached != view.problem.num_layers:
        findings.add("layers", f"{place}.stages", f"layers up to {reached}", view.problem.num_layers)
    tied = sorted(
        (min(i, layer.tied_to), max(i, layer.tied_to))
        for i, layer in enumerate(view.problem.workload.layers)
        if layer.tied_to is not None
    )
    sound = len(findings.violations) == before
    stated = sorted((min(pair), max(pair)) for pair in replica.tied_layers)
    findings.require_same("tied-layers", f"{place}.tied_layers", stated, tied)
    return sound


def _check_spares(
    view: BoundaryView, site: StageSite, findings: Findings, place: str, *, wanted: bool
) -> list[int]:
    """`spare`: a dedicated spare per stage, of the class its candidate names, if the policy asks for it."""
    spare_class_i = site.template.spare_class_i if wanted else None
    found = [view.class_of.get(device_id) for device_id in site.stage.spares]
    expected = [] if spare_class_i is None else [spare_class_i]
    if found != expected:
        limit = "no dedicated spare" if not expected else f"one device of class {expected[0]}"
        findings.add("spare", f"{place}.spares", site.stage.spares, limit)
    return [class_i for class_i in found if class_i is not None]


def _find_mode(
    view: BoundaryView, replica: ReplicaPlan, sites: Sequence[StageSite], findings: Findings, place: str
) -> Mode | None:
    """`micro-batches`, `executor`: the step is cut as the job allows and the executor can run every stage."""
    count, size = replica.micro_batches, replica.micro_batch_size
    job = view.problem.workload.job
    if size not in job.micro_batch_sizes or count * size != job.sequences_per_step:
        limit = f"{job.sequences_per_step} sequences in micro-batches of {list(job.micro_batch_sizes)}"
        findings.add("micro-batches", f"{place}.micro_batch_size", f"{count} x {size}", limit)
        return None
    modes = view.modes_of(count, size, replica.executor)
    if not modes:
        known = sorted({mode.executor for mode in view.problem.modes})
        findings.add("executor", f"{place}.executor", replica.executor, f"one of {known}")
        return None
    chosen = {site.template.template_i for site in sites}
    for mode in modes:
        if len(sites) <= mode.max_stages and chosen <= view.template_sets[mode.mode_i]:
            return mode
    found = f"{len(sites)} stages: " + ", ".join(
        f"dp {s.stage.dp} tp {s.stage.tp} zero {s.stage.zero}" for s in sites
    )
    limit = f"what {replica.executor} runs in at most {max(mode.max_stages for mode in modes)} stages"
    findings.add("executor", place, found, limit)
    return None


def _price(
    view: BoundaryView,
    replica: ReplicaPlan,
    mode: Mode,
    sites: Sequence[StageSite],
    usage: Counter[int],
    findings: Findings,
    place: str,
) -> DerivedReplica | None:
    """Costs of the stages and transfers on the real devices, and the step time they make."""
    costs: list[StageCost] = []
    moves_s: list[float] = []
    for i, site in enumerate(sites):
        here = f"{place}.stages[{i}]"
        widths = [later.strategy.dp for later in sites[i:]]
        held = in_flight(view.problem.workload.job.schedule, mode.num_micro_batches, widths)
        cost = view.problem.cost_model.stage(
            site.cluster, site.stage.layers, site.strategy, mode.micro_batch_size, held
        )
        if cost is None:
            findings.add(
                "memory", here, f"layers {site.stage.layers} with {held} in flight", "a stage that can run"
            )
            return None
        check_cost(site, cost, held, findings, here)
        costs.append(cost)
        move_s = _transfer_s(view, sites, i, mode, findings, here)
        if move_s is None:
            return None
        moves_s.append(move_s)
        findings.require_equal("transfer", f"{here}.transfer_s", site.stage.transfer_s, move_s)
    step_s = _step_s(view, mode, costs, moves_s[:-1])
    tokens_per_s = view.problem.tokens_per_step / step_s
    findings.require_equal("step-time", f"{place}.step_time_s", replica.step_time_s, step_s)
    findings.require_equal("tokens", f"{place}.tokens_per_s", replica.tokens_per_s, tokens_per_s)
    usd = sum(n * view.problem.classes[class_i].device.usd_per_hour for class_i, n in sorted(usage.items()))
    return DerivedReplica(step_s=step_s, tokens_per_s=tokens_per_s, usd_per_hour=usd, usage=usage)


def _transfer_s(
    view: BoundaryView, sites: Sequence[StageSite], i: int, mode: Mode, findings: Findings, place: str
) -> float | None:
    """`link`, `transfer`: seconds per micro-batch to the next stage and back; zero after the last one."""
    if i + 1 == len(sites):
        return 0.0
    ends = (sites[i].cluster.site.site_id, sites[i + 1].cluster.site.site_id)
    link = view.fleet.link_by_ends.get(ends)
    if link is None:
        findings.add("link", place, f"no link from {ends[0]} to {ends[1]}", "a link to the next stage's site")
        return None
    return view.problem.cost_model.transfer_s(link, sites[i].stage.layers[1], mode.micro_batch_size)


def _step_s(view: BoundaryView, mode: Mode, costs: Sequence[StageCost], moves_s: Sequence[float]) -> float:
    """Seconds per step: fill * sum(busy + transfer) + repeats * max(busy, transfer) + max sync."""
    formula = view.problem.formula(mode)
    busy_s = [cost.forward_s + cost.backward_s + cost.exposed_s for cost in costs]
    slowest_s = max([*busy_s, *moves_s])
    sync_s = max(cost.sync_s for cost in costs) if formula.sync else 0.0
    return formula.fill * (sum(busy_s) + sum(moves_s)) + formula.repeats * slowest_s + sync_s
