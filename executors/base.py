"""What an executor is: says what it can't run, writes down what it would start, and runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from executors.layout import Layout
from executors.script.declaration import Script
from planner.execution import Reason
from planner.plan import Plan, ReplicaPlan
from planner.training import TrainingJob

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start on one host. `env` is added to the environment; a value of None removes the variable."""

    host: str
    argv: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """One replica, ready to start: files (path relative to `folder` -> text) and one command per host.

    `script` is what its ranks run instead of our worker.
    """

    executor: str
    replica: ReplicaPlan
    layout: Layout
    folder: Path
    files: Mapping[str, str]
    commands: tuple[Command, ...]
    script: Script | None = None

    @property
    def reports(self) -> bool:
        """Whether its ranks say `ready`, `step` and `finished`."""
        return self.script is None or self.script.can.reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where and how a launch of one replica begins.

    `folder` is its run folder. `failover` is the position of the failover entry that replaces the planned
    replica, or None. `participant` of `num_participants` says which share of the text it trains on.
    `address_of` maps hosts of the plan to addresses; `one_machine` runs all of them here, with `first_core`
    as the first processor to use. `resume` continues from the newest checkpoint. `script` is the user's own
    training script, which then runs instead of our worker.
    """

    boundary: str
    replica: str
    executor: str
    folder: Path
    failover: int | None = None
    participant: int = 0
    num_participants: int = 1
    address_of: Mapping[str, str] = field(default_factory=dict)
    port: int = 29500
    one_machine: bool = False
    first_core: int = 0
    resume: bool = False
    accelerator: str = "auto"
    python: str = "python"
    script: Script | None = None

    def master_addr(self, layout: Layout) -> str:
        """Where the ranks meet: the host of rank 0."""
        head = layout.hosts[0]
        return LOOPBACK if self.one_machine else self.address_of.get(head, head)

    def run_fields(self, master: tuple[str, int]) -> dict[str, Any]:
        """What of this stands in the run file."""
        return {
            "boundary": self.boundary,
            "replica": self.replica,
            "executor": self.executor,
            "master_addr": master[0],
            "master_port": master[1],
            "failover": self.failover,
            "participant": self.participant,
            "num_participants": self.num_participants,
            "one_machine": self.one_machine,
            "first_core": self.first_core,
            "resume": self.resume,
            "accelerator": self.accelerator,
            "script": self.script,
        }


@runtime_checkable
class Executor(Protocol):
    """Carries plans out. `name` is the one that stands in `replicas[].executor` of a plan."""

    name: str

    def supports(self, plan: Plan, replica: ReplicaPlan) -> tuple[Reason, ...]:
        """Every reason why this executor can't run the replica; empty when it can."""
        ...

    def supports_job(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob) -> tuple[Reason, ...]:
        """Every reason why this executor can't follow the training job."""
        ...

    def prepare(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob, start: Start) -> LaunchSpec:
        """What it would write and start; touches nothing."""
        ...
