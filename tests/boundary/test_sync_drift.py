"""The drift controller: its law, its limits, its fall-back, and a record of every input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.drift import (
    DriftAction,
    DriftRule,
    DriftSignals,
    DriftState,
    decide,
    dispersion,
    dispersion_bound,
    steps_floor,
)
from policies.errors import InputError

RULE = DriftRule(h_fixed=16, h_min=2, h_max=64)
NEAR = DriftSignals(squared_norms_B=(1.0, 1.0), squared_mean_norm=0.9, link_s=0.1, step_s=0.05)
FAR = replace(NEAR, squared_mean_norm=0.5)


@given(num=st.integers(2, 6), seed=st.integers(0, 100), scale=st.floats(0.01, 100.0))
def test_identical_deltas_drift_0_and_orthogonal_ones_m_minus_1(num: int, seed: int, scale: float) -> None:
    base_P, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    apart = scale * base_P[:num]
    same = np.repeat(apart[:1], num, axis=0)
    for deltas, expected in ((apart, num - 1.0), (same, 0.0)):
        norms = [float(d @ d) for d in deltas]
        mean = deltas.mean(axis=0)
        assert dispersion(norms, float(mean @ mean)) == pytest.approx(expected, abs=1e-9)


@given(num=st.integers(2, 5), seed=st.integers(0, 200))
def test_drift_from_projections_is_never_below_the_true_one(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(num, 6)) + rng.normal(size=6)
    axis = rng.normal(size=6)
    axis /= np.linalg.norm(axis)
    norms = [float(d @ d) for d in deltas]
    mean = deltas.mean(axis=0)
    exact = dispersion(norms, float(mean @ mean))
    assert dispersion_bound(norms, [float(d @ axis) for d in deltas]) >= exact * (1 - 1e-9)


def test_h_grows_below_the_threshold_and_shrinks_at_or_above_it() -> None:
    _, longer = decide(RULE, DriftState(h=16.0), NEAR)
    _, shorter = decide(RULE, DriftState(h=16.0), FAR)
    assert (longer.action, longer.num_local_steps) == (DriftAction.LENGTHEN, 20)
    assert (shorter.action, shorter.num_local_steps) == (DriftAction.SHORTEN, 13)
    assert shorter.rho == pytest.approx(1.0)
    assert shorter.theta == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"squared_norms_B": (1.0,)},
        {"squared_norms_B": ()},
        {"squared_norms_B": (1.0, math.nan)},
        {"squared_norms_B": (1.0, math.inf)},
        {"squared_mean_norm": None},
        {"squared_mean_norm": 0.0},
        {"squared_mean_norm": math.nan},
        {"link_s": None},
        {"link_s": math.nan},
        {"link_s": -1.0},
        {"overhead_s": math.nan},
        {"step_s": None},
        {"step_s": 0.0},
        {"step_s": math.inf},
    ],
)
def test_a_missing_or_broken_signal_means_the_fixed_h(change: dict[str, float]) -> None:
    signals = replace(NEAR, **change)  # type: ignore[arg-type]
    state, decision = decide(RULE, DriftState(h=50.0), signals)
    assert decision.action is DriftAction.FALL_BACK
    assert decision.num_local_steps == 16
    assert state.h == 16.0
    assert decision.reason
    assert decision.signals is signals


def test_growth_freezes_while_the_loss_stalls_and_shrinking_does_not() -> None:
    state = DriftState(h=16.0)
    for _ in range(RULE.stall_patience + 1):
        state, _ = decide(RULE, replace(state, h=16.0), replace(NEAR, loss=2.0))
    frozen, decision = decide(RULE, state, replace(NEAR, loss=2.0))
    assert (decision.action, frozen.h) == (DriftAction.FREEZE, state.h)
    _, shorter = decide(RULE, state, replace(FAR, loss=2.0))
    assert shorter.action is DriftAction.SHORTEN
    _, again = decide(RULE, state, replace(NEAR, loss=1.0))
    assert again.action is DriftAction.LENGTHEN


@given(
    h=st.floats(1.0, 1e3),
    rho_mean=st.floats(1e-3, 1.0),
    link_s=st.floats(0.0, 1e3),
    step_s=st.floats(1e-3, 10.0),
    is_overlapped=st.booleans(),
)
def test_h_stays_in_range_and_at_the_floor_little_link_time_shows(
    h: float, rho_mean: float, link_s: float, step_s: float, is_overlapped: bool
) -> None:
    # So large that it never cuts the floor off: 1e3 s of link over steps of 1e-3 s take 2e7 of them.
    rule = replace(RULE, is_overlapped=is_overlapped, h_max=10**9)
    floor = steps_floor(rule, link_s=link_s, step_s=step_s)
    busy_s = floor * step_s
    exposed = max(0.0, link_s - busy_s) / max(link_s, 1e-12) if is_overlapped else link_s / (busy_s + link_s)
    assert exposed <= rule.link_frac_max * (1 + 1e-6)
    if floor > rule.h_min:
        less_s = (floor - 1) * step_s
        more = (link_s - less_s) / link_s if is_overlapped else link_s / (less_s + link_s)
        assert more >= rule.link_frac_max * (1 - 1e-6)
    signals = replace(NEAR, squared_mean_norm=rho_mean, link_s=link_s, step_s=step_s)
    _, decision = decide(rule, DriftState(h=h), signals)
    assert max(rule.h_min, floor) <= decision.num_local_steps <= rule.h_max


@given(overhead_s=st.floats(0.0, 10.0), step_s=st.floats(1e-3, 1.0))
def test_the_window_overhead_stays_within_its_share(overhead_s: float, step_s: float) -> None:
    rule = replace(RULE, h_max=10**7)
    floor = steps_floor(rule, link_s=0.0, step_s=step_s, overhead_s=overhead_s)
    busy_s = floor * step_s
    assert overhead_s / (busy_s + overhead_s) <= rule.overhead_frac_max * (1 + 1e-6)
    _, decision = decide(
        rule, DriftState(h=2.0), replace(FAR, link_s=0.0, step_s=step_s, overhead_s=overhead_s)
    )
    assert decision.h_floor == floor <= decision.num_local_steps


def test_the_deadline_follows_h_and_stale_work_lengthens_it() -> None:
    _, fresh = decide(RULE, DriftState(h=16.0), replace(NEAR, staleness_counts=(8, 0)))
    _, stale = decide(RULE, DriftState(h=16.0), replace(NEAR, staleness_counts=(4, 4)))
    assert fresh.window_deadline_s == pytest.approx(20 * 0.05 * 1.5)
    assert stale.window_deadline_s == pytest.approx(20 * 0.05 * 2.0)
    assert stale.stale_frac == 0.5


@pytest.mark.parametrize(
    "change", [{"gain": 1.0}, {"h_fixed": 65}, {"link_frac_max": 1.0}, {"theta_frac": math.nan}]
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError):
        replace(RULE, **change)  # type: ignore[arg-type]
