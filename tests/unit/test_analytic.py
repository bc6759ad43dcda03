"""The analytic cost model against its manual, said again in plain Python, layer by layer."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from math import ceil, floor, inf

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from costmodels.analytic import AnalyticCostModel
from costmodels.fleet import Device, Link, Site
from costmodels.interface import (
    Cluster,
    CostModel,
    Interval,
    StageCost,
    Strategy,
    TabulatedCostModel,
    tabulate,
)
from costmodels.settings import AnalyticSettings
from costmodels.workload import ROUND_ROBIN, Job, LayerSpec, Workload
from policies.errors import InputError

BLOCK = LayerSpec(
    kind="block",
    params=1000,
    trainable_params=1000,
    forward_flops_per_token=2400.0,
    activation_bytes_per_token=340.0,
    input_bytes_per_token=20.0,
    output_bytes_per_token=20.0,
)
EMBEDDING = replace(
    BLOCK,
    kind="embedding",
    params=5000,
    trainable_params=5000,
    forward_flops_per_token=0.0,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=8.0,
    num_collectives=1,
)
HEAD = replace(
    BLOCK,
    kind="head",
    params=5010,
    trainable_params=5010,
    forward_flops_per_token=10000.0,
    activation_bytes_per_token=40.0,
    output_bytes_per_token=0.0,
    transient_bytes_per_token=600.0,
    num_collectives=1,
)
JOB = Job(sequence_tokens=8, micro_batch_sizes=(1, 2, 4))
CHAIN = Workload(model_name="chain", layers=(EMBEDDING, *(BLOCK,) * 6, HEAD), job=JOB)
TIED = replace(
    CHAIN, layers=(EMBEDDING, *(BLOCK,) * 6, replace(HEAD, params=5000, trainable_params=5000, tied_to=0))
)

PLAIN = Device(
    device_id="d",
    host_id="h",
    type_name="t",
    memory_bytes=1e6,
    flop_per_s=(("bf16", 1e6),),
    memory_bytes_per_s=1e6,
    tier_i=0,
)
SITE = Site(site_id="s", boundary_id="b", fabric_bytes_per_s=5e4, fabric_latency_s=1e-3)


def cluster_of(*devices: Device, site: Site = SITE) -> Cluster:
    return Cluster(
        site=site,
        devices=devices,
        inner_bytes_per_s=1e5,
        inner_latency_s=2e-4,
        tp_bytes_per_s=1e6,
        tp_latency_s=1e-5,
    )


ONE = cluster_of(PLAIN)
PAIR = cluster_of(PLAIN, PLAIN)
FOUR = cluster_of(*(PLAIN,) * 4)


# The manual, said again without arrays, kinds or closed forms.


def reference(
    model: AnalyticCostModel,
    cluster: Cluster,
    interval: Interval,
    strategy: Strategy,
    size: int,
    in_flight: int,
) -> StageCost | None:
    workload, job, settings = model.workload, model.workload.job, model.settings
    layers = workload.layers[interval[0] : interval[1]]
    dp, tp, zero = strategy.dp, strategy.tp, strategy.zero
    figures = {(d.rate_flop_per_s(job.dtype), d.memory_bytes_per_s, d.memory_bytes) for d in cluster.devices}
    if dp * tp != len(cluster.devices) or size < dp or (dp == 1 and zero) or (tp > 1 and len(figures) > 1):
        return None
    if any(layer.tensor_parallel_max < tp for layer in layers):
        return None
    tokens, width = job.sequence_tokens, job.weight_bytes_per_param
    ranks = cluster.devices[::tp]

    def forward_s(layer: LayerSpec, device: Device, share: int) -> float:
        flops = layer.forward_flops_per_token * tokens * share
        moved = width * min(layer.params, flops / 2) / tp + layer.output_bytes_per_token * tokens * share
        return max(flops / tp / device.rate_flop_per_s(job.dtype), moved / device.memory_bytes_per_s)

    def ratio(layer: LayerSpec) -> float:
        return 1 + (layer.trainable_params / layer.params if layer.params else 0)

    def rank_s(rank: int, share: int) -> float:
        return sum(forward_s(layer, ranks[rank], share) * (1 + ratio(layer)) for layer in layers)

    shares = [1] * dp
    for _ in range(size - dp):
        first = min(range(dp), key=lambda r: (rank_s(r, shares[r] + 1), shares[r], r))
        shares[first] += 1

    # State, with weights shared inside the stage counted once.
    inside = [layer.tied_to is not None and interval[0] <= layer.tied_to < interval[1] for layer in layers]
    params = sum(layer.params for layer, again in zip(layers, inside, strict=True) if not again)
    trained = sum(layer.trainable_params for layer, again in zip(layers, inside, strict=True) if not again)
    state = {
        "weights": ceil(params * width / (tp * (dp if zero >= 3 else 1))),
        "gradients": ceil(trained * job.gradient_bytes_per_param / (tp * (dp if zero >= 2 else 1))),
        "optimiser": ceil(trained * job.optimiser_state_bytes_per_param / (tp * (dp if zero >= 1 else 1))),
        "sync": ceil(trained * job.sync_copies_bytes_per_param / (tp * (dp if zero >= 1 else 1)))
        if model.sync_layer
        else 0,
    }

    def kept(layer: LayerSpec) -> int:
        whole = min(
            layer.activation_bytes_per_token, settings.replicated_inputs * layer.input_bytes_per_token
        )
        return ceil((whole + (layer.activation_bytes_per_token - whole) / tp) * tokens)

    def saved(layer: LayerSpec) -> int:
        return kept(layer) - ceil(layer.input_bytes_per_token * tokens)

    def worth(layer: LayerSpec) -> float:
        gain = layer.activation_bytes_per_token - layer.input_bytes_per_token
        return gain / layer.forward_flops_per_token if layer.forward_flops_per_token else inf

    plain = [replace(layer, kind="") for layer in workload.layers]
    order = sorted(
        (i for i, layer in enumerate(layers) if job.recompute and saved(layer) > 0 and worth(layer) > 0),
        key=lambda i: (-worth(layers[i]), plain.index(replace(layers[i], kind="")), i),
    )

    def memory(share: int, again: list[int]) -> dict[str, float]:
        passing = []
        for i, layer in enumerate(layers):
            gathered = ceil(layer.params * width / tp * ((dp - 1) / dp)) if zero == 3 else 0
            held = ceil(layer.transient_bytes_per_token * tokens / tp) + (saved(layer) if i in again else 0)
            passing.append(share * held + gathered)
        kinds: dict[str, float] = {
            **state,
            "activations": in_flight
            * share
            * (sum(kept(layer) for layer in layers) - sum(saved(layers[i]) for i in again)),
            "transient": max(passing),
        }
        return kinds | {"fragmentation": ceil(settings.fragmentation_frac * sum(kinds.values()))}

    limits = [floor(d.memory_bytes * (1 - settings.memory_reserve_frac)) for d in cluster.devices]
    again = order
    for count in range(len(order) + 1):
        used = [sum(memory(shares[i // tp], order[:count]).values()) for i in range(len(limits))]
        if all(need <= limit for need, limit in zip(used, limits, strict=True)):
            again = order[:count]
            break

    both_ways = [
        (
            sum(forward_s(layer, ranks[r], shares[r]) for layer in layers),
            sum(forward_s(layer, ranks[r], shares[r]) * ratio(layer) for layer in layers)
            + sum(forward_s(layers[i], ranks[r], shares[r]) for i in again),
        )
        for r in range(dp)
    ]
    forward, backward = max(f for f, _ in both_ways), max(b for _, b in both_ways)

    def ring_s(payload: float, ranks: int) -> float:
        waits = (ranks - 1) * cluster.inner_latency_s
        return (ranks - 1) / ranks * payload / cluster.inner_bytes_per_s + waits

    exposed = 0.0
    for i, layer in enumerate(layers):
        payload = (layer.output_bytes_per_token or layer.input_bytes_per_token) * tokens * max(shares)
        one = 2 * ((tp - 1) / tp * payload / cluster.tp_bytes_per_s + (tp - 1) * cluster.tp_latency_s)
        exposed += (2 + (i in again)) * layer.num_collectives * one
    gradient_bytes = trained * job.gradient_bytes_per_param
    if zero >= 2:
        sent = gradient_bytes + (2 * params * width if zero == 3 else 0)
        waits = (3 if zero == 3 else 1) * len(layers) - 1
        traffic = ring_s(sent, dp) + waits * (dp - 1) * cluster.inner_latency_s
        exposed += max(0.0, traffic - settings.hidden_frac * (forward + backward))

    sync = 0.0
    if trained:
        if dp > 1:
            sync += {0: 2 * ring_s(gradient_bytes, dp), 1: ring_s(gradient_bytes, dp)}.get(zero, 0.0)
            sync += ring_s(trained * width, dp) if zero in (1, 2) else 0.0
        for i, layer in enumerate(workload.layers):
            if layer.tied_to is not None and layer.trainable_params:
                ends = [interval[0] <= at < interval[1] for at in (i, layer.tied_to)]
                if any(ends) and not all(ends):
                    sent = layer.trainable_params * job.gradient_bytes_per_param
                    sync += sent / cluster.site.fabric_bytes_per_s + 2 * cluster.site.fabric_latency_s
        touched = (
            job.gradient_bytes_per_param
            + 2 * job.optimiser_state_bytes_per_param
            + job.weight_bytes_per_param
        )
        own = trained / (tp * (dp if zero else 1))
        sync += own * touched / min(d.memory_bytes_per_s for d in cluster.devices)
    return StageCost(
        forward_s=forward,
        backward_s=backward,
        exposed_s=exposed,
        sync_s=sync,
        shares=tuple(shares),
        memory_bytes=tuple(memory(shares[i // tp], again) for i in range(len(limits))),
        limit_bytes=tuple(float(limit) for limit in limits),
        recompute_layers=len(again),
    )


# Random chains, clusters and strategies. Small powers of two keep ties exact on both sides.

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
        layers[-1] = replace(
            layers[-1], params=layers[0].params, trainable_params=layers[0].trainable_params, tied_to=0
        )
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


def all_intervals(workload: Workload) -> tuple[Interval, ...]:
    stops = range(1, workload.num_layers + 1)
    return tuple((a, b) for b in stops for a in range(b))


@given(cases(), st.data())
def test_a_stage_costs_what_the_manual_says(
    case: tuple[AnalyticCostModel, Cluster, Strategy, int, int], data: st.DataObject
) -> None:
    model, cluster, strategy, size, in_flight = case
    interval = data.draw(st.sampled_from(all_intervals(model.workload)))
    got = model.stage(cluster, interval, strategy, size, in_flight)
    want = reference(model, cluster, interval, strategy, size, in_flight)
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
    # `tabulate` asks call by call when it sees no table; see the class below.
    slow = tabulate(Untabulated(model), cluster, intervals, strategy, size, in_flight)
    assert np.array_equal(table.busy_s_KQ, slow.busy_s_KQ)
    assert np.array_equal(table.sync_s_KQ, slow.sync_s_KQ)


class Untabulated:
    """The same cost model without its table."""

    name = "untabulated"

    def __init__(self, model: AnalyticCostModel) -> None:
        self.stage = model.stage
        self.transfer_s = model.transfer_s
        self.interval_key = model.interval_key


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


# By hand.


def test_one_device_by_hand() -> None:
    cost = AnalyticCostModel(CHAIN).stage(ONE, (1, 3), Strategy(), 2, 3)
    assert cost is not None
    # Two blocks, 16 tokens each: 2400 × 16 operations at 1 MFLOP/s; 2000 bytes of weights are read sooner.
    assert cost.forward_s == pytest.approx(2 * 2400 * 16 / 1e6)
    assert cost.backward_s == pytest.approx(2 * cost.forward_s)
    assert cost.exposed_s == 0.0
    # Read gradient, read and write 12 bytes of state, write the weight.
    assert cost.sync_s == pytest.approx(2000 * (2 + 24 + 2) / 1e6)
    assert dict(cost.memory_bytes[0]) == {
        "weights": 4000,
        "gradients": 4000,
        "optimiser": 24000,
        "activations": 3 * 2 * 2 * 340 * 8,
        "transient": 0,
        "sync": 0,
        "fragmentation": ceil(0.03 * (32000 + 32640)),
    }
    assert cost.limit_bytes == (940000.0,)
    assert cost.shares == (2,)
    assert cost.recompute_layers == 0


def test_recomputation_starts_when_memory_is_short_and_adds_one_forward_each() -> None:
    model = AnalyticCostModel(CHAIN, fragmentation_frac=0.0, memory_reserve_frac=0.0)
    # State 16 × 6000 = 96000. One in flight keeps 6 × 2720; a recomputed block frees 2560, held in passing.
    roomy = model.stage(cluster_of(replace(PLAIN, memory_bytes=96000 + 4 * 16320)), (1, 7), Strategy(), 1, 4)
    assert roomy is not None
    assert roomy.recompute_layers == 0
    tight = model.stage(
        cluster_of(replace(PLAIN, memory_bytes=96000 + 4 * 16320 - 1)), (1, 7), Strategy(), 1, 4
    )
    assert tight is not None
    assert tight.fits
    assert tight.recompute_layers == 1
    assert tight.memory_bytes[0]["transient"] == 2560
    assert tight.backward_s == pytest.approx(roomy.backward_s + 2400 * 8 / 1e6)


def test_what_saves_most_per_operation_is_recomputed_first() -> None:
    cheap = replace(BLOCK, kind="cheap", forward_flops_per_token=100.0)
    model = AnalyticCostModel(
        replace(CHAIN, layers=(BLOCK, cheap, BLOCK)), fragmentation_frac=0.0, memory_reserve_frac=0.0
    )
    cost = model.stage(
        cluster_of(replace(PLAIN, memory_bytes=48000 + 4 * 8160 - 1)), (0, 3), Strategy(), 1, 4
    )
    assert cost is not None
    assert cost.recompute_layers == 1
    # Reading the weights bounds the cheap layer: 2 × 400 of its 1000 weights, and its output.
    assert cost.backward_s == pytest.approx((2 * 2 * 2400 * 8 + 3 * (2 * 400 + 160)) / 1e6)


def test_nothing_is_recomputed_when_the_job_forbids_it() -> None:
    model = AnalyticCostModel(replace(CHAIN, job=replace(JOB, recompute=False)))
    cost = model.stage(cluster_of(replace(PLAIN, memory_bytes=110000.0)), (1, 7), Strategy(), 1, 4)
    assert cost is not None
    assert not cost.fits
    assert cost.recompute_layers == 0


def test_a_stage_that_fits_nowhere_says_how_much_is_missing() -> None:
    cost = AnalyticCostModel(CHAIN).stage(
        cluster_of(replace(PLAIN, memory_bytes=5e4)), (0, 8), Strategy(), 1, 1
    )
    assert cost is not None
    assert not cost.fits
    assert sum(cost.memory_bytes[0].values()) > cost.limit_bytes[0]
    assert cost.recompute_layers == 7  # the embedding keeps no more than its input


@pytest.mark.parametrize(("zero", "parts"), [(0, (1, 1, 1)), (1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_each_zero_level_cuts_one_more_kind_of_state(zero: int, parts: tuple[int, int, int]) -> None:
    cost = AnalyticCostModel(CHAIN).stage(FOUR, (1, 3), Strategy(dp=4, zero=zero), 4, 1)
    assert cost is not None
    for kinds in cost.memory_bytes:
        state = (kinds["weights"], kinds["gradients"], kinds["optimiser"])
        assert state == tuple(whole / cut for whole, cut in zip((4000, 4000, 24000), parts, strict=True))
        assert kinds["transient"] == (1500 if zero == 3 else 0)


def test_sync_copies_are_held_only_when_something_crosses_a_boundary() -> None:
    for zero, copies in ((0, 24000), (1, 6000)):
        cost = AnalyticCostModel(CHAIN, sync_layer=True).stage(FOUR, (1, 3), Strategy(dp=4, zero=zero), 4, 1)
        assert cost is not None
        assert cost.memory_bytes[0]["sync"] == copies
    plain = AnalyticCostModel(CHAIN).stage(FOUR, (1, 3), Strategy(dp=4), 4, 1)
    assert plain is not None
    assert plain.memory_bytes[0]["sync"] == 0


def test_logits_count_with_their_own_stage_alone() -> None:
    model = AnalyticCostModel(CHAIN)
    with_head, without = (model.stage(ONE, interval, Strategy(), 2, 1) for interval in ((6, 8), (5, 7)))
    assert with_head is not None
    assert without is not None
    assert with_head.memory_bytes[0]["transient"] == 2 * 600 * 8
    assert without.memory_bytes[0]["transient"] == 0


def test_tied_weights_are_held_once_inside_a_stage_and_again_in_another() -> None:
    model = AnalyticCostModel(TIED)
    whole, front, back = (
        model.stage(ONE, interval, Strategy(), 1, 1) for interval in ((0, 8), (0, 4), (4, 8))
    )
    assert whole is not None
    assert front is not None
    assert back is not None
    assert whole.memory_bytes[0]["weights"] == 2 * (5000 + 6000)
    assert front.memory_bytes[0]["weights"] == back.memory_bytes[0]["weights"] == 2 * (5000 + 3000)
    # Each end adds the other's gradient: two ranks, 10000 bytes, over the site's fabric.
    optimiser_s = 28 * 8000 / 1e6
    assert front.sync_s == pytest.approx(10000 / 5e4 + 2e-3 + optimiser_s)
    assert back.sync_s == pytest.approx(front.sync_s)
    assert whole.sync_s == pytest.approx(28 * 11000 / 1e6)
    assert len({model.interval_key(interval) for interval in ((0, 4), (1, 5), (4, 8))}) == 3


def test_tied_weights_apart_need_a_link() -> None:
    lonely = replace(cluster_of(PLAIN, site=replace(SITE, fabric_bytes_per_s=0.0)), inner_bytes_per_s=0.0)
    model = AnalyticCostModel(TIED)
    assert model.stage(lonely, (0, 4), Strategy(), 1, 1) is None
    assert model.stage(lonely, (0, 8), Strategy(), 1, 1) is not None


def test_frozen_weights_cost_neither_gradients_nor_a_second_backward() -> None:
    frozen = replace(BLOCK, trainable_params=10)
    model = AnalyticCostModel(replace(CHAIN, layers=(frozen,) * 4, job=replace(JOB, adapter_rank=8)))
    cost = model.stage(PAIR, (0, 2), Strategy(dp=2, zero=3), 2, 1)
    assert cost is not None
    assert cost.backward_s == pytest.approx(1.01 * cost.forward_s)
    assert cost.memory_bytes[0]["gradients"] == 20
    assert cost.memory_bytes[0]["optimiser"] == 120
    traffic_s = 0.5 * (2 * 4000 + 40) / 1e5 + 3 * 2 * 2e-4
    assert cost.exposed_s == pytest.approx(max(0.0, traffic_s - 0.5 * (cost.forward_s + cost.backward_s)))


def test_unequal_devices_share_by_speed() -> None:
    fast = replace(PLAIN, flop_per_s=(("bf16", 3e6),))
    cost = AnalyticCostModel(CHAIN).stage(cluster_of(PLAIN, fast), (1, 3), Strategy(dp=2), 4, 1)
    assert cost is not None
    assert cost.shares == (1, 3)
    assert cost.memory_bytes[1]["activations"] == 3 * cost.memory_bytes[0]["activations"]
    assert cost.forward_s == pytest.approx(2 * 2400 * 8 / 1e6)


@pytest.mark.parametrize(
    ("memory_bytes", "recomputed"),
    [((1e6, 1e6), 0), ((55e3, 1e6), 1), ((1e6, 45e3), 2), ((55e3, 45e3), 2), ((45e3, 55e3), 2)],
)
def test_the_smaller_memory_of_unequal_devices_decides(
    memory_bytes: tuple[float, float], recomputed: int
) -> None:
    devices = (replace(PLAIN, memory_bytes=each) for each in memory_bytes)
    cost = AnalyticCostModel(CHAIN).stage(cluster_of(*devices), (1, 3), Strategy(dp=2), 4, 2)
    assert cost is not None
    assert cost.fits
    assert cost.recompute_layers == recomputed


@pytest.mark.parametrize(
    ("cluster", "strategy", "size"),
    [
        (PAIR, Strategy(), 1),
        (PAIR, Strategy(dp=2), 1),
        (ONE, Strategy(zero=1), 1),
        (PAIR, Strategy(tp=2, zero=1), 1),
        (PAIR, Strategy(dp=2, zero=4), 2),
        (cluster_of(PLAIN, replace(PLAIN, memory_bytes=2e6)), Strategy(tp=2), 1),
        (cluster_of(replace(PLAIN, flop_per_s=())), Strategy(), 1),
        (replace(PAIR, inner_bytes_per_s=0.0), Strategy(dp=2), 2),
        (replace(PAIR, tp_bytes_per_s=0.0), Strategy(tp=2), 2),
    ],
)
def test_what_no_memory_can_help_is_impossible(cluster: Cluster, strategy: Strategy, size: int) -> None:
    model = AnalyticCostModel(CHAIN)
    assert model.stage(cluster, (1, 3), strategy, size, 1) is None
    table = model.stage_table(cluster, ((1, 3), (2, 5)), strategy, size, 3)
    assert np.isinf(table.busy_s_KQ).all()
    assert not table.sync_s_KQ.any()
    assert table.busy_s_KQ.shape == (2, 3)


def test_a_layer_that_cannot_be_cut_further_stops_tensor_parallelism() -> None:
    narrow = replace(BLOCK, tensor_parallel_max=1)
    model = AnalyticCostModel(replace(CHAIN, layers=(BLOCK, BLOCK, narrow)))
    assert model.stage(PAIR, (0, 2), Strategy(tp=2), 1, 1) is not None
    assert model.stage(PAIR, (1, 3), Strategy(tp=2), 1, 1) is None


@pytest.mark.parametrize("interval", [(0, 0), (3, 2), (-1, 2), (0, 9)])
def test_an_interval_outside_the_chain_is_a_mistake_of_the_caller(interval: Interval) -> None:
    with pytest.raises(ValueError, match="0 <= a < b <= 8"):
        AnalyticCostModel(CHAIN).stage(ONE, interval, Strategy(), 1, 1)


def test_a_transfer_carries_the_activation_and_its_gradient() -> None:
    model = AnalyticCostModel(CHAIN)
    link = Link(source_site_id="s", target_site_id="t", bytes_per_s=1e4, latency_s=0.01)
    assert model.transfer_s(link, 3, 4) == pytest.approx(2 * (20 * 8 * 4 / 1e4 + 0.01))
    assert model.border_key(3) == model.border_key(5)


def test_names_of_kinds_do_not_matter_figures_do() -> None:
    renamed = tuple(replace(layer, kind=f"k{i}") for i, layer in enumerate(CHAIN.layers))
    model = AnalyticCostModel(replace(CHAIN, layers=renamed))
    assert model.interval_key((1, 3)) == model.interval_key((4, 6))
    heavier = (*CHAIN.layers[:3], replace(BLOCK, params=1001), *CHAIN.layers[4:])
    assert AnalyticCostModel(replace(CHAIN, layers=heavier)).interval_key((1, 3)) != AnalyticCostModel(
        replace(CHAIN, layers=heavier)
    ).interval_key((2, 4))


def test_intervals_are_remembered_by_the_object_not_by_a_list_that_may_change() -> None:
    model = AnalyticCostModel(CHAIN)
    changing: list[Interval] = [(1, 3)]
    before = model.stage_table(ONE, changing, Strategy(), 1, 1).busy_s_KQ[0, 0]
    changing[0] = (1, 5)
    after = model.stage_table(ONE, changing, Strategy(), 1, 1).busy_s_KQ[0, 0]
    assert after == pytest.approx(2 * before)


def test_equal_clusters_share_a_table_and_unequal_ones_do_not() -> None:
    model = AnalyticCostModel(CHAIN)
    intervals = all_intervals(CHAIN)
    first = model.stage_table(PAIR, intervals, Strategy(dp=2), 2, 3)
    twin = cluster_of(replace(PLAIN, device_id="x"), PLAIN)
    assert model.stage_table(twin, intervals, Strategy(dp=2), 2, 3) is first
    with pytest.raises(ValueError, match="read-only"):
        first.busy_s_KQ[0, 0] = 0.0
    for changed in (
        replace(PAIR, inner_bytes_per_s=5e4),
        replace(PAIR, inner_latency_s=1.0),
        cluster_of(PLAIN, replace(PLAIN, memory_bytes_per_s=5e5)),
    ):
        other = model.stage_table(changed, intervals, Strategy(dp=2), 2, 3)
        assert not np.array_equal(other.sync_s_KQ, first.sync_s_KQ)


@example(num_tuples=40)
@given(st.integers(1, 30))
def test_remembering_many_interval_tuples_stays_right(num_tuples: int) -> None:
    model = AnalyticCostModel(CHAIN)
    for i in range(num_tuples):
        interval = (1, 2 + i % 6)
        table = model.stage_table(ONE, (interval,), Strategy(), 1, 1)
        cost = model.stage(ONE, interval, Strategy(), 1, 1)
        assert cost is not None
        assert table.busy_s_KQ[0, 0] == cost.busy_s


def test_it_is_a_cost_model_with_a_table() -> None:
    model = AnalyticCostModel(CHAIN)
    assert isinstance(model, CostModel)
    assert isinstance(model, TabulatedCostModel)
    assert not isinstance(Untabulated(model), TabulatedCostModel)
    assert model.name == "analytic"


def test_every_constant_has_an_origin() -> None:
    origins = AnalyticCostModel(CHAIN, hidden_frac=0.2).origins()
    assert {each.name for each in fields(AnalyticSettings)} <= set(origins)
    assert {origin.kind for origin in origins.values()} <= {"measured", "declared", "assumed"}
    assert all(origin.note for origin in origins.values())
    assert origins["hidden_frac"].kind == "declared"
    assert origins["fragmentation_frac"].kind == "assumed"


def test_every_setting_out_of_range_is_named() -> None:
    with pytest.raises(InputError) as caught:
        AnalyticCostModel(CHAIN, hidden_frac=1.5, memory_reserve_frac=-1.0, fragmentation_frac=float("nan"))
    assert caught.value.code == "cost-model-settings"
    assert [fault.place for fault in caught.value.faults] == [
        "memory_reserve_frac",
        "fragmentation_frac",
        "hidden_frac",
    ]


def test_a_schedule_it_does_not_describe_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        AnalyticCostModel(replace(CHAIN, job=replace(JOB, schedule=ROUND_ROBIN)))
    assert caught.value.code == "cost-model-schedule"
