"""Corners of cuts against every crossing and a dense sampling of the border."""

from __future__ import annotations

from itertools import combinations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.solve.envelope import Corner, Envelope, Line, Scale, worst_corner
from planner.solve.tracking import no_charges

SAMPLES = 400
figures = st.floats(0.01, 100.0)
scales = st.builds(
    Scale, tokens=st.floats(0.1, 1000.0), rho=st.just(0.0) | figures, nu=st.just(0.0) | figures
)


def line_of(theta: float, value: float) -> Line:
    return Line(theta=theta, value=value, charges=no_charges(1), upto_s=inf)


slanted = st.lists(st.builds(line_of, figures, st.floats(-10.0, 200.0)), max_size=12)
flat = st.builds(line_of, st.just(0.0), st.just(0.0) | figures)
least_ws = st.just(0.0) | figures


def envelope_of(lines: list[Line], scale: Scale, least_w: float) -> Envelope:
    envelope = Envelope(scale, least_w)
    for line in lines:
        envelope.add(line)
    return envelope


def border(lines: list[Line], fill_s: float) -> float:
    """The least price the cuts leave to this fill time."""
    return max(0.0, *(line.value - line.theta * fill_s for line in lines), 0.0)


def crossings(lines: list[Line], least_w: float) -> list[float]:
    """Fill times at which two cuts cross, one meets the axis, or the border begins."""
    found = [least_w, *(line.value / line.theta for line in lines if line.theta > 0.0)]
    found += [
        (a.value - b.value) / (a.theta - b.theta) for a, b in combinations(lines, 2) if a.theta != b.theta
    ]
    return [fill_s for fill_s in found if fill_s >= least_w]


def most_need_s(lines: list[Line], fills_s: list[float], scale: Scale, factor: float) -> float:
    return max(scale.need_s(fill_s, border(lines, fill_s), factor) for fill_s in fills_s)


def close(need_s: float, other_s: float, corner: Corner) -> bool:
    """Equal, but for rounding next to where the need runs away."""
    if need_s == other_s:
        return True
    return abs(need_s - other_s) <= 1e-6 * (1.0 + abs(need_s) + corner.fill_s)


def is_steep(scale: Scale, corner: Corner, factor: float) -> bool:
    """Whether rounding of the price alone can turn the need upside down."""
    margin = factor * (corner.price + scale.rho) - scale.nu
    return abs(margin) <= 1e-6 * (factor * (corner.price + scale.rho) + scale.nu + 1e-9)


@given(slanted, flat, scales, least_ws, figures)
def test_the_worst_corner_is_the_worst_of_all_crossings(
    lines: list[Line], floor: Line, scale: Scale, least_w: float, factor: float
) -> None:
    lines = [*lines, floor]
    corner = envelope_of(lines, scale, least_w).worst(factor)
    if is_steep(scale, corner, factor):
        return
    assert corner.fill_s >= least_w
    assert corner.price == pytest.approx(border(lines, corner.fill_s), rel=1e-6, abs=1e-6)
    assert close(corner.need_s, most_need_s(lines, crossings(lines, least_w), scale, factor), corner)


@given(slanted.filter(bool), scales, least_ws, figures)
def test_no_point_over_the_cuts_needs_more_than_the_worst_corner(
    lines: list[Line], scale: Scale, least_w: float, factor: float
) -> None:
    corner = envelope_of(lines, scale, least_w).worst(factor)
    if is_steep(scale, corner, factor):
        return
    end_s = 2.0 * max(crossings(lines, least_w)) + 1.0
    samples = [least_w + (end_s - least_w) * i / SAMPLES for i in range(SAMPLES + 1)]
    most_s = most_need_s(lines, samples, scale, factor)
    assert most_s <= corner.need_s or close(corner.need_s, most_s, corner)


