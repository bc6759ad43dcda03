"""The analytic cost model: cases worked out by hand, refusals, memory of what was asked before."""

from __future__ import annotations

from dataclasses import fields, replace
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costcases import (
    BLOCK,
    CHAIN,
    FOUR,
    JOB,
    ONE,
    PAIR,
    PLAIN,
    SITE,
    TIED,
    Untabulated,
    all_intervals,
    cluster_of,
)
from costmodels.analytic import AnalyticCostModel
from costmodels.fleet import Link
from costmodels.interface import (
    Cluster,
    CostModel,
    Interval,
    Strategy,
    TabulatedCostModel,
)
from costmodels.settings import AnalyticSettings
from costmodels.workload import ROUND_ROBIN
from policies.errors import InputError


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
    # The head's ten weights of its own are held wherever it is.
    assert whole.memory_bytes[0]["weights"] == 2 * (5000 + 6000 + 10)
    assert front.memory_bytes[0]["weights"] == 2 * (5000 + 3000)
    assert back.memory_bytes[0]["weights"] == 2 * (3000 + 5010)
    # Each end adds the other's gradient: two ranks, 10000 bytes, over the site's fabric.
    tied_s = 10000 / 5e4 + 2e-3
    assert front.sync_s == pytest.approx(tied_s + 28 * 8000 / 1e6)
    assert back.sync_s == pytest.approx(tied_s + 28 * 8010 / 1e6)
    assert whole.sync_s == pytest.approx(28 * 11010 / 1e6)
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


def test_the_oldest_answers_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costmodels.analytic.NUM_STAGES_MAX", 3)
    monkeypatch.setattr("costmodels.analytic.TABLES_BYTES_MAX", 1)
    model = AnalyticCostModel(CHAIN)
    intervals = all_intervals(CHAIN)
    for _ in range(2):
        for width, cluster in ((1, ONE), (2, PAIR), (4, FOUR)):
            table = model.stage_table(cluster, intervals, Strategy(dp=width), 4, 2)
            for k in (0, 7, 20):
                cost = model.stage(cluster, intervals[k], Strategy(dp=width), 4, 2)
                assert cost is not None
                assert cost.busy_s == table.busy_s_KQ[k, 1]


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
