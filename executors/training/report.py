"""What a run came to, beside what the plan predicted: `report.json`, one figure for each stage and rank."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from executors.events import Kind, parse_event
from executors.layout import Layout
from planner.plan import ReplicaPlan

SCHEMA = "echelon/report/1"
WARM_UP_STEPS = 2
"""Steps left out of every figure of time: caches and allocators fill in them."""
WALL, CPU = 0, 1


def rank_summary(
    *,
    rank: int,
    step_s: Sequence[float],
    cpu_s: Sequence[float],
    spent: Sequence[Mapping[str, tuple[float, float]]],
    peak_bytes: int,
) -> dict[str, Any]:
    """Figures of one rank. `spent` holds for each step the wall and CPU seconds of each kind of work."""
    used = slice(WARM_UP_STEPS, None) if len(step_s) > WARM_UP_STEPS else slice(None)
    kinds = sorted({kind for step in spent[used] for kind in step})
    return {
        "rank": rank,
        "step_s": figures(step_s[used]),
        "cpu_s": figures(cpu_s[used]),
        "busy_s": figures([_busy(step, WALL) for step in spent[used]]),
        "busy_cpu_s": figures([_busy(step, CPU) for step in spent[used]]),
        "kinds": {
            kind: {
                "wall_s": figures([step.get(kind, (0.0, 0.0))[WALL] for step in spent[used]]),
                "cpu_s": figures([step.get(kind, (0.0, 0.0))[CPU] for step in spent[used]]),
            }
            for kind in kinds
        },
        "peak_bytes": peak_bytes,
    }


def history(path: Path) -> dict[str, Any]:
    """Losses and evaluations of a replica from its first start on, out of the events of rank 0.

    A step that was repeated after a loss counts once, as it was done last.
    """
    steps: dict[int, tuple[float, float]] = {}
    evaluations: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = parse_event(line)
        if event.kind is Kind.STEP:
            steps[event.data["step"]] = (event.data["loss"], event.data["gradient_norm"])
        elif event.kind is Kind.EVALUATION:
            evaluations[event.data["step"]] = event.data["loss"]
    return {
        "losses": [steps[step][0] for step in sorted(steps)],
        "gradient_norms": [steps[step][1] for step in sorted(steps)],
        "evaluations": [{"step": step, "loss": evaluations[step]} for step in sorted(evaluations)],
    }


def figures(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and number of values."""
    if not values:
        return {"best": 0.0, "median": 0.0, "num": 0}
    return {"best": min(values), "median": statistics.median(values), "num": len(values)}


def build_report(
    replica: ReplicaPlan,
    layout: Layout,
    summaries: Sequence[Mapping[str, Any]],
    *,
    tokens_per_step: int,
    outcome: Mapping[str, Any],
) -> dict[str, Any]:
    """The report of a replica, from the summaries of all its ranks in rank order."""
    best_s = max(summary["step_s"]["best"] for summary in summaries)
    median_s = max(summary["step_s"]["median"] for summary in summaries)
    measured = {
        "step_s": {"best": best_s, "median": median_s},
        "tokens_per_s": tokens_per_step / median_s if median_s > 0 else 0.0,
    }
    return {
        "schema": SCHEMA,
        "replica": replica.id,
        "executor": replica.executor,
        "tokens_per_step": tokens_per_step,
        "predicted": {"step_s": replica.step_time_s, "tokens_per_s": replica.tokens_per_s},
        "measured": measured,
        "stages": [_stage(replica, layout, summaries, index) for index in range(len(replica.stages))],
        "ranks": list(summaries),
        **outcome,
    }


def _stage(
    replica: ReplicaPlan, layout: Layout, summaries: Sequence[Mapping[str, Any]], index: int
) -> dict[str, Any]:
    stage = replica.stages[index]
    members = [summaries[rank.rank] for rank in layout.of_stage(index)]
    limits = [
        sum(value for kind, value in kinds.items() if kind != "limit")
        for kinds in stage.memory_bytes.values()
    ]
    return {
        "index": index,
        "layers": list(stage.layers),
        "devices": list(stage.devices),
        "predicted": {
            "busy_s": stage.compute_s * replica.micro_batches,
            "memory_bytes": max(limits, default=0.0),
        },
        "measured": {
            "busy_s": max(summary["busy_s"]["best"] for summary in members),
            "busy_cpu_s": max(summary["busy_cpu_s"]["best"] for summary in members),
            "peak_bytes": max(summary["peak_bytes"] for summary in members),
        },
    }


def _busy(step: Mapping[str, tuple[float, float]], clock: int) -> float:
    """Seconds of one step in forward and backward passes."""
    return sum(step[kind][clock] for kind in ("forward", "backward") if kind in step)
