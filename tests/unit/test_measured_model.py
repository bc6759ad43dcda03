"""The measured cost model as the planner meets it: figures of `predict`, borders counted once, no guesses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.fleet import Device, Fleet, Host, Link, Site
from costmodels.interface import Cluster, CostModel, StageCost, Strategy
from costmodels.measured import RunPlan, RunReplica, RunStage, predict
from costmodels.measured_model import MeasuredCostModel
from costmodels.measured_profile import LayerSizes, LayerTimes, LinkCurve, Profile, RunFacts
from costmodels.profile_io import profile_to_document, save_profile
from costmodels.registry import cost_model, known_names
from costmodels.workload import Job, LayerSpec, Workload
from planner.build import build_problem
from planner.objective import StageChoice, price_replica, step_time_s
from planner.problem import StepFormula
from policies.errors import InputError
from policies.policy import Policy

NUM_LAYERS = 6
RATE = 10e9
# Bandwidth that grows with the payload: 4, 6, 8 GB/s at 1, 2, 4 MB, up to its ceiling of 10.
CURVE = LinkCurve(gigabytes_per_s=(2.0, 4.0), ceiling_bytes_per_s=RATE, latency_s=1e-4)
LAYER = LayerSpec(
    kind="block",
    params=1_000_000,
    trainable_params=1_000_000,
    forward_flops_per_token=1.0,
    activation_bytes_per_token=1.0,
    input_bytes_per_token=1.0,
    output_bytes_per_token=1.0,
)
WORKLOAD = Workload(
    model_name="six",
    layers=(LAYER,) * NUM_LAYERS,
    job=Job(sequences_per_step=16, micro_batch_sizes=(1, 2, 4), sequence_tokens=8, max_stages=4),
)


def profile_of(*, tied_bytes: float = 0.0) -> Profile:
    """Layers of different speed on type A at degrees 1 and 2, and on type B at degree 1."""
    ramp_L = np.arange(1.0, NUM_LAYERS + 1.0)
    sizes_M = np.array([[1.0], [2.0], [4.0]])
    times = LayerTimes(
        micro_batch_sizes=(1, 2, 4),
        forward_s_ML=0.01 * sizes_M * ramp_L,
        backward_s_ML=0.02 * sizes_M * ramp_L,
        update_s_ML=0.003 * np.ones((3, NUM_LAYERS)),
    )

    def sizes(tp: int) -> LayerSizes:
        return LayerSizes(
            params_L=1e6 / tp * np.ones(NUM_LAYERS),
            weight_bytes_L=4e6 / tp * np.ones(NUM_LAYERS),
            activation_bytes_L=3e7 / tp * ramp_L,
            input_bytes_L=1e6 * ramp_L,
            output_bytes_L=2e6 * ramp_L,
        )

    def half(seconds: LayerTimes) -> LayerTimes:
        return replace(
            seconds, forward_s_ML=seconds.forward_s_ML * 0.6, backward_s_ML=seconds.backward_s_ML * 0.6
        )

    return Profile(
        model_name="six",
        times={"A": {1: times, 2: half(times)}, "B": {1: half(times)}},
        sizes={1: sizes(1), 2: sizes(2)},
        outer={(a, b): CURVE for a in "AB" for b in "AB"},
        inner={},
        facts=RunFacts(
            gradient_bytes_per_param=4.0,
            optimiser_bytes_per_param=8.0,
            update_traffic_bytes_per_param=28.0,
            overhead_bytes=5e8,
            memory_bytes_per_s=1e12,
            tied_bytes=tied_bytes,
        ),
    )


def cluster_of(
    dp: int, tp: int, type_name: str = "A", *, rate: float = RATE, memory: float = 80e9
) -> Cluster:
    devices = tuple(
        Device(
            device_id=f"h{rank}/{i}",
            host_id=f"h{rank}",
            type_name=type_name,
            memory_bytes=memory,
            flop_per_s=(),
            memory_bytes_per_s=0.0,
            tier_i=0,
        )
        for rank in range(dp)
        for i in range(tp)
    )
    site = Site(site_id="s", boundary_id="b", fabric_bytes_per_s=rate, fabric_latency_s=1e-5)
    return Cluster(
        site=site,
        devices=devices,
        inner_bytes_per_s=rate,
        inner_latency_s=1e-5,
        tp_bytes_per_s=300e9,
        tp_latency_s=0.0,
    )


def stage_of(model: CostModel, cuts: tuple[int, int], dp: int, tp: int, size: int, held: int) -> StageCost:
    cost = model.stage(cluster_of(dp, tp), cuts, Strategy(dp=dp, tp=tp), size * dp, held)
    assert cost is not None
    return cost


def run_plan(cuts: list[int], dp: int, tp: int, size: int, count: int) -> RunPlan:
    rank = RunReplica(type_name="A", tp=tp)
    return RunPlan(
        stages=tuple(RunStage(first=a, end=b, replicas=(rank,) * dp) for a, b in pairwise(cuts)),
        micro_batch_size=size,
        global_batch=count * size * dp,
    )


@given(
    dp=st.integers(1, 4),
    tp=st.sampled_from((1, 2)),
    size=st.integers(1, 4),
    count=st.integers(1, 9),
)
def test_one_stage_takes_and_holds_what_predict_says(dp: int, tp: int, size: int, count: int) -> None:
    profile = profile_of(tied_bytes=5e6)
    model = MeasuredCostModel(WORKLOAD, profile=profile)
    cost = stage_of(model, (0, NUM_LAYERS), dp, tp, size, 1)
    foreseen = predict(profile, run_plan([0, NUM_LAYERS], dp, tp, size, count))
    formula = StepFormula(fill=1.0, repeats=count - 1.0, sync=True)
    assert step_time_s(formula, [cost.busy_s], [0.0], [cost.sync_s]) == pytest.approx(foreseen.iteration_s)
    assert sum(cost.memory_bytes[0].values()) == pytest.approx(foreseen.peak_bytes)
    assert cost.shares == (size,) * dp


@given(
    cuts=st.sets(st.integers(1, NUM_LAYERS - 1), min_size=1, max_size=3),
    tp=st.sampled_from((1, 2)),
    size=st.integers(1, 4),
    count=st.integers(1, 9),
    tied=st.sampled_from((0.0, 5e6)),
)
def test_pipelines_agree_with_predict_but_for_the_overlap_of_transfers(
    cuts: set[int], tp: int, size: int, count: int, tied: float
) -> None:
    """The fill, the tail and the memory are those of `predict`, so each border counts once, there and back.

    In the steady state the planner's schedule lets transfers run beside computing, where `predict` has the
    engine wait: that is the whole difference, and it vanishes for one micro-batch.
    """
    ends = [0, *sorted(cuts), NUM_LAYERS]
    profile = profile_of(tied_bytes=tied)
    model = MeasuredCostModel(WORKLOAD, profile=profile)
    link = Link(source_site_id="s", target_site_id="s", bytes_per_s=RATE, latency_s=1e-5)
    num_stages = len(ends) - 1
    costs = [
        stage_of(model, pair, 1, tp, size, min(count, num_stages - i))
        for i, pair in enumerate(pairwise(ends))
    ]
    moves_s = [model.transfer_s(link, border, size) for border in ends[1:-1]]
    formula = StepFormula(fill=1.0, repeats=count - 1.0, sync=True)
    step_s = step_time_s(formula, [c.busy_s for c in costs], moves_s, [c.sync_s for c in costs])
    foreseen = predict(profile, run_plan(ends, 1, tp, size, count))
    waits_s = max(part.busy_s for part in foreseen.stages) - max([*(c.busy_s for c in costs), *moves_s])
    assert waits_s >= 0.0
    assert step_s + (count - 1) * waits_s == pytest.approx(foreseen.iteration_s)
    for cost, part in zip(costs, foreseen.stages, strict=True):
        assert cost.memory_bytes[0] == pytest.approx(dict(part.memory_bytes))


def test_a_link_is_priced_by_its_curve_or_else_by_its_own_rate() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of())
    near = Link(source_site_id="a", target_site_id="b", bytes_per_s=1.05 * RATE, latency_s=0.5)
    slow = replace(near, bytes_per_s=1e9)
    payload_bytes = 3 * 2e6 * 2  # output of the third layer, two sequences
    assert model.transfer_s(near, 3, 2) == pytest.approx(2 * CURVE.transfer_s(payload_bytes))
    assert model.transfer_s(slow, 3, 2) == pytest.approx(2 * (0.5 + payload_bytes / 1e9))
    assert model.transfer_s(replace(near, bytes_per_s=0.0), 3, 2) == float("inf")
    ring = model.stage(cluster_of(2, 1, rate=1e9), (0, 2), Strategy(dp=2), 2, 1)
    assert ring is not None
    assert ring.sync_s == pytest.approx(0.003 + 2 * (1e-5 + 2e6 * 4.0 / 2 / 1e9))


@pytest.mark.parametrize(
    ("cluster", "strategy", "size"),
    [
        (cluster_of(1, 1, "C"), Strategy(), 1),  # a device nobody measured
        (cluster_of(1, 4), Strategy(tp=4), 1),  # a degree nobody measured
        (cluster_of(1, 2, "B"), Strategy(tp=2), 1),  # a degree measured on another device only
        (cluster_of(2, 1), Strategy(dp=2), 3),  # shares can't be equal
        (cluster_of(2, 1), Strategy(dp=2, zero=1), 2),  # sharding was not measured
        (cluster_of(2, 1), Strategy(tp=2), 1),  # the tensor group spans hosts
        (cluster_of(1, 1), Strategy(), 8),  # a micro-batch larger than any measured
        (cluster_of(2, 1), Strategy(), 1),  # another number of devices
        (cluster_of(2, 1, rate=0.0), Strategy(dp=2), 2),  # no link for the gradients
    ],
)
def test_what_was_not_measured_is_impossible(cluster: Cluster, strategy: Strategy, size: int) -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of())
    assert model.stage(cluster, (0, 2), strategy, size, 1) is None


def test_mixed_devices_are_impossible() -> None:
    a, b = cluster_of(1, 1), cluster_of(1, 1, "B")
    mixed = replace(a, devices=(*a.devices, *b.devices))
    assert (
        MeasuredCostModel(WORKLOAD, profile=profile_of()).stage(mixed, (0, 2), Strategy(dp=2), 2, 1) is None
    )


def test_memory_beyond_the_limit_does_not_fit() -> None:
    model = MeasuredCostModel(WORKLOAD, profile=profile_of(), memory_reserve_frac=0.5)
    cost = model.stage(cluster_of(1, 1, memory=1.2e9), (0, 6), Strategy(), 1, 1)
    assert cost is not None
    assert cost.limit_bytes == (0.6e9,)
    assert not cost.fits


def refused(workload: Workload, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        cost_model("measured", workload, **settings)
    return caught.value.code


def test_settings_and_profiles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    profile = profile_of()
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    fewer = replace(WORKLOAD, layers=WORKLOAD.layers[1:])
    larger = replace(WORKLOAD, layers=(replace(LAYER, params=2_000_000),) * NUM_LAYERS)
    assert refused(WORKLOAD) == "cost-model-settings"
    assert refused(WORKLOAD, profile=profile, memory_reserve_frac=1.0) == "cost-model-settings"
    assert refused(WORKLOAD, profile=tmp_path / "none.json") == "profile-unreadable"
    assert refused(WORKLOAD, profile=tmp_path / "broken.json") == "profile-unreadable"
    assert refused(WORKLOAD, profile={"schema": "another"}) == "profile-schema"
    assert refused(fewer, profile=profile) == "profile-model-differs"
    assert refused(larger, profile=profile) == "profile-model-differs"
    assert refused(replace(WORKLOAD, job=Job(adapter_rank=8)), profile=profile) == "cost-model-job"
    assert (
        refused(replace(WORKLOAD, job=Job(schedule="round-robin")), profile=profile) == "cost-model-schedule"
    )


def test_it_is_found_by_name_with_a_file_or_its_content(tmp_path: Path) -> None:
    assert "measured" in known_names()
    profile = profile_of()
    save_profile(profile, tmp_path / "profile.json")
    from_file = cost_model("measured", WORKLOAD, profile=str(tmp_path / "profile.json"))
    from_content = cost_model("measured", WORKLOAD, profile=profile_to_document(profile))
    arguments = (cluster_of(2, 2), (1, 4), Strategy(dp=2, tp=2), 4, 3)
    assert from_file.stage(*arguments) == from_content.stage(*arguments)
    assert from_file.stage(*arguments) == MeasuredCostModel(WORKLOAD, profile=profile).stage(*arguments)
    assert from_file.interval_key((1, 4)) != from_file.interval_key((2, 5))


def test_the_planner_solves_with_it_and_leaves_unmeasured_devices_idle() -> None:
    """One host of two A, one of two B, one of two C: nobody measured C."""
    hosts = tuple(Host(host_id=f"h{kind}", site_id="s", link_bytes_per_s=300e9) for kind in "ABC")
    devices = tuple(
        Device(
            device_id=f"h{kind}/{i}",
            host_id=f"h{kind}",
            type_name=kind,
            memory_bytes=80e9,
            flop_per_s=(("bf16", 1e14),),
            memory_bytes_per_s=1e12,
            tier_i=0,
        )
        for kind in "ABC"
        for i in range(2)
    )
    fleet = Fleet(
        name="f", tiers=("open",), boundaries=("b",), hosts=hosts, devices=devices,
        sites=(Site(site_id="s", boundary_id="b", fabric_bytes_per_s=RATE),),
    )  # fmt: skip
    model = cost_model("measured", WORKLOAD, profile=profile_of())
    boundary = build_problem(fleet, WORKLOAD, Policy(), model).boundaries[0]
    priced = []
    for mode in boundary.modes:
        for i in mode.templates:
            whole = price_replica(boundary, mode, [StageChoice(template_i=i, start=0, stop=NUM_LAYERS)])
            if whole is not None:
                priced.append((boundary.templates[i], mode, whole))
    kinds = {template.cluster.devices[0].type_name for template, _, _ in priced}
    assert kinds == {"A", "B"}
    for template, mode, whole in priced:
        dp, tp = template.strategy.dp, template.strategy.tp
        rank = RunReplica(type_name=template.cluster.devices[0].type_name, tp=tp)
        plan = RunPlan(
            stages=(RunStage(first=0, end=NUM_LAYERS, replicas=(rank,) * dp),),
            micro_batch_size=mode.micro_batch_size // dp,
            global_batch=WORKLOAD.job.sequences_per_step,
        )
        # Ranks of one host exchange gradients over the host's link, which predict doesn't know.
        if dp == 1:
            assert whole.step_s == pytest.approx(predict(profile_of(), plan).iteration_s)
