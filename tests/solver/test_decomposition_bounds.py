"""Column generation without the exact ways for small problems: plan and bound enclose the best."""

from __future__ import annotations

import pytest

from planner.solve import bruteforce, decomposition
from planner.solve.result import BoundaryResult, Limits, Status
from solver.micro_fleets import CONDITIONS, Condition, MicroCase, micro_case

CASES = [(seed, CONDITIONS[seed % len(CONDITIONS)]) for seed in range(100, 160)]


def general(case: MicroCase, monkeypatch: pytest.MonkeyPatch) -> BoundaryResult:
    """What column generation finds in a few rounds."""
    monkeypatch.setattr(decomposition, "is_tiny", lambda _problem: False)
    return decomposition.solve_boundary(case.problem(), Limits(deterministic=True, rounds=6), processes=1)


@pytest.mark.parametrize(("seed", "condition"), CASES, ids=lambda value: str(value)[:24])
def test_plans_and_bounds_enclose_the_best(
    seed: int, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = micro_case(seed, condition, foreign=seed % 3 != 0)
    best = bruteforce.solve_boundary(case.problem(), Limits())
    found = general(case, monkeypatch)
    if best.status is Status.INFEASIBLE:
        assert found.value is None
        return
    assert best.value is not None
    minimise = case.problem().objective.kind == "price"
    if found.value is not None:
        assert (
            (found.value >= best.value * (1 - 1e-9)) if minimise else (found.value <= best.value * (1 + 1e-9))
        )
    if found.bound is not None:
        assert (
            (found.bound <= best.value * (1 + 1e-9)) if minimise else (found.bound >= best.value * (1 - 1e-9))
        )
