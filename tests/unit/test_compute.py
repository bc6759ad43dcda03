"""Roofline, backward ratio, shares and optimiser seconds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.compute import (
    backward_per_forward,
    even_shares,
    optimiser_s,
    roofline_s,
    uneven_shares_KD,
    weights_read_bytes,
)


def test_the_slower_of_arithmetic_and_memory_counts() -> None:
    assert roofline_s(2e12, 1e9, 1e12, 1e9) == 2.0
    assert roofline_s(1e12, 3e9, 1e12, 1e9) == 3.0


def test_numbers_and_arrays_give_the_same_bits() -> None:
    flops = np.array([1.0, 3e11, 7e13])
    many = roofline_s(flops, flops / 3.0, 3.3e12, 1.7e9)
    assert isinstance(many, np.ndarray)
    assert [roofline_s(float(f), float(f) / 3.0, 3.3e12, 1.7e9) for f in flops] == many.tolist()


def test_a_look_up_reads_no_weights_and_a_dense_layer_all_of_them_once() -> None:
    assert weights_read_bytes(1000, 0.0, 2) == 0.0
    assert weights_read_bytes(1000, 2.0 * 1000 * 50, 2) == 2000.0
    # Two tokens that activate 100 of 1000 expert weights each read at most 200.
    assert weights_read_bytes(1000, 2 * 2.0 * 100, 2) == 400.0


def test_backward_is_twice_forward_for_trained_and_once_for_frozen_weights() -> None:
    assert backward_per_forward(100, 100) == 2.0
    assert backward_per_forward(100, 0) == 1.0
    assert backward_per_forward(100, 5) == 1.05
    assert backward_per_forward(0, 0) == 1.0


def test_the_optimiser_is_bound_by_memory_traffic() -> None:
    assert optimiser_s(1e9, 28.0, 2e12) == pytest.approx(0.014)


@given(st.integers(1, 12), st.integers(0, 40))
def test_even_shares_are_whole_complete_and_balanced(num_ranks: int, more: int) -> None:
    shares = even_shares(num_ranks + more, num_ranks)
    assert sum(shares) == num_ranks + more
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True)


@st.composite
def finishing_times(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    num_ranks = draw(st.integers(1, 4))
    more = draw(st.integers(0, 4))
    steps = st.integers(0, 3)
    rows = [[draw(steps) for _ in range(more + 1)] for _ in range(num_ranks)]
    return np.cumsum(np.array(rows, dtype=float), axis=1), num_ranks + more


@given(finishing_times())
def test_uneven_shares_reach_the_smallest_possible_maximum(case: tuple[np.ndarray, int]) -> None:
    seconds_DS, num_sequences = case
    num_ranks, num_sizes = seconds_DS.shape
    given_SDK = [[np.array([seconds_DS[d, s]]) for d in range(num_ranks)] for s in range(num_sizes)]
    shares = [int(share) for share in uneven_shares_KD(given_SDK, num_sequences)[0]]
    assert sum(shares) == num_sequences
    assert min(shares) >= 1
    best = min(
        max(seconds_DS[d, share - 1] for d, share in enumerate(split))
        for split in product(range(1, num_sizes + 1), repeat=num_ranks)
        if sum(split) == num_sequences
    )
    assert max(seconds_DS[d, share - 1] for d, share in enumerate(shares)) == best


@given(st.integers(1, 5), st.integers(0, 9), st.lists(st.integers(0, 2), min_size=10, max_size=10))
def test_equal_ranks_get_even_shares_even_on_a_plateau(num_ranks: int, more: int, steps: list[int]) -> None:
    level = np.cumsum(steps).astype(float)
    given_SDK = [[np.array([level[s]])] * num_ranks for s in range(more + 1)]
    shares = uneven_shares_KD(given_SDK, num_ranks + more)[0]
    assert tuple(int(share) for share in shares) == even_shares(num_ranks + more, num_ranks)


def test_a_tie_goes_to_the_earlier_rank() -> None:
    double = [[np.array([1.0]), np.array([1.0])], [np.array([2.0]), np.array([2.0])]]
    assert uneven_shares_KD(double, 3).tolist() == [[2.0, 1.0]]


def test_each_interval_is_shared_on_its_own() -> None:
    fast_first, fast_last = np.array([1.0, 9.0]), np.array([9.0, 1.0])
    given_SDK = [[s * fast_first, s * fast_last] for s in (1.0, 2.0, 3.0)]
    assert uneven_shares_KD(given_SDK, 4).tolist() == [[3.0, 1.0], [1.0, 3.0]]
