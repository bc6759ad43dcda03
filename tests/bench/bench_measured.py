"""Errors of the measured cost model on runs measured by others: python tests/bench/bench_measured.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from costmodels.calibrate import (  # noqa: E402
    Calibration,
    bootstrap_interval,
    cross_validate,
    fit,
    shape_folds,
)
from costmodels.interface import FloatArray  # noqa: E402
from measured_instances import (  # noqa: E402
    A100,
    GH200_FACTS,
    a100_runs,
    opt350_errors,
    opt350_plans,
    several_R,
)


def percent(errors: FloatArray) -> str:
    """Mean and median absolute error."""
    return f"mean {100 * np.abs(errors).mean():5.2f} %  median {100 * np.median(np.abs(errors)):5.2f} %"


def figures() -> dict[str, Any]:
    """The errors that the targets speak of, as fractions."""
    _, time_frac, memory_frac = opt350_errors()
    runs = a100_runs()
    several = several_R(runs)
    error_frac_R = cross_validate(runs, A100, seed=0).error_frac_R
    return {
        "gh200_step_time_frac": float(np.abs(time_frac).mean()),
        "gh200_memory_frac": float(np.abs(memory_frac).mean()),
        "gh200_memory_under_frac": float(-memory_frac.min()),
        "a100_one_host_frac": float(np.abs(error_frac_R[~several]).mean()),
        "a100_many_hosts_frac": float(np.abs(error_frac_R[several]).mean()),
        "a100_many_hosts_interval_frac": [float(x) for x in bootstrap_interval(error_frac_R[several])],
        "num_many_hosts_runs": int(several.sum()),
    }


def print_gh200() -> None:
    """Table of the 15 plans, and what other declared facts would give."""
    predictions, time_frac, memory_frac = opt350_errors()
    print("GH200, OPT-350, 15 plans, nothing fitted on them")
    print(f"{'plan':26}{'step s':>9}{'measured':>10}{'error':>8}{'peak GB':>10}{'measured':>10}{'error':>8}")
    for (name, _, s, b), p, t, m in zip(opt350_plans(), predictions, time_frac, memory_frac, strict=True):
        gigabytes = f"{p.peak_bytes / 1e9:10.2f}{b / 1e9:10.2f}{100 * m:+7.1f}%"
        print(f"{name:26}{p.iteration_s:9.4f}{s:10.4f}{100 * t:+7.1f}%{gigabytes}")
    print(f"step time    {percent(time_frac)}")
    print(f"peak memory  {percent(memory_frac)}  largest under-estimate {100 * -memory_frac.min():.2f} %")
    others = {
        "borders scattered and gathered": replace(GH200_FACTS, scatter_border=True),
        "optimiser called once per layer": replace(GH200_FACTS, fused_update=False),
        "overhead 4.5 GB": replace(GH200_FACTS, overhead_bytes=4.5e9),
        "overhead 5.5 GB": replace(GH200_FACTS, overhead_bytes=5.5e9),
    }
    for label, facts in others.items():
        _, time_frac, memory_frac = opt350_errors(facts)
        low = 100 * -memory_frac.min()
        time_mean, memory_mean = 100 * np.abs(time_frac).mean(), 100 * np.abs(memory_frac).mean()
        means = f"{time_mean:5.2f} % step time, {memory_mean:5.2f} % memory"
        print(f"  with {label:32} {means}, largest under-estimate {low:.2f} %")


def print_a100(num_seeds: int = 10) -> None:
    """Cross-validated errors of the calibrated model."""
    runs = a100_runs()
    several = several_R(runs)
    num_shapes = len({run.shape for run in runs})
    print(f"\nA100, {len(runs)} iterations, {num_shapes} model shapes, five folds by shape")
    first = cross_validate(runs, A100, seed=0).error_frac_R
    for label, part in (("one host  ", ~several), ("many hosts", several)):
        low, high = bootstrap_interval(first[part])
        interval = f"95 % interval of the mean {100 * low:.1f} .. {100 * high:.1f} %"
        print(f"{label} ({part.sum():3d} runs)  {percent(first[part])}  {interval}")
    means = []
    for seed in range(num_seeds):
        errors = cross_validate(runs, A100, seed=seed).error_frac_R
        means.append((np.abs(errors[~several]).mean(), np.abs(errors[several]).mean()))
    spread = np.array(means) * 100
    for label, column in (("one host  ", 0), ("many hosts", 1)):
        values = spread[:, column]
        extremes = f"{values.min():.2f} .. {values.max():.2f}"
        print(f"{label} over {num_seeds} fold assignments: {values.mean():.2f} % ({extremes})")
    print("folds of seed 0:")
    fold_R = shape_folds(runs, seed=0)
    for shape in sorted({run.shape for run in runs}):
        held = np.array([run.shape == shape for run in runs])
        fold = fold_R[int(np.flatnonzero(held)[0])]
        shown = "hidden {} heads {} layers {} tokens {}".format(*shape)
        print(f"  fold {fold}  {shown:44}{held.sum():4d} runs  {percent(first[held])}")
    print("runs across hosts, predicted by a fit that saw no run of the same shape:")
    for run, error in zip(runs, first, strict=True):
        if run.num_devices > A100.devices_per_host:
            degrees = f"tp {run.tp} dp {run.dp:2d} pp {run.pp:2d} micro-batch {run.micro_batch_size:2d}"
            print(f"  hidden {run.hidden:5d} {degrees}  {run.iteration_s:7.3f} s  {100 * error:+6.1f} %")
    one_host = [run for run in runs if run.num_devices <= A100.devices_per_host]
    far = [run for run in runs if run.num_devices > A100.devices_per_host]
    errors = fit(one_host, A100).predict_s_R(far) / np.array([run.iteration_s for run in far]) - 1.0
    print(f"many hosts, fitted on one-host runs alone: {percent(errors)}")
    print_coefficients(fit(runs, A100))


def print_coefficients(calibration: Calibration) -> None:
    """The figures of a fit to every run."""
    errors = calibration.predict_s_R(a100_runs()) / np.array([run.iteration_s for run in a100_runs()]) - 1.0
    print(f"fit to all runs: {percent(errors)}")
    for name, value in calibration.coefficients.items():
        print(f"  {name:24}{value:12.4g}")


if __name__ == "__main__":
    print_gh200()
    print_a100()
