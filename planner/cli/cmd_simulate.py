"""`echelon simulate`: a plan replayed in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.console import Console, console_of, write_atomically
from planner.cli.solve_options import MEASURED, read_cost_settings

if TYPE_CHECKING:
    from costmodels.interface import CostModel
    from executors.simulate.options import Loss, SimulationOptions, WindowRule
    from executors.simulate.result import SimulationResult
    from executors.simulate.times import StageTimes
    from planner.plan import Plan


class ScheduleName(StrEnum):
    """What `--schedule` accepts."""

    ONE_FORWARD_ONE_BACKWARD = "1f1b"
    GPIPE = "gpipe"


class TransfersName(StrEnum):
    """What `--transfers` accepts."""

    AUTO = "auto"
    OVERLAPPED = "overlapped"
    ON_RECEIVE = "on-receive"
    BLOCKING = "blocking"


PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.", show_default=False)]
Steps = Annotated[int, typer.Option("--steps", help="Steps of every replica.")]
Fail = Annotated[
    list[str] | None,
    typer.Option(
        "--fail", metavar="DEVICE@STEP", help="A device or host lost in a step, counted from 0; may repeat."
    ),
]
CheckpointEvery = Annotated[int, typer.Option("--checkpoint-every", help="Steps between checkpoints.")]
CheckpointTime = Annotated[str, typer.Option("--checkpoint-time", help="How long a checkpoint takes.")]
DetectTime = Annotated[str, typer.Option("--detect-time", help="Until a loss is noticed.")]
RestartTime = Annotated[str, typer.Option("--restart-time", help="From there until work goes on.")]
WindowSteps = Annotated[
    int | None, typer.Option("--window-steps", help="Replicas meet after so many steps.", show_default=False)
]
WindowTime = Annotated[
    str | None,
    typer.Option("--window-time", help="Or after so much time, such as 10min.", show_default=False),
]
Quorum = Annotated[
    int | None,
    typer.Option("--quorum", help="A window closes with so many replicas; else all.", show_default=False),
]
ExchangeTime = Annotated[str, typer.Option("--exchange-time", help="How long a window's exchange takes.")]
Schedule = Annotated[ScheduleName, typer.Option("--schedule", help="Order of passes.")]
Transfers = Annotated[
    TransfersName, typer.Option("--transfers", help="How stages pass data on; auto: as their executor does.")
]
Profile = Annotated[
    Path | None,
    typer.Option("--profile", help="Price by this profile, not by the plan's costs.", show_default=False),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option("--report", metavar="FILE", help="Stage times from a launch's report.json; may repeat."),
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Chrome trace, for Perfetto too.")
]
GanttFile = Annotated[Path | None, typer.Option("--gantt", metavar="FILE", help="Gantt chart as SVG.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where times come from instead of the plan's cost model."""

    profile: Path | None
    reports: tuple[Path, ...]


def register(app: typer.Typer) -> None:
    """Add `echelon simulate`."""

    @app.command()
    def simulate(
        ctx: typer.Context,
        plan: PlanFile,
        steps: Steps = 10,
        fail: Fail = None,
        checkpoint_every: CheckpointEvery = 50,
        checkpoint_time: CheckpointTime = "0s",
        detect_time: DetectTime = "5s",
        restart_time: RestartTime = "30s",
        window_steps: WindowSteps = None,
        window_time: WindowTime = None,
        quorum: Quorum = None,
        exchange_time: ExchangeTime = "0s",
        schedule: Schedule = ScheduleName.ONE_FORWARD_ONE_BACKWARD,
        transfers: Transfers = TransfersName.AUTO,
        profile: Profile = None,
        report: Reports = None,
        trace: TraceFile = None,
        gantt: GanttFile = None,
    ) -> None:
        """Replay a plan in virtual time, event by event.

        Says how long a step takes beside the plan's own figure, where each stage's time goes, and what
        windows and losses cost. docs/simulator.md says what is modelled, and where the plan's formula is
        exact.
        """
        from executors.simulate import options as simulation
        from executors.simulate.times import Schedule as Order

        console = console_of(ctx)
        options = simulation.SimulationOptions(
            num_steps=steps,
            schedule=Order(schedule.value),
            transfers=simulation.Transfers(transfers.value),
            losses=tuple(_loss(text) for text in fail or ()),
            checkpoint_every=checkpoint_every,
            checkpoint_s=_seconds(checkpoint_time, "--checkpoint-time"),
            detect_s=_seconds(detect_time, "--detect-time"),
            restart_s=_seconds(restart_time, "--restart-time"),
            window=_window(window_steps, window_time, quorum, exchange_time),
        )
        _simulate(console, plan, options, Sources(profile=profile, reports=tuple(report or ())), trace, gantt)


