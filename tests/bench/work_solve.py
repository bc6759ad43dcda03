"""From a fleet and a model to a plan, as `echelon solve` does it, with the time of each step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.fleets import bench_policy, generate_fleet
from costmodels.hf_config import read_architecture
from costmodels.model import build_workload
from costmodels.workload import Job
from planner.canonical import Inputs
from planner.examples.bundled import example_folder
from planner.plan import dump_plan
from planner.solve.result import BoundaryResult, Limits, Progress, excess_frac
from planner.solving import Request, solve_inputs
from policies.errors import InfeasibleError, NoPlanInTimeError

MODELS = example_folder("models")
FINISHING_FRAC = 0.04
"""Share of the deadline kept for putting the plan together."""


def bench_inputs(
    num_devices: int, seed: int, model: str, rank: int, replicas_max: int | None = None
) -> Inputs:
    """A generated fleet in one boundary and a bundled model; rank 0 trains every weight."""
    config = json.loads((MODELS / f"{model}.json").read_text(encoding="utf-8"))
    job = Job(
        adapter_rank=rank,
        sequence_tokens=4096,
        sequences_per_step=64,
        micro_batch_sizes=(1, 2, 4),
        sync_copies_bytes_per_param=0.0,
    )
    workload = build_workload(read_architecture(config), job, model)
    policy = replace(bench_policy(workload.num_layers), replicas_max=replicas_max)
    return Inputs(fleet=generate_fleet(num_devices, seed), workload=workload, policy=policy)


def example_inputs(name: str) -> Inputs:
    """A bundled example, through its files."""
    from planner.files import load_inputs

    folder = example_folder(name)
    return load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")


@dataclass(slots=True, kw_only=True)
class Watch:
    """Notes when the first plan was there and when the excess asked for was proven."""

    started_s: float
    target_frac: float
    first_plan_s: float | None = None
    reached_s: float | None = None
    steps: list[tuple[float, float | None, float | None, str]] = field(default_factory=list)

    def hear(self, progress: Progress) -> None:
        """One report of the solver."""
        at_s = time.monotonic() - self.started_s
        self.steps.append((round(at_s, 3), progress.value, progress.bound, progress.note))
        if progress.value is None:
            return
        if self.first_plan_s is None:
            self.first_plan_s = at_s
        if self.reached_s is None and progress.bound is not None:
            excess = excess_frac(progress.value, progress.bound, maximise=True)
            self.reached_s = at_s if excess <= self.target_frac else None


def solve_case(
    *,
    started_s: float,
    fleet: list[Any],
    deadline_s: float,
    target_frac: float = 0.0,
    max_excess_frac: float = 0.001,
    solver: str = "decomposition",
    plan_file: str | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Solve `["bench", devices, seed]` or `["example", name]`; `deadline_s` counts from process start.

    `max_excess_frac` 0.001 is what the command line stops at when nothing else is asked for.
    """
    inputs = example_inputs(fleet[1]) if fleet[0] == "example" else bench_inputs(fleet[1], fleet[2], **job)
    watch = Watch(started_s=started_s, target_frac=target_frac)
    built_s = time.monotonic() - started_s
    left_s = max(0.1, deadline_s * (1.0 - FINISHING_FRAC) - built_s)
    limits = Limits(deadline_s=left_s, max_excess_frac=max_excess_frac, report=watch.hear)
    found: dict[str, Any] = {"infeasible": [], "excess_frac": None}
    try:
        answer = solve_inputs(inputs, Request(solver=solver), limits)
    except InfeasibleError as error:
        found["infeasible"] = list(error.because) or [str(error)]
    except NoPlanInTimeError as error:
        found["stops"] = {"all": str(error)}
    else:
        found |= {**summary(answer.results), "tokens_per_s": answer.plan.tokens_per_s}
        if plan_file is not None:
            Path(plan_file).parent.mkdir(parents=True, exist_ok=True)
            Path(plan_file).write_text(dump_plan(answer.plan), encoding="utf-8")
    return {
        **found,
        "read_s": built_s,
        "solved_s": watch.steps[-1][0] if watch.steps else None,
        "planned_s": time.monotonic() - started_s if "tokens_per_s" in found else None,
        "first_plan_s": watch.first_plan_s,
        "reached_s": watch.reached_s,
        "steps": watch.steps,
    }


def summary(results: Sequence[BoundaryResult]) -> dict[str, Any]:
    """Totals over all boundaries, and how each ended."""
    values = [result.value for result in results if result.value is not None]
    bounds = [result.bound for result in results if result.bound is not None]
    excess = None
    if len(values) == len(bounds) == len(results):
        excess = excess_frac(sum(values), sum(bounds), maximise=True)
    return {
        "value": sum(values) if len(values) == len(results) else None,
        "bound": sum(bounds) if len(bounds) == len(results) else None,
        "excess_frac": excess,
        "num_replicas": sum(len(result.replicas) for result in results),
        "stops": {result.boundary: f"{result.status}, {result.stop}" for result in results},
        "proofs": sorted({str(result.proof.get("kind")) for result in results}),
    }
