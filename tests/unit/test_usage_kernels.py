"""Projection of multipliers: duality bounds the answer whatever it is, so no second solver is needed.

Legend: P paths, K multipliers.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.solve.usage_kernels import project

FloatArray = NDArray[np.float64]


@st.composite
def cases(draw: st.DrawFn, *, rows_max: int = 4) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Start, slopes, needs and scales."""
    num_k = draw(st.integers(1, 4))
    num_p = draw(st.integers(1, rows_max))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    start_K = rng.random(num_k) * rng.integers(0, 2, num_k)
    slope_PK = np.round(rng.normal(size=(num_p, num_k)) * 3.0)
    return start_K, slope_PK, rng.normal(size=num_p), rng.uniform(0.2, 3.0, num_k)


def projected(
    start_K: FloatArray, slope_PK: FloatArray, need_P: FloatArray, scale_K: FloatArray
) -> tuple[FloatArray, FloatArray]:
    out_K, push_P = np.full(start_K.size, np.nan), np.full(need_P.size, np.nan)
    project(start_K, slope_PK, need_P, scale_K, push_P, out_K)
    return out_K, push_P


def distance(start_K: FloatArray, point_K: FloatArray, scale_K: FloatArray) -> float:
    return 0.5 * float((((point_K - start_K) / scale_K) ** 2).sum())


@given(cases())
def test_multipliers_and_pushes_are_never_negative_and_belong_together(
    case: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
) -> None:
    start_K, slope_PK, _need_P, scale_K = case
    out_K, push_P = projected(*case)
    assert (out_K >= 0.0).all()
    assert (push_P >= 0.0).all()
    assert np.allclose(out_K, np.maximum(0.0, start_K + scale_K**2 * (push_P @ slope_PK)))


@given(cases(), st.integers(0, 2**32 - 1))
def test_no_multipliers_that_do_are_nearer(
    case: tuple[FloatArray, FloatArray, FloatArray, FloatArray], seed: int
) -> None:
    start_K, slope_PK, _, scale_K = case
    rng = np.random.default_rng(seed)
    point_K = rng.random(start_K.size) * 2.0
    need_P = slope_PK @ point_K - rng.random(slope_PK.shape[0]) * rng.integers(0, 2, slope_PK.shape[0])
    out_K, push_P = projected(start_K, slope_PK, need_P, scale_K)
    missed = float(push_P @ (need_P - slope_PK @ out_K))
    assert distance(start_K, out_K, scale_K) + missed <= distance(start_K, point_K, scale_K) + 1e-9


@given(cases(rows_max=1))
def test_one_path_gets_what_it_needs_or_the_multipliers_can_give_nothing(
    case: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
) -> None:
    start_K, slope_PK, need_P, _scale_K = case
    out_K, push_P = projected(*case)
    have = float(slope_PK[0] @ out_K)
    if (slope_PK[0] > 0.0).any() or need_P[0] <= 0.0:
        assert have >= need_P[0] - 1e-6 * (1.0 + abs(need_P[0]))
        if push_P[0] > 0.0:
            assert have == pytest.approx(need_P[0], rel=1e-5, abs=1e-6)
    if slope_PK[0] @ start_K >= need_P[0] + 1e-9:
        assert out_K.tolist() == start_K.tolist()


@given(cases())
def test_needs_that_are_met_already_change_nothing(
    case: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
) -> None:
    start_K, slope_PK, need_P, scale_K = case
    met_P = np.minimum(need_P, slope_PK @ start_K - 1e-9)
    assert projected(start_K, slope_PK, met_P, scale_K)[0].tolist() == start_K.tolist()


@given(cases())
def test_a_path_out_of_reach_of_the_limit_counts_nothing(
    case: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
) -> None:
    start_K, slope_PK, need_P, scale_K = case
    more_P = np.append(need_P, -np.inf)
    more_PK = np.vstack([slope_PK, np.ones(start_K.size)])
    assert projected(start_K, more_PK, more_P, scale_K)[0].tolist() == projected(*case)[0].tolist()
