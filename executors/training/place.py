"""A rank takes its place: processors, environment, device and process group. Imports torch when needed."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from executors.interfaces import choose_interface
from executors.layout import Layout, Rank
from executors.pinning import pin
from executors.runfile import Run
from planner.execution import DEEPSPEED
from policies.errors import ExecutorFailedError, InputError

if TYPE_CHECKING:
    import torch

GROUP_TIMEOUT = timedelta(minutes=10)


def take_place(run: Run, layout: Layout, me: Rank) -> None:
    """Processors, threads, local rank and network interface, all from the rank table and the head."""
    threads = run.training.threads_per_device or 1
    slot = run.file.first_core + me.rank if run.file.one_machine else me.slot
    if run.file.accelerator != "cuda":
        pin(slot, threads)
    # Launchers compute LOCAL_RANK from the rank, which is wrong where hosts have unequal slots.
    os.environ["LOCAL_RANK"] = str(local_rank_of(run, me))
    os.environ["WORLD_SIZE"] = str(layout.world_size)
    os.environ["MASTER_ADDR"] = run.file.master_addr
    os.environ["MASTER_PORT"] = str(run.file.master_port)
    choose_interface(run.file.master_addr)


def local_rank_of(run: Run, me: Rank) -> int:
    """The rank's position among those of its machine."""
    return me.rank if run.file.one_machine else me.local_rank


def gpu_index_of(run: Run, me: Rank) -> int:
    """Which of the GPUs that torch sees is the rank's.

    The `deepspeed` runner shows a process the GPUs of its replica alone, in the order of their slots.
    """
    if run.replica.executor == DEEPSPEED:
        return local_rank_of(run, me)
    return run.file.first_core + me.rank if run.file.one_machine else me.slot


def device_of(run: Run, me: Rank) -> torch.device:
    """The device that this rank computes on; a GPU becomes the current one.

    Raises:
        InputError: `no-accelerator`.
        ExecutorFailedError: `plan-for-other-hardware`.
    """
    import torch

    wants = run.file.accelerator
    if wants == "cuda" or (wants == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            raise InputError(
                "no-accelerator",
                f"device {me.device} should be a GPU, and torch finds none here",
                hint="check the driver with nvidia-smi, or launch with `--accelerator cpu`",
            )
        index = gpu_index_of(run, me)
        if index >= torch.cuda.device_count():
            raise ExecutorFailedError(
                "plan-for-other-hardware",
                f"device {me.device} should be GPU {index} here, and torch finds {torch.cuda.device_count()}",
                hint="describe the hosts as they are (`echelon discover`) and solve again",
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")


def join_group(executor: str, device: torch.device) -> None:
    """Meet the other ranks, at the address in the environment."""
    if executor == DEEPSPEED:
        from executors.ds_pipeline.engine import join

        join(device)
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=GROUP_TIMEOUT)
