"""What executors add to measured layers: waiting, sharding, unequal shares, recomputed layers, overheads."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocking_pipeline import blocking_step_s
from costmodels.fleet import Device, Link, Site
from costmodels.interface import Cluster, StageCost, Strategy, priced_for, without_waiting
from costmodels.measured import RunPlan, RunReplica, RunStage, predict
from costmodels.measured_model import MeasuredCostModel
from costmodels.measured_profile import (
    ExecutorFacts,
    LayerSizes,
    LayerTimes,
    LinkCurve,
    Profile,
    ProfiledJob,
    RunFacts,
    executor_facts,
)
from costmodels.measured_shares import quickest_shares
from costmodels.profile_io import profile_from_document, profile_to_document
from costmodels.recompute import recompute_sequence
from costmodels.workload import Job, LayerSpec, Workload
from planner.objective import step_time_s
from planner.problem import StepFormula
from policies.errors import InputError

NUM_LAYERS = 6
RATE = 1e9
CURVE = LinkCurve(
    gigabytes_per_s=(RATE / 1e9,),
    ceiling_bytes_per_s=RATE,
    seconds_at=((1e3, 1e-4), (1e6, 1e-2), (1e7, 5e-2)),
)
BLOCKING = ExecutorFacts(blocking_transfers=True)
ABLE = ExecutorFacts(zero_levels=(0, 1, 2, 3), unequal_shares=True, recompute=True)
END = LayerSpec(
    kind="end",
    params=500_000,
    trainable_params=500_000,
    forward_flops_per_token=1e6,
    activation_bytes_per_token=1.0,
    input_bytes_per_token=1.0,
    output_bytes_per_token=1.0,
)
BLOCK = replace(
    END, kind="block", params=1_000_000, trainable_params=1_000_000, activation_bytes_per_token=9.0
)
JOB = Job(dtype="fp32", sequences_per_step=16, micro_batch_sizes=(1, 2, 4), sequence_tokens=8, max_stages=4)
WORKLOAD = Workload(model_name="six", layers=(END, *(BLOCK,) * (NUM_LAYERS - 2), END), job=JOB)
PARAMS_L = np.array([float(layer.params) for layer in WORKLOAD.layers])


def profile_of(facts: ExecutorFacts, *, slower: float = 2.0, trained: float = 1.0, **own: float) -> Profile:
    """Equal blocks between smaller ends, on type A and on a slower type B; `own` are other run facts."""
    sizes_M = np.array([[1.0], [2.0], [4.0]])
    weight_L = np.array([0.2, 1.0, 1.0, 1.0, 1.0, 0.6])

    def times(factor: float) -> LayerTimes:
        return LayerTimes(
            micro_batch_sizes=(1, 2, 4),
            forward_s_ML=0.01 * factor * sizes_M * weight_L,
            backward_s_ML=0.02 * factor * sizes_M * weight_L,
            update_s_ML=0.003 * np.ones((3, NUM_LAYERS)),
        )

    sizes = LayerSizes(
        params_L=PARAMS_L,
        weight_bytes_L=4.0 * PARAMS_L,
        activation_bytes_L=np.array([1e5, 9e6, 9e6, 9e6, 9e6, 4e6]),
        input_bytes_L=np.array([1e2, 1e6, 1e6, 1e6, 1e6, 1e6]),
        output_bytes_L=np.array([1e6, 1e6, 1e6, 1e6, 1e6, 0.0]),
        trainable_params_L=trained * PARAMS_L,
        working_bytes_L=np.array([1e5, 5e6, 5e6, 5e6, 5e6, 2e6]),
    )
    return Profile(
        model_name="six",
        times={"A": {1: times(1.0)}, "B": {1: times(slower)}},
        sizes={1: sizes},
        outer={("A", "A"): CURVE},
        inner={},
        facts=RunFacts(
            gradient_bytes_per_param=4.0,
            optimiser_bytes_per_param=8.0,
            update_traffic_bytes_per_param=28.0,
            overhead_bytes=5e7,
            memory_bytes_per_s=1e12,
            **own,  # type: ignore[arg-type]
        ),
        job=ProfiledJob(dtype="fp32", sequence_tokens=8, adapter_rank=0),
        executors={"torch": facts},
    )


def cluster_of(types: str, *, memory: float = 1e9, per_host: int = 1, fabric: float = RATE) -> Cluster:
    devices = tuple(
        Device(
            device_id=f"d{i}",
            host_id=f"h{i // per_host}",
            type_name=kind,
            memory_bytes=memory,
            flop_per_s=(),
            memory_bytes_per_s=0.0,
            tier_i=0,
        )
        for i, kind in enumerate(types)
    )
    return Cluster(
        site=Site(site_id="s", boundary_id="b", fabric_bytes_per_s=fabric),
        devices=devices,
        inner_bytes_per_s=RATE,
        inner_latency_s=0.0,
        tp_bytes_per_s=RATE,
        tp_latency_s=0.0,
    )


def stage_of(
    model: MeasuredCostModel,
    interval: tuple[int, int],
    types: str = "A",
    *,
    zero: int = 0,
    size: int = 1,
    held: int = 1,
    memory: float = 1e9,
) -> StageCost:
    strategy = Strategy(dp=len(types), zero=zero)
    cost = model.stage(cluster_of(types, memory=memory), interval, strategy, size, held)
    assert cost is not None
    return cost


def planned_s(model: MeasuredCostModel, ends: list[int], size: int) -> float:
    """The planner's step time of stages of one A each, without what comes once per step."""
    link = Link(source_site_id="s", target_site_id="s", bytes_per_s=RATE)
    costs = [stage_of(model, pair, size=size) for pair in pairwise(ends)]
    moves_s = [model.transfer_s(link, border, size) for border in ends[1:-1]]
    formula = StepFormula(fill=1.0, repeats=JOB.sequences_per_step / size - 1.0, sync=False)
    return step_time_s(formula, [cost.busy_s for cost in costs], moves_s, [0.0 for _ in costs])


