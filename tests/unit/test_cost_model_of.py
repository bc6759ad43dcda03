"""A cost model made again for a changed workload keeps the settings of the request and the fleet."""

from __future__ import annotations

from dataclasses import replace

from costmodels.analytic import AnalyticCostModel
from planner.examples.bundled import example_folder
from planner.files import load_inputs
from planner.solving import Request, cost_model_of, problem_of


def test_a_changed_workload_keeps_the_reserve_of_the_fleet() -> None:
    folder = example_folder("hospital")
    inputs = load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")
    inputs = replace(inputs, fleet=replace(inputs.fleet, memory_reserve_frac=0.25))
    changed = replace(inputs.workload, job=replace(inputs.workload.job, recompute=False))
    for model in (cost_model_of(inputs, Request())(changed), problem_of(inputs, Request()).cost_model):
        assert isinstance(model, AnalyticCostModel)
        assert model.settings.memory_reserve_frac == 0.25
