"""The analytic cost model on random chains, clusters and strategies: against its manual and itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from costcases import (
    PLAIN,
    Untabulated,
    all_intervals,
    cluster_of,
    plain_cost,
)
from costmodels.analytic import AnalyticCostModel
from costmodels.interface import (
    Cluster,
    StageCost,
    Strategy,
    tabulate,
)
from costmodels.workload import Job, LayerSpec, Workload

# Small powers of two keep ties exact on both sides.

COUNTS = st.sampled_from([0, 1, 2, 4, 8, 64, 100])


@st.composite
def layer_specs(draw: st.DrawFn) -> LayerSpec:
    params = draw(st.sampled_from([0, 1, 64, 500, 4096]))
    kept = draw(COUNTS)
    return LayerSpec(
        kind=draw(st.sampled_from(["a", "b"])),
        params=params,
        trainable_params=draw(st.sampled_from([0, params // 2, params])),
        forward_flops_per_token=float(draw(st.sampled_from([0, 16, 2 * params, 4 * params]))),
        activation_bytes_per_token=kept + float(draw(COUNTS)),
        input_bytes_per_token=float(kept),
        output_bytes_per_token=float(draw(COUNTS)),
        transient_bytes_per_token=float(draw(COUNTS)),
        num_collectives=draw(st.integers(0, 2)),
        tensor_parallel_max=draw(st.sampled_from([1, 2, 64, 64, 64])),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    kinds = draw(st.lists(layer_specs(), min_size=1, max_size=3))
    layers = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=7))
    if len(layers) > 1 and draw(st.booleans()):
        most = min(layers[-1].params, layers[0].params)
        layers[-1] = replace(layers[-1], tied_to=0, shared_params=draw(st.integers(0, most)))
    job = Job(
        sequence_tokens=draw(st.sampled_from([1, 4, 32])),
        recompute=draw(st.sampled_from([True, True, False])),
        gradient_bytes_per_param=draw(st.sampled_from([2.0, 4.0])),
        optimiser_state_bytes_per_param=draw(st.sampled_from([8.0, 12.0])),
    )
    return Workload(model_name="m", layers=tuple(layers), job=job)


@st.composite
def cases(draw: st.DrawFn) -> tuple[AnalyticCostModel, Cluster, Strategy, int, int]:
    workload = draw(workloads())
    model = AnalyticCostModel(
        workload,
        hidden_frac=draw(st.sampled_from([0.0, 0.5])),
        fragmentation_frac=draw(st.sampled_from([0.0, 0.03])),
        sync_layer=draw(st.booleans()),
    )
    dp, tp = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 4)]))
    strategy = Strategy(dp=dp, tp=tp, zero=draw(st.integers(0, 3)) if dp > 1 else 0)
    size, in_flight = draw(st.integers(dp, 6)) if draw(st.integers(0, 9)) else 1, draw(st.integers(1, 5))
    types = [
        replace(
            PLAIN,
            memory_bytes=1e12,
            flop_per_s=(("bf16", draw(st.sampled_from([2.0**16, 2.0**17, 2.0**20]))),),
            memory_bytes_per_s=draw(st.sampled_from([2.0**14, 2.0**20])),
        )
        for _ in range(draw(st.integers(1, 3)) if tp == 1 else 1)
    ]
    type_i_D = [draw(st.integers(0, len(types) - 1)) for _ in range(dp * tp)]
    # Memory around what the whole chain needs, so that some stages fit, some recompute, some never fit.
    whole = model.stage(
        cluster_of(*(types[i] for i in type_i_D)), (0, workload.num_layers), strategy, size, in_flight
    )
    for i in range(len(types)):
        used = (
            [sum(kinds.values()) for kinds, at in zip(whole.memory_bytes, type_i_D, strict=True) if at == i]
            if whole
            else []
        )
        part = draw(st.sampled_from([0.2, 0.5, 0.7, 0.9, 1.0, 1.2]))
        types[i] = replace(types[i], memory_bytes=max(used, default=1e4) * part / 0.94)
    return model, cluster_of(*(types[i] for i in type_i_D)), strategy, size, in_flight


@given(cases(), st.data())
def test_a_stage_costs_what_the_manual_says(
    case: tuple[AnalyticCostModel, Cluster, Strategy, int, int], data: st.DataObject
) -> None:
    model, cluster, strategy, size, in_flight = case
    interval = data.draw(st.sampled_from(all_intervals(model.workload)))
    got = model.stage(cluster, interval, strategy, size, in_flight)
    want = plain_cost(model, cluster, interval, strategy, size, in_flight)
    if want is None:
        assert got is None
        return
    assert got is not None
    assert got.shares == want.shares
    assert got.recompute_layers == want.recompute_layers
    assert got.limit_bytes == want.limit_bytes
    assert [dict(kinds) for kinds in got.memory_bytes] == [dict(kinds) for kinds in want.memory_bytes]
    for name in ("forward_s", "backward_s", "exposed_s", "sync_s"):
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-9, abs=1e-12), name


@given(cases())
def test_the_table_equals_the_stages_bit_for_bit(
    case: tuple[AnalyticCostModel, Cluster, Strategy, int, int],
) -> None:
    model, cluster, strategy, size, in_flight = case
    intervals = all_intervals(model.workload)
    table = model.stage_table(cluster, intervals, strategy, size, in_flight)
    # `tabulate` asks call by call when it sees no table.
    slow = tabulate(Untabulated(model), cluster, intervals, strategy, size, in_flight)
    assert np.array_equal(table.busy_s_KQ, slow.busy_s_KQ)
    assert np.array_equal(table.sync_s_KQ, slow.sync_s_KQ)


@given(cases())
def test_equal_keys_mean_equal_costs(case: tuple[AnalyticCostModel, Cluster, Strategy, int, int]) -> None:
    model, cluster, strategy, size, in_flight = case
    first: dict[object, StageCost | None] = {}
    for interval in all_intervals(model.workload):
        cost = model.stage(cluster, interval, strategy, size, in_flight)
        assert first.setdefault(model.interval_key(interval), cost) == cost


@given(cases())
def test_more_in_flight_is_never_faster_and_never_fits_again(
    case: tuple[AnalyticCostModel, Cluster, Strategy, int, int],
) -> None:
    model, cluster, strategy, size, _ = case
    busy_KQ = model.stage_table(cluster, all_intervals(model.workload), strategy, size, 6).busy_s_KQ
    # ZeRO traffic hides under recomputation, so a stage doesn't get faster by more of it only without hiding.
    assume(model.settings.hidden_frac == 0.0 or strategy.zero < 2)
    for fewer, more in pairwise(busy_KQ.T):
        assert (fewer <= more).all()
