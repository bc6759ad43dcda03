"""What to measure on a host for a model: which layers, how many ranks, on what. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from costmodels.discover import MachineFacts, plain_name
from costmodels.workload import Workload
from executors.profiling.host import HostRequest
from executors.profiling.plans import BLOCKS_PER_KIND, chosen_layers, training_bytes
from executors.training.model_spec import model_spec
from planner.drafts import hosts_from_hostfile
from planner.execution import DEEPSPEED, TORCH
from planner.training import TrainingJob
from policies.errors import InputError

MEMORY_FRAC = 0.6
"""So much of a device's memory may be taken by measuring."""
DEFAULT_RANKS = 2


def host_request(
    workload: Workload,
    facts: MachineFacts,
    *,
    device_type: str | None = None,
    num_ranks: int | None = None,
    steps: int = 8,
) -> HostRequest:
    """The measurement of a model: all of its layers, or a few of each kind where all don't fit.

    On a machine with GPUs a rank per GPU, else two on a core each, or fewer where there are not as many.
    `facts` are those of this machine.

    Raises:
        InputError: `no-recipe` for a chain of explicit layers; `profile-too-large` where even a few layers
            of each kind don't fit.
    """
    ranks = num_ranks or (len(facts.gpus) or min(DEFAULT_RANKS, usable_cores()))
    room_bytes = MEMORY_FRAC * _device_memory_bytes(facts, ranks)
    size = max(workload.job.micro_batch_sizes)
    chosen = _layers_that_fit(workload, size, room_bytes)
    return HostRequest(
        host=plain_name(facts.host_name),
        device_type=device_type,
        num_ranks=ranks,
        model=asdict(model_spec(workload, TrainingJob(data=()))),
        chosen=chosen,
        sizes=tuple(sorted({1, *workload.job.micro_batch_sizes})),
        executors=installed_executors(),
        steps=steps,
    )


def joined_requests(requests: Sequence[HostRequest], meet_at: str) -> list[HostRequest]:
    """The same requests as parts of one run, whose ranks all meet at the first host's address."""
    total = sum(request.num_ranks for request in requests)
    joined: list[HostRequest] = []
    first = 0
    for request in requests:
        joined.append(replace(request, first_rank=first, world_size=total, meet_at=meet_at))
        first += request.num_ranks
    return joined


def installed_executors() -> tuple[str, ...]:
    """Executors whose frameworks are installed here."""
    return (TORCH, DEEPSPEED) if find_spec("deepspeed") is not None else (TORCH,)


def usable_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_memory_bytes(facts: MachineFacts, num_ranks: int) -> float:
    if facts.gpus:
        return float(min(gpu.memory_bytes for gpu in facts.gpus))
    return facts.memory_bytes / num_ranks


def _layers_that_fit(workload: Workload, micro_batch_size: int, room_bytes: float) -> tuple[int, ...]:
    """All layers, else as many blocks of each kind as fit, two at least."""
    everything = chosen_layers(workload)
    if training_bytes(workload, everything, micro_batch_size) <= room_bytes:
        return everything
    most = workload.num_layers
    fitting = [
        chosen
        for number in range(BLOCKS_PER_KIND, most)
        if training_bytes(
            workload, chosen := chosen_layers(workload, blocks_per_kind=number), micro_batch_size
        )
        <= room_bytes
    ]
    if not fitting:
        fewest = chosen_layers(workload, blocks_per_kind=BLOCKS_PER_KIND)
        need = training_bytes(workload, fewest, micro_batch_size)
        raise InputError(
            "profile-too-large",
            f"embedding, {BLOCKS_PER_KIND} blocks of each kind and loss head need about"
            f" {need / 2**30:.1f} GiB, a rank may take {room_bytes / 2**30:.1f} GiB",
            hint="measure fewer ranks side by side (`--ranks`), or allow smaller micro-batches",
        )
    return fitting[-1]


def hostfile_requests(
    workload: Workload,
    facts: MachineFacts,
    hostfile: Path,
    *,
    device_type: str | None = None,
    steps: int = 8,
    meet_at: str | None = None,
) -> list[HostRequest]:
    """One request per host of a hostfile, all parts of one run; `meet_at` is the first host's address.

    What fits is judged by this machine's memory.

    Raises:
        InputError: `bad-input` for a file that is none; as `host_request`.
    """
    try:
        text = hostfile.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("bad-input", f"{hostfile}: {error.strerror}", hint="name a hostfile") from error
    requests = [
        replace(
            host_request(
                workload, facts, device_type=device_type, num_ranks=host.devices[0].count, steps=steps
            ),
            host=host.name,
        )
        for host in hosts_from_hostfile(text, place=str(hostfile))
    ]
    return joined_requests(requests, meet_at or requests[0].host)
