"""Hypothesis strategies for planning problems."""

from __future__ import annotations

from hypothesis import strategies as st

from solver.micro_fleets import CONDITIONS, Condition, MicroCase, micro_case


@st.composite
def micro_cases(
    draw: st.DrawFn, *, conditions: tuple[Condition, ...] = CONDITIONS, devices_max: int = 4
) -> MicroCase:
    """A random micro fleet, model, cost model and condition."""
    return micro_case(
        draw(st.integers(0, 100_000)),
        draw(st.sampled_from(conditions)),
        num_devices=draw(st.integers(1, devices_max)),
        foreign=draw(st.booleans()),
    )
