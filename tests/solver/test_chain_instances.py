"""Published mixed fleets: plans at least as fast as the published ones, by an evaluator that is not ours."""

from __future__ import annotations

import json

import pytest

from bench.chain_instances import (
    CASES,
    FOLDER,
    SINK,
    SOURCE,
    ChainInstance,
    build_chain_problem,
    load_evaluator,
    load_instance,
    load_peer,
    placement_of,
)
from planner.solve.bottleneck import solve_bottleneck
from planner.solve.result import Limits, Status

ONE_CHAIN_8L4_TOKENS_PER_S = 252.0
needs_instances = pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared instances beside this checkout")


@needs_instances
@pytest.mark.parametrize("name", CASES)
def test_at_least_the_published_value(name: str) -> None:
    problem = build_chain_problem(load_instance(name))
    result = solve_bottleneck(problem, Limits(deterministic=True))
    assert result.status is Status.OPTIMAL
    assert result.value is not None
    assert result.bound == result.value
    evaluator = load_evaluator("eval_chain.py")
    document = json.loads((FOLDER / f"{name}.json").read_text())
    placement = placement_of(problem, result.replicas[0])
    evaluated = evaluator.evaluate(document, placement)
    assert evaluated == pytest.approx(result.value, rel=1e-12)
    assert evaluated >= load_peer(name)["value"] * (1.0 - 1e-12)
    assert evaluated <= evaluator.upper_bound(document) * (1.0 + 1e-9)
    if name.startswith("fleet-8l4-30b"):
        assert evaluated >= ONE_CHAIN_8L4_TOKENS_PER_S


def small_instance(
    first_per_s: float, last_per_s: float, link_per_s: dict[tuple[str, str], float]
) -> ChainInstance:
    """Two devices, three layers; `fast` may hold two of them."""
    ends = {(SOURCE, d): first_per_s for d in ("fast", "slow")} | {
        (d, SINK): last_per_s for d in ("fast", "slow")
    }
    return ChainInstance(
        name="small",
        num_layers=3,
        tokens_per_s={"fast": (90.0, 40.0), "slow": (50.0, 20.0)},
        capacity_per_s=ends | link_per_s,
    )


def best_per_s(instance: ChainInstance) -> float | None:
    return solve_bottleneck(build_chain_problem(instance), Limits()).value


def test_capacities_count() -> None:
    """Nodes, source, sink and links each limit the chain; a missing link closes it."""
    both = {("fast", "slow"): 70.0, ("slow", "fast"): 70.0}
    assert best_per_s(small_instance(80.0, 80.0, both)) == pytest.approx(40.0)
    assert best_per_s(small_instance(30.0, 80.0, both)) == pytest.approx(30.0)
    assert best_per_s(small_instance(80.0, 25.0, both)) == pytest.approx(25.0)
    slow_back = {("fast", "slow"): 10.0, ("slow", "fast"): 35.0}
    problem = build_chain_problem(small_instance(80.0, 80.0, slow_back))
    (replica,) = solve_bottleneck(problem, Limits()).replicas
    assert replica.tokens_per_s == pytest.approx(35.0)
    assert placement_of(problem, replica) == {"slow": [0, 1], "fast": [1, 3]}
    assert best_per_s(small_instance(80.0, 80.0, {("fast", "slow"): 15.0})) == pytest.approx(15.0)
    assert best_per_s(small_instance(80.0, 80.0, {})) is None
