"""Everything between a rank's start and its last event: text, process group, engine, loop, results."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from executors import events
from executors.hardware import probe, require_hardware
from executors.layout import Layout, Rank
from executors.profiling.kept_steps import KeptSteps
from executors.profiling.layer_clock import CpuWatch, CudaWatch, LayerClock
from executors.profiling.plans import ClockedChain, layers_can_be_told
from executors.run_folder import ADAPTER, BASE, CHECKPOINTS, LAYERS, MODEL, REPORT
from executors.runfile import Run
from executors.torch_native.virtual import held_layers
from executors.training.batches import Batches
from executors.training.chain import Chain
from executors.training.checkpoint import Checkpoints
from executors.training.clock import Clock, StepClock
from executors.training.engine import Engine
from executors.training.export import write_adapter, write_base, write_model
from executors.training.loop import Emit, Loop, Progress
from executors.training.model_spec import ModelSpec, model_spec
from executors.training.place import device_of, gpu_index_of, join_group
from executors.training.prepare import prepare_text
from executors.training.recompute import recomputed_layers
from executors.training.report import build_report, history, rank_summary
from planner.execution import DEEPSPEED
from policies.errors import InputError


def train(run: Run, layout: Layout, me: Rank, emit: Emit) -> None:
    """Train this rank's part from the newest checkpoint, or from the start, to the last step.

    Raises:
        EchelonError: what a user can mend, by name.
    """
    torch.set_num_threads(run.training.threads_per_device or 1)
    device = device_of(run, me)
    _require_hardware(run, layout, me, device)
    spec = model_spec(run.inputs.workload, run.training)
    reads_text = me.stage in (0, len(run.replica.stages) - 1)
    batches = _batches(run, spec) if reads_text else None
    join_group(run.replica.executor, device)
    text_sha256 = _agreed_text(batches)
    clock = StepClock()
    checkpoints = Checkpoints(run.folder / CHECKPOINTS, spec, text_sha256)
    first_step = _first_step(run, checkpoints)
    chain = Chain(spec)
    kept, engine = _watched_engine(run, layout, me, chain, spec, batches, device, clock)
    if first_step:
        held = held_layers(run.replica, run.training.pipeline, me.stage)
        engine.load_layer_states(checkpoints.read(first_step, held), first_step)
    emit(events.ready(me.rank, first_step, device=me.device, stage=me.stage))
    tokens_per_step = run.inputs.workload.job.tokens_per_step
    leads = me.rank == 0
    loop = Loop(
        engine,
        run.training,
        checkpoints,
        clock,
        emit=emit,
        barrier=dist.barrier,
        rank=me.rank,
        tokens_per_step=tokens_per_step,
        watch=kept,
    )
    progress = loop.run(first_step)
    summaries = _gathered(_summary(me, progress), layout.world_size)
    layers = _gathered(None if kept is None else kept.document(), layout.world_size)
    if leads:
        exported = _export(run, chain, checkpoints, emit)
        _write_report(run, layout, summaries, progress, exported)
        _write_whole(run.folder / LAYERS, json.dumps(layers) + "\n")
    dist.barrier()
    engine.close()


def _require_hardware(run: Run, layout: Layout, me: Rank, device: torch.device) -> None:
    """The ranks of this host find the devices that the plan counts on."""
    one_machine = run.file.one_machine
    ranks = layout.ranks if one_machine else layout.on_host(me.host)
    gpus = range(torch.cuda.device_count() if device.type == "cuda" else 0)
    machine = probe("this machine" if one_machine else me.host, [torch.cuda.mem_get_info(i)[1] for i in gpus])
    require_hardware(
        machine,
        run.inputs.fleet,
        run.replica,
        ranks,
        gpu_of={rank.rank: gpu_index_of(run, rank) for rank in ranks},
        one_machine=one_machine,
    )


def _batches(run: Run, spec: ModelSpec) -> Batches:
    prepared = prepare_text(
        run.training,
        folder=run.folder,
        vocab_size=spec.vocab_size,
        sequence_tokens=spec.sequence_tokens,
        participant=run.file.participant,
        num_participants=run.file.num_participants,
    )
    return Batches(prepared, run.training.seed)


def _agreed_text(batches: Batches | None) -> str:
    """Hash of the text; first and last stage read tokens and labels on their own hosts, and must agree."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, None if batches is None else batches.sha256)
    known = sorted({sha256 for sha256 in found if sha256 is not None})
    if len(known) > 1:
        raise InputError(
            "texts-differ",
            f"the hosts of the first and last stage hold different texts: {', '.join(s[:16] for s in known)}",
            hint="give all hosts the same files, or put them on a shared file system",
        )
    return known[0]


def _first_step(run: Run, checkpoints: Checkpoints) -> int:
    """The step to continue from; rank 0 decides, so that all ranks agree."""
    if dist.get_rank() == 0:
        checkpoints.discard_partial()
    steps = checkpoints.found() if run.file.resume else []
    chosen = [steps[-1] if steps else 0]
    dist.broadcast_object_list(chosen, src=0)
    return int(chosen[0])


