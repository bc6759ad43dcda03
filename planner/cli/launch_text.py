"""How `echelon launch` talks: the dry run, the line that moves, and the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executors.events import Event
    from executors.launching import Launch
    from executors.running import Ended


def dry_run_data(launches: Sequence[Launch]) -> dict[str, Any]:
    """Files and commands of every replica."""
    return {
        "replicas": [
            {
                "replica": launch.replica.id,
                "executor": launch.spec.executor,
                "folder": str(launch.spec.folder),
                "files": dict(launch.spec.files),
                "commands": [
                    {"host": c.host, "argv": list(c.argv), "env": dict(c.env)} for c in launch.spec.commands
                ],
                "ranks": [
                    {"rank": r.rank, "host": r.host, "slot": r.slot, "device": r.device, "stage": r.stage}
                    for r in launch.spec.layout.ranks
                ],
            }
            for launch in launches
        ]
    }


def dry_run_text(launches: Sequence[Launch]) -> str:
    """What would be written and started. Plan and run file are named, shorter files are shown."""
    return "\n\n".join(_dry_run_of(launch) for launch in launches)


def _dry_run_of(launch: Launch) -> str:
    spec = launch.spec
    lines = [f"replica   {launch.replica.id}, executor {spec.executor}, in {spec.folder}", "", "ranks"]
    for rank in spec.layout.ranks:
        start, stop = launch.replica.stages[rank.stage].layers
        place = f"dp {rank.dp_i}" + (f" tp {rank.tp_i}" if rank.tp_i else "")
        lines.append(f"  {rank.rank}  {rank.device}  stage {rank.stage} {place}  layers {start}-{stop - 1}")
    for name, text in sorted(spec.files.items()):
        lines += ["", f"file {name}"]
        if name.endswith(("plan.json", "run.json")):
            lines.append(f"  ({len(text):,} bytes)")
        else:
            lines += [f"  {line}" for line in text.splitlines()]
    for command in spec.commands:
        lines += ["", f"on {command.host}"]
        for name, value in sorted(command.env.items()):
            lines.append(f"  unset {name}" if value is None else f"  export {name}={shlex.quote(value)}")
        lines.append(f"  {shlex.join(command.argv)}")
    return "\n".join(lines)


class ProgressLine:
    """Follows a launch's events: one moving line of loss, speed and time left; notes for what matters."""

    def __init__(
        self,
        steps: int,
        show: Callable[[str], None],
        note: Callable[[str], None],
        clock: Any = time.monotonic,
    ) -> None:
        self._steps, self._show, self._note, self._clock = steps, show, note, clock
        self._latest: dict[str, str] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._own_steps: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        told = getattr(self, f"_on_{event.kind.value.replace('-', '_')}", None)
        if told is not None:
            told(event, event.data)

    def _on_launched(self, event: Event, data: Mapping[str, Any]) -> None:
        self._begun.pop(event.replica, None)
        again = f", start {data['attempt']}" if data["attempt"] > 1 else ""
        self._note(
            f"{event.replica}: {_count(len(data['ranks']), 'rank')} on {_count(len(data['hosts']), 'host')}, "
            f"{data['executor']}{again}"
        )

    def _on_ready(self, event: Event, data: Mapping[str, Any]) -> None:
        # Only a script knows how long it goes on.
        if "num_steps" in data:
            self._own_steps[event.replica] = int(data["num_steps"])
        self._set(event.replica, f"rank {event.rank} is ready")

    def _on_step(self, event: Event, data: Mapping[str, Any]) -> None:
        if not data["tokens"]:
            return
        step = int(data["step"])
        begun_s, first = self._begun.setdefault(event.replica, (self._clock(), step))
        left, steps = "", self._own_steps.get(event.replica, self._steps)
        if step > first:
            left_s = (self._clock() - begun_s) / (step - first) * max(0, steps - step)
            left = f", {_minutes(left_s)} left"
        speed = data["tokens"] / data["wall_s"] if data["wall_s"] else 0.0
        loss = "" if data["loss"] is None else f"loss {data['loss']:.3f}, "
        self._set(event.replica, f"step {step}/{steps}, {loss}{speed:,.0f} tokens/s{left}")

    def _on_evaluation(self, event: Event, data: Mapping[str, Any]) -> None:
        self._note(f"{event.replica}: loss on held-out text {data['loss']:.4f} after {data['step']} steps")

    def _on_checkpoint(self, event: Event, data: Mapping[str, Any]) -> None:
        self._set(event.replica, f"checkpoint after {data['step']} steps")

    def _on_note(self, event: Event, data: Mapping[str, Any]) -> None:
        self._note(f"{event.replica or event.host}: {data['text']}")

    def _on_rank_died(self, event: Event, data: Mapping[str, Any]) -> None:
        how = f"signal {data['signal']}" if data.get("signal") else f"exit code {data.get('code')}"
        self._note(f"{event.replica}: rank {event.rank} on {event.host} died ({how})")

    def _on_failover(self, event: Event, data: Mapping[str, Any]) -> None:
        how = f"lost {', '.join(data['lost'])}; goes on with the plan's replacement"
        if not data["lost"]:
            how = "lost its processes; starts again on the same devices"
        steps = f"from step {data['resumed_step']}, {data['lost_steps']} steps are repeated"
        self._note(f"{event.replica}: {how} {steps}")

    def _set(self, replica: str, text: str) -> None:
        self._latest[replica] = text
        self._show("   ".join(f"{name}: {told}" for name, told in self._latest.items()))


