"""What a rank measures: links and rates first, then sizes, then layers inside an engine's running steps."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from executors.profiling.answers import ExecutorAnswer, RankAnswer, RankOrder
from executors.profiling.layer_clock import CpuWatch, CudaWatch, LayerClock, Watch
from executors.profiling.layers import LayerBytes
from executors.profiling.links import time_all_links
from executors.profiling.matmul import copy_bytes_per_s, sustained_rates
from executors.profiling.meeting import Meeting
from executors.profiling.memory import forget_peak, held_bytes, peak_bytes
from executors.profiling.plans import ClockedChain, even_cuts, made_up_replica
from executors.profiling.sizes import layer_bytes
from executors.profiling.spans import LayerSpans, best_steps
from executors.profiling.waiting import Waiting
from executors.training.chain import Chain
from executors.training.clock import AFTER_PASSES, Kind
from executors.training.model_spec import ModelSpec
from planner.execution import DEEPSPEED, TORCH
from planner.training import TrainingJob

LEARNING_RATE = 1e-5
NUM_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Timed steps of one engine: wall and CPU seconds of each, and its clock's spans.

    `others` has the CPU seconds of each step by kind of work outside the passes. On a GPU both are seconds.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    spans: LayerSpans
    others: tuple[Mapping[Kind, float], ...]

    @property
    def update_s(self) -> list[float]:
        """Seconds of each step after its passes."""
        return [sum(step.get(kind, 0.0) for kind in AFTER_PASSES) for step in self.others]


def measure_layers(order: RankOrder) -> RankAnswer:
    """Links between all ranks, rates, and layers of the torch executor's engine, every rank for itself."""
    device = device_of(order)
    meeting = Meeting(order, device)
    meeting.join("links")
    timed = time_all_links(order.rank, order.world_size, device=device)
    dist.barrier()
    rates = sustained_rates(device, probe_s=order.probe_s)
    memory_bytes_per_s = copy_bytes_per_s(device, probe_s=order.probe_s)
    meeting.leave()
    chain = Chain(_spec(order))
    sizes = _sizes(order, chain, device)
    meeting.join_alone()
    by_size: dict[int, Steps] = {}
    for size in order.sizes:
        cuts = (0, len(order.chosen))
        engine, clock = _engine(order, chain, TORCH, cuts, size, 0, device)
        meeting.wait_for_all(f"size-{size}")
        by_size[size] = _timed(engine, clock, order, size, device)
    meeting.leave()
    update_s = np.array([seconds for steps in by_size.values() for seconds in steps.update_s])
    return RankAnswer(
        rank=order.rank,
        spans=tuple(_in_chain(steps.spans, order.chosen) for steps in by_size.values()),
        update_s=float(update_s[best_steps(update_s)].mean()),
        update_params=sum(one.trainable_params for one in sizes.values()),
        sizes=sizes,
        rates_flop_per_s=rates,
        memory_bytes_per_s=memory_bytes_per_s,
        links={second: seconds for (_, second), seconds in timed.items()},
        step_s={size: steps.step_s for size, steps in by_size.items()},
        versions={"torch": torch.__version__, "python": platform.python_version()},
    )


def measure_executor(order: RankOrder) -> ExecutorAnswer:
    """A pipeline of an executor over all ranks: what it adds to its layers, in seconds and bytes."""
    device = device_of(order)
    meeting = Meeting(order, device)
    num_stages = min(order.world_size, len(order.chosen))
    if order.rank >= num_stages:
        return _idle(order)
    meeting.join(order.phase, world_size=num_stages)
    _prepare(order.phase, device)
    chain = Chain(_spec(order))
    base_bytes = held_bytes(device)
    forget_peak(device)
    cuts, size = even_cuts(len(order.chosen), num_stages), max(order.sizes)
    engine, clock = _engine(order, chain, order.phase, cuts, size, order.rank, device)
    steps = _timed(engine, clock, order, size, device)
    peak = peak_bytes(device)
    interval = (cuts[order.rank], cuts[order.rank + 1])
    answer = ExecutorAnswer(
        rank=order.rank,
        executor=order.phase,
        micro_batch_overhead_s=outside_s(steps, order.micro_batches),
        update_s=min(steps.update_s),
        peaks_bytes={size: peak},
        base_bytes=base_bytes,
        layers=tuple(order.chosen[slice(*interval)]),
        in_flight=min(order.micro_batches, num_stages - order.rank),
        step_s=steps.step_s,
    )
    dist.barrier()
    meeting.leave()
    return answer


def outside_s(steps: Steps, micro_batches: int) -> float:
    """CPU seconds per micro-batch outside layers, transfers, synchronisation and optimiser.

    The mean over the best steps.
    """
    passes_s = np.zeros(len(steps.cpu_s))
    for way in (steps.spans.forward, steps.spans.backward):
        for entries in way.values():
            passes_s += np.array(entries)[:, 1].reshape(-1, micro_batches).sum(axis=1)
    beside_s = np.array([sum(step.values()) for step in steps.others])
    cpu_s = np.array(steps.cpu_s)
    best = best_steps(cpu_s)
    return max(0.0, float((cpu_s - passes_s - beside_s)[best].mean()) / micro_batches)