def _simulate(
    console: Console,
    path: Path,
    options: SimulationOptions,
    sources: Sources,
    trace: Path | None,
    gantt: Path | None,
) -> None:
    from executors.simulate.simulator import simulate_plan
    from planner.cli.simulate_text import heading, simulation_data, simulation_text
    from planner.plan import read_plan

    plan = read_plan(path)
    model = None if sources.profile is None else _measured(plan, sources.profile)
    times = _reported(plan, sources.reports)
    with console.progress() as progress:
        result = simulate_plan(plan, options, model=model, stage_times=times, report=progress.update)
        title = heading(plan, result)
        written: dict[str, str] = {}
        if gantt is not None:
            from executors.simulate.gantt import render_gantt

            progress.update("drawing the Gantt chart", force=True)
            write_atomically(gantt, render_gantt(result, title))
            written["gantt"] = str(gantt)
        notes = []
        if trace is not None:
            notes += _write_trace(result, trace)
            written["trace"] = str(trace)
    for note in notes:
        console.note(note)
    data = {"file": str(path), "written": written, **simulation_data(result)}
    console.emit(data, simulation_text(result, every_replica=console.verbose))


def _write_trace(result: SimulationResult, path: Path) -> list[str]:
    """Write the trace; what the user should know about it."""
    from executors.simulate.chrome_trace import render_trace

    trace = render_trace(result)
    write_atomically(path, trace.text)
    if trace.num_steps_detailed == trace.num_steps:
        return []
    shown = f"the first {trace.num_steps_detailed:,} of {trace.num_steps:,} steps of all replicas"
    return [f"the trace shows the passes of {shown}; fewer --steps show all"]


def _measured(plan: Plan, profile: Path) -> CostModel:
    """The cost model of a profile, for the workload of the plan."""
    from costmodels.registry import cost_model
    from planner.canonical import inputs_from_documents

    settings = read_cost_settings(MEASURED, profile) or {}
    return cost_model(MEASURED, inputs_from_documents(plan.inputs).workload, **settings)


def _reported(plan: Plan, paths: tuple[Path, ...]) -> dict[str, tuple[StageTimes, ...]]:
    """Measured stage times by replica.

    Raises:
        InputError: `bad-plan-file` for what is no JSON, `simulation-report` for no report of this plan.
    """
    if not paths:
        return {}
    from executors.simulate.measured_stages import reported_stage_times
    from planner.canonical import inputs_from_documents
    from planner.plan_reading import read_json

    fleet = inputs_from_documents(plan.inputs).fleet
    found: dict[str, tuple[StageTimes, ...]] = {}
    for path in paths:
        document = read_json(path)
        report = document if isinstance(document, dict) else {}
        name, times = reported_stage_times(plan, fleet, report, place=str(path))
        found[name] = times
    return found


def _loss(text: str) -> Loss:
    from executors.simulate.options import Loss

    name, at, step = text.rpartition("@")
    if not (at and name and step.isdecimal() and len(step) <= 9):
        raise typer.BadParameter(f"`{text}` is no DEVICE@STEP, such as ward-1/0@3", param_hint="--fail")
    return Loss(name=name, step=int(step))


def _window(
    num_steps: int | None, time: str | None, quorum: int | None, exchange_time: str
) -> WindowRule | None:
    from executors.simulate.options import WindowRule

    seconds = None if time is None else _seconds(time, "--window-time")
    exchange_s = _seconds(exchange_time, "--exchange-time")
    if num_steps is None and seconds is None:
        if quorum is not None or exchange_s > 0.0:
            flag = "--quorum" if quorum is not None else "--exchange-time"
            raise typer.BadParameter("only with --window-steps or --window-time", param_hint=flag)
        return None
    return WindowRule(num_steps=num_steps, seconds=seconds, quorum=quorum, exchange_s=exchange_s)


def _seconds(text: str, flag: str) -> float:
    from costmodels.units import UnitError, parse_seconds

    try:
        return parse_seconds(text)
    except UnitError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None
