"""The contest's own arithmetic: its model's gradient, its budgets, its readings, and kept runs."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from boundary.sync_contest import (
    ARMS,
    BASE,
    SMOKE,
    TRIALS,
    Job,
    Size,
    budgets,
    build_policy,
    round_trip_s,
    run_job,
)
from boundary.sync_language import (
    NUM_PARAMETERS,
    NUM_SYMBOLS,
    examples,
    first_vector,
    gradient,
    loss,
    to_symbols,
)
from boundary.sync_report import budget_table, loss_at, losses_of, paired, target_table, time_to

RUN = {
    "start_loss": 3.0,
    "trajectory": [
        {"num_tokens": 10, "num_bytes": 5, "at_s": 1.0, "num_syncs": 1, "loss": 2.0},
        {"num_tokens": 20, "num_bytes": 10, "at_s": 4.0, "num_syncs": 2, "loss": 1.0},
    ],
}


def test_the_model_gradient_is_the_slope_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.integers(NUM_SYMBOLS, size=200)
    contexts, following = examples(symbols, np.arange(40))
    w_P = first_vector(0).astype(np.float64)
    slope_P = gradient(w_P.astype(np.float32), contexts, following)
    for i in rng.integers(0, NUM_PARAMETERS, size=20):
        nudge_P = np.zeros_like(w_P)
        nudge_P[i] = 1e-4
        rise = loss(w_P + nudge_P, contexts, following) - loss(w_P - nudge_P, contexts, following)
        assert slope_P[i] == pytest.approx(rise / 2e-4, abs=1e-5)


def test_symbols_are_printable_ascii_and_one_for_the_rest() -> None:
    assert to_symbols(" ~\n\u00e9").tolist() == [0, 94, 95, 31]


def test_every_arm_has_the_same_number_of_trials_and_each_is_a_policy() -> None:
    assert {len(trials) for trials in TRIALS.values()} == {Size().num_trials}
    for arm in ARMS:
        assert all(len({repr(t) for t in TRIALS[arm]}) == len(TRIALS[arm]) for arm in ARMS)
        assert {build_policy(arm, t, num_boundaries=2).name for t in TRIALS[arm]} == {arm}


def test_tuning_seeds_are_not_reported() -> None:
    for size in (Size(), SMOKE):
        assert not set(size.tuning_seeds) & set(size.seeds)
    assert len(Size().seeds) == 5


def test_the_delay_is_a_ratio_of_rounds() -> None:
    slow = replace(BASE, delay_rounds=2.0, speed_spread=1.0)
    assert round_trip_s(slow) == pytest.approx(2.0 * 20 * 0.02)
    assert budgets(Size(), payload_bytes=1000).num_bytes == 20 * 4 * 1000


def test_losses_are_read_at_budgets_and_censored_runs_are_seen() -> None:
    assert loss_at(RUN, "num_tokens", 5) == (3.0, True)
    assert loss_at(RUN, "num_tokens", 19) == (2.0, True)
    assert loss_at(RUN, "num_bytes", 11) == (1.0, False)
    assert time_to(RUN, 1.5) == 4.0
    assert math.isinf(time_to(RUN, 0.5))
    assert paired([1.0, 3.0, 5.0], [0.0, 1.0, 2.0]) == pytest.approx((2.0, 4.303 / math.sqrt(3)), rel=1e-3)


def test_a_run_repeats_and_the_tables_name_every_arm() -> None:
    size = replace(SMOKE, num_ref_steps=20, num_warm_steps=5, batch=4)
    until = budgets(size, payload_bytes=16 + 4 * NUM_PARAMETERS)
    runs = {}
    for arm in ARMS:
        job = Job(arm=arm, setting=TRIALS[arm][0], treatment=BASE, seed=1, size=size)
        runs[arm] = [run_job(job, until), run_job(replace(job, seed=2), until)]
    job = Job(arm="diloco", setting=TRIALS["diloco"][0], treatment=BASE, seed=1, size=size)
    again = run_job(job, until)
    assert again["trajectory"] == runs["diloco"][0]["trajectory"]
    assert again["key"] == runs["diloco"][0]["key"] != runs["diloco"][1]["key"]
    tables = (
        budget_table(runs, until),
        target_table(runs, target_loss=4.0, cap_s=asdict(until)["at_s"]),
        losses_of(runs, until),
    )
    assert all(arm in "\n".join(table) for table in tables for arm in ARMS)
