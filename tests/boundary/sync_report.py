"""From kept trajectories to the contest's tables: losses at budgets, paired differences, times to target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from boundary.sync_contest import ARMS, Budgets

AXES = ("num_tokens", "num_bytes", "at_s", "num_syncs")
TITLES = {"num_tokens": "tokens", "num_bytes": "bytes", "at_s": "virtual s", "num_syncs": "syncs"}
REFERENCE = "diloco"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
Run = Mapping[str, Any]


def loss_at(run: Run, axis: str, bound: float) -> tuple[float, bool]:
    """Last loss at or before the bound (the warm start's before any), and whether the run got that far."""
    inside = [point for point in run["trajectory"] if point[axis] <= bound]
    has_reached = bool(run["trajectory"]) and run["trajectory"][-1][axis] >= bound
    return (float(inside[-1]["loss"]) if inside else float(run["start_loss"])), has_reached


def score(run: Run, until: Budgets) -> float:
    """Mean loss over the four budgets: what the tuning minimises."""
    return statistics.fmean(loss_at(run, axis, bound)[0] for axis, bound in asdict(until).items())


def time_to(run: Run, target_loss: float) -> float:
    """Virtual seconds to the first sync at or below the target, infinite where censored."""
    return next((p["at_s"] for p in run["trajectory"] if p["loss"] <= target_loss), math.inf)


def paired(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences and the half width of its 95 % interval (Student)."""
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    if len(differences) < 2:
        return differences[0], math.inf
    half = T_95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), half


def budget_table(runs: Mapping[str, Sequence[Run]], until: Budgets) -> list[str]:
    """Loss per arm and budget with paired difference from DiLoCo; * where a run ended before the budget."""
    lines = ["| arm | " + " | ".join(f"{TITLES[axis]}: loss (vs {REFERENCE})" for axis in AXES) + " |"]
    lines.append("|---" * (len(AXES) + 1) + "|")
    bounds = asdict(until)
    for arm in ARMS:
        cells = []
        for axis in AXES:
            mine = [loss_at(run, axis, bounds[axis]) for run in runs[arm]]
            other = [loss_at(run, axis, bounds[axis])[0] for run in runs[REFERENCE]]
            mean, half = paired([value for value, _ in mine], other)
            star = "" if all(is_there for _, is_there in mine) else "*"
            level = statistics.fmean(value for value, _ in mine)
            cells.append(f"{level:.4f}{star} ({mean:+.4f} ± {half:.4f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def target_table(runs: Mapping[str, Sequence[Run]], target_loss: float, cap_s: float) -> list[str]:
    """Median time to target with the number of censored runs, and steps per virtual second."""
    lines = ["| arm | median s to target | censored | tokens/s |", "|---|---|---|---|"]
    for arm in ARMS:
        times = [time_to(run, target_loss) for run in runs[arm]]
        times = [value if value <= cap_s else math.inf for value in times]
        median = statistics.median_high(times)
        shown = f"{median:.1f}" if math.isfinite(median) else f"> {cap_s:.1f}"
        last = [run["trajectory"][-1] for run in runs[arm]]
        rate = statistics.fmean(point["num_tokens"] / point["at_s"] for point in last)
        lines.append(f"| {arm} | {shown} | {sum(map(math.isinf, times))} of {len(times)} | {rate:.0f} |")
    return lines


def losses_of(runs: Mapping[str, Sequence[Run]], until: Budgets) -> list[str]:
    """For each arm the budgets on which another arm is better beyond the paired interval."""
    lines = []
    bounds = asdict(until)
    for arm in ARMS:
        beaten = []
        for axis in AXES:
            mine = [loss_at(run, axis, bounds[axis])[0] for run in runs[arm]]
            for other in ARMS:
                theirs = [loss_at(run, axis, bounds[axis])[0] for run in runs[other]]
                mean, half = paired(mine, theirs)
                if other != arm and mean - half > 0.0:
                    beaten.append(f"{TITLES[axis]} to {other} by {mean:.4f}")
        lines.append(f"- {arm}: " + ("; ".join(beaten) if beaten else "loses nowhere beyond the interval"))
    return lines
