"""From measured spans, sizes and links to a profile. No torch here.

Legend of array suffixes: M profiled micro-batch sizes (ascending), L layers of the chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.interface import FloatArray, Origin
from costmodels.measured_profile import (
    DECLARED,
    MEASURED,
    ExecutorFacts,
    LayerSizes,
    LayerTimes,
    LinkCurve,
    Profile,
    ProfiledJob,
    RunFacts,
    repair_times,
)
from costmodels.workload import Job, Workload
from executors.profiling.spans import (
    LayerSeconds,
    LayerSpans,
    by_kind,
    layer_seconds,
    mean_seconds,
    wall_per_cpu,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBytes:
    """Sizes of one layer; activations are of one sequence.

    `activation_bytes` is what backward needs of it, its input included, `working_bytes` what is held beside
    that while it runs forward or backward.
    """

    params: int
    trainable_params: int
    weight_bytes: int
    activation_bytes: float
    input_bytes: float
    output_bytes: float
    working_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMeasurements:
    """What was measured on devices of one type.

    `spans` may hold several ranks and micro-batch sizes. `update_s_per_param` are the CPU seconds of an
    optimiser step for one trained weight.
    """

    spans: Sequence[LayerSpans]
    update_s_per_param: float
    memory_bytes_per_s: float


def build_profile_from_spans(
    workload: Workload,
    devices: Mapping[str, DeviceMeasurements],
    *,
    sizes: Mapping[int, LayerBytes] | None = None,
    outer: Mapping[tuple[str, str], LinkCurve] | None = None,
    inner: Mapping[tuple[str, int], LinkCurve] | None = None,
    executors: Mapping[str, ExecutorFacts] | None = None,
    overhead_bytes: float = 0.0,
    note: str = "",
) -> Profile:
    """The profile of a workload on some device types, at tensor degree 1.

    Layers of one kind get the mean over those of it that were measured, so a run needs not hold the whole
    model. Without `sizes` they are those of the workload, counted and not measured.

    Raises:
        InputError: `profile-incomplete` when a kind of layer or a whole step is missing.
    """
    job = workload.job
    shared = workload.layers[-1]
    origins = {
        "gradient_bytes_per_param": Origin(kind=DECLARED, note="the job's"),
        "optimiser_bytes_per_param": Origin(kind=DECLARED, note="the job's"),
        "update_traffic_bytes_per_param": Origin(kind=DECLARED, note="gradient and states read, written"),
        "overhead_bytes": Origin(kind=MEASURED, note=note),
        "memory_bytes_per_s": Origin(kind=MEASURED, note="copy of a large array"),
        "fused_update": Origin(kind=MEASURED, note="seconds per trained weight"),
    }
    return Profile(
        model_name=workload.model_name,
        times={name: {1: _times(workload, found, note)} for name, found in devices.items()},
        sizes={1: _sizes(workload, sizes)},
        outer=dict(outer or {}),
        inner=dict(inner or {}),
        facts=RunFacts(
            gradient_bytes_per_param=job.gradient_bytes_per_param,
            optimiser_bytes_per_param=job.optimiser_state_bytes_per_param,
            update_traffic_bytes_per_param=_update_bytes(job),
            overhead_bytes=overhead_bytes,
            # A floor under measured seconds: the fastest memory keeps it one.
            memory_bytes_per_s=max(found.memory_bytes_per_s for found in devices.values()),
            fused_update=False,
            tied_bytes=shared.shared_trainable_params * job.gradient_bytes_per_param,
            tied_params=float(shared.shared_params),
            origins=origins,
        ),
        job=ProfiledJob(dtype=job.dtype, sequence_tokens=job.sequence_tokens, adapter_rank=job.adapter_rank),
        executors=dict(executors or {}),
    )


def _update_bytes(job: Job) -> float:
    """Bytes the optimiser moves per trained weight: gradient read, states read and written, weight written.

    An fp32 weight is its own master copy and is read as well; that of a 16-bit one counts with the states.
    """
    num_weights = 1 if job.dtype != "fp32" else 2
    states = 2.0 * job.optimiser_state_bytes_per_param
    return job.gradient_bytes_per_param + states + num_weights * job.weight_bytes_per_param


def _times(workload: Workload, found: DeviceMeasurements, note: str) -> LayerTimes:
    """Seconds of every layer by micro-batch size: the mean over ranks, then over layers of a kind."""
    ratio = wall_per_cpu(found.spans)
    by_size: dict[int, list[LayerSeconds]] = defaultdict(list)
    for spans in found.spans:
        by_size[spans.micro_batch_size].append(layer_seconds(spans))
    sizes = tuple(sorted(by_size))
    means = [mean_seconds(by_size[size]) for size in sizes]
    trained_L = np.array([float(layer.trainable_params) for layer in workload.layers])

    def table_ML(name: str) -> FloatArray:
        return ratio * np.array([by_kind(getattr(each, name), workload) for each in means])

    return repair_times(
        LayerTimes(
            micro_batch_sizes=sizes,
            forward_s_ML=table_ML("forward_s"),
            backward_s_ML=table_ML("backward_s"),
            update_s_ML=np.tile(ratio * trained_L * found.update_s_per_param, (len(sizes), 1)),
            origin=Origin(kind=MEASURED, note=f"{note}; {ratio:.2f} wall seconds per CPU second"),
        )
    )


def _sizes(workload: Workload, sizes: Mapping[int, LayerBytes] | None) -> LayerSizes:
    if sizes is None:
        tokens = workload.job.sequence_tokens
        layers = workload.layers
        params_L = np.array([float(layer.params) for layer in layers])
        return LayerSizes(
            params_L=params_L,
            weight_bytes_L=params_L * workload.job.weight_bytes_per_param,
            activation_bytes_L=tokens * np.array([layer.activation_bytes_per_token for layer in layers]),
            input_bytes_L=tokens * np.array([layer.input_bytes_per_token for layer in layers]),
            output_bytes_L=tokens * np.array([layer.output_bytes_per_token for layer in layers]),
            trainable_params_L=np.array([float(layer.trainable_params) for layer in layers]),
            working_bytes_L=tokens
            * np.array(
                [layer.activation_bytes_per_token + layer.transient_bytes_per_token for layer in layers]
            ),
        )

    def column(name: str) -> FloatArray:
        return np.array(by_kind({i: float(getattr(one, name)) for i, one in sizes.items()}, workload))

    return LayerSizes(
        params_L=column("params"),
        weight_bytes_L=column("weight_bytes"),
        activation_bytes_L=column("activation_bytes"),
        input_bytes_L=column("input_bytes"),
        output_bytes_L=column("output_bytes"),
        trainable_params_L=column("trainable_params"),
        working_bytes_L=column("working_bytes"),
    )
