"""The runs measured by others, as the product's own types, with every declared figure and its origin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodels.calibrate_io import parse_runs
from costmodels.calibrate_model import Platform, TrainingRun
from costmodels.interface import FloatArray, Origin
from costmodels.measured import Prediction, RunPlan, RunReplica, RunStage, predict
from costmodels.measured_profile import ASSUMED, DECLARED, Profile, RunFacts
from costmodels.profile_io import build_profile, read_json

MEASURED_FOLDER = Path(__file__).resolve().parents[1] / ".." / "shared" / "instances" / "measured"

# Origin of each figure: docs/measured.md, section 3.
GH200_FACTS = RunFacts(
    gradient_bytes_per_param=4.0,
    optimiser_bytes_per_param=8.0,
    update_traffic_bytes_per_param=28.0,
    overhead_bytes=5.06e9,
    memory_bytes_per_s=4.0e12,
    tied_bytes=12_672 * 1024 * 4.0,
    origins={
        "optimiser_bytes_per_param": Origin(kind=DECLARED, note="Adam in fp32: two moments of four bytes"),
        "update_traffic_bytes_per_param": Origin(kind=DECLARED, note="fp32: w, g, m, v in; w, m, v out"),
        "overhead_bytes": Origin(kind=ASSUMED, note="published constant of Sailor for this cluster"),
        "memory_bytes_per_s": Origin(kind=DECLARED, note="GH200 data sheet, HBM3 96 GB"),
        "tied_bytes": Origin(kind=DECLARED, note="vocabulary padded to 50,688, over 4 devices"),
        "scatter_border": Origin(kind=ASSUMED, note="full copies"),
    },
)
A100 = Platform(
    name="A100 80 GB, NVLink 3, one HDR adapter of 200 Gbit/s per device",
    peak_flop_per_s=312e12,
    memory_bytes_per_s=2.0e12,
    inner_bytes_per_s=300e9,
    outer_bytes_per_s=25e9,
    devices_per_host=8,
    vocabulary=51200,
)


def opt350_profile(facts: RunFacts = GH200_FACTS) -> Profile:
    """The published GH200 profile of OPT-350."""
    return build_profile(
        "OPT-350",
        times=read_json(MEASURED_FOLDER / "gh200-opt350-layer-times.json"),
        sizes=read_json(MEASURED_FOLDER / "opt350-layer-sizes.json"),
        outer=read_json(MEASURED_FOLDER / "gh200-network-inter.json"),
        inner=read_json(MEASURED_FOLDER / "gh200-network-intra.json"),
        facts=facts,
    )


def opt350_plans() -> list[tuple[str, RunPlan, float, float]]:
    """Name, plan, measured seconds and measured peak bytes of each of the 15 runs."""
    plans = []
    for row in read_json(MEASURED_FOLDER / "gh200-opt350-plans.json"):
        stages = tuple(
            RunStage(
                first=min(stage["layers"]),
                end=max(stage["layers"]) + 1,
                replicas=tuple(RunReplica(type_name=r["gpu"], tp=r["tp"]) for r in stage["replicas"]),
            )
            for stage in row["stages"]
        )
        plan = RunPlan(stages=stages, micro_batch_size=row["micro_batch"], global_batch=row["global_batch"])
        plans.append((row["id"], plan, row["measured_iteration_s"], float(row["measured_peak_bytes"])))
    return plans


def opt350_errors(facts: RunFacts = GH200_FACTS) -> tuple[list[Prediction], FloatArray, FloatArray]:
    """Predictions of the 15 runs, and their signed relative errors of step time and of peak memory."""
    profile, plans = opt350_profile(facts), opt350_plans()
    predictions = [predict(profile, plan) for _, plan, _, _ in plans]
    time_frac = [p.iteration_s / s - 1.0 for p, (_, _, s, _) in zip(predictions, plans, strict=True)]
    memory_frac = [p.peak_bytes / b - 1.0 for p, (_, _, _, b) in zip(predictions, plans, strict=True)]
    return predictions, np.array(time_frac), np.array(memory_frac)


def a100_runs() -> list[TrainingRun]:
    """The 155 measured iterations; those across hosts are taken to recompute (docs/measured.md)."""
    rows = read_json(MEASURED_FOLDER / "a100-megatron-iterations.json")
    return parse_runs(rows, recompute_above_devices=A100.devices_per_host)


def several_R(runs: list[TrainingRun]) -> NDArray[np.bool_]:
    """Which runs span more than one host."""
    return np.array([run.num_devices > A100.devices_per_host for run in runs])
