"""`echelon launch`: carry a plan out, watch it, and tell how it went."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.console import Console, console_of
from policies.errors import InputError

if TYPE_CHECKING:
    from executors.launching import Launch, LaunchOptions
    from executors.remote import Transport
    from executors.script.declaration import Script as OwnScript
    from planner.plan import Plan
    from planner.training import TrainingJob


class Accelerator(StrEnum):
    """What `--accelerator` accepts."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)]
Script = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- SCRIPT ARGS]", help="Run this training script instead of a job."),
]
JobFile = Annotated[
    Path | None, typer.Option("--job", metavar="FILE", help="What to train on and how; see docs/formats.md.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="PATH", help="Text file or folder, instead of the job's; repeatable."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps, instead of the job's.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the run is kept.")]
Local = Annotated[
    bool, typer.Option("--local", help="Run every host of the plan on this machine, device by core or GPU.")
]
Node = Annotated[
    str | None,
    typer.Option("--node", metavar="HOST", help="Start only this host's part, here; one command per host."),
]
RemoteShell = Annotated[
    str,
    typer.Option(
        "--remote-shell",
        metavar="HOW",
        help="How to reach hosts: `ssh`, `pdsh`, `netns`, or a command with {host} or {address}.",
    ),
]
Address = Annotated[
    list[str] | None,
    typer.Option("--address", metavar="HOST=ADDRESS", help="Where a host is reached; repeatable."),
]
Boundary = Annotated[str | None, typer.Option("--boundary", help="Which boundary's replicas to launch.")]
Replica = Annotated[list[str] | None, typer.Option("--replica", help="Only this replica; repeatable.")]
ExecutorName = Annotated[
    str | None, typer.Option("--executor", help="Instead of the plan's: `deepspeed` or `torch`.")
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1024, max=65535, help="Where ranks meet; the next ones for more replicas."),
]
Where = Annotated[Accelerator, typer.Option("--accelerator", help="Where devices compute.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print files and commands; start nothing.")]
OnLoss = Annotated[
    bool, typer.Option("--failover/--no-failover", help="Go on with the plan's replacement after a loss.")
]


def register(app: typer.Typer) -> None:
    """Add `echelon launch`."""

    @app.command()
    def launch(
        ctx: typer.Context,
        plan: PlanFile,
        script: Script = None,
        job: JobFile = None,
        data: Data = None,
        steps: Steps = None,
        output: Output = Path("run"),
        local: Local = False,
        node: Node = None,
        remote_shell: RemoteShell = "ssh",
        address: Address = None,
        boundary: Boundary = None,
        replica: Replica = None,
        executor: ExecutorName = None,
        port: Port = None,
        accelerator: Where = Accelerator.AUTO,
        resume: Resume = False,
        failover: OnLoss = True,
        dry_run: DryRun = False,
    ) -> None:
        """Carry a plan out as it stands, through the `deepspeed` runner or rank by rank with torch.

        The plan is checked first. One host of it may be this machine's part (`--node`), all of them may be
        this machine (`--local`), or each is reached through a remote shell. A lost device or host is replaced
        by what the plan says, from the newest checkpoint. Ctrl-C ends every process.
        """
        from executors.launching import plan_launches
        from executors.preflight import require_material
        from planner.cli.launch_text import dry_run_data, dry_run_text

        console = console_of(ctx)
        _require_one_way(local, node)
        checked = _checked(console, plan)
        training = _training(job, data, steps, own_script=bool(script))
        options = replace(
            _options(local=local, port=port, addresses=address, accelerator=accelerator),
            folder=output.absolute(),
            boundary=boundary,
            replicas=tuple(replica or ()),
            executor=executor,
            resume=resume,
            script=_script(script),
        )
        launches = plan_launches(checked, training, options)
        if dry_run:
            console.emit(dry_run_data(launches), dry_run_text(launches))
            return
        here = local or node is not None
        if here and not script:
            require_material(checked, training)
        transport = _transport(here, remote_shell, options)
        _run(console, checked, training, launches, options, transport, node=node, failover=failover)


def _require_one_way(local: bool, node: str | None) -> None:
    if local and node is not None:
        raise typer.BadParameter("not together with --local", param_hint="--node")


def _checked(console: Console, path: Path) -> Plan:
    """The plan, if all its claims hold; its bound is not proven again here.

    Raises:
        InputError: `bad-plan-file`, `bad-input` (a hash that doesn't fit), `plan-refused`.
    """
    from planner.canonical import inputs_from_documents
    from planner.check.referee import check
    from planner.cli.cmd_check import plan_refused
    from planner.plan import read_plan

    plan = read_plan(path)
    inputs_from_documents(plan.inputs, place=f"{path}: inputs")
    with console.progress() as progress:
        report = check(plan, quick=True, report=progress.update)
    if report.violations:
        raise plan_refused(path, report)
    return plan


def _script(words: list[str] | None) -> OwnScript | None:
    from executors.script.declaration import read_script

    return read_script(words, Path.cwd()) if words else None


def _training(
    job: Path | None, data: list[str] | None, steps: int | None, *, own_script: bool
) -> TrainingJob:
    from planner.files import load_training_job
    from planner.training import BUNDLED_TEXTS, TrainingJob

    given = tuple(text if text in BUNDLED_TEXTS else str(Path(text).absolute()) for text in data or ())
    if job is None:
        if not given and not own_script:
            raise InputError(
                "no-data",
                "there is nothing to train on",
                hint="give a job file with --job, or text with --data PATH (`python:prose` needs no file)",
            )
        training = TrainingJob(data=given)
    else:
        training = load_training_job(job)
        training = replace(training, data=given) if given else training
    return training if steps is None else replace(training, steps=steps)


def _options(
    *, local: bool, port: int | None, addresses: list[str] | None, accelerator: Accelerator
) -> LaunchOptions:
    """Where and how ranks meet and compute."""
    from executors.addresses import free_port
    from executors.environment import accelerator_here
    from executors.launching import LaunchOptions, default_port

    def port_of(number: int) -> int:
        if port is not None:
            return port + number
        # On one machine nobody else has to know the port, so one that is free will do.
        return free_port() if local else default_port(number)

    chosen = accelerator.value
    if local and accelerator is Accelerator.AUTO:
        chosen = accelerator_here()
    return LaunchOptions(
        folder=Path(),
        one_machine=local,
        port_of=port_of,
        address_of=_addresses(addresses),
        accelerator=chosen,
        python=sys.executable,
    )


def _addresses(given: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        host, equals, address = text.partition("=")
        if not (host and equals and address):
            raise typer.BadParameter(f"`{text}` is not HOST=ADDRESS", param_hint="--address")
        found[host] = address
    return found


def _transport(here: bool, remote_shell: str, options: LaunchOptions) -> Transport:
    from executors.remote import transport_from

    how = "local" if here else remote_shell
    return transport_from(how, python=options.python, address_of=options.address_of)


def _run(
    console: Console,
    plan: Plan,
    training: TrainingJob,
    launches: tuple[Launch, ...],
    options: LaunchOptions,
    transport: Transport,
    *,
    node: str | None,
    failover: bool,
) -> None:
    from executors.running import run_launches
    from planner.cli.launch_text import ProgressLine, outcome_data, outcome_text

    with console.progress() as progress:
        line = ProgressLine(training.steps, progress.update, console.note)
        ended = run_launches(
            plan, training, launches, transport, options.folder, line, node=node, failover=failover
        )
    error = ended.outcome.error()
    console.emit(outcome_data(ended), outcome_text(ended), but=error)
