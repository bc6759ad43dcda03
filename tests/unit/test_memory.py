"""Bytes by kind, what fits, and the smallest number of recomputed layers."""

from __future__ import annotations

from math import ceil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from costmodels.memory import (
    RecomputableKind,
    activation_bytes,
    fewest_recomputed_KQ,
    fragmentation_bytes,
    largest_need_bytes,
    state_bytes,
    usable_bytes,
)


def test_state_is_cut_in_parts_and_rounded_up() -> None:
    assert state_bytes(10.0, 2.0, 1) == 20.0
    assert state_bytes(10.0, 2.0, 3) == 7.0


def test_tensor_parallelism_keeps_layer_inputs_whole() -> None:
    assert activation_bytes(34.0, 2.0, 1, 4.0) == 34.0
    assert activation_bytes(34.0, 2.0, 2, 4.0) == 8.0 + 13.0
    assert activation_bytes(4.0, 2.0, 8, 4.0) == 4.0


def test_a_reserve_is_taken_off_in_whole_bytes() -> None:
    assert usable_bytes(101.0, 0.5) == 50.0


@given(st.integers(0, 10**12), st.floats(0, 1))
def test_the_largest_need_fits_with_its_fragmentation_and_one_more_byte_does_not(
    limit: int, frac: float
) -> None:
    need = largest_need_bytes(float(limit), frac)
    assert need >= 0.0
    assert need + fragmentation_bytes(need, frac) <= limit
    assert need + 1.0 + fragmentation_bytes(need + 1.0, frac) > limit


@st.composite
def recompute_cases(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int, int, int, int]:
    num_kinds = draw(st.integers(0, 4))
    sizes = st.integers(1, 50)
    counts = [draw(st.integers(0, 6)) for _ in range(num_kinds)]
    saved = [draw(sizes) for _ in range(num_kinds)]
    # What is held in passing by a layer that isn't recomputed.
    transient = [draw(st.integers(0, 60)) for _ in range(num_kinds)]
    kept = sum(n * s for n, s in zip(counts, saved, strict=True)) + draw(st.integers(0, 40))
    base = draw(st.integers(0, 100))
    in_flight = draw(st.integers(1, 5))
    limit = draw(st.integers(0, base + in_flight * kept + 120))
    return counts, saved, transient, kept, base, in_flight, limit


@given(recompute_cases())
def test_no_smaller_number_of_recomputed_layers_fits(
    case: tuple[list[int], list[int], list[int], int, int, int, int],
) -> None:
    counts, saved, transient, kept, base, in_flight, limit = case
    present = [t if n else 0 for n, t in zip(counts, transient, strict=True)]

    def need(num_recomputed: int) -> int:
        left, freed, passing = num_recomputed, 0, max(present, default=0)
        for n, s, t in zip(counts, saved, transient, strict=True):
            taken = min(n, left)
            left -= taken
            freed += taken * s
            if taken:
                passing = max(passing, t + s)
        return base + in_flight * (kept - freed) + passing

    taken, fits_KQ = fewest_recomputed_KQ(
        np.array([float(base)]),
        np.array([float(max(present, default=0))]),
        np.array([float(kept)]),
        np.array([1.0 * in_flight]),
        [
            RecomputableKind(
                count_K=np.array([float(n)]),
                saved_bytes=float(s),
                working_bytes=np.array([float(t + s) if n else 0.0]),
            )
            for n, s, t in zip(counts, saved, transient, strict=True)
        ],
        float(limit),
    )
    fitting = [r for r in range(sum(counts) + 1) if need(r) <= limit]
    got = [int(each[0, 0]) for each in taken]
    assert bool(fits_KQ[0, 0]) == bool(fitting)
    assert sum(got) == (min(fitting) if fitting else sum(counts))
    left = sum(got)
    for n, each in zip(counts, got, strict=False):
        assert each == min(n, left)
        left -= each


def test_more_in_flight_never_means_less_recomputed() -> None:
    kind = RecomputableKind(count_K=np.array([8.0]), saved_bytes=10.0, working_bytes=np.array([10.0]))
    (taken_KQ,), fits_KQ = fewest_recomputed_KQ(
        np.array([5.0]), np.array([0.0]), np.array([96.0]), np.arange(1.0, 13.0), [kind], 200.0
    )
    # By hand: 5 + q × (96 − 10 r) + (10 if r) <= 200.
    by_hand = [
        next((r for r in range(9) if 5 + q * (96 - 10 * r) + 10 * (r > 0) <= 200), 8) for q in range(1, 13)
    ]
    assert taken_KQ[0].tolist() == by_hand
    assert fits_KQ[0].tolist() == [
        5 + q * (96 - 10 * r) + 10 * (r > 0) <= 200 for q, r in enumerate(by_hand, 1)
    ]
    assert by_hand == sorted(by_hand)


def test_fragmentation_is_whole_bytes() -> None:
    assert fragmentation_bytes(101.0, 0.03) == ceil(101 * 0.03)
