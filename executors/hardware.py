"""Whether a host has what the plan says: as many devices, with as much memory. Pure but for `probe`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodels.discover import memory_from_meminfo
from costmodels.fleet import Fleet
from executors.layout import Rank
from planner.plan import ReplicaPlan
from policies.errors import ExecutorFailedError, Fault

# Drivers keep a part of a GPU's memory to themselves and data sheets round up.
MEMORY_TOLERANCE_FRAC = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a host offers: memory of each GPU by slot, none on a host that computes on its processors."""

    name: str
    num_cores: int
    memory_bytes: int
    gpu_memory_bytes: tuple[int, ...] = ()


def probe(name: str, gpu_memory_bytes: Sequence[int] = ()) -> Machine:
    """This machine."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8") if Path("/proc/meminfo").is_file() else ""
    return Machine(
        name=name,
        num_cores=os.cpu_count() or 1,
        memory_bytes=memory_from_meminfo(text) or 0,
        gpu_memory_bytes=tuple(gpu_memory_bytes),
    )


def require_hardware(
    machine: Machine,
    fleet: Fleet,
    replica: ReplicaPlan,
    ranks: Sequence[Rank],
    *,
    gpu_of: Mapping[int, int],
    one_machine: bool,
) -> None:
    """The ranks of a host fit the machine. `gpu_of` gives the position of each rank's GPU.

    Where one machine stands for all hosts, devices may share processors, but not memory.

    Raises:
        ExecutorFailedError: `plan-for-other-hardware`, naming everything that is missing.
    """
    faults = (
        _gpu_faults(machine, fleet, ranks, gpu_of)
        if machine.gpu_memory_bytes
        else _cpu_faults(machine, replica, ranks, one_machine=one_machine)
    )
    if faults:
        told = "; ".join(f"{fault.place} has {fault.value}, the plan needs {fault.limit}" for fault in faults)
        raise ExecutorFailedError(
            "plan-for-other-hardware",
            told,
            hint="describe the hosts as they are (`echelon discover`) and solve again",
        )


def _gpu_faults(
    machine: Machine, fleet: Fleet, ranks: Sequence[Rank], gpu_of: Mapping[int, int]
) -> list[Fault]:
    held = machine.gpu_memory_bytes
    faults = []
    for rank in ranks:
        slot = gpu_of[rank.rank]
        wanted = fleet.device_by_id[rank.device].memory_bytes
        if slot >= len(held):
            faults.append(
                Fault(place=machine.name, value=f"{len(held)} GPUs", limit=f"number {slot} for {rank.device}")
            )
        elif held[slot] < wanted * (1.0 - MEMORY_TOLERANCE_FRAC):
            place = f"GPU {slot} of {machine.name}"
            limit = f"{wanted / 2**30:.1f} GiB for {rank.device}"
            faults.append(Fault(place=place, value=f"{held[slot] / 2**30:.1f} GiB", limit=limit))
    return faults


def _cpu_faults(
    machine: Machine, replica: ReplicaPlan, ranks: Sequence[Rank], *, one_machine: bool
) -> list[Fault]:
    faults = []
    for rank in ranks:
        if not one_machine and rank.slot >= machine.num_cores:
            limit = f"core {rank.slot} for {rank.device}"
            faults.append(Fault(place=machine.name, value=f"{machine.num_cores} cores", limit=limit))
    needed = sum(_planned_bytes(replica, rank) for rank in ranks)
    if machine.memory_bytes and needed > machine.memory_bytes:
        value = f"{machine.memory_bytes / 2**30:.1f} GiB of memory"
        faults.append(
            Fault(place=machine.name, value=value, limit=f"{needed / 2**30:.1f} GiB for {len(ranks)} ranks")
        )
    return faults


def _planned_bytes(replica: ReplicaPlan, rank: Rank) -> float:
    kinds = replica.stages[rank.stage].memory_bytes.get(rank.device, {})
    return sum(value for kind, value in kinds.items() if kind != "limit")
