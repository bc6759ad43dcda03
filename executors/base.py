"""What an executor is: says what it can't run, writes down what it would start, and runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from executors.layout import Layout
from planner.plan import Plan, ReplicaPlan
from planner.training import TrainingJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a plan can't be run: a stable code, the place in the plan, the value there and what would do."""

    code: str
    place: str
    value: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start on one host. `env` is added to the environment; a value of None removes the variable."""

    host: str
    argv: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """One replica, ready to start: files (path relative to `folder` -> text) and one command per host."""

    executor: str
    replica: ReplicaPlan
    layout: Layout
    folder: Path
    files: Mapping[str, str]
    commands: tuple[Command, ...]


@runtime_checkable
class Executor(Protocol):
    """Carries plans out. `name` is the one that stands in `replicas[].executor` of a plan."""

    name: str

    def supports(self, plan: Plan, replica: ReplicaPlan) -> tuple[Reason, ...]:
        """Every reason why this executor can't run the replica; empty when it can."""
        ...

    def prepare(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob, start: Start) -> LaunchSpec:
        """What it would write and start; touches nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where and how a launch begins.

    `folder` is the replica's run folder. `participant` of `num_participants` says which share of the text is
    this replica's. `address_of` maps hosts of the plan to addresses; `one_machine` runs all hosts of the plan
    here, with `first_core` as the first processor to use. `resume` continues from the newest checkpoint.
    """

    folder: Path
    participant: int = 0
    num_participants: int = 1
    address_of: Mapping[str, str] = field(default_factory=dict)
    port: int = 29500
    one_machine: bool = False
    first_core: int = 0
    resume: bool = False
    python: str = "python"
