"""What measurements are boiled down to: spans to seconds, trips to curves, answers to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.measured_model import MeasuredCostModel
from costmodels.profile_io import profile_from_document, profile_to_document
from costmodels.workload import Job, LayerSpec, Workload
from executors.profiling.answers import (
    SCHEMA,
    ExecutorAnswer,
    RankAnswer,
    answer_to_json,
    executor_answer_from_json,
    rank_answer_from_json,
)
from executors.profiling.fragment import measured_fragment
from executors.profiling.layers import DeviceMeasurements, LayerBytes, build_profile_from_spans
from executors.profiling.links import curve_of, slowest_curve
from executors.profiling.merging import _kinds, activation_factor, merge, overhead_bytes
from executors.profiling.plans import chosen_layers, even_cuts, training_bytes
from executors.profiling.spans import LayerSpans, best_steps, by_kind, layer_seconds, wall_per_cpu
from executors.profiling.waiting import Waiting, throttled_s
from policies.errors import InputError

LAYERS = (0, 1, 2, 4)
COUNT = 2
END = LayerSpec(
    kind="end",
    params=1_000,
    trainable_params=1_000,
    forward_flops_per_token=1e6,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=8.0,
    output_bytes_per_token=64.0,
)
BLOCK = replace(END, kind="block", params=10_000, trainable_params=10_000, activation_bytes_per_token=640.0)
HEAD = replace(END, kind="head", output_bytes_per_token=0.0, tied_to=0, shared_params=900)
JOB = Job(
    dtype="fp32",
    sequences_per_step=8,
    micro_batch_sizes=(1, 2),
    sequence_tokens=16,
    gradient_bytes_per_param=4.0,
    optimiser_state_bytes_per_param=8.0,
)
WORKLOAD = Workload(model_name="five", layers=(END, BLOCK, BLOCK, BLOCK, HEAD), job=JOB)


def spans_of(
    seconds: Mapping[int, tuple[float, float]],
    *,
    size: int = 1,
    slow_steps: Mapping[int, float] | None = None,
    wall: float = 1.0,
    steps: int = 8,
) -> LayerSpans:
    """Spans of layers with constant seconds, but for the steps that take a multiple."""
    factor_K = [(slow_steps or {}).get(k, 1.0) for k in range(steps)]

    def way(position: int) -> dict[int, list[tuple[float, float]]]:
        return {
            i: [
                (pair[position] * factor * wall, pair[position] * factor)
                for factor in factor_K
                for _ in range(COUNT)
            ]
            for i, pair in seconds.items()
        }

    return LayerSpans(micro_batch_size=size, micro_batches=COUNT, forward=way(0), backward=way(1))


EVEN = {i: (0.01 * (i + 1), 0.02 * (i + 1)) for i in LAYERS}


@given(slow=st.dictionaries(st.integers(0, 7), st.floats(1.0, 50.0), max_size=6))
def test_disturbed_steps_leave_no_trace(slow: Mapping[int, float]) -> None:
    found = layer_seconds(spans_of(EVEN, slow_steps=slow))
    assert found.forward_s == pytest.approx({i: forward for i, (forward, _) in EVEN.items()})
    assert found.backward_s == pytest.approx({i: backward for i, (_, backward) in EVEN.items()})


def test_seconds_add_up_to_those_of_the_steps_kept() -> None:
    """A sum of minima over layers would be below what any step took."""
    rng = np.random.default_rng(0)
    spans = LayerSpans(
        micro_batch_size=1,
        micro_batches=COUNT,
        forward={i: [(t, t) for t in rng.uniform(1.0, 2.0, 8 * COUNT).tolist()] for i in LAYERS},
        backward={i: [(t, t) for t in rng.uniform(1.0, 2.0, 8 * COUNT).tolist()] for i in LAYERS},
    )
    total_K = sum(
        np.array([cpu for _, cpu in way[i]]).reshape(8, COUNT).sum(axis=1)
        for way in (spans.forward, spans.backward)
        for i in LAYERS
    )
    found = layer_seconds(spans)
    total_s = COUNT * (sum(found.forward_s.values()) + sum(found.backward_s.values()))
    assert total_s == pytest.approx(float(np.sort(np.asarray(total_K))[:2].mean()))
    assert best_steps(np.array([3.0, 1.0, 2.0])).tolist() == [1]


def test_a_throttled_core_runs_behind_the_clock_and_a_moment_of_it_does_not_count() -> None:
    throttled = spans_of(EVEN, wall=2.0)
    calm = spans_of(EVEN)
    assert wall_per_cpu([throttled]) == pytest.approx(2.0)
    assert wall_per_cpu([throttled, calm]) == pytest.approx(1.0)
    assert wall_per_cpu([spans_of(EVEN, wall=0.9)]) == 1.0


def test_steps_shorter_than_a_quota_period_are_judged_together() -> None:
    """A core of 50 %: every second step slips through the quota and the next one waits for both."""
    steps = 40
    one = [(0.02, 0.02) if k % 2 == 0 else (0.06, 0.02) for k in range(steps) for _ in range(COUNT)]
    spans = LayerSpans(micro_batch_size=1, micro_batches=COUNT, forward={0: one}, backward={0: one})
    assert wall_per_cpu([spans]) == pytest.approx(2.0, rel=0.05)


def test_half_steps_and_missing_kinds_are_refused() -> None:
    broken = spans_of(EVEN)
    broken = replace(broken, backward={**broken.backward, 2: broken.backward[2][:-1]})
    with pytest.raises(InputError) as caught:
        layer_seconds(broken)
    assert (caught.value.code, "layer 2" in caught.value.message) == ("profile-incomplete", True)
    with pytest.raises(InputError) as caught:
        by_kind({0: 1.0, 4: 1.0}, WORKLOAD)
    assert "block" in caught.value.message


def test_one_block_stands_for_all_of_its_kind() -> None:
    assert by_kind({0: 1.0, 1: 2.0, 2: 4.0, 4: 5.0}, WORKLOAD) == [1.0, 3.0, 3.0, 3.0, 5.0]
    assert chosen_layers(WORKLOAD) == (0, 1, 2, 3, 4)
    assert chosen_layers(WORKLOAD, blocks_per_kind=1) == (0, 1, 4)
    assert even_cuts(5, 2) == (0, 2, 5)
    bytes_all = training_bytes(WORKLOAD, range(5), 1)
    assert bytes_all - training_bytes(WORKLOAD, (0, 1, 2, 4), 1) == 10_000 * 16 + 640 * 16


def test_curves_keep_what_was_timed_and_never_fall() -> None:
    timed = {1_000: 1e-4, 100_000: 3e-4, 1_000_000: 2e-4, 10_000_000: 1.1e-3}
    curve = curve_of(timed)
    assert [seconds for _, seconds in curve.seconds_at] == [1e-4, 2e-4, 2e-4, 1.1e-3]
    assert curve.latency_s == 1e-4
    assert curve.ceiling_bytes_per_s == pytest.approx(9_999_000 / 1e-3)
    assert curve.transfer_s(5_500_000) == pytest.approx(6.5e-4)
    slower = curve_of({size: 2 * seconds for size, seconds in timed.items()})
    assert slowest_curve([curve, slower]) is slower
    with pytest.raises(InputError):
        curve_of({1_000: 1e-4})


def sizes_of(layer: LayerSpec) -> LayerBytes:
    return LayerBytes(
        params=layer.params,
        trainable_params=layer.trainable_params,
        weight_bytes=4 * layer.params,
        activation_bytes=16 * layer.activation_bytes_per_token,
        input_bytes=16 * layer.input_bytes_per_token,
        output_bytes=16 * layer.output_bytes_per_token,
        working_bytes=100.0,
    )


SIZES = {i: sizes_of(WORKLOAD.layers[i]) for i in LAYERS}


def test_a_profile_from_spans_prices_plans() -> None:
    twice = {i: (2 * forward, 2 * backward) for i, (forward, backward) in EVEN.items()}
    devices = {
        "core": DeviceMeasurements(
            spans=[spans_of(EVEN), spans_of(twice, size=2)], update_s_per_param=1e-6, memory_bytes_per_s=1e10
        )
    }
    profile = build_profile_from_spans(WORKLOAD, devices, sizes=SIZES, note="here")
    times = profile.times["core"][1]
    assert times.micro_batch_sizes == (1, 2)
    assert times.forward_s_ML[0].tolist() == pytest.approx([0.01, 0.025, 0.025, 0.025, 0.05])
    assert times.update_s_ML[0].tolist() == pytest.approx([1e-3, 1e-2, 1e-2, 1e-2, 1e-3])
    assert profile.facts.tied_params == 900
    assert profile.facts.tied_bytes == 900 * JOB.gradient_bytes_per_param
    assert profile.job is not None
    MeasuredCostModel(WORKLOAD, profile=profile_from_document(profile_to_document(profile)))
    counted = build_profile_from_spans(WORKLOAD, devices)
    assert counted.sizes[1].activation_bytes_L.tolist() == [128.0, 10_240.0, 10_240.0, 10_240.0, 128.0]


def rank_answer(rank: int, *, slower: float = 1.0, links: Mapping[int, float] | None = None) -> RankAnswer:
    seconds = {i: (slower * forward, slower * backward) for i, (forward, backward) in EVEN.items()}
    return RankAnswer(
        rank=rank,
        spans=(spans_of(seconds), spans_of(seconds, size=2)),
        update_s=0.032 * slower,
        update_params=32_000,
        sizes=SIZES,
        rates_flop_per_s={"fp32": 3e10, "bf16": 2e10},
        memory_bytes_per_s=8e9,
        links={
            other: {1_000: 1e-5 * factor, 1_000_000: 1e-3 * factor} for other, factor in (links or {}).items()
        },
        step_s={1: (0.5,) * 8, 2: (0.5,) * 8},
        versions={"torch": "2.13"},
    )


def executor_answer(rank: int, layers: tuple[int, ...], *, peak: int = 5_000_000) -> ExecutorAnswer:
    return ExecutorAnswer(
        rank=rank,
        executor="torch",
        micro_batch_overhead_s=1e-3,
        update_s=0.05,
        peaks_bytes={2: peak},
        base_bytes=1_000_000,
        layers=layers,
        in_flight=2 - rank if layers else 0,
        step_s=(0.5,),
    )


def document(host: str, first_rank: int, ranks: list[RankAnswer], kind: str = "core") -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "host": host,
        "device_type": kind,
        "accelerator": "cpu",
        "first_rank": first_rank,
        "chosen": list(LAYERS),
        "micro_batches": COUNT,
        "machine": {"memory_bytes": 2**33, "gpus": []},
        "gpus": [],
        "ranks": [answer_to_json(answer) for answer in ranks],
        "executors": {},
    }


def test_answers_survive_the_way_between_processes() -> None:
    answer = rank_answer(0, links={1: 1.0})
    assert asdict(rank_answer_from_json(answer_to_json(answer))) == asdict(answer)
    other = executor_answer(1, (2, 4))
    assert executor_answer_from_json(answer_to_json(other)) == other


def test_ranks_are_averaged_and_the_slowest_link_counts() -> None:
    one = document(
        "a", 0, [rank_answer(0, links={1: 1.0, 2: 5.0}), rank_answer(1, slower=3.0, links={2: 4.0})]
    )
    two = document("b", 2, [rank_answer(2, slower=2.0)], kind="old")
    profile = merge(WORKLOAD, [one, two])
    assert profile.times["core"][1].forward_s_ML[0, 0] == pytest.approx(0.02)
    assert profile.times["core"][1].update_s_ML[0, 1] == pytest.approx(10_000 * 2e-6)
    assert set(profile.inner) == {("core", 2)}
    assert set(profile.outer) == {("core", "old"), ("old", "core")}
    assert profile.outer["core", "old"].latency_s == pytest.approx(5e-5)
    assert "3 ranks side by side on 2 hosts" in profile.times["old"][1].origin.note
    text = measured_fragment(profile, [one, two])
    assert "type: core  # the profile has its layers" in text
    assert "memory: 4096 MiB  # declared: main memory, shared by 2 ranks" in text
    assert "fp32: 30 GFLOP/s, bf16: 20 GFLOP/s" in text
    assert "between hosts, measured: fabric" in text


def test_what_an_executor_adds_is_what_its_layers_do_not_account_for() -> None:
    given = document("a", 0, [rank_answer(0, links={1: 1.0}), rank_answer(1)])
    answers = [executor_answer(0, (0, 1)), executor_answer(1, (2, 4)), executor_answer(2, ())]
    given["executors"] = {"torch": [answer_to_json(answer) for answer in answers]}
    profile = merge(WORKLOAD, [given])
    facts = profile.executors["torch"]
    assert facts.micro_batch_overhead_s == pytest.approx(1e-3)
    assert facts.step_overhead_s == pytest.approx(0.05 - 0.011)
    # Rank 1: 11,000 weights of 16 bytes, one micro-batch of 2 sequences, one border of 64 x 16 bytes twice.
    states, kept = 11_000 * 16, 2 * 16 * (640 + 8)
    working, border = 2 * 100, 2 * 2 * 64 * 16
    assert facts.overhead_bytes == pytest.approx(5_000_000 - states - kept - working - border)
    assert profile.facts.overhead_bytes == facts.overhead_bytes
    small = [executor_answer(0, (0, 1), peak=10), executor_answer(1, (2, 4), peak=10)]
    given["executors"] = {"torch": [answer_to_json(answer) for answer in small]}
    assert merge(WORKLOAD, [given]).executors["torch"].overhead_bytes == 1_000_000


def test_documents_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        merge(WORKLOAD, [document("a", 0, []) | {"schema": "another"}])
    assert caught.value.code == "profile-incomplete"
    with pytest.raises(InputError):
        merge(WORKLOAD, [document("a", 0, [])])


def test_what_other_processes_took_is_left_out() -> None:
    """A core shared with another process through all steps, and one that stops every now and then."""
    shared = spans_of(EVEN, wall=3.0)
    wall_K = COUNT * 3.0 * sum(sum(pair) for pair in EVEN.values())
    lost = replace(shared, lost_s=(2.0 / 3.0 * wall_K,) * 8)
    assert wall_per_cpu([lost]) == pytest.approx(1.0)
    partly = replace(shared, lost_s=(1.0 / 3.0 * wall_K,) * 8)
    assert wall_per_cpu([partly]) == pytest.approx(2.0)
    assert wall_per_cpu([replace(shared, lost_s=(9.0 * wall_K,) * 8)]) == 1.0


def test_the_peak_that_grows_faster_than_its_activations_gives_the_factor() -> None:
    """Two ranks whose peaks are the counted bytes with each activation held one and a half times."""
    profile = merge(WORKLOAD, [document("here", 0, [rank_answer(0), rank_answer(1)])])
    members = [executor_answer(0, (0, 1)), executor_answer(1, (2, 3))]

    def peak_bytes(one: ExecutorAnswer, size: int) -> int:
        return 3_000_000 + int(sum(_kinds(profile, one, size, 2, 1.5).values()))

    known = [replace(one, peaks_bytes={size: peak_bytes(one, size) for size in (1, 4)}) for one in members]
    factor = activation_factor(profile, known)
    assert factor == pytest.approx(1.5, rel=1e-3)
    for one in known:
        assert overhead_bytes(profile, one, 2, factor) == pytest.approx(3_000_000, rel=1e-3)
    assert activation_factor(profile, members) == 1.0


def test_waiting_is_counted_without_what_a_quota_explains(tmp_path: Path) -> None:
    schedstat, cpu_stat = tmp_path / "schedstat", tmp_path / "cpu.stat"
    schedstat.write_text("900 1000000000 5\n", encoding="ascii")
    cpu_stat.write_text("usage_usec 7\nthrottled_usec 250000\n", encoding="ascii")
    waiting = Waiting(schedstat, cpu_stat)
    schedstat.write_text("950 4000000000 6\n", encoding="ascii")
    assert waiting.taken_s() == pytest.approx(3.0)
    schedstat.write_text("950 5000000000 6\n", encoding="ascii")
    cpu_stat.write_text("usage_usec 9\nthrottled_usec 850000\n", encoding="ascii")
    assert waiting.taken_s() == pytest.approx(0.4)
    cpu_stat.write_text("nr_throttled 3\nthrottled_time 9850000000\n", encoding="ascii")
    assert waiting.taken_s() == 0.0
    nothing = Waiting(tmp_path / "none", tmp_path / "none")
    assert nothing.taken_s() == 0.0
    assert throttled_s(None) is None
    untold = Waiting(schedstat, tmp_path / "none")
    schedstat.write_text("950 7000000000 6\n", encoding="ascii")
    assert untold.taken_s() == 0.0
