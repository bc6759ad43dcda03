"""Compile the innermost loops ahead of the first solve: `python -m planner.solve.warm`, once per machine.

A bundled fleet is solved in each way that has compiled parts. What they leave in numba's cache serves every
later process of the same user.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from planner.problem import BoundaryProblem

EXAMPLE = "hospital"
NUM_LAYERS = 20
ROUNDS = 3
TOLERANCE = 0.01
"""Fine enough for a sweep to need everything it has."""
QUIET_S = 1.0
"""Nothing is told about a warm-up that is over so soon."""


def example_problem() -> BoundaryProblem:
    """The one boundary of the bundled example, with fewer layers."""
    from costmodels.analytic import AnalyticCostModel
    from planner.build import build_problem
    from planner.examples.bundled import FILE_NAMES, example_folder
    from planner.files import load_inputs

    fleet_path, model_path, policy_path = (example_folder(EXAMPLE) / name for name in FILE_NAMES)
    inputs = load_inputs(fleet_path, model_path, policy_path)
    layers = inputs.workload.layers
    workload = replace(inputs.workload, layers=(*layers[: NUM_LAYERS - 1], layers[-1]))
    policy = replace(inputs.policy, layer_tiers=())
    return build_problem(inputs.fleet, workload, policy, AnalyticCostModel(workload)).boundaries[0]


def compile_all() -> None:
    """Solve the example by sweeps, as a small fleet, and for a single replica."""
    from planner.solve.columns import build_shape
    from planner.solve.result import Limits
    from planner.solve.single import solve_single
    from planner.solve.small import solve_small_boundary

    problem = example_problem()
    limits = Limits(deterministic=True)
    solve_small_boundary(problem, build_shape(problem), limits)
    solve_single(replace(problem, replicas_min=1, replicas_max=1), limits)
    _sweep(problem)


def _sweep(problem: BoundaryProblem) -> None:
    from planner.solve.columns import build_shape
    from planner.solve.generation import Generator
    from planner.solve.sweeper import Sweeper
    from planner.solve.tables import build_signatures, build_tables

    shape = build_shape(problem)
    sweeper = Sweeper(problem, shape, build_tables(problem, build_signatures(problem)), threads=1)
    generator = Generator(problem, shape, sweeper)
    generator.seed(lambda: False)
    generator.tolerance = TOLERANCE
    for _ in range(ROUNDS):
        generator.round(lambda: False)


def main() -> None:
    """Compile what is not in the cache yet; one line on stderr when that took a while."""
    started_s = time.monotonic()
    compile_all()
    took_s = time.monotonic() - started_s
    if took_s > QUIET_S:
        sys.stderr.write(f"warm-up: {took_s:.0f} s; compiled loops are in numba's cache for later runs\n")


if __name__ == "__main__":
    main()
