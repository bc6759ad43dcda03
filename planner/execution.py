"""What each executor can run, as named rules.

The planner filters its candidates by these rules and executors refuse plans by them, so the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodels.workload import JOINT, ROUND_ROBIN, Job, Workload

DEEPSPEED = "deepspeed"
TORCH = "torch"
EXECUTORS = (DEEPSPEED, TORCH)

TRAINED_BY = "adamw"
"""The optimiser that executors have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something can't be run: a stable code, the place, the value found there and what would do."""

    code: str
    place: str
    value: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShape:
    """What of a stage decides whether an executor can run it. `num_kinds` counts unlike device figures."""

    dp: int
    tp: int
    zero: int
    num_kinds: int


def stage_reasons(
    executor: str, stage: StageShape, micro_batch_size: int, *, pipelined: bool, schedule: str = JOINT
) -> tuple[Reason, ...]:
    """Why the executor can't run a stage of this shape; `pipelined` says that there are other stages.

    DeepSpeed splits a micro-batch evenly, has no tensor parallelism of its own, and shards gradients or
    weights only without a pipeline ("ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism").
    """
    if executor != DEEPSPEED:
        return ()
    found: list[Reason] = []
    if stage.tp > 1:
        found.append(_reason("deepspeed-tensor-parallel", "tp", stage.tp, "1"))
    if stage.num_kinds > 1:
        found.append(_reason("deepspeed-mixed-stage", "devices", f"{stage.num_kinds} kinds", "one kind"))
    if schedule != ROUND_ROBIN and micro_batch_size % stage.dp:
        limit = f"a divisor of the {micro_batch_size} sequences of a micro-batch"
        found.append(_reason("deepspeed-uneven-shares", "dp", stage.dp, limit))
    if pipelined and stage.zero > 1:
        found.append(_reason("deepspeed-zero-in-pipeline", "zero", stage.zero, "0 or 1 in a pipeline"))
    return tuple(found)


def uniformity_reasons(executor: str, stages: Sequence[StageShape]) -> tuple[Reason, ...]:
    """Why the executor can't run these stages together.

    DeepSpeed's grid is a full product of stages and data-parallel ranks, and one configuration holds for all.
    """
    found: list[Reason] = []
    if executor != DEEPSPEED:
        return ()
    for code, place, values in (
        ("deepspeed-unequal-widths", "stages[].dp", [stage.dp for stage in stages]),
        ("deepspeed-mixed-zero", "stages[].zero", [stage.zero for stage in stages]),
    ):
        if len(set(values)) > 1:
            found.append(_reason(code, place, ", ".join(map(str, values)), "the same in all stages"))
    return tuple(found)


def workload_reasons(workload: Workload) -> tuple[Reason, ...]:
    """Why no executor can train this: the model can't be built, or its optimiser is not there."""
    recipe, found = workload.recipe, []
    if recipe is None:
        limit = "a transformers configuration (`config` or `architecture` in the model file)"
        found.append(_reason("no-recipe", "model", "a list of layers", limit))
    elif recipe.optimiser != TRAINED_BY:
        found.append(_reason("optimiser-not-run", "job.optimiser", recipe.optimiser, TRAINED_BY))
    found += _job_reasons(workload.job)
    return tuple(found)


def _job_reasons(job: Job) -> list[Reason]:
    found = []
    if job.dtype not in ("bf16", "fp32"):
        found.append(_reason("dtype-not-run", "job.dtype", job.dtype, "bf16 or fp32"))
    if job.schedule != JOINT:
        found.append(_reason("schedule-not-run", "job.schedule", job.schedule, JOINT))
    return found


def _reason(code: str, place: str, value: object, limit: str) -> Reason:
    return Reason(code=code, place=place, value=str(value), limit=limit)
