"""LoRA factors: averaging A and B apart is not averaging their products; how far off, and when it is exact.

Legend: N participants, R rank, D_in, D_out.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from boundary.sync_lora import adapted_factors, averaging_bias, relative_bias


def test_the_bias_is_the_covariance_of_the_factors() -> None:
    """mean(B A) - mean(B) mean(A) = mean((B - mean B)(A - mean A))."""
    rng = np.random.default_rng(0)
    a_NRI, b_NOR = rng.normal(size=(4, 3, 7)), rng.normal(size=(4, 5, 3))
    spread = (b_NOR - b_NOR.mean(axis=0)) @ (a_NRI - a_NRI.mean(axis=0))
    assert np.allclose(averaging_bias(a_NRI, b_NOR), spread.mean(axis=0))


def test_with_one_factor_frozen_averaging_is_exact() -> None:
    a_NRI, b_NOR = adapted_factors(num_steps=20, skew_frac=1.0, seed=0, is_a_frozen=True)
    assert relative_bias(a_NRI, b_NOR) < 1e-12


def mean_bias(num_steps: int, skew_frac: float) -> float:
    runs = [adapted_factors(num_steps=num_steps, skew_frac=skew_frac, seed=seed) for seed in range(3)]
    return float(np.mean([relative_bias(*factors) for factors in runs]))


@pytest.mark.parametrize("skew_frac", [0.5, 1.0])
def test_on_different_data_the_bias_grows_with_the_steps_between_syncs(skew_frac: float) -> None:
    biases = [mean_bias(num_steps, skew_frac) for num_steps in (1, 5, 20, 80)]
    assert all(earlier < later for earlier, later in itertools.pairwise(biases))
    assert biases[-1] > 0.1


def test_on_equal_data_the_bias_is_small() -> None:
    assert mean_bias(20, 0.0) < 1e-3
