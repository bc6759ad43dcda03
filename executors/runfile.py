"""`run.json`: what the ranks of a replica are told, beside the plan itself. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from executors.script.declaration import Script
from planner.canonical import Inputs, inputs_from_documents
from planner.plan import Plan, ReplicaPlan, dump_plan, read_plan
from planner.plan_reading import read_json, record_from_json
from planner.training import TrainingJob, training_from_json, training_to_json
from policies.errors import InputError

SCHEMA = "echelon/run/1"
PLAN_FILE = "plan.json"
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """One start of one replica by one executor.

    `failover` is the position of the failover entry of the boundary that replaces the replica, or None.
    `participant` of `num_participants` says which share of the text it trains on. `one_machine` says that all
    hosts of the plan are this machine, whose processors from `first_core` on stand for the devices. `script`
    is the user's own training script, or None for our worker.
    """

    plan_sha256: str
    boundary: str
    replica: str
    executor: str
    training: Mapping[str, Any]
    master_addr: str
    master_port: int
    failover: int | None = None
    participant: int = 0
    num_participants: int = 1
    one_machine: bool = False
    first_core: int = 0
    resume: bool = False
    accelerator: str = "auto"
    script: Script | None = None
    schema: str = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a rank works from: its run file and what the plan beside it says."""

    file: RunFile
    plan: Plan
    inputs: Inputs
    replica: ReplicaPlan
    training: TrainingJob
    folder: Path


def plan_sha256(text: str) -> str:
    """The hash by which a run names its plan."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def run_texts(plan: Plan, training: TrainingJob, **fields: Any) -> dict[str, str]:
    """The texts of `plan.json` and `run.json`, by file name."""
    plan_text = dump_plan(plan)
    file = RunFile(plan_sha256=plan_sha256(plan_text), training=training_to_json(training), **fields)
    run_text = json.dumps(asdict(file), sort_keys=True, indent=1) + "\n"
    return {PLAN_FILE: plan_text, RUN_FILE: run_text}


def read_run(path: Path) -> Run:
    """The run in a run file and the plan beside it.

    Raises:
        InputError: `bad-run-file`, `plan-changed` when the plan is not the one that was launched, or what
            reading the plan raises.
    """
    file = record_from_json(RunFile, read_json(path), place=str(path))
    assert isinstance(file, RunFile)
    plan_path = path.with_name(PLAN_FILE)
    plan = read_plan(plan_path)
    found = plan_sha256(plan_path.read_text(encoding="utf-8"))
    if found != file.plan_sha256:
        raise InputError(
            "plan-changed",
            f"{plan_path} has sha256 {found[:16]}…, the run was prepared for {file.plan_sha256[:16]}…",
            hint="launch the plan again",
        )
    return Run(
        file=file,
        plan=plan,
        inputs=inputs_from_documents(plan.inputs),
        replica=replace(replica_of(plan, file.boundary, file.replica, file.failover), executor=file.executor),
        training=training_from_json(file.training, place=f"{path}: training"),
        folder=path.parent,
    )


def replica_of(plan: Plan, boundary: str, replica: str, failover: int | None) -> ReplicaPlan:
    """A replica of the plan, or the replacement that a failover entry of its boundary holds.

    Raises:
        InputError: `no-such-replica`.
    """
    for candidate in plan.boundaries:
        if candidate.name != boundary:
            continue
        if failover is not None and 0 <= failover < len(candidate.failover):
            entry = candidate.failover[failover]
            if entry.replica == replica and entry.replacement is not None:
                return entry.replacement
        elif failover is None:
            for known in candidate.replicas:
                if known.id == replica:
                    return known
    place = f"{boundary}/{replica}" + (f", failover[{failover}]" if failover is not None else "")
    known_ids = ", ".join(r.id for b in plan.boundaries for r in b.replicas)
    raise InputError(
        "no-such-replica", f"the plan has no replica {place}", hint=f"its replicas are {known_ids or 'none'}"
    )
