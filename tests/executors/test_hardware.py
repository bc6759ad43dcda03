"""Plans made for other hardware are refused with everything that is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from two_hosts import plan_in

from executors.hardware import Machine, require_hardware
from executors.layout import layout_of
from planner.canonical import inputs_from_documents
from policies.errors import ExecutorFailedError

GIB = 2**30
ENOUGH = Machine(name="west", num_cores=2, memory_bytes=8 * GIB)


def judged(folder: Path, machine: Machine, *, one_machine: bool = False) -> str:
    """What the refusal says, "" when there is none."""
    plan, _ = plan_in(folder)
    fleet = inputs_from_documents(plan.inputs).fleet
    (replica,) = plan.boundaries[0].replicas
    layout = layout_of(fleet, replica)
    ranks = layout.ranks if one_machine else layout.on_host("west")
    gpu_of = {rank.rank: rank.slot for rank in ranks}
    try:
        require_hardware(machine, fleet, replica, ranks, gpu_of=gpu_of, one_machine=one_machine)
    except ExecutorFailedError as error:
        return f"{error.code}: {error.message}"
    return ""


def test_a_machine_with_what_the_plan_needs_is_taken(tmp_path: Path) -> None:
    assert judged(tmp_path, ENOUGH) == ""
    assert judged(tmp_path, replace(ENOUGH, gpu_memory_bytes=(2 * GIB, 2 * GIB))) == ""


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (replace(ENOUGH, num_cores=1), "west has 1 cores, the plan needs core 1 for west/1"),
        (replace(ENOUGH, memory_bytes=10**6), "of memory"),
        (replace(ENOUGH, gpu_memory_bytes=(2 * GIB,)), "west has 1 GPUs, the plan needs number 1 for west/1"),
        (replace(ENOUGH, gpu_memory_bytes=(GIB, GIB // 2)), "GPU 1 of west has 0.5 GiB"),
    ],
)
def test_what_is_missing_is_named(machine: Machine, told: str, tmp_path: Path) -> None:
    assert told in judged(tmp_path, machine)


def test_one_machine_for_all_hosts_may_share_processors(tmp_path: Path) -> None:
    assert judged(tmp_path, replace(ENOUGH, num_cores=1), one_machine=True) == ""
