"""The integer master over columns: throttling, refusals, multipliers, names of solvers."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.solve import bruteforce, cpsat, milp, pulp_cbc, registry
from planner.solve.enumerate_replicas import ProblemTooLargeError, enumerate_replicas
from planner.solve.result import Limits, Status
from planner.solve.small_master import (
    ColumnMaster,
    MasterAnswer,
    build_master,
    counted_tokens_per_s,
    solve_throttled,
)
from solver.micro_fleets import CONDITIONS, Condition, MicroCase, micro_case
from strategies import micro_cases

LIMITS = Limits(deterministic=True)
SOLVE = {
    "bruteforce": bruteforce.solve_exhaustively,
    "cpsat": cpsat.solve_master,
    "highs": milp.solve_master,
}


@st.composite
def masters(draw: st.DrawFn) -> ColumnMaster:
    """Up to five columns over two classes with a price row, with or without a target."""
    num_columns = draw(st.integers(1, 5))
    devices_C = np.array([draw(st.integers(1, 4)), draw(st.integers(0, 3))])
    usage_NC = np.array(
        [
            draw(st.tuples(st.integers(0, 3), st.integers(0, 2)).filter(lambda u: sum(u) > 0))
            for _ in range(num_columns)
        ]
    )
    value_N = np.array([draw(st.floats(0.5, 50.0)) for _ in range(num_columns)])
    usd_C = np.array([draw(st.sampled_from((0.5, 1.0, 2.5))), draw(st.sampled_from((0.0, 1.5)))])
    ceiling = draw(st.sampled_from((2.0, 5.0, 100.0)))
    count_min = draw(st.integers(1, 2))
    return ColumnMaster(
        value_N=value_N,
        usage_NC=usage_NC,
        devices_C=devices_C,
        usd_per_hour_C=usd_C,
        weight_RC=np.vstack([np.eye(2), usd_C]),
        limit_R=np.array([*devices_C, ceiling]) + 1e-9,
        count_min=count_min,
        count_max=count_min + draw(st.integers(0, 4)),
        target=draw(st.sampled_from((None, None, 10.0, 40.0))),
    )


def every_choice(master: ColumnMaster) -> list[tuple[int, ...]]:
    """All counts of columns that respect devices and number of replicas, target aside."""
    free = dataclasses.replace(master, target=None)
    ranges = [range(master.count_max + 1)] * len(master.value_N)
    return [counts for counts in itertools.product(*ranges) if free.admits(counts)]


def plainly(master: ColumnMaster, ratio: float | None) -> float | None:
    """The optimum by trying everything."""
    best = None
    for counts in every_choice(master):
        speeds = [float(v) for v, n in zip(master.value_N, counts, strict=True) for _ in range(n)]
        counted = counted_tokens_per_s(speeds, ratio)
        if master.target is None:
            merit = counted
        elif counted >= master.target:
            merit = -float(master.usd_per_hour_N @ np.array(counts))
        else:
            continue
        best = merit if best is None else max(best, merit)
    return best


@settings(max_examples=60)
@given(master=masters(), ratio=st.sampled_from((None, 1.0, 1.4, 3.0)))
@pytest.mark.parametrize("name", SOLVE)
def test_masters_are_solved_like_trying_everything(
    name: str, master: ColumnMaster, ratio: float | None
) -> None:
    solve = SOLVE[name]
    answer = solve(master, LIMITS) if ratio is None else solve_throttled(master, LIMITS, solve, ratio)
    best = plainly(master, ratio)
    if best is None:
        assert answer.status is Status.INFEASIBLE
        return
    assert answer.status is Status.OPTIMAL
    assert answer.bound is not None
    merit = answer.bound if master.target is None else -answer.bound
    assert merit == pytest.approx(best, rel=1e-6, abs=1e-6)


@settings(max_examples=60)
@given(master=masters())
def test_multipliers_bound_every_choice(master: ColumnMaster) -> None:
    relaxed = milp.relax(dataclasses.replace(master, target=None))
    best = plainly(dataclasses.replace(master, target=None), None)
    assert (relaxed.price_R >= 0.0).all()
    if relaxed.bound is not None and best is not None:
        assert relaxed.bound >= best * (1 - 1e-9)


def test_an_open_search_is_never_reported_as_proof() -> None:
    def gives_up(master: ColumnMaster, _limits: Limits) -> MasterAnswer:
        answer = bruteforce.solve_exhaustively(master, LIMITS)
        bound = None if answer.bound is None else answer.bound * 1.5
        return dataclasses.replace(answer, status=Status.FEASIBLE, bound=bound)

    case = _with_plan(Condition())
    master = build_master(case.problem(), enumerate_replicas(case.problem()))
    answer = solve_throttled(master, LIMITS, gives_up, 1.1)
    assert answer.status is Status.FEASIBLE
    best = solve_throttled(master, LIMITS, bruteforce.solve_exhaustively, 1.1)
    assert answer.bound is not None
    assert best.bound is not None
    assert answer.bound >= best.bound


def _with_plan(condition: Condition) -> MicroCase:
    """The first case with at least two replicas to choose from."""
    for seed in range(100):
        case = micro_case(seed, condition, num_devices=4)
        if len(enumerate_replicas(case.problem())) >= 4:
            return case
    raise AssertionError("no case with a plan")


@settings(max_examples=40)
@given(case=micro_cases(conditions=(CONDITIONS[0],)))
def test_more_freedom_never_hurts(case: MicroCase) -> None:
    problem = case.problem()
    free = bruteforce.solve_boundary(problem, LIMITS).value or 0.0
    for change in ({"replicas_max": 1}, {"speed_ratio_max": 1.2}, {"replicas_min": 2}):
        bound = bruteforce.solve_boundary(dataclasses.replace(problem, **change), LIMITS).value or 0.0
        assert bound <= free * (1 + 1e-12)
    tight = bruteforce.solve_boundary(dataclasses.replace(problem, speed_ratio_max=1.0), LIMITS).value or 0.0
    loose = bruteforce.solve_boundary(dataclasses.replace(problem, speed_ratio_max=1.5), LIMITS).value or 0.0
    assert tight <= loose * (1 + 1e-12)


def test_too_large_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _with_plan(Condition())
    monkeypatch.setattr("planner.solve.enumerate_replicas.EXPANSIONS_MAX", 0)
    with pytest.raises(ProblemTooLargeError) as refused:
        bruteforce.solve_boundary(case.problem(), LIMITS)
    assert refused.value.code == "problem-too-large"
    assert cpsat.solve_boundary(case.problem(), LIMITS).status in (Status.FEASIBLE, Status.UNKNOWN)
    monkeypatch.setattr("planner.solve.pulp_cbc.BINARIES_MAX", 0)
    with pytest.raises(pulp_cbc.MilpTooLargeError):
        pulp_cbc.solve_boundary(case.problem(), LIMITS)


def test_milp_prices_every_row() -> None:
    case = _with_plan(CONDITIONS[3])
    problem = case.problem()
    result = milp.solve_boundary(problem, LIMITS)
    assert set(result.prices) == {row.name for row in problem.rows}
    assert max(result.prices.values()) > 0.0


def test_solvers_by_name() -> None:
    assert registry.solver("greedy").__module__ == "planner.solve.greedy"
    with pytest.raises(registry.UnknownSolverError) as refused:
        registry.solver("simplex")
    assert "bruteforce" in refused.value.hint


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda _name: None)
    with pytest.raises(registry.UnknownSolverError) as refused:
        registry.solver("cbc")
    assert refused.value.code == "solver-missing"
