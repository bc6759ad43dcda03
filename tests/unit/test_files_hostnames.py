"""Host patterns expand to what cluster tools mean by them, and fold back without loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.hostnames import PatternError, compress_names, expand_pattern

STEMS = st.sampled_from(["n", "gpu-", "rack2-", "a.b-"])
NUMBERS = st.integers(min_value=0, max_value=120)
NAMES = st.one_of(
    st.builds(lambda stem, n, width: f"{stem}{n:0{width}d}", STEMS, NUMBERS, st.sampled_from([0, 2, 3])),
    st.sampled_from(["login", "head", "x9y"]),
)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("gpu-1", ["gpu-1"]),
        ("gpu-[01-03]", ["gpu-01", "gpu-02", "gpu-03"]),
        ("gpu-[8-10,1]", ["gpu-8", "gpu-9", "gpu-10", "gpu-1"]),
        ("r[1-2]n[1-2].x", ["r1n1.x", "r1n2.x", "r2n1.x", "r2n2.x"]),
        ("[1-2]a", ["1a", "2a"]),
    ],
)
def test_expansion(pattern: str, names: list[str]) -> None:
    assert expand_pattern(pattern) == names


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a b", "a[", "a]", "a[]", "a[1", "a[1-]", "a[-1]", "a[2-1]", "a[1,1]", "a[x]", "-a", "a[[1]]",
        "a/1",
        "é", "a" * 129, "a[1-99999]", "a[001-999][001-999]", "a[1234567890]",
    ],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        expand_pattern(pattern)


@given(names=st.lists(NAMES, unique=True, max_size=30))
def test_folding_loses_and_adds_nothing(names: list[str]) -> None:
    found = [name for pattern in compress_names(names) for name in expand_pattern(pattern)]
    assert sorted(found) == sorted(names)


def test_numbers_fold_across_the_power_of_ten_with_and_without_padding() -> None:
    assert compress_names([f"n{i}" for i in range(8, 13)]) == ["n[8-12]"]
    assert compress_names([f"n{i:02d}" for i in range(8, 13)]) == ["n[08-12]"]
    assert compress_names(["n9", "n10", "n08"]) == ["n9", "n[08,10]"]
