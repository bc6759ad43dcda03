"""What each replica becomes when a device or a host is lost: complete, and priced like the plan itself.

Executors have no solver, so every replacement stands in the plan. In order of preference: the same clusters
on spare, idle or left-over devices; another cluster in the place of the broken one, or none, with the layers
cut anew; a new replica by rule of thumb on all that is left; nothing, with 0 tokens/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from planner.certificate import usd_per_hour
from planner.heads import stage_head
from planner.kinds import LayerKinds
from planner.objective import StageChoice
from planner.plan import BoundaryPlan, Failover, ReplicaPlan, StagePlan
from planner.problem import BoundaryProblem, CapacityRow, Mode, Objective, Problem
from planner.quickest import Quickest, Wanted
from planner.realise import KnownStages, SeatedStage, realise_replica
from planner.recut import Recut, Recutter
from planner.seating import BoolArray, Stock, seat_template
from planner.solve.greedy import Workshop
from planner.solve.result import Limits

RECUT_TEMPLATES = 3
"""So many of the fastest other clusters are tried with new layer borders."""


def build_failover(
    problem: Problem, boundary: BoundaryProblem, plan: BoundaryPlan, kinds: LayerKinds
) -> BoundaryPlan:
    """The plan with a replacement for the loss of each device in use, and of each host with several of them.

    Equal devices of one stage and host share an entry where its replacement does without all of them. `kinds`
    are those of the problem's layers.
    """
    planner = _Planner(problem, boundary, plan, kinds)
    entries = [entry for replica in plan.replicas for entry in planner.entries(replica)]
    return replace(plan, failover=tuple(entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One loss: the replica, its mode and clusters, what is lost, and what may be used."""

    replica: ReplicaPlan
    mode: Mode
    templates: tuple[int, ...]
    lost: frozenset[str]
    idle: frozenset[str]

    @property
    def broken(self) -> list[int]:
        """Positions of stages that lost a device."""
        return [s.index for s in self.replica.stages if not self.lost.isdisjoint(s.devices)]

    def free_for(self, stages: Sequence[int]) -> frozenset[str]:
        """Idle devices, the replica's own spares, and what is left of these stages."""
        own = {d for s in self.replica.stages for d in s.spares}
        left = {d for i in stages for d in self.replica.stages[i].devices}
        return (self.idle | own | left) - self.lost


