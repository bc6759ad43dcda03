"""Replicas on real devices: every figure that a plan states about a stage, from the cost model itself.

Standard library and the cost model only, so that failovers are priced exactly as the plan is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodels.fleet import Device, Fleet
from costmodels.interface import StageCost
from planner.candidates import cluster_of
from planner.objective import StageChoice, in_flight_counts, step_time_s, transfers_s
from planner.plan import ReplicaPlan, StagePlan
from planner.problem import BoundaryProblem, Mode, Template

ChooseHead = Callable[[Sequence[Device]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatedStage:
    """A candidate cluster on real devices in rank order, the layers [a, b) it holds, its dedicated spare."""

    template_i: int
    start: int
    stop: int
    devices: tuple[str, ...]
    spares: tuple[str, ...] = ()

    @property
    def choice(self) -> StageChoice:
        """The stage as solvers see it."""
        return StageChoice(template_i=self.template_i, start=self.start, stop=self.stop)


KnownStages = dict[tuple[SeatedStage, int, int, int, float], tuple[StagePlan, StageCost] | None]
"""Stages by place, position, size of micro-batches, micro-batches in flight, and transfer seconds."""


def realise_replica(
    fleet: Fleet,
    problem: BoundaryProblem,
    mode: Mode,
    stages: Sequence[SeatedStage],
    *,
    replica_id: str,
    choose_head: ChooseHead,
    known: KnownStages | None = None,
) -> ReplicaPlan | None:
    """The replica with all its figures; None when a stage doesn't fit or two sites have no link.

    `known` remembers stages between calls with the same fleet, problem and choice of heads.
    """
    choices = [stage.choice for stage in stages]
    moves_s = transfers_s(problem, mode, choices)
    if moves_s is None:
        return None
    held = in_flight_counts(problem, mode, choices)
    known = {} if known is None else known
    planned: list[tuple[StagePlan, StageCost]] = []
    for index, (stage, in_flight) in enumerate(zip(stages, held, strict=True)):
        move_s = moves_s[index] if index < len(moves_s) else 0.0
        key = (stage, index, mode.micro_batch_size, in_flight, move_s)
        if key not in known:
            known[key] = _realise_stage(fleet, problem, mode, stage, index, in_flight, move_s, choose_head)
        answer = known[key]
        if answer is None:
            return None
        planned.append(answer)
    step_s = step_time_s(
        problem.formula(mode), [c.busy_s for _, c in planned], moves_s, [c.sync_s for _, c in planned]
    )
    return ReplicaPlan(
        id=replica_id,
        executor=mode.executor,
        tokens_per_s=float(problem.tokens_per_step / step_s),
        step_time_s=float(step_s),
        micro_batches=mode.num_micro_batches,
        micro_batch_size=mode.micro_batch_size,
        stages=tuple(stage for stage, _ in planned),
        tied_layers=tied_layers(problem),
    )


def _realise_stage(
    fleet: Fleet,
    problem: BoundaryProblem,
    mode: Mode,
    stage: SeatedStage,
    index: int,
    in_flight: int,
    move_s: float,
    choose_head: ChooseHead,
) -> tuple[StagePlan, StageCost] | None:
    template = problem.templates[stage.template_i]
    members = tuple(fleet.device_by_id[d] for d in stage.devices)
    cluster = cluster_of(fleet, fleet.site_of(members[0]), members)
    cost = problem.cost_model.stage(
        cluster, (stage.start, stage.stop), template.strategy, mode.micro_batch_size, in_flight
    )
    if cost is None or not cost.fits:
        return None
    return _stage_plan(index, stage, template, cost, in_flight, move_s, choose_head(members)), cost


def tied_layers(problem: BoundaryProblem) -> tuple[tuple[int, int], ...]:
    """Pairs of layers that share their weights, the earlier one first."""
    layers = problem.workload.layers
    return tuple(
        (min(i, layer.tied_to), max(i, layer.tied_to))
        for i, layer in enumerate(layers)
        if layer.tied_to is not None
    )


def _stage_plan(
    index: int,
    stage: SeatedStage,
    template: Template,
    cost: StageCost,
    in_flight: int,
    move_s: float,
    head: str,
) -> StagePlan:
    dp, tp = template.strategy.dp, template.strategy.tp
    return StagePlan(
        index=index,
        layers=(stage.start, stage.stop),
        devices=stage.devices,
        dp=dp,
        tp=tp,
        zero=template.strategy.zero,
        micro_batch_shares=tuple(int(share) for share in cost.shares),
        ranks=tuple(tuple(stage.devices[i * tp : (i + 1) * tp]) for i in range(dp)),
        recompute=int(cost.recompute_layers),
        in_flight=in_flight,
        head=head,
        spares=stage.spares,
        memory_bytes={
            device_id: {kind: float(number) for kind, number in kinds.items()} | {"limit": float(limit)}
            for device_id, kinds, limit in zip(
                stage.devices, cost.memory_bytes, cost.limit_bytes, strict=True
            )
        },
        compute_s=float(cost.forward_s + cost.backward_s),
        comm_s=float(cost.exposed_s),
        sync_s=float(cost.sync_s),
        transfer_s=float(move_s),
    )
