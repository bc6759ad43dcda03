"""Link curves, repaired layer times, interpolation and the profile file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.interface import Origin
from costmodels.measured_profile import (
    LayerSizes,
    LayerTimes,
    LinkCurve,
    Profile,
    RunFacts,
    at_micro_batch,
    layer_sizes,
    layer_times_L,
    repair_times,
    time_origin,
)
from costmodels.profile_io import (
    build_profile,
    load_profile,
    profile_from_document,
    profile_to_document,
    read_json,
    save_profile,
)
from policies.errors import InputError

FACTS = RunFacts(
    gradient_bytes_per_param=4.0,
    optimiser_bytes_per_param=8.0,
    update_traffic_bytes_per_param=28.0,
    overhead_bytes=1e9,
    memory_bytes_per_s=1e12,
    origins={"overhead_bytes": Origin(kind="assumed", note="test")},
)
CURVE = LinkCurve(gigabytes_per_s=(-0.16570216, 2.79431173, 11.74409677), ceiling_bytes_per_s=22.9e9)


def times_of(*rows: float, sizes: tuple[int, ...] = (1, 2, 4)) -> LayerTimes:
    column_ML = np.array(rows, dtype=float)[:, None] * np.ones((1, 3))
    return LayerTimes(
        micro_batch_sizes=sizes,
        forward_s_ML=column_ML,
        backward_s_ML=2 * column_ML,
        update_s_ML=column_ML * 0 + 0.5,
    )


def sizes_of(scale: float = 1.0) -> LayerSizes:
    ones_L = np.ones(3) * scale
    return LayerSizes(
        params_L=ones_L * 100,
        weight_bytes_L=ones_L * 400,
        activation_bytes_L=ones_L * 1000,
        input_bytes_L=ones_L * 10,
        output_bytes_L=ones_L * 10,
    )


def profile_of(times: LayerTimes) -> Profile:
    return Profile(
        model_name="tiny",
        times={"A": {1: times, 4: replace(times, forward_s_ML=times.forward_s_ML / 4)}},
        sizes={1: sizes_of(), 4: sizes_of(0.25)},
        outer={("A", "A"): CURVE},
        inner={("A", 4): CURVE},
        facts=FACTS,
    )


@given(
    coefficients=st.tuples(*[st.floats(-5, 5)] * 2, st.floats(0.1, 50)),
    small=st.floats(1, 1e11),
    factor=st.floats(1, 1e6),
)
def test_a_larger_payload_never_gets_less_bandwidth(
    coefficients: tuple[float, float, float], small: float, factor: float
) -> None:
    curve = LinkCurve(gigabytes_per_s=coefficients, ceiling_bytes_per_s=40e9)
    assert 0 < curve.bytes_per_s(small) <= curve.bytes_per_s(small * factor) * (1 + 1e-9)
    assert curve.bytes_per_s(small * factor) <= 40e9


def test_curve_gives_the_polynomial_inside_and_its_peak_beyond() -> None:
    sixteen_megabytes = -0.16570216 * 16 + 2.79431173 * 4 + 11.74409677
    assert CURVE.bytes_per_s(16e6) == pytest.approx(sixteen_megabytes * 1e9)
    assert CURVE.transfer_s(16e6) == pytest.approx(16e6 / (sixteen_megabytes * 1e9))
    uncapped = replace(CURVE, ceiling_bytes_per_s=1e12)
    peak = 11.74409677 + 2.79431173**2 / (4 * 0.16570216)
    assert uncapped.bytes_per_s(1e12) == pytest.approx(peak * 1e9)
    assert uncapped.bytes_per_s(1.0) == pytest.approx(11.74409677e9)
    assert replace(CURVE, latency_s=0.5).transfer_s(0.0) == 0.0


@given(rows=st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=3))
def test_repaired_times_never_fall_and_never_exceed_the_measured_ones(rows: list[float]) -> None:
    before = times_of(*rows)
    after = repair_times(before)
    assert (np.diff(after.forward_s_ML, axis=0) >= 0).all()
    assert (after.forward_s_ML <= before.forward_s_ML).all()
    assert np.array_equal(after.forward_s_ML[-1], before.forward_s_ML[-1])
    assert np.array_equal(repair_times(after).forward_s_ML, after.forward_s_ML)


def test_a_repair_is_written_into_the_origin() -> None:
    assert repair_times(times_of(1.0, 2.0, 3.0)).origin.note == ""
    assert "6 of 18" in repair_times(times_of(9.0, 2.0, 3.0)).origin.note


@pytest.mark.parametrize(("size", "seconds"), [(1, 1.0), (2, 3.0), (3, 4.0), (4, 5.0), (6, 7.0)])
def test_micro_batch_sizes_between_and_beyond_samples_are_linear(size: int, seconds: float) -> None:
    assert at_micro_batch((1, 2, 4), times_of(1.0, 3.0, 5.0).forward_s_ML, size) == pytest.approx(
        [seconds] * 3
    )


def test_below_the_smallest_sample_its_time_is_kept_and_a_single_sample_scales() -> None:
    assert at_micro_batch((4, 8), times_of(2.0, 4.0, sizes=(4, 8)).forward_s_ML, 1) == pytest.approx(
        [2.0] * 3
    )
    assert at_micro_batch((4,), times_of(2.0, sizes=(4,)).forward_s_ML, 8) == pytest.approx([4.0] * 3)


def test_tensor_degrees_between_profiled_ones_follow_a_power_law() -> None:
    profile = profile_of(times_of(4.0, 8.0, 16.0))
    assert layer_times_L(profile, "A", 2, 1)[0] == pytest.approx([2.0] * 3)
    assert layer_sizes(profile, 2).params_L == pytest.approx([50.0] * 3)
    assert time_origin(profile, "A", 1, 2).kind == "measured"
    assert time_origin(profile, "A", 2, 2).kind == "assumed"
    assert "extrapolated" in time_origin(profile, "A", 1, 9).note


@pytest.mark.parametrize(
    ("type_name", "tp", "code"), [("B", 1, "profile-device-missing"), ("A", 8, "profile-degree-missing")]
)
def test_what_was_not_profiled_is_refused_with_what_was(type_name: str, tp: int, code: str) -> None:
    with pytest.raises(InputError) as caught:
        layer_times_L(profile_of(times_of(1.0, 2.0, 3.0)), type_name, tp, 1)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = profile_of(repair_times(times_of(9.0, 2.0, 3.0)))
    save_profile(profile, tmp_path / "profile.json")
    again = load_profile(tmp_path / "profile.json")
    assert profile_to_document(again) == profile_to_document(profile)
    assert again.facts == profile.facts
    assert again.outer == profile.outer
    assert list(tmp_path.iterdir()) == [tmp_path / "profile.json"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": "echelon/plan/1"}, "profile-schema"),
        ({"facts": {"overhead_bytes": 1}}, "profile-incomplete"),
        ({"times": {"A": {"x": {}}}}, "profile-incomplete"),
        ({"outer": [{"from": "A"}]}, "profile-incomplete"),
    ],
)
def test_a_damaged_profile_is_refused(change: dict[str, Any], code: str) -> None:
    document = {**json.loads(json.dumps(profile_to_document(profile_of(times_of(1.0, 2.0, 3.0))))), **change}
    with pytest.raises(InputError) as caught:
        profile_from_document(document)
    assert caught.value.code == code


def test_unreadable_and_disagreeing_measurements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "absent.json")
    assert caught.value.code == "profile-unreadable"
    with pytest.raises(InputError) as caught:
        profile_from_document([])
    assert caught.value.code == "profile-schema"
    layer = dict.fromkeys(
        ("params_floats", "params_bytes", "act_mem_bytes", "act_input_bytes", "act_output_bytes"), 1.0
    )
    times = {"m": {"A": {"1": {"1": [[1, 1, 1], [1, 1, 1]]}}}}
    for sizes, code in (({"m": {"1": [layer]}}, "profile-incomplete"), ({}, "profile-incomplete")):
        with pytest.raises(InputError) as caught:
            build_profile("m", times=times, sizes=sizes, outer={}, inner={}, facts=FACTS)
        assert caught.value.code == code
    whole = build_profile("m", times=times, sizes={"m": {"1": [layer] * 2}}, outer={}, inner={}, facts=FACTS)
    assert whole.num_layers == 2