CUTS = st.sets(st.integers(1, NUM_LAYERS - 1), min_size=1, max_size=4)


@given(cuts=CUTS, size=st.sampled_from((1, 2, 4)), slow=st.sampled_from((1.0, 0.2, 5.0)))
@settings(max_examples=60, deadline=None)
def test_blocking_pipelines_never_take_less_than_planned_for(cuts: set[int], size: int, slow: float) -> None:
    """Event-by-event pipeline <= closed form of `predict` <= planned, the latter by little.

    planned - closed form <= (m - 1)/(m + 1) times the round trips of the borders away from the stage that
    planning takes for the slowest; so nothing where that stage touches every border.
    """
    ends = [0, *sorted(cuts), NUM_LAYERS]
    timed = tuple((payload, seconds * slow) for payload, seconds in CURVE.seconds_at)
    profile = replace(profile_of(BLOCKING), outer={("A", "A"): replace(CURVE, seconds_at=timed)})
    model, count = MeasuredCostModel(WORKLOAD, profile=profile), JOB.sequences_per_step // size
    rank = (RunReplica(type_name="A", tp=1),)
    run = RunPlan(
        stages=tuple(RunStage(first=a, end=b, replicas=rank) for a, b in pairwise(ends)),
        micro_batch_size=size,
        global_batch=JOB.sequences_per_step,
    )
    parts = predict(profile, run).stages
    one_way_s = [profile.outer["A", "A"].transfer_s(1e6 * size)] * len(cuts)
    forward_s, backward_s = [p.forward_s for p in parts], [p.backward_s for p in parts]
    real_s = blocking_step_s(forward_s, backward_s, one_way_s, count)
    busy_s = [p.busy_s for p in parts]
    closed_s = sum(forward_s) + sum(backward_s) + 2 * sum(one_way_s) + (count - 1) * max(busy_s)
    step_s = planned_s(model, ends, size)
    charged_s = [p.forward_s + p.backward_s + p.exposed_s * count / (count + 1) for p in parts]
    away_s = 2 * sum(one_way_s) - parts[charged_s.index(max(charged_s))].exposed_s
    assert real_s <= closed_s * (1 + 1e-9)
    assert closed_s <= step_s * (1 + 1e-9)
    assert step_s <= (closed_s + (count - 1) / (count + 1) * away_s) * (1 + 1e-9)
    if len(cuts) == 1:
        assert step_s == pytest.approx(closed_s)


