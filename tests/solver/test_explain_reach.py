"""What explanations rest on, against exhaustive search on random micro problems of arbitrary costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.explain.conflict import smallest_conflict
from planner.explain.judge import judge
from planner.explain.reach import least_usd_per_hour, most_replicas, reach, witness
from planner.explain.second import chain_usages, confirm
from planner.explain.weights import weigh
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.registry import solver
from planner.solve.result import Limits, Status
from solver.micro_fleets import CONDITIONS, Condition, micro_case

SEEDS = range(8)
RULES = [condition for condition in CONDITIONS if condition.objective is not ObjectiveKind.PRICE]
MANY = (*RULES, Condition(name="min-3", replicas_min=3), Condition(name="min-4", replicas_min=4))


def smallest_usages(problem: BoundaryProblem) -> list[tuple[int, ...]]:
    """Device counts of replicas that no other replica undercuts, from the list of all replicas."""
    counts = []
    for replica in enumerate_replicas(problem):
        usage = dict(replica.usage)
        counts.append(tuple(usage.get(c, 0) for c in range(len(problem.classes))))
    return sorted(
        u
        for u in set(counts)
        if not any(v != u and all(a <= b for a, b in zip(v, u, strict=True)) for v in counts)
    )


@pytest.mark.parametrize("condition", MANY, ids=lambda condition: condition.name)
def test_reached_device_counts_are_those_of_all_replicas(condition: Condition) -> None:
    for seed in SEEDS:
        problem = micro_case(seed, condition).problem()
        found = reach(problem)
        within = [usage for usage in found.minimal if most_replicas(problem, (usage,), 1)[0] == 1]
        assert sorted(within) == smallest_usages(problem), seed
        for usage in within:
            replica = witness(found, usage)
            assert replica is not None
            taken = dict(replica.usage)
            assert tuple(taken.get(c, 0) for c in range(len(usage))) == usage


@pytest.mark.parametrize("condition", MANY, ids=lambda condition: condition.name)
def test_a_plan_is_called_possible_exactly_when_one_exists(condition: Condition) -> None:
    answers = set()
    for seed in SEEDS:
        problem = micro_case(seed, condition).problem()
        exists = solver("bruteforce")(problem, Limits()).status is Status.OPTIMAL
        answers.add(exists)
        for thorough in (True, False):
            assert judge(problem, thorough=thorough).possible is exists, seed
    assert True in answers


@pytest.mark.parametrize("condition", MANY[:8], ids=lambda condition: condition.name)
def test_where_device_counts_are_too_many_to_list_no_answer_is_wrong(
    condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.explain.judge.countable", lambda _problem: False)
    decided = 0
    for seed in SEEDS:
        problem = micro_case(seed, condition).problem()
        exists = solver("bruteforce")(problem, Limits()).status is Status.OPTIMAL
        said = judge(problem, thorough=False).possible
        assert said in (exists, None), seed
        decided += said is not None
    assert decided >= 6


@pytest.mark.parametrize("condition", MANY, ids=lambda condition: condition.name)
def test_the_second_opinion_agrees_and_never_confirms_what_is_possible(condition: Condition) -> None:
    for seed in SEEDS:
        problem = micro_case(seed, condition).problem()
        verdict = judge(problem)
        weighing = weigh(problem, verdict.wanted)
        assert weighing.most >= verdict.num_replicas - 1e-6
        for weights in (weighing, None):
            said = confirm(problem, verdict.wanted, weights)
            assert (said is None) is (verdict.possible is True), (seed, said)
        usages = chain_usages(problem)
        assert usages is not None
        within = [u for u in reach(problem).minimal if most_replicas(problem, (u,), 1)[0] == 1]
        assert sorted(map(tuple, usages.tolist())) == sorted(within)


def test_the_cheapest_replicas_are_priced_to_the_cent() -> None:
    priced = 0
    for seed in SEEDS:
        problem = micro_case(seed, Condition()).problem()
        replicas = enumerate_replicas(problem)
        least = min((replica.usd_per_hour for replica in replicas), default=float("inf"))
        assert least_usd_per_hour(problem, reach(problem).minimal, 1) == pytest.approx(least)
        priced += least < float("inf")
    assert priced > 3


@given(data=st.data())
@settings(max_examples=60)
def test_the_conflict_found_is_a_smallest_one(data: st.DataObject) -> None:
    names = [f"d{i}" for i in range(data.draw(st.integers(1, 7)))]
    conflicts = data.draw(st.lists(st.frozensets(st.sampled_from(names), min_size=1), min_size=0, max_size=4))

    def possible(active: frozenset[str]) -> bool:
        return not any(conflict <= active for conflict in conflicts)

    found = smallest_conflict(names, possible)
    if not conflicts:
        assert found is None
        return
    assert found is not None
    assert found.minimal
    assert found.smallest
    assert frozenset(found.members) in conflicts
    assert len(found.members) == min(len(conflict) for conflict in conflicts)


def test_what_stays_undecided_is_not_called_smallest() -> None:
    names = ["a", "b", "c"]

    def possible(active: frozenset[str]) -> bool | None:
        if len(active) == 1:
            return None
        return not {"a", "b"} <= active

    found = smallest_conflict(names, possible)
    assert found is not None
    assert set(found.members) == {"a", "b"}
    assert not found.smallest