def _watched_engine(
    run: Run,
    layout: Layout,
    me: Rank,
    chain: Chain,
    spec: ModelSpec,
    batches: Batches | None,
    device: torch.device,
    clock: StepClock,
) -> tuple[KeptSteps | None, Engine]:
    """The engine, and what keeps the seconds of its layers where each layer's own can be told."""
    if not layers_can_be_told(run.replica, run.training):
        return None, _engine(run, layout, me, chain, spec, batches, device, clock)
    layer_clock = LayerClock(CudaWatch() if device.type == "cuda" else CpuWatch(), inner=clock)
    kept = KeptSteps(
        layer_clock,
        micro_batch_size=run.replica.stages[me.stage].micro_batch_shares[me.dp_i],
        micro_batches=run.replica.micro_batches,
    )
    watched = ClockedChain(chain, layer_clock)
    return kept, _engine(run, layout, me, watched, spec, batches, device, layer_clock)


def _engine(
    run: Run,
    layout: Layout,
    me: Rank,
    chain: Chain | ClockedChain,
    spec: ModelSpec,
    batches: Batches | None,
    device: torch.device,
    clock: Clock,
) -> Engine:
    batch_of, evaluation_batch = _batch_functions(run, spec, batches)
    common: dict[str, Any] = {
        "chain": chain,
        "replica": run.replica,
        "layout": layout,
        "rank": me.rank,
        "batch_of": batch_of,
        "evaluation_batch": evaluation_batch,
        "training": run.training,
        "device": device,
        "clock": clock,
    }
    stage = run.replica.stages[me.stage]
    recomputed = recomputed_layers(run.inputs.workload, *stage.layers, stage.recompute, tp=stage.tp)
    if run.replica.executor == DEEPSPEED:
        from executors.ds_pipeline.engine import DeepSpeedEngine

        return DeepSpeedEngine(spec=spec, recomputed=recomputed, **common)
    from executors.torch_native.build import build_engine

    return build_engine(recomputed=recomputed, **common)


def _batch_functions(
    run: Run, spec: ModelSpec, batches: Batches | None
) -> tuple[Callable[[int, int, range], torch.Tensor], Callable[[int], torch.Tensor | None]]:
    """Micro-batches of a step and of the held-out text, as int64 tensors of T + 1 tokens."""
    count, size = run.replica.micro_batches, run.replica.micro_batch_size

    def batch_of(step: int, j: int, rows: range) -> torch.Tensor:
        if batches is None:
            # Middle stages see neither tokens nor labels: only shapes.
            return torch.zeros((len(rows), spec.sequence_tokens + 1), dtype=torch.int64)
        found = batches.micro_batch(
            step, j, micro_batches=count, micro_batch_size=size, rows=slice(rows.start, rows.stop)
        )
        return torch.from_numpy(found)

    num_evaluations = -(-run.training.evaluation_sequences // size)

    def evaluation_batch(k: int) -> torch.Tensor | None:
        if k >= num_evaluations:
            return None
        if batches is None:
            return torch.zeros((size, spec.sequence_tokens + 1), dtype=torch.int64)
        return torch.from_numpy(batches.evaluation(k, size))

    return batch_of, evaluation_batch


def _export(run: Run, chain: Chain, checkpoints: Checkpoints, emit: Emit) -> dict[str, str]:
    """Adapter or model in the Hugging Face format, from the last checkpoint, which holds every layer."""
    step = checkpoints.found()[-1]
    states = checkpoints.read(step, range(chain.num_layers))
    about = {"plan_sha256": run.file.plan_sha256, "replica": run.replica.id, "step": step}
    exports = {MODEL: write_model} if chain.spec.full else {ADAPTER: write_adapter}
    if run.training.adapter_merged:
        exports[MODEL] = write_model
    for name, write in exports.items():
        shutil.rmtree(run.folder / name, ignore_errors=True)
        write(run.folder / name, chain.spec, states, about)
        emit(events.exported(0, folder=str(run.folder / name)))
    if not chain.spec.full and chain.spec.start is None:
        # Nobody could load an adapter whose base is random weights that are nowhere.
        write_base(run.folder / BASE, chain.spec, about)
    kind = MODEL if chain.spec.full else ADAPTER
    return {"kind": kind, "path": kind}


def _summary(me: Rank, progress: Progress) -> dict[str, Any]:
    return rank_summary(
        rank=me.rank,
        step_s=progress.step_s,
        cpu_s=progress.cpu_s,
        spent=[
            {kind.value: (each.wall_s, each.thread_s) for kind, each in spent.items()}
            for spent in progress.spent
        ],
        peak_bytes=peak_bytes(),
    )


def peak_bytes() -> int:
    """Most memory the rank held: of the GPU where it has one, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gathered(summary: Mapping[str, Any] | None, world_size: int) -> list[Any]:
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, summary)
    return found


def _write_report(
    run: Run,
    layout: Layout,
    summaries: list[Mapping[str, Any]],
    progress: Progress,
    exported: Mapping[str, str],
) -> None:
    outcome = {
        "first_step": progress.first_step,
        "exported": exported,
        **history(events.rank_file(run.folder, 0)),
    }
    tokens = run.inputs.workload.job.tokens_per_step
    report = build_report(run.replica, layout, summaries, tokens_per_step=tokens, outcome=outcome)
    _write_whole(run.folder / REPORT, json.dumps(report, sort_keys=True, indent=1) + "\n")


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
