"""Iteration time of a transformer under pipeline, data and tensor parallelism, as a function of coefficients.

The structure is physics; `costmodels.calibrate` fits the coefficients to whole iterations, starting from the
platform's data sheet. Every formula and its source: docs/measured.md.
Legend of array suffixes: R runs, C coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from costmodels.interface import FloatArray
from policies.errors import Fault, InputError

HALF_BYTES = 2.0
MAX_NORM = 8.0
FUSED_SOFTMAX_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One measured, or wanted, training iteration of a GPT-like model; `iteration_s` is 0 where unknown.

    `recompute`: every layer keeps its input alone and runs forward again before backward.
    """

    name: str
    num_devices: int
    global_batch: int
    micro_batch_size: int
    hidden: int
    heads: int
    layers: int
    sequence_tokens: int
    tp: int
    dp: int
    pp: int
    recompute: bool = False
    iteration_s: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What makes two runs the same model: hidden width, heads, layers and sequence length."""
        return (self.hidden, self.heads, self.layers, self.sequence_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Data-sheet figures; `inner` links inside a host, `outer` per device between hosts, each one way."""

    name: str
    peak_flop_per_s: float
    memory_bytes_per_s: float
    inner_bytes_per_s: float
    outer_bytes_per_s: float
    devices_per_host: int
    vocabulary: int = 51200


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One fitted positive figure: where the fit starts, and how far (in natural log) it may easily move."""

    name: str
    start: Callable[[Platform], float]
    spread: float
    meaning: str


def _coefficient(name: str, start: Callable[[Platform], float], spread: float, meaning: str) -> Coefficient:
    return Coefficient(name=name, start=start, spread=spread, meaning=meaning)


COEFFICIENTS: tuple[Coefficient, ...] = (
    _coefficient("gemm_flop_per_s", lambda p: 0.7 * p.peak_flop_per_s, 0.3, "wide matrix products"),
    _coefficient("gemm_fixed_flops", lambda _: 1e11, 1.0, "work lost per layer and pass"),
    _coefficient("narrow_hidden", lambda _: 200.0, 1.0, "hidden width that halves the product rate"),
    _coefficient("attention_flop_per_s", lambda p: 0.32 * p.peak_flop_per_s, 0.7, "attention products"),
    _coefficient("memory_bytes_per_s", lambda p: 0.5 * p.memory_bytes_per_s, 0.5, "elementwise kernels"),
    _coefficient("launch_s", lambda _: 3e-3, 1.0, "host time per layer, forward and backward"),
    _coefficient("unfused_frac", lambda _: 0.4, 1.0, "extra host time of an unfused softmax"),
    _coefficient("tensor_bytes_per_s", lambda p: 0.77 * p.inner_bytes_per_s, 0.3, "tensor all-reduce"),
    _coefficient("tensor_latency_s", lambda _: 3e-5, 1.0, "per tensor all-reduce and doubling"),
    _coefficient("border_bytes_per_s", lambda p: p.inner_bytes_per_s / 3, 0.7, "stage to stage in a host"),
    _coefficient("border_latency_s", lambda _: 2e-4, 1.0, "per stage-to-stage message"),
    _coefficient("data_bytes_per_s", lambda p: 0.67 * p.inner_bytes_per_s, 0.5, "gradients in a host"),
    _coefficient("update_bytes_per_s", lambda p: 0.6 * p.memory_bytes_per_s, 0.7, "optimiser"),
    _coefficient("fixed_s", lambda _: 5e-3, 1.0, "per iteration"),
    _coefficient("outer_bytes_per_s", lambda p: 0.8 * p.outer_bytes_per_s, 0.5, "traffic between hosts"),
)
NAMES = tuple(coefficient.name for coefficient in COEFFICIENTS)


def start_C(platform: Platform) -> FloatArray:
    """Natural logs of the coefficients before any measurement is seen."""
    return np.log([coefficient.start(platform) for coefficient in COEFFICIENTS])


def spread_C() -> FloatArray:
    """Standard deviations of the same logs."""
    return np.array([coefficient.spread for coefficient in COEFFICIENTS])


def columns(runs: Sequence[TrainingRun]) -> dict[str, FloatArray]:
    """The runs as one array per field.

    Raises:
        InputError: `run-impossible` listing every run whose degrees or batch sizes don't fit together.
    """
    faults = [fault for run in runs for fault in run_faults(run)]
    if faults:
        message = f"{len(faults)} faults in the sizes of the runs"
        raise InputError("run-impossible", message, faults=faults, hint="correct the named runs")
    names = [field.name for field in fields(TrainingRun) if field.name != "name"]
    return {name: np.array([getattr(run, name) for run in runs], dtype=np.float64) for name in names}


def run_faults(run: TrainingRun) -> list[Fault]:
    """What is wrong with one run, each with its limit."""
    sizes = (*run.shape, run.tp, run.dp, run.pp, run.micro_batch_size, run.global_batch)
    if min(sizes) < 1:
        return [Fault(place=run.name, value=f"sizes {sizes}", limit=">= 1")]
    degrees, share = run.tp * run.dp * run.pp, run.micro_batch_size * run.dp
    checks = (
        (degrees == run.num_devices, f"tp*dp*pp = {degrees}", f"num_devices = {run.num_devices}"),
        (run.layers % run.pp == 0, f"{run.layers} layers in {run.pp} stages", "equal stages"),
        (run.heads % run.tp == 0, f"{run.heads} heads over {run.tp} devices", "whole heads"),
        (run.global_batch % share == 0, f"global batch {run.global_batch}", f"a multiple of {share}"),
    )
    return [Fault(place=run.name, value=value, limit=limit) for good, value, limit in checks if not good]


def layer_s(value: Mapping[str, float], run: Mapping[str, FloatArray], platform: Platform) -> FloatArray:
    """Seconds of one layer and micro-batch, forward and backward (and forward again under recomputation).

    Per device: (GPU^8 + host^8)^(1/8), a smooth maximum: kernels wait for their launches, or launches queue.
    GPU = passes (24 t h^2 / tp (1 + h0 / h) + W) / F + passes 4 t s h / (tp A)  Narayanan et al. 2021
        + sweeps (20 t h + 48 t h / tp + 10 a s t / tp) / M                      Korthikanti et al. 2022
        + reductions (2 (tp - 1) / tp 2 t h / N + latency log2 tp)               Shoeybi et al. 2019
    with t tokens, h hidden, s sequence, a heads; passes 3 or 4, sweeps 2 or 3, reductions 4 or 6.
    Megatron fuses mask and softmax only for a multiple of four attention matrices; else it launches more.
    """
    tokens = run["micro_batch_size"] * run["sequence_tokens"]
    hidden, tp, again = run["hidden"], run["tp"], run["recompute"]
    passes, sweeps, reductions = 3.0 + again, 2.0 + again, 4.0 + 2.0 * again
    gemm_flops = 24.0 * tokens * hidden**2 / tp * (1.0 + value["narrow_hidden"] / hidden)
    gemm_flops = gemm_flops + value["gemm_fixed_flops"]
    attention_flops = 4.0 * tokens * run["sequence_tokens"] * hidden / tp
    scores = run["heads"] * run["sequence_tokens"] * tokens / tp
    swept_bytes = 20.0 * tokens * hidden + 48.0 * tokens * hidden / tp + 10.0 * scores
    inside = np.where(tp > platform.devices_per_host, value["outer_bytes_per_s"], value["tensor_bytes_per_s"])
    reduce_s = 2.0 * (tp - 1.0) / tp * HALF_BYTES * tokens * hidden / inside
    reduce_s = reduce_s + value["tensor_latency_s"] * np.log2(tp)
    gpu_s = (
        passes * gemm_flops / value["gemm_flop_per_s"]
        + passes * attention_flops / value["attention_flop_per_s"]
        + sweeps * swept_bytes / value["memory_bytes_per_s"]
        + reductions * reduce_s
    )
    fused = (run["heads"] / tp * run["micro_batch_size"]) % FUSED_SOFTMAX_BATCHES == 0
    host_s = value["launch_s"] * passes / 3.0 * np.where(fused, 1.0, 1.0 + value["unfused_frac"])
    seconds: FloatArray = (gpu_s**MAX_NORM + host_s**MAX_NORM) ** (1.0 / MAX_NORM)
    return seconds


def iteration_s_R(theta_C: FloatArray, run: Mapping[str, FloatArray], platform: Platform) -> FloatArray:
    """Seconds of one iteration of every run.

    T = (B - 1) max(middle, last) + (pp - 1) middle + last + gradient ring + optimiser + fixed, where a middle
    stage pays its layers and both borders, the last one its layers, one border and the loss head.
    """
    value = dict(zip(NAMES, np.exp(theta_C), strict=True))
    tokens = run["micro_batch_size"] * run["sequence_tokens"]
    hidden, tp, dp, pp = run["hidden"], run["tp"], run["dp"], run["pp"]
    count = run["global_batch"] / (run["micro_batch_size"] * dp)
    spans_hosts = run["num_devices"] > platform.devices_per_host
    layers_s = layer_s(value, run, platform) * run["layers"] / pp
    head_s = 6.0 * tokens * hidden * platform.vocabulary / tp / value["gemm_flop_per_s"]
    head_s = head_s + 18.0 * tokens * platform.vocabulary / tp / value["memory_bytes_per_s"]
    border_rate = np.where(spans_hosts, value["outer_bytes_per_s"], value["border_bytes_per_s"])
    both_ways_s = 2.0 * (HALF_BYTES * tokens * hidden / border_rate + value["border_latency_s"])
    border_s = np.where(pp > 1, both_ways_s, 0.0)
    middle_s, last_s = layers_s + 2.0 * border_s, layers_s + border_s + head_s
    params = 12.0 * hidden**2 * run["layers"] / pp / tp + platform.vocabulary * hidden / tp
    data_rate = np.where(spans_hosts, value["outer_bytes_per_s"], value["data_bytes_per_s"])
    sync_s = 2.0 * (dp - 1.0) / dp * HALF_BYTES * params / data_rate
    update_s = 30.0 * params / value["update_bytes_per_s"]
    pipeline_s = (count - 1.0) * np.maximum(middle_s, last_s) + (pp - 1.0) * middle_s + last_s
    seconds: FloatArray = pipeline_s + sync_s + update_s + value["fixed_s"]
    return seconds
