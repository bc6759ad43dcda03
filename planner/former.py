"""An earlier plan seen from today's problem: its replicas as solvers know them, and its devices' places."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodels.fleet import Fleet
from costmodels.interface import Strategy
from planner.objective import Replica, StageChoice, price_replica
from planner.packing_hosts import Former, Wish
from planner.plan import Plan, ReplicaPlan, StagePlan
from planner.problem import BoundaryProblem, Mode, Part

PartsKey = tuple[tuple[Part, ...], Strategy]


def former_devices(plan: Plan) -> Former:
    """Devices of a plan by the layers and strategy they hold."""
    found: dict[Wish, set[str]] = defaultdict(set)
    for _, stage in _stages(plan):
        found[_wish(stage)].update(stage.devices)
    return Former(devices={wish: frozenset(devices) for wish, devices in found.items()})


def moved_devices(before: Plan, after: Plan) -> tuple[str, ...]:
    """Devices that run in `after` but didn't hold the same layers in the same way in `before`."""
    former = former_devices(before)
    return tuple(
        device_id
        for _, stage in _stages(after)
        for device_id in stage.devices
        if device_id not in former.wanted(_wish(stage))
    )


def former_replicas(fleet: Fleet, problem: BoundaryProblem, plan: Plan) -> tuple[Replica, ...] | None:
    """A boundary's replicas of an earlier plan at today's prices; None when they can't run any more."""
    boundary = next((b for b in plan.boundaries if b.name == problem.name), None)
    if boundary is None:
        return None
    view = _View.of(fleet, problem)
    replicas: list[Replica] = []
    for planned in boundary.replicas:
        replica = view.replica(planned)
        if replica is None:
            return None
        replicas.append(replica)
    return tuple(replicas) if admissible(problem, replicas) else None


def admissible(problem: BoundaryProblem, replicas: Sequence[Replica]) -> bool:
    """Whether replicas together keep the capacity rows and the limits on their number."""
    if not replicas or len(replicas) < problem.replicas_min:
        return False
    if problem.replicas_max is not None and len(replicas) > problem.replicas_max:
        return False
    used: Counter[int] = Counter()
    for replica in replicas:
        used.update(dict(replica.usage))
    return all(
        sum(weight * used[class_i] for class_i, weight in row.coefficients) <= row.limit * (1 + 1e-12) + 1e-9
        for row in problem.rows
    )


@dataclass(frozen=True, kw_only=True)
class _View:
    problem: BoundaryProblem
    class_of: Mapping[str, int]
    host_of: Mapping[str, str]
    templates: Mapping[PartsKey, int]

    @classmethod
    def of(cls, fleet: Fleet, problem: BoundaryProblem) -> _View:
        """Lookups over one boundary."""
        class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
        host_of = {d.device_id: d.host_id for d in fleet.devices}
        templates = {
            (tuple(sorted(t.parts, key=lambda part: part.class_i)), t.strategy): t.template_i
            for t in problem.templates
        }
        return cls(problem=problem, class_of=class_of, host_of=host_of, templates=templates)

    def replica(self, planned: ReplicaPlan) -> Replica | None:
        """The planned replica over today's candidate clusters, or None."""
        choices: list[StageChoice] = []
        for stage in planned.stages:
            template_i = self._template(stage)
            start, stop = stage.layers
            if template_i is None or not self._cleared(template_i, start, stop):
                return None
            choices.append(StageChoice(template_i=template_i, start=start, stop=stop))
        reached = [0] + [c.stop for c in choices]
        if [c.start for c in choices] != reached[:-1] or reached[-1] != self.problem.num_layers:
            return None
        mode = self._mode(planned, {c.template_i for c in choices})
        return None if mode is None else price_replica(self.problem, mode, choices)

    def _cleared(self, template_i: int, start: int, stop: int) -> bool:
        required = self.problem.tier_required[start:stop]
        return start < stop and max(required, default=0) <= self.problem.templates[template_i].tier_i

    def _template(self, stage: StagePlan) -> int | None:
        per_host: dict[int, Counter[str]] = defaultdict(Counter)
        for device_id in stage.devices:
            if device_id not in self.class_of:
                return None
            per_host[self.class_of[device_id]][self.host_of[device_id]] += 1
        parts = []
        for class_i, counts in sorted(per_host.items()):
            if len(set(counts.values())) != 1:
                return None
            parts.append(Part(class_i=class_i, per_host=next(iter(counts.values())), num_hosts=len(counts)))
        strategy = Strategy(dp=stage.dp, tp=stage.tp, zero=stage.zero)
        return self.templates.get((tuple(parts), strategy))

    def _mode(self, planned: ReplicaPlan, chosen: set[int]) -> Mode | None:
        for mode in self.problem.modes:
            same = (mode.num_micro_batches, mode.micro_batch_size, mode.executor)
            if (
                same == (planned.micro_batches, planned.micro_batch_size, planned.executor)
                and len(planned.stages) <= mode.max_stages
                and chosen <= set(mode.templates)
            ):
                return mode
        return None


def _stages(plan: Plan) -> list[tuple[ReplicaPlan, StagePlan]]:
    return [
        (replica, stage)
        for boundary in plan.boundaries
        for replica in boundary.replicas
        for stage in replica.stages
    ]


def _wish(stage: StagePlan) -> Wish:
    return ((stage.layers[0], stage.layers[1]), stage.dp, stage.tp, stage.zero)