def outcome_data(ended: Ended) -> dict[str, Any]:
    """How each replica ended, with its report where there is one."""
    return {
        "folder": str(ended.folder),
        "profile": None if ended.profile is None else str(ended.profile),
        "replicas": [
            {
                "replica": outcome.replica,
                "status": outcome.status.value,
                "code": outcome.code,
                "message": outcome.message,
                "step": outcome.step,
                "checkpoint": outcome.checkpoint,
                "report": ended.reports.get(outcome.replica),
            }
            for outcome in ended.outcome.replicas
        ],
    }


def outcome_text(ended: Ended) -> str:
    """Predicted and measured figures of each replica that finished, and where its results lie."""
    parts = []
    for outcome in ended.outcome.replicas:
        report = ended.reports.get(outcome.replica)
        if report is not None:
            parts.append(report_text(report, ended.folder / outcome.replica))
    if ended.profile is not None:
        parts[-1] += f"\nprofile   {ended.profile}"
    return "\n\n".join(parts)


def report_text(report: Mapping[str, Any], folder: Any) -> str:
    """One replica's report for people."""
    predicted, measured = report["predicted"], report["measured"]
    best_s, median_s = measured["step_s"]["best"], measured["step_s"]["median"]
    lines = [
        f"replica   {report['replica']}: {len(report['losses'])} steps, {report['executor']}",
        f"step      predicted {_seconds(predicted['step_s'])}, measured {_seconds(best_s)} at best "
        f"({_off(predicted['step_s'], best_s)}), {_seconds(median_s)} in the median",
        f"speed     predicted {predicted['tokens_per_s']:,.0f} tokens/s, "
        f"measured {measured['tokens_per_s']:,.0f} in the median",
        "",
        "stage  layers  busy per step: predicted  measured  of it CPU  memory: predicted  measured",
    ]
    for stage in report["stages"]:
        first, stop = stage["layers"]
        told, found = stage["predicted"], stage["measured"]
        lines.append(
            f"{stage['index']:<7}{f'{first}-{stop - 1}':<8}"
            f"{_seconds(told['busy_s']):>24}  {_seconds(found['busy_s']):>8}  "
            f"{_seconds(found['busy_cpu_s']):>9}  {_mib(told['memory_bytes']):>17}  "
            f"{_mib(found['peak_bytes']):>8}"
        )
    lines.append("")
    if report["evaluations"]:
        first_loss, last_loss = report["evaluations"][0]["loss"], report["evaluations"][-1]["loss"]
        lines.append(f"loss      {first_loss:.4f} before, {last_loss:.4f} after (held-out text)")
    if report.get("exported"):
        lines.append(f"{report['exported']['kind']:<10}{folder / report['exported']['path']}")
    lines.append(f"report    {folder / 'report.json'}")
    return "\n".join(lines)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _seconds(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    if value_s >= 1.0:
        return f"{value_s:.2f} s"
    return f"{value_s * 1e3:.1f} ms" if value_s >= 1e-3 else f"{value_s * 1e6:.0f} us"


def _minutes(value_s: float) -> str:
    return f"{int(value_s) // 60}:{int(value_s) % 60:02d}"


def _mib(value_bytes: float) -> str:
    return f"{value_bytes / 2**20:,.0f} MiB"


def _off(predicted: float, measured: float) -> str:
    return f"{(predicted / measured - 1.0):+.1%}" if measured > 0 else "no step"
