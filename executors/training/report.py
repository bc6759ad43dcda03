"""What a run came to, beside what the plan predicted: `report.json`, one figure for each stage and rank."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from executors.layout import Layout
from planner.plan import ReplicaPlan

SCHEMA = "echelon/report/1"
WARM_UP_STEPS = 2
"""Steps left out of every figure of time: caches and allocators fill in them."""


def rank_summary(
    *,
    rank: int,
    step_s: Sequence[float],
    cpu_s: Sequence[float],
    spans: Mapping[str, Mapping[str, float]],
    peak_bytes: int,
    layers: Mapping[str, Any],
) -> dict[str, Any]:
    """Figures of one rank. `spans` holds the mean wall and CPU seconds per step of each kind of work."""
    used = slice(WARM_UP_STEPS, None) if len(step_s) > WARM_UP_STEPS else slice(None)
    return {
        "rank": rank,
        "step_s": figures(step_s[used]),
        "cpu_s": figures(cpu_s[used]),
        "spans": spans,
        "peak_bytes": peak_bytes,
        "layers": layers,
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
    busy_s = max(_busy(summary, "wall_s") for summary in members)
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
            "busy_s": busy_s,
            "busy_cpu_s": max(_busy(summary, "cpu_s") for summary in members),
            "peak_bytes": max(summary["peak_bytes"] for summary in members),
        },
    }


def _busy(summary: Mapping[str, Any], clock: str) -> float:
    """Seconds of one step in forward and backward passes."""
    spans = summary["spans"]
    return float(sum(spans[kind][clock] for kind in ("forward", "backward") if kind in spans))
