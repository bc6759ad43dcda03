"""Staleness weights never rise with age, and the wrong sign is both refused and shown to diverge."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import InputError
from policies.staleness import (
    StalenessKind,
    StalenessRule,
    constant_weight,
    polynomial_weight,
    threshold_weight,
)

RULES = st.builds(
    StalenessRule,
    kind=st.sampled_from(StalenessKind),
    exponent=st.floats(0.0, 5.0),
    cutoff=st.integers(0, 10),
    after=st.floats(0.0, 1.0),
    staleness_max=st.none() | st.integers(0, 20),
)


@given(rule=RULES)
def test_weights_never_rise_with_staleness(rule: StalenessRule) -> None:
    weights = [rule.weight(staleness) for staleness in range(40)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(weights))
    assert weights[0] == 1.0
    assert all(0.0 <= weight <= 1.0 for weight in weights)


@given(rule=RULES, staleness=st.integers(0, 60))
def test_dropped_exactly_above_the_limit(rule: StalenessRule, staleness: int) -> None:
    is_old = rule.staleness_max is not None and staleness > rule.staleness_max
    assert rule.keeps(staleness) is not is_old
    if is_old:
        assert rule.weight(staleness) == 0.0


def test_the_three_forms() -> None:
    assert constant_weight(7) == 1.0
    assert [threshold_weight(t, cutoff=2, after=0.3) for t in (0, 2, 3)] == [1.0, 1.0, 0.3]
    assert polynomial_weight(3, exponent=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [{"exponent": -0.5}, {"exponent": float("nan")}, {"after": 1.5}, {"cutoff": -1}, {"staleness_max": -1}],
)
def test_rules_under_which_age_would_pay_are_refused(change: dict[str, float]) -> None:
    """A public code base weights with (1 + tau)^(+a): here that rule can't be made."""
    with pytest.raises(InputError) as refused:
        StalenessRule(**change)  # type: ignore[arg-type]
    assert refused.value.code == "staleness-rule"


def test_negative_staleness_is_refused() -> None:
    with pytest.raises(InputError):
        StalenessRule().weight(-1)


def buffered_distance(exponent: float) -> float:
    """Distance to the optimum of a noise-free quadratic after buffered steps over fresh and old updates.

    Each buffer holds one update of each staleness 0, 4 and 12, weighted by (1 + tau)^-exponent and divided by
    their number, as servers do that take weights as learning-rate factors.
    """
    history = [np.full(4, 3.0)]
    for _ in range(300):
        step = np.zeros(4)
        for staleness in (0, 4, 12):
            seen = history[max(0, len(history) - 1 - staleness)]
            step += (1.0 + staleness) ** -exponent * (-0.3 * seen)
        history.append(history[-1] + step / 3.0)
        if not np.isfinite(history[-1]).all() or np.abs(history[-1]).max() > 1e9:
            break
    return float(np.abs(history[-1]).max())


def test_the_wrong_sign_diverges() -> None:
    assert buffered_distance(0.5) < 1e-2
    assert buffered_distance(-0.5) > 1e2
