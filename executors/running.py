"""A launch from its first process to its last word: supervised, logged, carried on after losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costmodels.profile_io import save_profile
from executors.addresses import free_port
from executors.agent_spec import file_name
from executors.base import LaunchSpec
from executors.events import EVENTS_FILE, Event, EventLog
from executors.launching import Launch, replacement_launch
from executors.layout import Layout
from executors.locks import LAUNCH_LOCK
from executors.outcome import Deadlines, LaunchOutcome, Status
from executors.profiling.reported import profile_of_launch
from executors.relaunch import run_with_failover
from executors.remote import Transport
from executors.run_folder import CHECKPOINTS, LAYERS, PROFILE, REPORT, checkpoint_steps
from executors.script.report import write_script_report
from executors.supervisor import supervise
from planner.canonical import inputs_from_documents
from planner.plan import Plan, ReplicaPlan
from planner.training import TrainingJob
from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a launch ended, with the reports of replicas that finished where they can be read here.

    `profile` is the file with what their layers took, where they could tell.
    """

    folder: Path
    outcome: LaunchOutcome
    reports: Mapping[str, Mapping[str, Any]]
    profile: Path | None = None


def run_launches(
    plan: Plan,
    training: TrainingJob,
    launches: Sequence[Launch],
    transport: Transport,
    folder: Path,
    on_event: Callable[[Event], None],
    *,
    node: str | None = None,
    failover: bool = True,
    deadlines: Deadlines | None = None,
) -> Ended:
    """Run replicas to their end; events also go to `events.jsonl` in the folder.

    With `node` only this host's part runs, here, with an event log of its own; after a loss it stops, since
    other hosts decide too.

    Raises:
        InputError: `no-such-node`, `folder-has-checkpoints`.
        ExecutorFailedError: `folder-in-use`, `port-taken`, before anything runs.
    """
    specs = [launch.spec for launch in launches]
    if node is not None:
        specs = _parts_on(node, specs)
    folder.mkdir(parents=True, exist_ok=True)
    for launch in launches:
        _require_fresh(launch)
    for spec in specs:
        (spec.folder / REPORT).unlink(missing_ok=True)
        (spec.folder / LAYERS).unlink(missing_ok=True)
    prepare = _Preparing(plan, training, launches)
    with closing(
        EventLog(folder / (EVENTS_FILE if node is None else f"events-{file_name(node)}.jsonl"))
    ) as log:

        def tell(event: Event) -> None:
            log(event)
            on_event(event)

        if failover and node is None:
            outcome = _with_failover(plan, specs, launches, prepare, transport, tell, deadlines)
        else:
            lock = LAUNCH_LOCK if node is None else f"launch-{file_name(node)}.lock"
            outcome = supervise(specs, transport, tell, deadlines=deadlines, lock=lock)
    if node is None:
        # Ranks of a script write no report themselves.
        for spec in prepare.newest.values():
            if spec.script is not None:
                write_script_report(spec, folder / EVENTS_FILE, plan.tokens_per_step)
    reports = _reports(specs, outcome)
    return Ended(
        folder=folder, outcome=outcome, reports=reports, profile=_write_profile(plan, reports, folder)
    )


def _with_failover(
    plan: Plan,
    specs: Sequence[LaunchSpec],
    launches: Sequence[Launch],
    prepare: _Preparing,
    transport: Transport,
    tell: Callable[[Event], None],
    deadlines: Deadlines | None,
) -> LaunchOutcome:
    return run_with_failover(
        plan,
        inputs_from_documents(plan.inputs).fleet,
        specs,
        prepare,
        transport,
        tell,
        deadlines=deadlines,
        on_this_machine=all(launch.start.one_machine for launch in launches),
    )


def _write_profile(plan: Plan, reports: Mapping[str, Mapping[str, Any]], folder: Path) -> Path | None:
    found = profile_of_launch(plan, reports, {name: folder / name for name in reports})
    if found is None:
        return None
    save_profile(found, folder / PROFILE)
    return folder / PROFILE


class _Preparing:
    """Prepares replacements of the launched replicas; `newest` has what was started last of each."""

    def __init__(self, plan: Plan, training: TrainingJob, launches: Sequence[Launch]) -> None:
        self._plan, self._training = plan, training
        self._launches = {launch.replica.id: launch for launch in launches}
        self.newest = {launch.replica.id: launch.spec for launch in launches}

    def __call__(
        self, replica: ReplicaPlan, *, boundary: str, failover: int | None, resume: bool, attempt: int
    ) -> LaunchSpec:
        """The specification of the replacement; ranks meet at another port than before."""
        launch = self._launches[replica.id]
        if launch.start.one_machine:
            port = free_port()
        else:
            port = launch.start.port + len(self._launches) * (attempt - 1)
        spec = replacement_launch(self._plan, launch, self._training, failover, port).spec
        self.newest[replica.id] = spec
        return spec


def _require_fresh(launch: Launch) -> None:
    """A new run never writes over the checkpoints of another one.

    Raises:
        InputError: `folder-has-checkpoints`.
    """
    steps = checkpoint_steps(launch.spec.folder / CHECKPOINTS)
    if steps and not launch.start.resume:
        raise InputError(
            "folder-has-checkpoints",
            f"{launch.spec.folder} holds a run with a checkpoint after {steps[-1]} steps",
            hint="go on with it by `--resume`, or name another folder with `-o`",
        )


def _parts_on(node: str, specs: Sequence[LaunchSpec]) -> list[LaunchSpec]:
    """What of these launches runs on one host."""
    parts = [
        replace(spec, commands=(command,), layout=Layout(ranks=spec.layout.on_host(node)))
        for spec in specs
        for command in spec.commands
        if command.host == node
    ]
    if not parts:
        known = ", ".join(dict.fromkeys(host for spec in specs for host in spec.layout.hosts))
        raise InputError(
            "no-such-node", f"no chosen replica runs on host {node!r}", hint=f"hosts are {known}"
        )
    return parts


def _reports(specs: Sequence[LaunchSpec], outcome: LaunchOutcome) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for spec, ended in zip(specs, outcome.replicas, strict=True):
        path = spec.folder / REPORT
        if ended.status is Status.FINISHED and path.is_file():
            found[ended.replica] = json.loads(path.read_text(encoding="utf-8"))
    return found
