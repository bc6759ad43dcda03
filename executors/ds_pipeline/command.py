"""Texts and argument lists of the `deepspeed` runner: hostfile, filter, configuration, commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from executors.layout import Layout
from executors.script.declaration import START, Script
from planner.plan import ReplicaPlan

HOSTFILE = "hostfile"
DS_CONFIG = "ds_config.json"
LOCAL_NAME = "localhost"
WORKER = "executors.training.worker"
QUIET = "warning"


def hostfile_text(slots: Mapping[str, tuple[int, ...]]) -> str:
    """One line `name slots=n` per host, n at least the highest slot in use plus one."""
    return "".join(f"{host} slots={max(used) + 1}\n" for host, used in slots.items())


def include_text(slots: Mapping[str, tuple[int, ...]]) -> str:
    """The runner's filter: exactly the slots of the replica."""
    return "@".join(f"{host}:{','.join(map(str, used))}" for host, used in slots.items())


def slots_of(layout: Layout, *, one_machine: bool, first_slot: int = 0) -> dict[str, tuple[int, ...]]:
    """Slots in use per host, in rank order. On one machine they are slots of `localhost`."""
    if one_machine:
        return {LOCAL_NAME: tuple(first_slot + rank.rank for rank in layout.ranks)}
    return {host: tuple(rank.slot for rank in layout.on_host(host)) for host in layout.hosts}


def runner_argv(
    python: str,
    folder: str,
    slots: Mapping[str, tuple[int, ...]],
    node_rank: int,
    master: tuple[str, int],
    script: Script | None = None,
) -> tuple[str, ...]:
    """The command of one host: it starts its own ranks only and asks no other host for anything."""
    return (
        python,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        f"{folder}/{HOSTFILE}",
        "--include",
        include_text(slots),
        "--no_ssh",
        "--node_rank",
        str(node_rank),
        "--master_addr",
        master[0],
        "--master_port",
        str(master[1]),
        "--log_level",
        QUIET,
        "--no_local_rank",
        "--module",
        WORKER if script is None else START,
        f"{folder}/run.json",
        *(() if script is None else script.words),
    )


def ds_config(replica: ReplicaPlan, dtype: str, clip_norm: float) -> dict[str, Any]:
    """The DeepSpeed configuration of a replica.

    Shares are equal in every plan that DeepSpeed runs, so a rank's micro-batch is the plan's over the width.
    """
    stage = replica.stages[0]
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": replica.micro_batch_size // stage.dp,
        "gradient_accumulation_steps": replica.micro_batches,
        "gradient_clipping": clip_norm,
        "zero_optimization": {"stage": stage.zero},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
    }
    if dtype == "bf16":
        config["bf16"] = {"enabled": True}
    if len(replica.stages) > 1:
        # The re-entrant kind refuses a stage whose input carries no gradient, such as the first one.
        config["pipeline"] = {"use_reentrant": False}
    return config


def ds_config_text(replica: ReplicaPlan, dtype: str, clip_norm: float) -> str:
    """`ds_config` as the file that workers read."""
    return json.dumps(ds_config(replica, dtype, clip_norm), sort_keys=True, indent=1) + "\n"
