"""Clipping: limits hold, what is inside stays bit for bit, and the input is never changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.clipping import ClipRule, clip
from policies.errors import InputError

VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50)
LIMITS = st.none() | st.floats(1e-2, 1e3)


@given(values=VALUES, l2_max=LIMITS, linf_max=LIMITS)
def test_both_limits_hold_and_direction_is_kept(
    values: list[float], l2_max: float | None, linf_max: float | None
) -> None:
    delta_P = np.array(values, dtype=np.float32)
    before = delta_P.tobytes()
    clipped = clip(delta_P, ClipRule(l2_max=l2_max, linf_max=linf_max))
    out_P = clipped.delta_P
    assert delta_P.tobytes() == before
    if l2_max is not None:
        assert np.linalg.norm(out_P.astype(np.float64)) <= l2_max * (1 + 1e-5)
    if linf_max is not None:
        assert np.abs(out_P).max() <= np.float32(linf_max)
    assert (out_P * delta_P >= 0.0).all()
    if not clipped.is_clipped:
        assert out_P.tobytes() == before


def test_l2_comes_before_linf() -> None:
    """(30, 40) scaled to norm 5 is (3, 4), then cut at 3.5; the other order would give norm 4.95 first."""
    clipped = clip(np.array([30.0, 40.0], dtype=np.float32), ClipRule(l2_max=5.0, linf_max=3.5))
    assert clipped.delta_P == pytest.approx([3.0, 3.5], abs=1e-6)
    assert (clipped.l2_norm, clipped.num_clipped, clipped.clipped_frac) == (50.0, 1, 0.5)
    assert clipped.scale == pytest.approx(0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError) as refused:
        clip(np.array([0.0, value], dtype=np.float32), ClipRule(l2_max=1.0))
    assert refused.value.code == "delta-not-finite"
    assert "1 of 2" in refused.value.message


@pytest.mark.parametrize("limit", [0.0, -1.0, np.inf, np.nan])
def test_limits_must_be_positive_and_finite(limit: float) -> None:
    with pytest.raises(InputError):
        ClipRule(l2_max=limit)
    with pytest.raises(InputError):
        ClipRule(linf_max=limit)