@given(slanted, flat, scales, least_ws, figures, st.floats(0.0, 1.0))
def test_a_few_cuts_keep_what_all_of_them_keep(
    lines: list[Line], floor: Line, scale: Scale, least_w: float, factor: float, slack: float
) -> None:
    envelope = envelope_of([*lines, floor], scale, least_w)
    need_s = envelope.worst(factor).need_s
    if need_s == inf:
        return
    from_s = need_s + slack * abs(need_s)
    chosen = list(envelope.few(factor, from_s))
    assert all(line in envelope.lines for line in chosen)
    assert worst_corner(chosen, least_w, scale, factor).need_s <= from_s


@given(slanted, flat, scales, least_ws, figures, figures, st.floats(0.0, 1.0), st.floats(0.0, 10.0))
def test_cuts_below_the_others_change_nothing(
    lines: list[Line],
    floor: Line,
    scale: Scale,
    least_w: float,
    factor: float,
    theta: float,
    share: float,
    below: float,
) -> None:
    lines = [*lines, floor]
    before = envelope_of(lines, scale, least_w)
    # under every point of the border: below a mixture of two cuts, or below one cut on the whole half-plane
    pair = [before.lines[0], before.lines[-1]]
    mixed = line_of(
        share * pair[0].theta + (1.0 - share) * pair[1].theta,
        share * pair[0].value + (1.0 - share) * pair[1].value - below,
    )
    steeper = line_of(pair[0].theta + theta, pair[0].value + theta * least_w - below)
    after = envelope_of([*lines, mixed, steeper], scale, least_w)
    assert close(after.worst(factor).need_s, before.worst(factor).need_s, before.worst(factor)) or is_steep(
        scale, before.worst(factor), factor
    )
    if below > 1e-6:
        assert mixed not in after.lines
        assert steeper not in after.lines


@given(st.lists(st.builds(line_of, figures, figures), min_size=1, max_size=8), scales, figures, figures)
def test_a_longer_least_fill_time_is_as_if_known_from_the_start(
    lines: list[Line], scale: Scale, least_w: float, factor: float
) -> None:
    later = envelope_of(lines, scale, 0.0)
    later.raise_least_w(least_w)
    assert later.lines == envelope_of(lines, scale, least_w).lines
    later.raise_least_w(0.5 * least_w)
    assert later.least_w == least_w


@given(scales, figures, st.floats(0.0, 50.0), st.floats(0.0, 50.0))
def test_the_need_is_the_load_at_which_worth_meets_the_factor(
    scale: Scale, factor: float, fill_s: float, price: float
) -> None:
    need_s = scale.need_s(fill_s, price, factor)
    if (
        need_s < inf
        and fill_s + need_s > 1e-6
        and not is_steep(scale, Corner(fill_s=0, price=price, need_s=0), factor)
    ):
        assert scale.worth(fill_s, price, need_s) == pytest.approx(factor, rel=1e-6)


def tangents(num_lines: int, scale: Scale, factor: float, load_s: float) -> list[Line]:
    """Cuts that touch the level set of a factor at a load, all of them needed."""
    lines = [line_of(0.0, 1e-3)]
    for i in range(num_lines):
        fill_s = 0.3 * 1.5**i
        theta = scale.tokens / ((fill_s + load_s) ** 2 * factor)
        price = (scale.tokens / (fill_s + load_s) + scale.nu) / factor - scale.rho
        lines.append(line_of(theta, theta * fill_s + price))
    return lines


@pytest.mark.parametrize(
    "num_lines",
    [
        2,
        5,
        12,
    ],
)
def test_a_few_cuts_are_as_many_as_it_takes(num_lines: int) -> None:
    scale = Scale(tokens=100.0, rho=0.0, nu=0.0)
    envelope = envelope_of(tangents(num_lines, scale, 1.0, 1.0), scale, 0.0)
    from_s = envelope.worst(1.0).need_s
    assert worst_corner(list(envelope.few(1.0, from_s)), 0.0, scale, 1.0).need_s <= from_s
