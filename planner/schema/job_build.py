"""The job of a model file into core types: what its short form implies is worked out here."""

from __future__ import annotations

from collections.abc import Mapping

from costmodels.architecture import ALL_TARGETS, Target
from costmodels.workload import DTYPE_BYTES, Job
from planner.faults import nearest
from planner.schema.model import JobShape, ModelShape
from planner.schema.source import Source
from policies.errors import Fault

DEFAULT_MICRO_BATCH_SIZES = (1, 2, 4)
FP32_BYTES = 4

# Bytes of optimiser state per trained weight, without the fp32 master copy: two fp32 moments (AdamW), two
# 8-bit moments, none, one fp32 momentum.
_MOMENT_BYTES = {"adamw": 8.0, "adamw-8bit": 2.0, "sgd": 0.0, "sgd-momentum": 4.0}
_TARGET_GROUPS: Mapping[str, tuple[Target, ...]] = {
    "all": ALL_TARGETS,
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
}


def build_job(shape: ModelShape, source: Source, faults: list[Fault]) -> Job:
    """The job with all that its short form implies."""
    job = shape.job
    lora = job.method == "lora"
    if lora and job.rank is None:
        faults.append(source.fault(("job", "rank"), "the rank of the adapters, such as 16", value="missing"))
    for key in ("rank", "targets"):
        if not lora and getattr(job, key) is not None:
            limit = "no such key under `method: full`"
            faults.append(source.fault(("job", key), limit, hint="remove it, or set `method: lora`"))
    sequences = _sequences_per_step(job, source, faults)
    sizes = _micro_batch_sizes(job, sequences, source, faults)
    dtype_bytes = DTYPE_BYTES[job.dtype]
    master_bytes = FP32_BYTES if dtype_bytes < FP32_BYTES else 0
    defaults = Job()
    return Job(
        name=shape.name or defaults.name,
        dtype=job.dtype,
        adapter_rank=(job.rank or 0) if lora else 0,
        sequence_tokens=job.sequence,
        sequences_per_step=sequences,
        micro_batch_sizes=sizes,
        recompute=job.recompute,
        gradient_bytes_per_param=float(dtype_bytes),
        optimiser_state_bytes_per_param=_MOMENT_BYTES[job.optimiser] + master_bytes,
        sync_copies_bytes_per_param=(
            defaults.sync_copies_bytes_per_param
            if job.sync_copies is None
            else float(FP32_BYTES * job.sync_copies)
        ),
        max_stages=job.max_stages,
    )


def _sequences_per_step(job: JobShape, source: Source, faults: list[Fault]) -> int:
    """Sequences of one step of one replica; 0 when the file does not say."""
    if (job.sequences_per_step is None) == (job.tokens_per_step is None):
        value = "neither" if job.sequences_per_step is None else "both"
        limit = "either `sequences_per_step` or `tokens_per_step`, per replica"
        faults.append(source.fault(("job",), limit, value=value))
        return job.sequences_per_step or 0
    if job.sequences_per_step is not None:
        return job.sequences_per_step
    tokens = job.tokens_per_step or 0
    if tokens % job.sequence:
        limit = f"a multiple of the sequence of {job.sequence} tokens"
        near = max(1, round(tokens / job.sequence)) * job.sequence
        faults.append(source.fault(("job", "tokens_per_step"), limit, hint=f"{near} is the nearest"))
    return max(1, tokens // job.sequence)


def _micro_batch_sizes(
    job: JobShape, sequences_per_step: int, source: Source, faults: list[Fault]
) -> tuple[int, ...]:
    if job.micro_batch_sizes is None:
        return tuple(size for size in DEFAULT_MICRO_BATCH_SIZES if sequences_per_step % size == 0)
    sizes = job.micro_batch_sizes
    for i, size in enumerate(sizes):
        path = ("job", "micro_batch_sizes", i)
        if size in sizes[:i]:
            faults.append(source.fault(path, "each size once", hint="remove it"))
        if sequences_per_step % size:
            limit = f"a divisor of the {sequences_per_step} sequences per step"
            faults.append(source.fault(path, limit, hint="leave it out, or change the sequences per step"))
    return tuple(sorted(set(sizes)))


def build_targets(job: JobShape, source: Source, faults: list[Fault]) -> tuple[Target, ...]:
    """The projections that get adapters, in the fixed order; `q_proj` says the same as `q`."""
    if job.targets is None:
        return ALL_TARGETS
    chosen: set[Target] = set()
    for i, word in enumerate(job.targets):
        group = _TARGET_GROUPS.get(word, tuple(t for t in ALL_TARGETS if t == word.removesuffix("_proj")))
        if not group:
            known = [*ALL_TARGETS, *_TARGET_GROUPS]
            limit = f"one of {', '.join(known)}"
            faults.append(source.fault(("job", "targets", i), limit, hint=nearest(word, known)))
        chosen.update(group)
    return tuple(target for target in ALL_TARGETS if target in chosen)