@given(cuts=CUTS, size=st.sampled_from((1, 2, 4)))
@settings(max_examples=20, deadline=None)
def test_waiting_never_makes_a_pipeline_faster(cuts: set[int], size: int) -> None:
    ends = [0, *sorted(cuts), NUM_LAYERS]
    hidden = MeasuredCostModel(WORKLOAD, profile=profile_of(ExecutorFacts()))
    waits = MeasuredCostModel(WORKLOAD, profile=profile_of(BLOCKING))
    assert planned_s(waits, ends, size) >= planned_s(hidden, ends, size)


def test_equal_stages_wait_as_long_as_the_engine_does() -> None:
    """Two equal stages, m micro-batches: 2 m transfers and nothing hidden, as measured with DeepSpeed."""
    assert blocking_step_s([1.0, 1.0], [2.0, 2.0], [0.25], 8) == pytest.approx(6.0 + 7 * 3.0 + 16 * 0.25)


def test_ranks_of_one_host_share_its_link() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(BLOCKING))
    apart = model.stage(cluster_of("AA"), (1, 3), Strategy(dp=2), 4, 1)
    together = model.stage(cluster_of("AA", per_host=2), (1, 3), Strategy(dp=2), 4, 1)
    assert apart is not None
    assert together is not None
    charge = 2 * 2 * 4 / 5  # two borders, there and back, four micro-batches
    assert apart.exposed_s == pytest.approx(charge * CURVE.transfer_s(2e6))
    assert together.exposed_s == pytest.approx(charge * CURVE.transfer_s(4e6))


def test_links_between_sites_stay_the_borders_own() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(BLOCKING))
    near = Link(source_site_id="s", target_site_id="s", bytes_per_s=RATE)
    far = replace(near, target_site_id="t", bytes_per_s=1e8)
    assert model.transfer_s(near, 2, 1) == 0.0
    assert model.transfer_s(far, 2, 1) == pytest.approx(2 * 1e6 / 1e8)
    assert model.transfer_s(replace(far, bytes_per_s=0.0), 2, 1) == float("inf")
    lone = model.stage(cluster_of("A", fabric=0.0), (1, 3), Strategy(), 1, 1)
    assert lone is not None
    assert lone.exposed_s == 0.0


def test_overheads_are_counted_per_micro_batch_and_per_step() -> None:
    plain = stage_of(MeasuredCostModel(WORKLOAD, profile=profile_of(ExecutorFacts())), (1, 4))
    facts = ExecutorFacts(step_overhead_s=0.5, micro_batch_overhead_s=0.25, overhead_bytes=6e7)
    laden = stage_of(MeasuredCostModel(WORKLOAD, profile=profile_of(facts)), (1, 4))
    assert laden.busy_s == pytest.approx(plain.busy_s + 0.25)
    assert laden.sync_s == pytest.approx(plain.sync_s + 0.5)
    assert (plain.memory_bytes[0]["overhead"], laden.memory_bytes[0]["overhead"]) == (5e7, 6e7)


@pytest.mark.parametrize(
    ("zero", "exposed_s", "sync_s"),
    [
        (0, 0.0, 2 * CURVE.transfer_s(4e6)),
        (1, 0.0, 2 * CURVE.transfer_s(4e6)),
        (2, 2 * CURVE.transfer_s(2e6), CURVE.transfer_s(4e6)),
        (3, 3 * 2 * CURVE.transfer_s(2e6), 0.0),
    ],
)
def test_sharding_costs_gathers_and_saves_memory(zero: int, exposed_s: float, sync_s: float) -> None:
    """Two blocks of four megabytes on two ranks: rings of one step each, layer by layer from ZeRO-2 on."""
    cost = stage_of(MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE)), (1, 3), "AA", zero=zero, size=2)
    update_s = 0.003 / (2 if zero else 1)
    assert cost.exposed_s == pytest.approx(exposed_s)
    assert cost.sync_s == pytest.approx(sync_s + update_s)
    kinds = cost.memory_bytes[0]
    assert kinds["weights"] == 8e6 / (2 if zero == 3 else 1)
    assert kinds["gradients"] == 8e6 / (2 if zero >= 2 else 1)
    assert kinds["optimiser"] == 16e6 / (2 if zero else 1)
    assert kinds["working"] == 5e6 + (2e6 if zero >= 2 else 0.0) + (2e6 if zero == 3 else 0.0)


