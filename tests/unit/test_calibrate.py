"""The fitted iteration model: recovery, grouped cross-validation, intervals and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.calibrate import (
    bootstrap_interval,
    cross_validate,
    fit,
    shape_folds,
    shape_weights_R,
)
from costmodels.calibrate_io import calibration_from_document, calibration_to_document, parse_runs
from costmodels.calibrate_model import (
    COEFFICIENTS,
    NAMES,
    TrainingRun,
    columns,
    iteration_s_R,
    layer_s,
    spread_C,
    start_C,
)
from costmodels.interface import FloatArray
from measured_instances import A100, MEASURED_FOLDER, a100_runs, several_R
from policies.errors import InputError


def synthetic_runs(theta_C: FloatArray) -> list[TrainingRun]:
    """Layouts of seven model shapes, timed by the model itself."""
    runs = []
    shapes = ((1024, 12), (1024, 24), (2048, 16), (2048, 24), (4096, 32), (6144, 40), (8192, 48))
    for hidden, layers in shapes:
        for tp, dp, pp in ((1, 2, 1), (1, 1, 4), (2, 2, 2), (4, 1, 2), (8, 1, 1), (4, 8, 2), (8, 2, 4)):
            for micro_batch_size in (1, 4):
                runs.append(
                    TrainingRun(
                        name=f"{hidden}-{layers}-{tp}-{dp}-{pp}-{micro_batch_size}",
                        num_devices=tp * dp * pp,
                        global_batch=8 * dp * micro_batch_size,
                        micro_batch_size=micro_batch_size,
                        hidden=hidden,
                        heads=16,
                        layers=layers,
                        sequence_tokens=1024,
                        tp=tp,
                        dp=dp,
                        pp=pp,
                        recompute=tp * dp * pp > 8,
                    )
                )
    seconds_R = iteration_s_R(theta_C, columns(runs), A100)
    return [replace(run, iteration_s=float(s)) for run, s in zip(runs, seconds_R, strict=True)]


def one_run(**changes: Any) -> TrainingRun:
    return replace(synthetic_runs(start_C(A100))[0], **changes)


def test_the_fit_recovers_a_machine_that_differs_from_its_data_sheet() -> None:
    true_C = start_C(A100) + 0.8 * spread_C() * np.cos(np.arange(len(NAMES)))
    runs = synthetic_runs(true_C)
    measured_s_R = np.array([run.iteration_s for run in runs])
    before = np.abs(iteration_s_R(start_C(A100), columns(runs), A100) / measured_s_R - 1.0).mean()
    calibration = fit(runs, A100)
    after = np.abs(calibration.predict_s_R(runs) / measured_s_R - 1.0)
    assert before > 0.1
    assert after.mean() < 0.01
    assert calibration.coefficients["gemm_flop_per_s"] == pytest.approx(np.exp(true_C[0]), rel=0.1)
    assert "98 runs of 7 model shapes" in calibration.origin.note


def test_one_disturbed_run_does_not_bend_the_fit() -> None:
    runs = synthetic_runs(start_C(A100))
    disturbed = [replace(runs[0], iteration_s=5.0 * runs[0].iteration_s), *runs[1:]]
    predicted_s_R = fit(disturbed, A100).predict_s_R(runs)
    assert np.abs(predicted_s_R / np.array([run.iteration_s for run in runs]) - 1.0).mean() < 0.02


def test_the_same_runs_give_the_same_coefficients() -> None:
    runs = synthetic_runs(start_C(A100) + 0.1)
    assert fit(runs, A100).coefficients == fit(runs, A100).coefficients


@given(seed=st.integers(0, 1000), num_folds=st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_no_model_shape_is_in_two_folds_and_none_is_empty(seed: int, num_folds: int) -> None:
    runs = synthetic_runs(start_C(A100))
    fold_R = shape_folds(runs, num_folds=num_folds, seed=seed)
    assert len({(run.shape, fold) for run, fold in zip(runs, fold_R, strict=True)}) == 7
    assert set(fold_R) == set(range(num_folds))


def test_held_out_times_have_no_influence_on_their_own_prediction() -> None:
    runs = synthetic_runs(start_C(A100) + 0.05)
    shape = runs[0].shape
    lied = [replace(r, iteration_s=3.0 * r.iteration_s) if r.shape == shape else r for r in runs]
    honest, poisoned = cross_validate(runs, A100, num_folds=7), cross_validate(lied, A100, num_folds=7)
    held = [i for i, run in enumerate(runs) if run.shape == shape]
    others = [i for i, run in enumerate(runs) if run.shape != shape]
    assert np.array_equal(honest.predicted_s_R[held], poisoned.predicted_s_R[held])
    assert not np.array_equal(honest.predicted_s_R[others], poisoned.predicted_s_R[others])
    assert poisoned.error_frac_R[held] == pytest.approx((honest.error_frac_R[held] + 1.0) / 3.0 - 1.0)


def test_shapes_measured_often_weigh_less_per_run_and_more_in_all() -> None:
    runs = synthetic_runs(start_C(A100))[:28]
    weight_R = shape_weights_R([*runs[:14], runs[14]])
    assert weight_R[0] < weight_R[-1]
    assert weight_R[:14].sum() > weight_R[-1]
    assert weight_R.mean() == pytest.approx(1.0)


@given(factor=st.floats(1.01, 3.0), place=st.integers(0, len(NAMES) - 1))
@settings(max_examples=40, deadline=None)
def test_a_better_machine_is_never_slower(factor: float, place: int) -> None:
    runs = synthetic_runs(start_C(A100))
    theta_C = start_C(A100)
    theta_C[place] += np.log(factor) * (1 if NAMES[place].endswith("_per_s") else -1)
    before_s_R = np.array([run.iteration_s for run in runs])
    assert (iteration_s_R(theta_C, columns(runs), A100) <= before_s_R * (1 + 1e-12)).all()


@pytest.mark.parametrize(("recompute", "passes", "sweeps", "reductions"), [(False, 3, 2, 4), (True, 4, 3, 6)])
def test_one_layer_is_what_the_sum_by_hand_gives(
    recompute: bool, passes: int, sweeps: int, reductions: int
) -> None:
    value = dict.fromkeys(NAMES, 0.0) | {
        "gemm_flop_per_s": 1e14,
        "gemm_fixed_flops": 1e9,
        "attention_flop_per_s": 5e13,
        "memory_bytes_per_s": 1e12,
        "launch_s": 1e-9,
        "tensor_bytes_per_s": 1e11,
        "tensor_latency_s": 1e-5,
    }
    run = columns([one_run(tp=4, dp=1, num_devices=4, hidden=2048, recompute=recompute)])
    gemm_s = passes * (24 * 1024 * 2048**2 / 4 + 1e9) / 1e14
    attention_s = passes * (4 * 1024 * 1024 * 2048 / 4) / 5e13
    sweep_s = sweeps * (20 * 1024 * 2048 + 48 * 1024 * 2048 / 4 + 10 * 16 * 1024 * 1024 / 4) / 1e12
    reduce_s = reductions * (2 * 3 / 4 * 2 * 1024 * 2048 / 1e11 + 2e-5)
    assert layer_s(value, run, A100) == pytest.approx([gemm_s + attention_s + sweep_s + reduce_s])


@pytest.mark.parametrize(("heads", "micro_batch_size", "factor"), [(16, 1, 1.0), (8, 1, 1.5), (8, 2, 1.0)])
def test_launches_bound_small_layers_and_an_odd_softmax_launches_more(
    heads: int, micro_batch_size: int, factor: float
) -> None:
    value = dict.fromkeys(NAMES, 1e20) | {"launch_s": 0.004, "unfused_frac": 0.5}
    value |= {"gemm_fixed_flops": 0.0, "narrow_hidden": 0.0, "tensor_latency_s": 0.0}
    run = one_run(tp=4, dp=1, num_devices=4, heads=heads, micro_batch_size=micro_batch_size)
    assert layer_s(value, columns([run]), A100) == pytest.approx([0.004 * factor])


def test_recomputation_costs_at_most_a_third_more_layer_time() -> None:
    plain, again = one_run(hidden=8192, recompute=False), one_run(hidden=8192, recompute=True)
    plain_s, again_s = iteration_s_R(start_C(A100), columns([plain, again]), A100)
    assert plain_s < again_s < 1.51 * plain_s


def test_interval_covers_the_mean_and_shrinks_with_more_runs() -> None:
    errors = np.random.default_rng(1).normal(0.0, 0.1, 400)
    low, high = bootstrap_interval(errors)
    few_low, few_high = bootstrap_interval(errors[:10])
    assert low < np.abs(errors).mean() < high
    assert high - low < few_high - few_low
    assert bootstrap_interval(np.full(5, -0.2)) == pytest.approx((0.2, 0.2))


def test_a_calibration_survives_its_document() -> None:
    calibration = fit(synthetic_runs(start_C(A100))[:20], A100)
    document = json.loads(json.dumps(calibration_to_document(calibration)))
    assert calibration_from_document(document) == calibration
    changes: list[dict[str, Any]] = [{"schema": "echelon/plan/1"}, {"coefficients": {}}, {"platform": {}}]
    for change in changes:
        with pytest.raises(InputError) as caught:
            calibration_from_document({**document, **change})
        assert caught.value.code == "calibration-malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"tp": 2},
        {"pp": 0},
        {"layers": 13, "pp": 2, "dp": 1},
        {"global_batch": 3},
        {"heads": 15, "tp": 2, "dp": 1},
    ],
)
def test_a_run_that_can_not_have_been_run_is_refused_by_name(changes: dict[str, int]) -> None:
    with pytest.raises(InputError) as caught:
        columns([one_run(), one_run(name="odd", **changes)])
    assert caught.value.code == "run-impossible"
    assert {fault.place for fault in caught.value.faults} == {"odd"}


def test_unmeasured_runs_and_too_many_folds_are_refused() -> None:
    for runs in ([], [one_run(iteration_s=0.0)], [one_run(iteration_s=float("nan"))]):
        with pytest.raises(InputError) as caught:
            fit(runs, A100)
        assert caught.value.code == "runs-unmeasured"
    for num_folds in (1, 8):
        with pytest.raises(InputError) as caught:
            shape_folds(synthetic_runs(start_C(A100)), num_folds=num_folds)
        assert caught.value.code == "folds-too-many"


def test_rows_are_read_and_every_bad_one_is_named() -> None:
    row: dict[str, Any] = {
        "gpus": 8,
        "global_batch": 8,
        "micro_batch": 1,
        "hidden": 64,
        "heads": 4,
        "layers": 2,
    }
    row |= {"seq": 8, "tp": 2, "dp": 2, "pp": 2}
    good = parse_runs([{**row, "id": "a", "iteration_ms": 5.0}], recompute_above_devices=4)
    assert (good[0].name, good[0].iteration_s, good[0].recompute) == ("a", 0.005, True)
    said = parse_runs([{**row, "iteration_ms": 5.0, "recompute": False}], recompute_above_devices=4)
    assert not said[0].recompute
    with pytest.raises(InputError) as caught:
        parse_runs([{**row, "id": "x"}, {"id": "y", "iteration_ms": "fast"}])
    assert [fault.place for fault in caught.value.faults] == ["x", "y"]


def test_every_coefficient_says_what_it_means() -> None:
    assert len(set(NAMES)) == len(COEFFICIENTS)
    assert all(c.meaning and c.spread > 0 and c.start(A100) > 0 for c in COEFFICIENTS)


@pytest.mark.skipif(not MEASURED_FOLDER.is_dir(), reason="the measured instances are not here")
def test_measured_a100_iterations_are_predicted_across_model_shapes() -> None:
    runs = a100_runs()
    several = several_R(runs)
    size_R = np.abs(cross_validate(runs, A100).error_frac_R)
    assert (len(runs), int(several.sum())) == (155, 11)
    assert size_R[~several].mean() <= 0.084
    assert size_R[several].mean() <= 0.147