class _Planner:
    """Replacements of one boundary; remembers cluster costs, cuts, stages and rule-of-thumb replicas."""

    def __init__(
        self, problem: Problem, boundary: BoundaryProblem, plan: BoundaryPlan, kinds: LayerKinds
    ) -> None:
        self.fleet = problem.fleet
        self.problem = boundary
        taken = {d for r in plan.replicas for s in r.stages for d in (*s.devices, *s.spares)}
        self.class_of = {d: c.class_i for c in boundary.classes for host in c.hosts for d in host}
        self.host_of = {d.device_id: d.host_id for d in problem.fleet.devices}
        self.idle = frozenset(set(self.class_of) - taken)
        self.stock = Stock(boundary, self.idle)
        self.recutter = Recutter(boundary, kinds)
        self.quickest = Quickest(
            boundary, (_wanted(replica, stage) for replica in plan.replicas for stage in replica.stages)
        )
        self.order_T = self._by_rate()
        self.admissible: dict[int, BoolArray] = {}
        self.stages: KnownStages = {}
        self.workshop = Workshop(replace(boundary, objective=Objective()), kinds)
        self.usd_spare = _usd_to_spare(problem, boundary, plan)
        self.rules: dict[tuple[tuple[int, int], ...], tuple[int, tuple[StageChoice, ...]] | None] = {}
        self.template_at = self._templates_by_shape()

    def _templates_by_shape(self) -> Mapping[tuple[frozenset[tuple[int, int, int]], int, int, int], int]:
        return {
            (
                frozenset((p.class_i, p.per_host, p.num_hosts) for p in t.parts),
                t.strategy.dp,
                t.strategy.tp,
                t.strategy.zero,
            ): t.template_i
            for t in self.problem.templates
        }

    def entries(self, replica: ReplicaPlan) -> list[Failover]:
        """All entries of one replica: devices first, then hosts."""
        mode = self._mode(replica)
        templates = tuple(self._template(stage) for stage in replica.stages)
        by_host: dict[str, list[str]] = {}
        for stage in replica.stages:
            for device_id in stage.devices:
                by_host.setdefault(self.host_of[device_id], []).append(device_id)
        found: list[Failover] = []
        covered: set[str] = set()
        for stage in replica.stages:
            for device_id in stage.devices:
                if device_id not in covered:
                    alone = len(by_host[self.host_of[device_id]]) == 1
                    case = self._case(replica, mode, templates, {device_id})
                    best = self._device_lost(case, alone=alone)
                    devices = self._sharing(stage, device_id, best)
                    covered.update(devices)
                    found.append(_entry(devices, replica, best))
        known = {frozenset(entry.devices) for entry in found}
        for devices_on_host in by_host.values():
            lost = frozenset(devices_on_host)
            if len(lost) > 1 and lost not in known:
                case = self._case(replica, mode, templates, lost)
                found.append(_entry(tuple(devices_on_host), replica, self._best(self._without_hosts(case))))
        return found

    def _case(self, replica: ReplicaPlan, mode: Mode, templates: tuple[int, ...], lost: Set[str]) -> _Case:
        return _Case(replica=replica, mode=mode, templates=templates, lost=frozenset(lost), idle=self.idle)

    def _without_hosts(self, case: _Case) -> _Case:
        """The same loss when its hosts are gone altogether: their idle devices can't help either."""
        hosts = {self.host_of[d] for d in case.lost}
        return replace(case, idle=frozenset(d for d in case.idle if self.host_of[d] not in hosts))

    def _device_lost(self, case: _Case, *, alone: bool) -> ReplicaPlan | None:
        """The replacement; the only device on its host is replaced on another host where that costs nothing.

        Such a loss may just as well be that of the host.
        """
        if alone:
            gone = self._without_hosts(case)
            elsewhere = self._best(gone)
            if gone.idle == case.idle:
                return elsewhere
            if elsewhere is not None and elsewhere.tokens_per_s >= case.replica.tokens_per_s * (1.0 - 1e-9):
                return elsewhere
        return self._best(case)

    def _sharing(self, stage: StagePlan, device_id: str, best: ReplicaPlan | None) -> tuple[str, ...]:
        """Devices of the stage that equal this one, on its host, and that its replacement does without."""
        used = set() if best is None else {d for s in best.stages for d in s.devices}
        key = (self.class_of[device_id], self.host_of[device_id])
        return tuple(
            d
            for d in stage.devices
            if d == device_id or (d not in used and (self.class_of[d], self.host_of[d]) == key)
        )

    def _best(self, case: _Case) -> ReplicaPlan | None:
        """The preferred replacement, or None."""
        same = self._seated(case, self._unchanged(case))
        if same is not None:
            return same
        return self._changed(case) or self._by_rule(case)

    def _unchanged(self, case: _Case) -> tuple[StageChoice, ...]:
        return tuple(
            StageChoice(template_i=t, start=stage.layers[0], stop=stage.layers[1])
            for t, stage in zip(case.templates, case.replica.stages, strict=True)
        )

    def _changed(self, case: _Case) -> ReplicaPlan | None:
        """The fastest with another cluster in place of each broken one, or without it."""
        able_T = self.stock.able(case.free_for(case.broken))
        able_T &= self._admissible(case.mode)
        in_place = self._in_place(case, able_T)
        kept = None if in_place is None else self._seated(case, in_place)
        below_s = float("inf") if kept is None else kept.step_time_s
        faster: list[list[SeatedStage]] = []
        fast: list[int] = self.order_T[able_T[self.order_T]][:RECUT_TEMPLATES].tolist()
        for template_i in (*fast, None):
            found = self._recut(case, template_i, below_s)
            stages = None if found is None else self._placed(case, found.chain)
            if found is not None and stages is not None:
                faster.append(stages)
                below_s = found.step_s
        options = (self._realised(case, case.mode, stages) for stages in reversed(faster))
        return next((option for option in options if option is not None), kept)

    def _in_place(self, case: _Case, able_T: BoolArray) -> tuple[StageChoice, ...] | None:
        """Each broken stage on the cluster that runs its own layers fastest; None where none holds them."""
        chain = list(self._unchanged(case))
        for i in case.broken:
            template_i = self.quickest.of(_wanted(case.replica, case.replica.stages[i]), able_T)
            if template_i is None:
                return None
            chain[i] = replace(chain[i], template_i=template_i)
        return tuple(chain)

    def _recut(self, case: _Case, template_i: int | None, below_s: float) -> Recut | None:
        """This cluster, or none, in place of each broken one, cut anew for a step of less than `below_s`."""
        broken = set(case.broken)
        templates = [template_i if i in broken else t for i, t in enumerate(case.templates)]
        return self.recutter.recut(case.mode, [t for t in templates if t is not None], below_s=below_s)

    def _admissible(self, mode: Mode) -> BoolArray:
        """Which candidate clusters may run in a mode, by position."""
        if mode.mode_i not in self.admissible:
            mask_T = np.zeros(len(self.problem.templates), dtype=bool)
            mask_T[list(mode.templates)] = True
            self.admissible[mode.mode_i] = mask_T
        return self.admissible[mode.mode_i]

    def _by_rate(self) -> NDArray[np.intp]:
        """Positions of the candidate clusters, those whose devices are fastest together first."""
        dtype = self.problem.workload.job.dtype
        rate_T = [sum(d.rate_flop_per_s(dtype) for d in t.cluster.devices) for t in self.problem.templates]
        return np.argsort(-np.array(rate_T), kind="stable")

    def _by_rule(self, case: _Case) -> ReplicaPlan | None:
        """A new replica of everything left, by the access-aware rule of thumb."""
        left = case.free_for(range(len(case.replica.stages)))
        counts = tuple(
            (c.class_i, sum(d in left for host in c.hosts for d in host)) for c in self.problem.classes
        )
        if counts not in self.rules:
            self.rules[counts] = _rule_of_thumb(self.workshop, self.problem, counts)
        answer = self.rules[counts]
        if answer is None:
            return None
        mode = self.problem.modes[answer[0]]
        stages = self._seats(answer[1], {}, set(left))
        if stages is None or not self._affordable(case, stages):
            return None
        return self._realised(case, mode, stages)

    def _seated(self, case: _Case, chain: Sequence[StageChoice]) -> ReplicaPlan | None:
        """A chain on real devices with all figures."""
        stages = self._placed(case, chain)
        return None if stages is None else self._realised(case, case.mode, stages)

    def _placed(self, case: _Case, chain: Sequence[StageChoice]) -> list[SeatedStage] | None:
        """Affordable devices for a chain: whole stages stay where they are, the others take what is free."""
        broken = set(case.broken)
        whole = [s for s in case.replica.stages if s.index not in broken]
        kept = len(chain) == len(case.templates)
        fixed = {s.index: s for s in whole} if kept else dict(enumerate(whole))
        stages = self._seats(chain, fixed, set(case.free_for(sorted(broken))), case.replica.stages)
        return stages if stages is not None and self._affordable(case, stages) else None

    def _seats(
        self,
        chain: Sequence[StageChoice],
        fixed: Mapping[int, StagePlan],
        free: set[str],
        before: Sequence[StagePlan] = (),
    ) -> list[SeatedStage] | None:
        """Devices for every stage that isn't fixed, the largest clusters first."""
        devices = {i: stage.devices for i, stage in fixed.items()}
        todo = [i for i in range(len(chain)) if i not in devices]
        todo.sort(key=lambda i: -len(self.problem.templates[chain[i].template_i].cluster.devices))
        for i in todo:
            had = before[i].devices if len(before) == len(chain) else ()
            template = self.problem.templates[chain[i].template_i]
            seat = seat_template(self.fleet, template, self.stock.hosts(free), before=had)
            if seat is None:
                return None
            devices[i] = seat
            free -= set(seat)
        return [
            SeatedStage(template_i=c.template_i, start=c.start, stop=c.stop, devices=devices[i])
            for i, c in enumerate(chain)
        ]

    def _affordable(self, case: _Case, stages: Sequence[SeatedStage]) -> bool:
        """Whether the chain is no dearer than the ceiling allows."""
        if self.usd_spare is None:
            return True
        price = {d: self.fleet.device_by_id[d].usd_per_hour for s in stages for d in s.devices}
        return sum(price.values()) <= usd_per_hour(self.problem, [case.replica]) + self.usd_spare + 1e-9

    def _realised(self, case: _Case, mode: Mode, stages: Sequence[SeatedStage]) -> ReplicaPlan | None:
        """The chain with all figures; None when it doesn't fit."""
        return realise_replica(
            self.fleet,
            self.problem,
            mode,
            stages,
            replica_id=case.replica.id,
            choose_head=partial(stage_head, self.fleet),
            known=self.stages,
        )

    def _mode(self, replica: ReplicaPlan) -> Mode:
        wanted = (replica.micro_batches, replica.micro_batch_size, replica.executor)
        chosen = {self._template(stage) for stage in replica.stages}
        return next(
            mode
            for mode in self.problem.modes
            if (mode.num_micro_batches, mode.micro_batch_size, mode.executor) == wanted
            and len(replica.stages) <= mode.max_stages
            and chosen <= set(mode.templates)
        )

    def _template(self, stage: StagePlan) -> int:
        per_host: dict[tuple[int, str], int] = {}
        for device_id in stage.devices:
            key = (self.class_of[device_id], self.host_of[device_id])
            per_host[key] = per_host.get(key, 0) + 1
        hosts: dict[int, list[int]] = {}
        for (class_i, _), count in per_host.items():
            hosts.setdefault(class_i, []).append(count)
        parts = frozenset((class_i, counts[0], len(counts)) for class_i, counts in hosts.items())
        return self.template_at[(parts, stage.dp, stage.tp, stage.zero)]