def test_levels_the_executor_does_not_list_are_impossible() -> None:
    facts = replace(ABLE, zero_levels=(0, 1))
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(facts))
    strategies = [Strategy(dp=2, zero=zero) for zero in range(4)]
    able = [model.stage(cluster_of("AA"), (1, 3), strategy, 2, 1) is not None for strategy in strategies]
    assert able == [True, True, False, False]
    assert model.stage(cluster_of("A"), (1, 3), Strategy(zero=1), 2, 1) is None


def test_unequal_shares_follow_the_measured_speeds() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE, slower=3.0))
    assert stage_of(model, (0, 6), "AAA", size=4).shares == (2, 1, 1)
    mixed = stage_of(model, (1, 3), "AB", size=4)
    assert mixed.shares == (3, 1)
    assert mixed.forward_s == pytest.approx(2 * 0.03)
    assert mixed.memory_bytes[0]["activations"] == 3 * mixed.memory_bytes[1]["activations"]
    rigid = MeasuredCostModel(WORKLOAD, profile=profile_of(replace(ABLE, unequal_shares=False)))
    assert rigid.stage(cluster_of("AAA"), (1, 3), Strategy(dp=3), 4, 1) is None
    assert rigid.stage(cluster_of("AB"), (1, 3), Strategy(dp=2), 4, 1) is None
    assert model.stage(cluster_of("AB"), (1, 3), Strategy(dp=2), 9, 1) is None, "beyond what was measured"


@given(
    seconds=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=3),
    most=st.integers(1, 5),
    num_sequences=st.integers(1, 9),
)
@settings(max_examples=80, deadline=None)
def test_shares_minimise_the_slowest_rank(seconds: list[float], most: int, num_sequences: int) -> None:
    num_ranks = len(seconds)

    def all_shares(left: int, ranks: int) -> list[tuple[int, ...]]:
        if ranks == 0:
            return [()] if left == 0 else []
        return [(s, *rest) for s in range(1, most + 1) for rest in all_shares(left - s, ranks - 1)]

    options = all_shares(num_sequences, num_ranks)
    found = quickest_shares(num_sequences, [most] * num_ranks, lambda i, share: seconds[i] * share)
    if not options:
        assert found is None
        return
    assert found in options
    slowest = min(max(s * t for s, t in zip(shares, seconds, strict=True)) for shares in options)
    assert max(s * t for s, t in zip(found, seconds, strict=True)) == pytest.approx(slowest)


@given(held=st.integers(1, 4), size=st.sampled_from((1, 2, 4)), memory=st.floats(6e7, 4e8))
@settings(max_examples=80, deadline=None)
def test_the_fewest_layers_are_recomputed(held: int, size: int, memory: float) -> None:
    """Each recomputed block saves eight megabytes per sequence in flight and runs forward once more."""
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE))
    cost = stage_of(model, (0, 4), size=size, held=held, memory=memory)
    number, share = cost.recompute_layers, size
    assert 0 <= number <= 3, "blocks alone"
    kinds = cost.memory_bytes[0]
    assert kinds["activations"] == pytest.approx((1e5 + 3 * 9e6 - number * 8e6) * held * share)
    assert kinds["working"] == (5e6 + (8e6 if number else 0.0)) * share
    assert cost.backward_s == pytest.approx((0.02 * 3.2 + 0.01 * number) * size)
    without = sum(kinds.values()) + (8e6 * held if number > 1 else 8e6 * (held - 1)) * share
    limit = cost.limit_bytes[0]
    if number:
        assert without > limit, "one less would not have fitted"
    if not cost.fits:
        assert number == 3


def test_the_fullest_device_decides_what_is_recomputed() -> None:
    """Shares of three and one: only the first device is short of memory."""
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE, slower=3.0))
    tight = stage_of(model, (1, 3), "AB", size=4, held=3, memory=2e8)
    alone = stage_of(model, (1, 3), "B", size=1, held=3, memory=2e8)
    assert (tight.shares, alone.recompute_layers) == ((3, 1), 0)
    assert tight.recompute_layers > 0
    assert tight.fits


