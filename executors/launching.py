"""From a plan and a job to what is started: which replicas, where, and with which executor.

Nothing here touches a file or a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from executors.base import LaunchSpec, Start
from executors.registry import executor_named
from executors.runfile import replica_of
from executors.script.declaration import CONSTANT, Script
from executors.script.demands import script_reasons
from planner.canonical import inputs_from_documents
from planner.execution import TORCH, Reason
from planner.plan import BoundaryPlan, Plan, ReplicaPlan
from planner.training import TrainingJob
from policies.errors import ExecutorFailedError, Fault, InputError

DEFAULT_PORT = 29500


def default_port(number: int) -> int:
    """The port of a replica when nobody chose one: hosts must agree on it without talking."""
    return DEFAULT_PORT + number


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What the user chose. Empty `replicas` means all of the boundary; `executor` None the planned one.

    `port_of` gives the port where the ranks of the replica with this number meet. `script` is what ranks run
    instead of our worker.
    """

    folder: Path
    boundary: str | None = None
    replicas: tuple[str, ...] = ()
    executor: str | None = None
    one_machine: bool = False
    port_of: Callable[[int], int] = default_port
    address_of: Mapping[str, str] = field(default_factory=dict)
    accelerator: str = "auto"
    resume: bool = False
    python: str = "python"
    script: Script | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One replica, ready to start: what is in the plan, how it starts, and what that takes."""

    boundary: BoundaryPlan
    replica: ReplicaPlan
    start: Start
    spec: LaunchSpec


def plan_launches(plan: Plan, job: TrainingJob, options: LaunchOptions) -> tuple[Launch, ...]:
    """Every chosen replica with its files and commands, each in a folder of its own.

    Raises:
        InputError: `no-such-boundary`, `choose-a-boundary`, `no-such-replica`.
        ExecutorFailedError: what `launch_of` raises.
    """
    boundary = chosen_boundary(plan, options)
    chosen = _chosen_replicas(boundary, options)
    participant_of = {replica.id: i for i, replica in enumerate(boundary.replicas)}
    launches, first_core = [], 0
    for number, known in enumerate(chosen):
        replica = replace(known, executor=options.executor or known.executor)
        start = Start(
            boundary=boundary.name,
            replica=replica.id,
            executor=replica.executor,
            folder=options.folder / replica.id,
            participant=participant_of[replica.id],
            num_participants=len(boundary.replicas),
            address_of=options.address_of,
            port=options.port_of(number),
            one_machine=options.one_machine,
            first_core=first_core,
            resume=options.resume,
            accelerator=options.accelerator,
            python=options.python,
            script=options.script,
        )
        launches.append(launch_of(plan, boundary, replica, job, start))
        first_core += launches[-1].spec.layout.world_size
    return tuple(launches)


def launch_of(
    plan: Plan, boundary: BoundaryPlan, replica: ReplicaPlan, job: TrainingJob, start: Start
) -> Launch:
    """What one start of a replica takes.

    With an own script it is the script that has to meet the plan's demands: the executor only starts it.

    Raises:
        ExecutorFailedError: `plan-not-supported` or `script-not-able`, with every reason;
            `executor-without-scripts`.
    """
    executor = executor_named(replica.executor)
    if start.script is not None:
        _require_able(start.script, plan, replica)
    elif found := (*executor.supports(plan, replica), *executor.supports_job(plan, replica, job)):
        raise not_supported(executor.name, replica.id, found)
    spec = executor.prepare(plan, replica, job, start)
    if spec.script != start.script:
        raise ExecutorFailedError(
            "executor-without-scripts",
            f"executor {executor.name} has no way to run a script of yours",
            hint="launch with `--executor deepspeed` or `--executor torch`",
        )
    return Launch(boundary=boundary, replica=replica, start=start, spec=spec)


def _require_able(script: Script, plan: Plan, replica: ReplicaPlan) -> None:
    """Refuse a script that doesn't say that it can do what the plan demands."""
    found = script_reasons(replica, inputs_from_documents(plan.inputs).workload, script.can)
    if not found:
        return
    told = "".join(f"\n  {r.place}: {r.value} ({r.code}); it can do {r.limit}" for r in found)
    raise ExecutorFailedError(
        "script-not-able",
        f"{script.place} can't carry out replica {replica.id}:{told}",
        hint=f"if it can, let it say so in {CONSTANT} (docs/scripts.md); else plan with a model file asking "
        "for less, such as `max_stages: 1` or `recompute: false`",
    )


def replacement_launch(plan: Plan, launch: Launch, job: TrainingJob, entry: int | None, port: int) -> Launch:
    """The same replica from the newest checkpoint, as failover entry `entry` says, or as planned.

    Raises:
        InputError: `no-such-replica`.
        ExecutorFailedError: what `launch_of` raises.
    """
    planned = replica_of(plan, launch.boundary.name, launch.replica.id, entry)
    start = replace(launch.start, failover=entry, resume=True, port=port)
    refusals: list[ExecutorFailedError] = []
    # Checkpoints are free of layout, so another executor may go on where the first one can't.
    for name in dict.fromkeys((launch.replica.executor, planned.executor, TORCH)):
        replica = replace(planned, executor=name)
        try:
            return launch_of(plan, launch.boundary, replica, job, replace(start, executor=name))
        except ExecutorFailedError as error:
            refusals.append(error)
    raise refusals[0]


def not_supported(executor: str, replica: str, reasons: Sequence[Reason]) -> ExecutorFailedError:
    """The refusal of a replica, one line per reason."""
    told = "".join(f"\n  {r.place}: {r.value} ({r.code}); it runs {r.limit}" for r in reasons)
    other = "torch" if executor == "deepspeed" else "deepspeed"
    return ExecutorFailedError(
        "plan-not-supported",
        f"executor {executor} can't run replica {replica}:{told}",
        hint=f"try `--executor {other}`, or solve again with `--executor {executor}`",
    )


def chosen_boundary(plan: Plan, options: LaunchOptions) -> BoundaryPlan:
    """The boundary to launch in: training traffic never leaves one, so each launches for itself."""
    names = [boundary.name for boundary in plan.boundaries]
    if options.boundary is None and len(names) > 1:
        raise InputError(
            "choose-a-boundary",
            f"the plan has {len(names)} boundaries, each of which launches its own replicas",
            hint=f"name yours with `--boundary`: {', '.join(names)}",
        )
    wanted = options.boundary or names[0]
    for boundary in plan.boundaries:
        if boundary.name == wanted:
            return boundary
    raise InputError(
        "no-such-boundary",
        f"the plan has no boundary {wanted!r}",
        faults=[Fault(place="--boundary", value=repr(wanted), limit=f"one of {', '.join(names)}")],
    )


def _chosen_replicas(boundary: BoundaryPlan, options: LaunchOptions) -> tuple[ReplicaPlan, ...]:
    known = {replica.id: replica for replica in boundary.replicas}
    unknown = [name for name in options.replicas if name not in known]
    if unknown:
        raise InputError(
            "no-such-replica",
            f"boundary {boundary.name} has no replica {', '.join(unknown)}",
            hint=f"its replicas are {', '.join(known)}",
        )
    return tuple(known[name] for name in options.replicas) if options.replicas else boundary.replicas