def _entry(devices: tuple[str, ...], replica: ReplicaPlan, best: ReplicaPlan | None) -> Failover:
    speed = 0.0 if best is None else best.tokens_per_s
    return Failover(devices=devices, replica=replica.id, replacement=best, tokens_per_s=speed)


def _usd_to_spare(problem: Problem, boundary: BoundaryProblem, plan: BoundaryPlan) -> float | None:
    """USD per hour a replacement may cost more than what it replaces; None without a ceiling.

    A ceiling shared by several boundaries leaves nothing, since the others may have a failure too.
    """
    if problem.usd_per_hour_max is None:
        return None
    if len(problem.boundaries) > 1:
        return 0.0
    return max(0.0, problem.usd_per_hour_max - usd_per_hour(boundary, plan.replicas))


def _wanted(replica: ReplicaPlan, stage: StagePlan) -> Wanted:
    return Wanted(layers=stage.layers, in_flight=stage.in_flight, micro_batch_size=replica.micro_batch_size)


def _rule_of_thumb(
    workshop: Workshop, problem: BoundaryProblem, counts: Sequence[tuple[int, int]]
) -> tuple[int, tuple[StageChoice, ...]] | None:
    """One replica within so many devices per class: its mode and stages."""
    rows = tuple(
        CapacityRow(name=f"class[{class_i}]", coefficients=((class_i, 1.0),), limit=float(count))
        for class_i, count in counts
    )
    smaller = replace(
        problem,
        objective=Objective(),
        rows=rows,
        replicas_min=1,
        replicas_max=1,
        speed_ratio_max=None,
    )
    result = workshop.solve(smaller, Limits(deterministic=True))
    if not result.replicas:
        return None
    return result.replicas[0].mode_i, result.replicas[0].stages
