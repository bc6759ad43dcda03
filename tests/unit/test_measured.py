"""Step time and memory of a plan from a measured profile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.measured import (
    RunPlan,
    RunReplica,
    RunStage,
    predict,
    ring_all_reduce_s,
    stage_memory_bytes,
    stage_sync_s,
    stage_update_s,
)
from costmodels.measured_profile import LayerSizes, LayerTimes, LinkCurve, Profile, RunFacts
from measured_instances import GH200_FACTS, MEASURED_FOLDER, opt350_errors, opt350_plans, opt350_profile
from policies.errors import InputError

FLAT = LinkCurve(gigabytes_per_s=(1.0,), ceiling_bytes_per_s=1e9)
needs_measurements = pytest.mark.skipif(not MEASURED_FOLDER.is_dir(), reason="no measured instances here")


def profile_of(forward_s: list[float], backward_s: list[float], *, output_bytes: float = 0.0) -> Profile:
    ones_L = np.ones(len(forward_s))
    facts = RunFacts(
        gradient_bytes_per_param=4.0,
        optimiser_bytes_per_param=8.0,
        update_traffic_bytes_per_param=28.0,
        overhead_bytes=7.0,
        memory_bytes_per_s=1e12,
    )
    times = LayerTimes(
        micro_batch_sizes=(1,),
        forward_s_ML=np.array([forward_s]),
        backward_s_ML=np.array([backward_s]),
        update_s_ML=0.25 * ones_L[None, :],
    )
    sizes = LayerSizes(
        params_L=100.0 * ones_L,
        weight_bytes_L=400.0 * ones_L,
        activation_bytes_L=1000.0 * ones_L,
        input_bytes_L=output_bytes * ones_L,
        output_bytes_L=output_bytes * ones_L,
    )
    return Profile(
        model_name="tiny",
        times={"A": {1: times}, "B": {1: replace(times, forward_s_ML=3.0 * times.forward_s_ML)}},
        sizes={1: sizes},
        outer={(a, b): FLAT for a in "AB" for b in "AB"},
        inner={},
        facts=facts,
    )


def plan_of(*ends: int, width: int = 1, count: int = 4, types: str = "A") -> RunPlan:
    starts = (0, *ends[:-1])
    replicas = tuple(RunReplica(type_name=types[i % len(types)], tp=1) for i in range(width))
    return RunPlan(
        stages=tuple(RunStage(first=a, end=b, replicas=replicas) for a, b in zip(starts, ends, strict=True)),
        micro_batch_size=1,
        global_batch=count * width,
    )


def simulated_s(forward_s: list[float], backward_s: list[float], count: int) -> float:
    """Seconds of a one-forward-one-backward pipeline with free transfers, event by event."""
    last = len(forward_s) - 1
    order = []
    for stage in range(last + 1):
        warm = min(count, last - stage)
        steps = [("f", i) for i in range(warm)]
        for i in range(count - warm):
            steps += [("f", warm + i), ("b", i)]
        order.append(steps + [("b", i) for i in range(count - warm, count)])
    done: dict[tuple[int, str, int], float] = {}
    clock, cursor = [0.0] * (last + 1), [0] * (last + 1)
    while any(cursor[s] < len(order[s]) for s in range(last + 1)):
        for s in range(last + 1):
            while cursor[s] < len(order[s]):
                kind, i = order[s][cursor[s]]
                before = None
                if kind == "f" and s > 0:
                    before = (s - 1, "f", i)
                elif kind == "b" and s < last:
                    before = (s + 1, "b", i)
                if before is not None and before not in done:
                    break
                start = max(clock[s], done[before] if before else 0.0)
                clock[s] = start + (forward_s if kind == "f" else backward_s)[s]
                done[(s, kind, i)] = clock[s]
                cursor[s] += 1
    return max(clock)


def test_one_stage_is_micro_batches_plus_the_fused_update() -> None:
    assert predict(profile_of([1.0, 2.0], [3.0, 4.0]), plan_of(2)).iteration_s == pytest.approx(
        4 * 10.0 + 0.25
    )


def test_an_unfused_optimiser_pays_every_layer_and_a_large_one_the_memory() -> None:
    profile = profile_of([1.0, 2.0], [3.0, 4.0])
    stage = plan_of(2).stages[0]
    unfused = replace(profile, facts=replace(profile.facts, fused_update=False))
    slow = replace(profile, facts=replace(profile.facts, memory_bytes_per_s=100.0))
    assert stage_update_s(profile, stage, 1) == pytest.approx(0.25)
    assert stage_update_s(unfused, stage, 1) == pytest.approx(0.5)
    assert stage_update_s(slow, stage, 1) == pytest.approx(200 * 28 / 100)


def test_each_stage_waits_for_all_four_transfers_at_its_borders() -> None:
    profile = profile_of([1.0] * 3, [1.0] * 3, output_bytes=1e8)
    plan = plan_of(1, 2, 3, count=4)
    one_way_s = 0.1
    middle_s = 2.0 + 4 * one_way_s
    assert predict(profile, plan).iteration_s == pytest.approx(3 * middle_s + 6.0 + 4 * one_way_s + 0.25)


@given(
    stages=st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(0.1, 4.0)), min_size=1, max_size=5),
    count=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_step_time_is_never_below_the_simulated_pipeline_or_its_slowest_stage(
    stages: list[tuple[float, float]], count: int
) -> None:
    forward_s, backward_s = [f for f, _ in stages], [b for _, b in stages]
    plan = plan_of(*range(1, len(stages) + 1), count=count)
    predicted_s = predict(profile_of(forward_s, backward_s), plan).iteration_s - 0.25
    real_s = simulated_s(forward_s, backward_s, count)
    assert predicted_s >= count * max(f + b for f, b in stages) - 1e-9
    assert predicted_s >= real_s - 1e-9


@given(f=st.floats(0.1, 2.0), b=st.floats(0.1, 4.0), num_stages=st.integers(1, 6), extra=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_equal_stages_take_exactly_as_long_as_simulated(
    f: float, b: float, num_stages: int, extra: int
) -> None:
    count = num_stages + extra
    plan = plan_of(*range(1, num_stages + 1), count=count)
    predicted_s = predict(profile_of([f] * num_stages, [b] * num_stages), plan).iteration_s - 0.25
    assert predicted_s == pytest.approx(simulated_s([f] * num_stages, [b] * num_stages, count))


def test_the_slowest_replica_sets_the_pace_and_gradients_ring_once() -> None:
    profile = profile_of([1.0, 1.0], [1.0, 1.0])
    mixed = predict(profile, plan_of(2, width=2, types="AB")).stages[0]
    assert mixed.forward_s == pytest.approx(6.0)
    assert mixed.sync_s == pytest.approx(2 * (800 / 2) / 1e9)
    assert ring_all_reduce_s(FLAT, 1e9, 4) == pytest.approx(2 * 3 / 4)
    assert stage_sync_s(profile, plan_of(2).stages[0]) == 0.0


def test_tied_weights_add_one_exchange_between_the_ends_only() -> None:
    profile = profile_of([1.0, 1.0], [1.0, 1.0])
    tied = replace(profile, facts=replace(profile.facts, tied_bytes=1e9))
    assert predict(tied, plan_of(2)).iteration_s == pytest.approx(predict(profile, plan_of(2)).iteration_s)
    apart = predict(tied, plan_of(1, 2)).iteration_s - predict(profile, plan_of(1, 2)).iteration_s
    assert apart == pytest.approx(1.0)


def test_memory_counts_micro_batches_in_flight_and_names_every_kind() -> None:
    profile = profile_of([1.0] * 3, [1.0] * 3, output_bytes=10.0)
    first, middle, last = predict(profile, plan_of(1, 2, 3, count=8)).stages
    assert [s.memory_bytes["activations"] for s in (first, middle, last)] == [3000.0, 2000.0, 1000.0]
    assert [s.memory_bytes["borders"] for s in (first, middle, last)] == [20.0, 40.0, 20.0]
    assert first.memory_bytes["working"] == 1020.0
    assert first.memory_bytes["optimiser"] == 800.0
    assert first.total_bytes == 400 + 400 + 800 + 3000 + 1020 + 20 + 7
    assert predict(profile, plan_of(1, 2, 3, count=2)).stages[0].memory_bytes["activations"] == 2000.0


def test_the_flat_gradient_copy_counts_only_where_it_outgrows_the_backward_pass() -> None:
    profile = profile_of([1.0], [1.0])
    stage = plan_of(1, width=2).stages[0]
    assert stage_memory_bytes(profile, stage, 1, 1, 0.0)["sync_buffer"] == 0.0
    small = replace(profile, sizes={1: replace(profile.sizes[1], activation_bytes_L=np.array([50.0]))})
    assert stage_memory_bytes(small, stage, 1, 1, 0.0)["sync_buffer"] == 400 - 100
    assert stage_memory_bytes(small, plan_of(1).stages[0], 1, 1, 0.0)["sync_buffer"] == 0.0


@pytest.mark.parametrize("ends", [(1,), (1, 1, 2), (3,)])
def test_stages_that_miss_or_repeat_layers_are_refused(ends: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        predict(profile_of([1.0, 1.0], [1.0, 1.0]), plan_of(*ends))
    assert caught.value.code == "plan-layers-wrong"


def test_a_link_that_was_not_measured_is_refused() -> None:
    profile = replace(profile_of([1.0, 1.0], [1.0, 1.0]), outer={})
    with pytest.raises(InputError) as caught:
        predict(profile, plan_of(1, 2))
    assert caught.value.code == "profile-link-missing"


@needs_measurements
def test_fifteen_measured_plans_are_predicted_without_a_fit() -> None:
    _, time_frac, memory_frac = opt350_errors()
    assert len(time_frac) == 15
    assert np.abs(time_frac).mean() <= 0.08
    assert np.abs(memory_frac).mean() <= 0.06
    assert memory_frac.min() >= -0.05


@needs_measurements
def test_scattered_borders_cost_less_than_full_copies() -> None:
    full, scattered = opt350_profile(), opt350_profile(replace(GH200_FACTS, scatter_border=True))
    for _, plan, _, _ in opt350_plans():
        slow, fast = predict(full, plan), predict(scattered, plan)
        assert fast.iteration_s <= slow.iteration_s
        assert (fast.iteration_s < slow.iteration_s) == (len(plan.stages) > 1)