def test_recomputing_needs_the_job_and_the_executor_to_allow_it() -> None:
    assert recompute_sequence(WORKLOAD) == (1, 2, 3, 4)
    rigid = MeasuredCostModel(WORKLOAD, profile=profile_of(replace(ABLE, recompute=False)))
    assert stage_of(rigid, (0, 6), size=4, held=4, memory=1e8).recompute_layers == 0
    never = replace(WORKLOAD, job=replace(JOB, recompute=False))
    model = MeasuredCostModel(never, profile=profile_of(ABLE))
    assert stage_of(model, (0, 6), size=4, held=4, memory=1e8).recompute_layers == 0


def test_adapters_pay_for_what_is_trained_alone() -> None:
    job = replace(JOB, adapter_rank=4)
    layers = tuple(replace(layer, trainable_params=layer.params // 100) for layer in WORKLOAD.layers)
    lora = replace(WORKLOAD, layers=layers, job=job)
    profile = replace(
        profile_of(ABLE, trained=0.01), job=ProfiledJob(dtype="fp32", sequence_tokens=8, adapter_rank=4)
    )
    cost = stage_of(MeasuredCostModel(lora, profile=profile), (1, 3), "AA", size=2)
    kinds = cost.memory_bytes[0]
    assert (kinds["weights"], kinds["gradients"], kinds["optimiser"]) == (8e6, 8e4, 16e4)
    assert cost.sync_s == pytest.approx(0.003 + 2 * CURVE.transfer_s(4e4))
    with pytest.raises(InputError) as caught:
        MeasuredCostModel(lora, profile=profile_of(ABLE))
    assert caught.value.code == "profile-job-differs"
    assert [fault.place for fault in caught.value.faults] == ["job.adapter_rank"]
    with pytest.raises(InputError) as caught:
        MeasuredCostModel(lora, profile=replace(profile, sizes=profile_of(ABLE).sizes))
    assert caught.value.code == "profile-model-differs"


def test_a_tied_weight_is_held_once_where_both_ends_are() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE, tied_params=4e5, tied_bytes=16e5))
    whole, first = stage_of(model, (0, 6)).memory_bytes[0], stage_of(model, (0, 3)).memory_bytes[0]
    assert whole["weights"] == 4 * (PARAMS_L.sum() - 4e5)
    assert whole["optimiser"] == 8 * (PARAMS_L.sum() - 4e5)
    assert first["weights"] == 4 * PARAMS_L[:3].sum()


def test_each_executor_has_its_own_facts() -> None:
    profile = profile_of(ExecutorFacts(step_overhead_s=0.5))
    both = replace(profile, executors={**profile.executors, "deepspeed": BLOCKING})
    model = MeasuredCostModel(WORKLOAD, profile=both)
    assert model.facts.step_overhead_s == 0.5
    waits = priced_for(model, "deepspeed")
    assert isinstance(waits, MeasuredCostModel)
    assert waits.facts.blocking_transfers
    assert waits.for_executor("any").facts.step_overhead_s == 0.5
    asked = MeasuredCostModel(WORKLOAD, profile=both, executor="deepspeed")
    assert asked.for_executor("torch") is asked
    with pytest.raises(InputError) as caught:
        MeasuredCostModel(WORKLOAD, profile=profile).for_executor("deepspeed")
    assert caught.value.code == "profile-executor-missing"
    assert executor_facts(replace(profile, executors={}), "deepspeed") == ExecutorFacts()


@given(
    types=st.sampled_from(("A", "AA", "AAA", "AB", "BBA")),
    zero=st.integers(0, 3),
    size=st.sampled_from((1, 2, 4)),
    memory=st.floats(5e7, 5e8),
    blocking=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_table_holds_what_single_stages_cost(
    types: str, zero: int, size: int, memory: float, blocking: bool
) -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(replace(ABLE, blocking_transfers=blocking)))
    cluster, strategy = cluster_of(types, memory=memory), Strategy(dp=len(types), zero=zero)
    intervals = tuple((a, b) for a in range(NUM_LAYERS) for b in range(a + 1, NUM_LAYERS + 1))
    table = model.stage_table(cluster, intervals, strategy, size, 4)
    for k, interval in enumerate(intervals):
        for held in range(1, 5):
            cost = model.stage(cluster, interval, strategy, size, held)
            found = table.busy_s_KQ[k, held - 1], table.sync_s_KQ[k, held - 1]
            if cost is None or not cost.fits:
                assert found == (np.inf, 0.0)
            else:
                assert found == (cost.busy_s, cost.sync_s)