def device_of(order: RankOrder) -> torch.device:
    """Where the rank computes; threads are set as ordered."""
    torch.set_num_threads(order.threads)
    if order.accelerator != "cuda":
        return torch.device("cpu")
    torch.cuda.set_device(order.slot % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def _prepare(executor: str, device: torch.device) -> None:
    """Import what the executor needs, so that it counts as held before the first weight."""
    import executors.training.session

    if executor == DEEPSPEED:
        from executors.ds_pipeline.engine import join

        join(device)
    else:
        import executors.torch_native.engine  # noqa: F401


def _idle(order: RankOrder) -> ExecutorAnswer:
    """The answer of a rank for which the chain has no layer left."""
    return ExecutorAnswer(
        rank=order.rank,
        executor=order.phase,
        micro_batch_overhead_s=0.0,
        update_s=0.0,
        peaks_bytes={},
        base_bytes=0,
        layers=(),
        in_flight=0,
        step_s=(),
    )


def _engine(
    order: RankOrder,
    chain: Chain,
    executor: str,
    cuts: Sequence[int],
    size: int,
    rank: int,
    device: torch.device,
) -> tuple[Any, LayerClock]:
    """An executor's engine over the chosen layers, watched by a clock."""
    watch: Watch = CudaWatch() if device.type == "cuda" else CpuWatch()
    clock = LayerClock(watch)
    replica, layout = made_up_replica(
        cuts, executor=executor, micro_batches=order.micro_batches, micro_batch_size=size
    )
    batches = [_tokens(chain, size, seed) for seed in range(NUM_BATCHES)]
    common: dict[str, Any] = {
        "chain": ClockedChain(chain, clock, order.chosen),
        "replica": replica,
        "layout": layout,
        "rank": rank,
        "batch_of": lambda step, j, part: batches[(step + j) % NUM_BATCHES][part.start : part.stop],
        "evaluation_batch": lambda _k: None,
        "training": TrainingJob(data=()),
        "device": device,
        "clock": clock,
    }
    if executor == DEEPSPEED:
        from executors.ds_pipeline.engine import DeepSpeedEngine

        return DeepSpeedEngine(spec=chain.spec, recomputed=frozenset(), **common), clock
    from executors.torch_native.engine import TorchEngine

    return TorchEngine(**common), clock


def _timed(engine: Any, clock: LayerClock, order: RankOrder, size: int, device: torch.device) -> Steps:
    """Steps after the warm-up, each with the time of its parts."""
    clock.running = False
    for step in range(order.warm_up_steps):
        engine.train_step(step, LEARNING_RATE)
    clock.running = True
    step_s, cpu_s, lost_s, others = [], [], [], []
    waiting = Waiting()
    for step in range(order.warm_up_steps, order.warm_up_steps + order.steps):
        _finish(device)
        waiting.taken_s()
        wall_s, thread_s = time.perf_counter(), time.thread_time()
        engine.train_step(step, LEARNING_RATE)
        _finish(device)
        lost_s.append(waiting.taken_s())
        step_s.append(time.perf_counter() - wall_s)
        cpu_s.append(time.thread_time() - thread_s if device.type == "cpu" else step_s[-1])
        taken = clock.take_others()
        others.append({kind: sum(cpu for _, cpu in taken.get(kind, ())) for kind in Kind})
    return Steps(
        step_s=tuple(step_s),
        cpu_s=tuple(cpu_s),
        spans=replace(
            clock.take(micro_batch_size=size, micro_batches=order.micro_batches), lost_s=tuple(lost_s)
        ),
        others=tuple(others),
    )


def _sizes(order: RankOrder, chain: Chain, device: torch.device) -> dict[int, LayerBytes]:
    """Bytes of the chosen layers, by position in the chain, at the largest micro-batch."""
    layers = {i: chain.build(i).to(device) for i in order.chosen}
    tokens = _tokens(chain, max(order.sizes), 0).to(device)
    return layer_bytes(layers, tokens, last=order.chosen[-1])


def _tokens(chain: Chain, num_sequences: int, seed: int) -> torch.Tensor:
    """Random text: dense layers take the same time for any."""
    shape = (num_sequences, chain.spec.sequence_tokens + 1)
    return torch.randint(0, chain.spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def _in_chain(spans: LayerSpans, chosen: Sequence[int]) -> LayerSpans:
    """The same spans by position in the whole chain."""
    return replace(
        spans,
        forward={chosen[i]: entries for i, entries in spans.forward.items()},
        backward={chosen[i]: entries for i, entries in spans.backward.items()},
    )


def _spec(order: RankOrder) -> ModelSpec:
    return ModelSpec(**{**order.model, "adapter_targets": tuple(order.model["adapter_targets"])})


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
