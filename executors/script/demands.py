"""What a plan demands of a training script, and what the script doesn't say it can. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from costmodels.workload import JOINT, Workload
from executors.script.declaration import FULL, LORA, Declaration
from planner.execution import Reason
from planner.plan import ReplicaPlan, StagePlan


def script_reasons(replica: ReplicaPlan, workload: Workload, declaration: Declaration) -> tuple[Reason, ...]:
    """Every demand of the planned replica that the script can't meet; empty when it can carry it out."""
    return (
        *_replica_reasons(replica, declaration),
        *(reason for stage in replica.stages for reason in _stage_reasons(replica, stage, declaration)),
        *_job_reasons(workload, declaration),
    )


def _replica_reasons(replica: ReplicaPlan, can: Declaration) -> Iterator[Reason]:
    """Demands of the stages together."""
    stages = replica.stages
    if replica.executor not in can.executors:
        yield _reason("executor", replica.id, replica.executor, _any_of(can.executors))
    if len(stages) > 1 and not can.pipeline:
        yield _reason("pipeline", f"{replica.id}.stages", f"{len(stages)} stages", "one stage")
    widths = [stage.dp for stage in stages]
    if len(set(widths)) > 1 and not can.unequal_widths:
        told = ", ".join(map(str, widths))
        yield _reason("unequal-widths", f"{replica.id}.stages[].dp", told, "the same width in all stages")
    for pair in replica.tied_layers:
        first, second = (next(s.index for s in stages if s.layers[0] <= i < s.layers[1]) for i in pair)
        if first != second and not can.tied_embeddings:
            told = f"layers {pair[0]} and {pair[1]} in stages {first} and {second}"
            yield _reason("tied-embeddings", f"{replica.id}.tied_layers", told, "tied layers in one stage")


def _stage_reasons(replica: ReplicaPlan, stage: StagePlan, can: Declaration) -> Iterator[Reason]:
    place = f"{replica.id}.stages[{stage.index}]"
    if stage.zero not in can.zero:
        yield _reason("zero", f"{place}.zero", stage.zero, _any_of(can.zero))
    if stage.tp > 1 and not can.tensor_parallel:
        yield _reason("tensor-parallel", f"{place}.tp", stage.tp, "1")
    if len(set(stage.micro_batch_shares)) > 1 and not can.uneven_shares:
        told = ", ".join(map(str, stage.micro_batch_shares))
        yield _reason("uneven-shares", f"{place}.micro_batch_shares", told, "the same rows for all ranks")
    if stage.recompute > 0 and not can.recompute:
        yield _reason("recompute", f"{place}.recompute", f"{stage.recompute} layers", "0 layers")


def _job_reasons(workload: Workload, can: Declaration) -> Iterator[Reason]:
    job = workload.job
    if job.dtype not in can.dtypes:
        yield _reason("dtype", "job.dtype", job.dtype, _any_of(can.dtypes))
    method = FULL if job.full else LORA
    if method not in can.methods:
        yield _reason("method", "job.method", method, _any_of(can.methods))
    if job.schedule != JOINT:
        yield _reason("schedule", "job.schedule", job.schedule, JOINT)


def _any_of(choices: tuple[object, ...]) -> str:
    return " or ".join(map(str, choices))


def _reason(code: str, place: str, value: object, limit: str) -> Reason:
    return Reason(code=f"script-{code}", place=place, value=str(value), limit=limit)
