"""What replacements share between failures says the same as asking anew each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from costmodels.analytic import AnalyticCostModel
from costmodels.interface import FloatArray, Interval
from planner.build import build_problem
from planner.examples.bundled import example_folder
from planner.files import load_inputs
from planner.kinds import layer_kinds
from planner.objective import step_time_s
from planner.problem import BoundaryProblem, CapacityRow, StepFormula
from planner.quickest import Quickest, Wanted
from planner.recut import Costs, Recutter, best_cut
from planner.seating import Stock, free_hosts, seatable
from planner.solve.greedy import Workshop, solve_boundary
from planner.solve.result import Limits


def hospital_with(activation_factor: float) -> BoundaryProblem:
    """The bundled hospital, each layer with so many times its activations."""
    folder = example_folder("hospital")
    inputs = load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")
    layers = tuple(
        replace(layer, activation_bytes_per_token=activation_factor * layer.activation_bytes_per_token)
        for layer in inputs.workload.layers
    )
    workload = replace(inputs.workload, layers=layers)
    return build_problem(inputs.fleet, workload, inputs.policy, AnalyticCostModel(workload)).boundaries[0]


@pytest.fixture(scope="module")
def hospital() -> BoundaryProblem:
    return hospital_with(1.0)


class Untabulated:
    """A cost model without tables."""

    name = "untabulated"

    def __init__(self, model: AnalyticCostModel) -> None:
        self.stage = model.stage
        self.transfer_s = model.transfer_s

    def interval_key(self, interval: Interval) -> Interval:
        """Every interval for itself."""
        return interval


def devices_of(problem: BoundaryProblem) -> list[str]:
    return [d for c in problem.classes for host in c.hosts for d in host]


def test_stock_sees_every_device_that_comes_or_goes(hospital: BoundaryProblem) -> None:
    rng = np.random.default_rng(3)
    ids = np.array(devices_of(hospital))
    idle = frozenset(ids[rng.random(len(ids)) < 0.5].tolist())
    stock = Stock(hospital, idle)
    some = [set(ids[rng.random(len(ids)) < changed_frac].tolist()) for changed_frac in (0.0, 0.1, 0.5, 1.0)]
    for changed in (*some, *({device_id} for device_id in ids.tolist())):
        free = idle ^ changed
        hosts = free_hosts(hospital, free)
        assert stock.hosts(free) == hosts
        assert stock.able(free).tolist() == [seatable(t, hosts) for t in hospital.templates]


@pytest.mark.parametrize("tabulated", [True, False])
def test_the_quickest_cluster_is_the_one_the_cost_model_names(tabulated: bool) -> None:
    hospital = hospital_with(64.0)  # how many micro-batches are in flight decides what fits
    model = hospital.cost_model
    assert isinstance(model, AnalyticCostModel)
    problem = hospital if tabulated else replace(hospital, cost_model=Untabulated(model))
    size, last = hospital.modes[0].micro_batch_size, hospital.num_layers
    asked = [
        Wanted(layers=layers, in_flight=in_flight, micro_batch_size=micro)
        for layers in ((0, 3), (2, 9), (1, last // 2), (last - 2, last))
        for in_flight, micro in ((1, size), (9, size), (4, 2 * size))
    ]
    quickest, rng, num_found = Quickest(problem, asked), np.random.default_rng(1), 0
    for stage in asked * 20:
        able_T = rng.random(len(hospital.templates)) < 0.1
        required = max(hospital.tier_required[slice(*stage.layers)])
        seconds = [np.inf] * len(hospital.templates)
        for t in hospital.templates:
            cost = model.stage(t.cluster, stage.layers, t.strategy, stage.micro_batch_size, stage.in_flight)
            if able_T[t.template_i] and t.tier_i >= required and cost is not None and cost.fits:
                seconds[t.template_i] = cost.busy_s
        best = None if min(seconds) == np.inf else seconds.index(min(seconds))
        assert quickest.of(stage, able_T) == best
        num_found += best is not None
    assert num_found > 60


def test_a_limit_on_the_step_drops_slower_borders_only(hospital: BoundaryProblem) -> None:
    mode, rng, num_found = hospital.modes[0], np.random.default_rng(2), 0
    free, limited = Recutter(hospital), Recutter(hospital)
    for _ in range(150):
        templates = rng.choice(mode.templates, 3).tolist()
        best = free.recut(mode, templates)
        if best is None:
            assert limited.recut(mode, templates, below_s=1e9) is None
            continue
        num_found += 1
        assert limited.recut(mode, templates, below_s=best.step_s * 0.999) is None
        assert limited.recut(mode, templates, below_s=best.step_s * 1.001) == best
        assert limited.recut(mode, templates, below_s=best.step_s) is None
        assert limited.recut(mode, templates) == best
    assert num_found > 10


def best_by_trying_all(
    costs: Sequence[Costs], moves_sL: Sequence[FloatArray], formula: StepFormula
) -> tuple[float, tuple[int, ...]]:
    """The shortest step, every set of borders tried."""
    num_layers = len(costs[0].busy_s_LL) - 1
    best: tuple[float, tuple[int, ...]] = (np.inf, ())
    for inner in combinations(range(1, num_layers), len(costs) - 1):
        borders = (0, *inner, num_layers)
        ends = list(zip(costs, pairwise(borders), strict=True))
        busy_s = [float(cost.busy_s_LL[a, b]) for cost, (a, b) in ends]
        move_s = [float(move_L[b]) for move_L, b in zip(moves_sL, inner, strict=True)]
        best = min(best, (step_time_s(formula, busy_s, move_s, [0.0]), borders))
    return best


@pytest.mark.parametrize(("fill", "repeats"), [(1.0, 0.0), (1.0, 2.0), (1.0, 40.0), (0.0, 8.0)])
def test_no_trade_off_between_sum_and_slowest_is_missed(fill: float, repeats: float) -> None:
    formula, rng, size = StepFormula(fill=fill, repeats=repeats, sync=True), np.random.default_rng(5), 13
    before_LL = np.triu(np.ones((size, size), dtype=bool), 1)
    for _ in range(80):
        costs = [
            Costs(
                busy_s_LL=np.where(before_LL, rng.exponential(size=(size, size)), np.inf),
                sync_s_LL=np.zeros((size, size)),
            )
            for _ in range(4)
        ]
        moves_sL = [np.concatenate([[np.inf], rng.exponential(0.3, size - 2), [np.inf]]) for _ in range(3)]
        step_s, borders = best_by_trying_all(costs, moves_sL, formula)
        found = best_cut(costs, moves_sL, formula, np.inf)
        assert found is not None
        assert found.step_s == pytest.approx(step_s, rel=1e-11)
        assert fill == 0.0 or found.borders == borders


def test_a_shared_workshop_builds_what_a_fresh_one_does(hospital: BoundaryProblem) -> None:
    workshop = Workshop(hospital, layer_kinds(hospital.cost_model, hospital.num_layers))
    limits, rng, values = Limits(deterministic=True), np.random.default_rng(4), set()
    for _ in range(6):
        rows = tuple(
            CapacityRow(
                name=f"class[{c.class_i}]",
                coefficients=((c.class_i, 1.0),),
                limit=float(rng.integers(c.num_devices + 1)),
            )
            for c in hospital.classes
        )
        smaller = replace(hospital, rows=rows, replicas_max=1)
        answer = workshop.solve(smaller, limits)
        assert answer == solve_boundary(smaller, limits)
        values.add(answer.value)
    assert len(values) > 2


def test_a_workshop_that_was_stopped_goes_on_where_it_was(hospital: BoundaryProblem) -> None:
    workshop = Workshop(hospital)
    assert workshop.solve(hospital, Limits(should_stop=lambda: True)).replicas == ()
    limits = Limits(deterministic=True)
    assert workshop.solve(hospital, limits) == solve_boundary(hospital, limits)
