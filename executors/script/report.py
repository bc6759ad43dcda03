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
from executors.training.report import build_report, figures, rank_summary


@dataclass(slots=True)
class _Told:
    """What one rank has said in the newest start."""

    first_step: int = 0
    step_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    peak_bytes: int = 0

    def take(self, event: Event) -> None:
        """Add what an event says."""
        data = event.data
        if event.kind is Kind.READY:
            self.first_step = int(data["step"])
        elif event.kind is Kind.STEP:
            self.step_s.append(float(data["wall_s"]))
            self.cpu_s.append(float(data["cpu_s"]))
            self.losses.append(data["loss"])
            self.gradient_norms.append(data["gradient_norm"])
        elif event.kind is Kind.EVALUATION:
            self.evaluations.append({"step": data["step"], "loss": data["loss"]})
        elif event.kind is Kind.FINISHED:
            self.peak_bytes = int(data.get("peak_bytes", 0))


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
    """The report of the newest start, as our own worker would write it; None where nobody reported a step.

    A script doesn't tell computing from waiting, so `busy_s` of the stages is null and their `busy_cpu_s` is
    the median CPU seconds per step of the busiest rank.
    """
    told: dict[int, _Told] = defaultdict(_Told)
    for event in events:
        if event.replica != spec.replica.id:
            continue
        if event.kind is Kind.LAUNCHED:
            told.clear()
        elif event.rank is not None:
            told[event.rank].take(event)
    if not any(each.step_s for each in told.values()):
        return None
    summaries = [
        rank_summary(
            rank=rank.rank,
            step_s=told[rank.rank].step_s,
            cpu_s=told[rank.rank].cpu_s,
            spans={},
            peak_bytes=told[rank.rank].peak_bytes,
            layers={},
        )
        for rank in spec.layout.ranks
    ]
    report = build_report(
        spec.replica, spec.layout, summaries, tokens_per_step=tokens_per_step, outcome=_outcome(told)
    )
    for stage in report["stages"]:
        members = [told[rank.rank].cpu_s for rank in spec.layout.of_stage(stage["index"])]
        busy_cpu_s = max(figures(each)["median"] for each in members)
        stage["measured"] |= {"busy_s": None, "busy_cpu_s": busy_cpu_s}
    return report


def _outcome(told: dict[int, _Told]) -> dict[str, Any]:
    """Losses as the first rank that knows them has told them."""
    by_rank = [told[rank] for rank in sorted(told)]
    knows = next((each for each in by_rank if any(loss is not None for loss in each.losses)), by_rank[0])
    return {
        "first_step": knows.first_step,
        "losses": knows.losses,
        "gradient_norms": knows.gradient_norms,
        "evaluations": [one for each in by_rank for one in each.evaluations],
    }