def test_replays_get_transfers_as_the_borders_own() -> None:
    """The replay of what was planned under waiting is the engine's own time, never more than planned."""
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(BLOCKING))
    bare = without_waiting(model)
    assert isinstance(bare, MeasuredCostModel)
    assert without_waiting(bare) is bare
    link = Link(source_site_id="s", target_site_id="s", bytes_per_s=RATE)
    ends, size = [0, 2, 3, NUM_LAYERS], 2
    costs = [stage_of(bare, pair, size=size) for pair in pairwise(ends)]
    assert [cost.exposed_s for cost in costs] == [0.0, 0.0, 0.0]
    one_way_s = [bare.transfer_s(link, border, size) / 2 for border in ends[1:-1]]
    replayed_s = blocking_step_s(
        [cost.forward_s for cost in costs],
        [cost.backward_s for cost in costs],
        one_way_s,
        JOB.sequences_per_step // size,
    )
    assert 0.0 < replayed_s <= planned_s(model, ends, size)


def test_equal_layers_share_their_key_and_their_cost() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(ABLE))
    assert model.interval_key((1, 3)) == model.interval_key((2, 4)) != model.interval_key((0, 2))
    assert model.interval_key((3, 5)) != model.interval_key((4, 6))
    assert model.border_key(1) == model.border_key(4)
    assert stage_of(model, (1, 3), size=2, held=3) == stage_of(model, (2, 4), size=2, held=3)
    output_bytes_L = np.array([5e6, 1e6, 1e6, 1e6, 1e6, 0.0])
    wider = profile_of(BLOCKING)
    wider = replace(wider, sizes={1: replace(wider.sizes[1], output_bytes_L=output_bytes_L)})
    model = MeasuredCostModel(WORKLOAD, profile=wider)
    assert model.interval_key((1, 3)) != model.interval_key((2, 4)), "what enters differs"
    assert stage_of(model, (1, 3)).busy_s > stage_of(model, (2, 4)).busy_s


def test_a_profile_with_executors_survives_its_document() -> None:
    profile = profile_of(replace(ABLE, overhead_bytes=6e7))
    document = profile_to_document(profile)
    again = profile_from_document(document)
    assert profile_to_document(again) == document
    assert (again.executors, again.job, again.outer) == (profile.executors, profile.job, profile.outer)
    assert again.sizes[1].trained_L.tolist() == profile.sizes[1].trained_L.tolist()


def test_figures_of_executors_and_curves_that_make_no_sense_are_named() -> None:
    document = profile_to_document(profile_of(ABLE))
    document["executors"]["torch"] |= {"zero_levels": [7], "recompute": 1, "step_overhead_s": -1.0}
    document["job"] = {"dtype": "int4", "sequence_tokens": 0, "adapter_rank": -1}
    document["outer"][0]["seconds_at"] = [[1e3, 2.0], [1e6, 1.0]]
    with pytest.raises(InputError) as caught:
        profile_from_document(document)
    assert {fault.place for fault in caught.value.faults} == {
        "executors.torch.zero_levels",
        "executors.torch.recompute",
        "executors.torch.step_overhead_s",
        "job.dtype",
        "job.sequence_tokens",
        "job.adapter_rank",
        "outer[A, A].seconds_at",
    }


def test_timed_payloads_are_read_off_and_continued() -> None:
    assert CURVE.transfer_s(0.0) == 0.0
    assert CURVE.transfer_s(10.0) == 1e-4
    assert CURVE.transfer_s(1e6) == 1e-2
    assert CURVE.transfer_s(19e6) == pytest.approx(9e-2)
    assert CURVE.bytes_per_s(1e6) == pytest.approx(1e8)
    lone = replace(CURVE, seconds_at=((1e6, 1e-2),))
    assert lone.transfer_s(2e6) == pytest.approx(2e-2)
