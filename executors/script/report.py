"""The report of a replica that ran an own script, from the events of its ranks. No torch here."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.base import LaunchSpec
from executors.events import Event, Kind, parse_event
from executors.run_folder import REPORT
from executors.training.report import build_report, rank_summary


@dataclass(slots=True)
class _Told:
    """What one rank has said: times of the newest start, losses by step of all that it goes on from."""

    step_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    losses: dict[int, float | None] = field(default_factory=dict)
    gradient_norms: dict[int, float | None] = field(default_factory=dict)
    evaluations: dict[int, float | None] = field(default_factory=dict)
    peak_bytes: int = 0

    def take(self, event: Event) -> None:
        """Add what an event says."""
        data = event.data
        if event.kind is Kind.READY:
            self._start_after(data["step"])
        elif event.kind is Kind.STEP:
            self.step_s.append(float(data["wall_s"]))
            self.cpu_s.append(float(data["cpu_s"]))
            self.losses[data["step"]] = data["loss"]
            self.gradient_norms[data["step"]] = data["gradient_norm"]
        elif event.kind is Kind.EVALUATION:
            self.evaluations[data["step"]] = data["loss"]
        elif event.kind is Kind.FINISHED:
            self.peak_bytes = int(data.get("peak_bytes", 0))

    def _start_after(self, step: int) -> None:
        """Forget what this start does again."""
        self.step_s.clear()
        self.cpu_s.clear()
        for told in (self.losses, self.gradient_norms, self.evaluations):
            for later in [each for each in told if each > step]:
                del told[later]


def write_script_report(spec: LaunchSpec, events_file: Path, tokens_per_step: int) -> Path | None:
    """Write `report.json` into the replica's folder, from the launch's merged events.

    Returns:
        Its path; None where no rank said how long its steps took.
    """
    lines = events_file.read_bytes().splitlines() if events_file.is_file() else []
    report = script_report(spec, map(parse_event, lines), tokens_per_step)
    if report is None:
        return None
    path = spec.folder / REPORT
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(report, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def script_report(spec: LaunchSpec, events: Iterable[Event], tokens_per_step: int) -> dict[str, Any] | None:
    """The report of a replica, as our own worker would write it; None where nobody reported a step.

    A script doesn't tell computing from waiting, so `busy_s` is null, and `busy_cpu_s` of a stage is that
    of its busiest rank over whole steps.
    """
    told: dict[int, _Told] = defaultdict(_Told)
    for event in events:
        if event.replica == spec.replica.id and event.rank is not None:
            told[event.rank].take(event)
    if not any(each.step_s for each in told.values()):
        return None
    summaries = [_summary(rank.rank, told[rank.rank]) for rank in spec.layout.ranks]
    report = build_report(
        spec.replica, spec.layout, summaries, tokens_per_step=tokens_per_step, outcome=_outcome(told)
    )
    for stage in report["stages"]:
        members = [summaries[rank.rank]["cpu_s"] for rank in spec.layout.of_stage(stage["index"])]
        stage["measured"]["busy_cpu_s"] = max(each["best"] for each in members)
    for measured in (*summaries, *(stage["measured"] for stage in report["stages"])):
        measured["busy_s"] = None
    for summary in summaries:
        summary["busy_cpu_s"] = None
    return report


def _summary(rank: int, told: _Told) -> dict[str, Any]:
    return rank_summary(rank=rank, step_s=told.step_s, cpu_s=told.cpu_s, spent=(), peak_bytes=told.peak_bytes)


def _outcome(told: dict[int, _Told]) -> dict[str, Any]:
    """Losses as the first rank that knows them has told them."""
    by_rank = [told[rank] for rank in sorted(told)]
    knows = next((each for each in by_rank if set(each.losses.values()) - {None}), by_rank[0])
    evaluations = {step: loss for each in by_rank for step, loss in each.evaluations.items()}
    return {
        "losses": [knows.losses[step] for step in sorted(knows.losses)],
        "gradient_norms": [knows.gradient_norms[step] for step in sorted(knows.losses)],
        "evaluations": [{"step": step, "loss": evaluations[step]} for step in sorted(evaluations)],
    }
