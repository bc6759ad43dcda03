"""Ring collectives, ZeRO traffic, exposure and transfers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.network import all_reduce_s, exposed_s, gather_s, micro_batch_zero_s, round_trip_s


def test_a_ring_gather_moves_all_but_the_own_part_in_one_wait_per_neighbour() -> None:
    assert gather_s(800.0, 4, 100.0, 0.5) == pytest.approx(0.75 * 8.0 + 3 * 0.5)


@given(st.floats(0, 1e12), st.integers(1, 64), st.floats(1e6, 1e12), st.floats(0, 1e-2))
def test_an_all_reduce_is_a_reduce_scatter_and_a_gather(
    payload: float, ranks: int, rate: float, wait: float
) -> None:
    assert all_reduce_s(payload, ranks, rate, wait) == 2.0 * gather_s(payload, ranks, rate, wait)


def test_one_rank_alone_says_nothing() -> None:
    assert gather_s(1e9, 1, 1.0, 1.0) == 0.0
    assert all_reduce_s(1e9, 1, 1.0, 1.0) == 0.0


@pytest.mark.parametrize(
    ("zero", "seconds"),
    [(0, 0.0), (1, 0.0), (2, 0.5 * 30 / 10 + 3 * 0.1), (3, 0.5 * (2 * 200 + 30) / 10 + 3 * 3 * 0.1)],
)
def test_zero_traffic_by_level(zero: int, seconds: float) -> None:
    assert micro_batch_zero_s(zero, 200.0, 30.0, 3.0, 2, 10.0, 0.1) == pytest.approx(seconds)


def test_traffic_beyond_the_hidden_part_is_exposed() -> None:
    assert exposed_s(3.0, 4.0, 0.5) == 1.0
    assert exposed_s(1.0, 4.0, 0.5) == 0.0
    assert exposed_s(1.0, 4.0, 0.0) == 1.0


def test_a_transfer_goes_forward_and_its_gradient_back() -> None:
    assert round_trip_s(100.0, 50.0, 0.25) == 2 * (2.0 + 0.25)
    assert round_trip_s(100.0, 0.0, 0.25) == math.inf
