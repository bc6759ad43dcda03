"""Compiled shortest paths against a plain list of all paths, and the laid-out tables against the raw ones.

Legend: C device classes, E raw entries, K stages, P listed paths, S sites, X dense cells.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.objective import StageChoice, price_replica
from planner.problem import BoundaryProblem, Mode
from planner.solve.columns import build_shape
from planner.solve.jit import compiled
from planner.solve.path_kernels import (
    Devices,
    Scratch,
    build_devices,
    charge,
    entry_at,
    fill_cells,
    measure,
    new_scratch,
    price_paths,
    trace,
)
from planner.solve.paths import Paths, build_paths, device_groups
from planner.solve.tables import ModeTables, build_signatures, build_tables
from solver.all_paths import AllPaths, all_paths, listable, problem_of
from solver.micro_fleets import Condition

FloatArray = NDArray[np.float64]
CASES = listable(range(300, 345))
THETAS = (0.0, 0.3, 1.0, 20.0)


# doors into functions that only compiled ones call


@compiled
def cells_of(paths: Paths, scratch: Scratch, upto_s: float, weight: float) -> None:
    fill_cells(paths, scratch, upto_s, weight)


@compiled
def entry_of(paths: Paths, scratch: Scratch, at: tuple[int, int, int], upto_s: float, weight: float) -> int:
    return entry_at(paths, scratch, at, upto_s, weight, -1, paths.last_L)


@compiled
def traced(
    paths: Paths, devices: Devices, scratch: Scratch, start: tuple[int, int], upto_s: float, weight: float
) -> tuple[int, float, float, float]:
    size = trace(paths, scratch, start[0], start[1], upto_s, weight)
    fill_s, load_s, step_s = measure(paths, devices, scratch, size)
    return size, fill_s, load_s, step_s


@dataclass(frozen=True, kw_only=True)
class Laid:
    """One mode as the kernels see it, and as it is."""

    problem: BoundaryProblem
    mode: Mode
    tables: ModeTables
    paths: Paths
    devices: Devices
    scratch: Scratch
    listed: AllPaths


def laid_out(problem: BoundaryProblem) -> list[Laid]:
    """Modes with few enough paths to list."""
    devices = build_devices(problem, build_shape(problem))
    found = []
    for tables in build_tables(problem, build_signatures(problem)):
        paths = build_paths(tables, device_groups(problem))
        listed = all_paths(problem, tables.mode)
        if listed is not None:
            scratch = new_scratch(paths, devices)
            mode = tables.mode
            found.append(
                Laid(
                    problem=problem,
                    mode=mode,
                    tables=tables,
                    paths=paths,
                    devices=devices,
                    scratch=scratch,
                    listed=listed,
                )
            )
    return found


def limits_s(loads_P: FloatArray, rng: random.Random) -> list[float]:
    """Load limits between the loads there are, below all of them, and none."""
    steps = np.unique(loads_P)
    between = ((steps[1:] + steps[:-1]) / 2.0).tolist()
    rng.shuffle(between)
    return [np.inf, *(steps[:1] * 0.999), *between[:3]]


def least_cost(laid: Laid, upto_s: float, theta: float, price_C: FloatArray, usage_2C: FloatArray) -> float:
    """The cheapest listed path with loads up to the limit."""
    listed, devices_C = laid.listed, laid.devices.devices_C
    cost_P = theta * listed.fill_P + listed.usage_PC @ price_C
    cost_P = cost_P + (listed.usage_PC - listed.visits_PC * devices_C) @ usage_2C[0]
    cost_P = cost_P + (listed.usage_PC - devices_C) @ usage_2C[1]
    return float(np.min(cost_P[listed.load_P <= upto_s], initial=np.inf))


def run(
    laid: Laid, upto_s: float, theta: float, price_C: FloatArray, usage_2C: FloatArray
) -> tuple[float, float, float, float, bool, int, float]:
    return price_paths(
        laid.paths, laid.devices, laid.scratch, upto_s, theta, 1.0, usage_2C, price_C, 0.0, 0.0, 1.0, 0.0
    )


@pytest.mark.parametrize(("seed", "condition"), CASES, ids=lambda value: getattr(value, "name", str(value)))
@pytest.mark.parametrize("charged", [False, True], ids=["plain", "charged"])
def test_the_cheapest_path_is_the_cheapest_of_all_paths(
    seed: int, condition: Condition, charged: bool
) -> None:
    rng = random.Random(seed)
    for laid in laid_out(problem_of(seed, condition)):
        num_classes = laid.devices.devices_C.size
        for upto_s in limits_s(laid.listed.load_P, rng):
            for theta in THETAS:
                price_C = np.array([rng.choice((0.0, rng.uniform(0.1, 2.0))) for _ in range(num_classes)])
                usage_2C = np.zeros((2, num_classes))
                if charged:
                    usage_2C[:] = [[rng.choice((0.0, rng.random())) for _ in price_C] for _ in range(2)]
                expected = least_cost(laid, upto_s, theta, price_C, usage_2C)
                value, fill_s, price, load_s, *_ = run(laid, upto_s, theta, price_C, usage_2C)
                assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
                assert value <= expected
                assert value == np.inf or load_s <= upto_s
                if not charged and value < np.inf:
                    assert theta * fill_s + price == pytest.approx(expected, rel=1e-9, abs=1e-9)


def chain_of(laid: Laid, size: int) -> tuple[StageChoice, ...]:
    entry_K, start_K = laid.scratch.entry_K[:size], laid.scratch.start_K[:size].tolist()
    stops = [*start_K[1:], laid.problem.num_layers]
    templates = laid.paths.template_E[entry_K].tolist()
    return tuple(
        StageChoice(template_i=j, start=a, stop=b) for j, a, b in zip(templates, start_K, stops, strict=True)
    )


@pytest.mark.parametrize(("seed", "condition"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_every_traced_path_costs_what_the_cost_model_says(seed: int, condition: Condition) -> None:
    rng = random.Random(seed)
    for laid in laid_out(problem_of(seed, condition)):
        position = {chain: p for p, chain in enumerate(laid.listed.chains)}
        num_classes = laid.devices.devices_C.size
        price_C = np.array([rng.uniform(0.1, 2.0) for _ in range(num_classes)])
        for upto_s in limits_s(laid.listed.load_P, rng):
            theta = rng.choice(THETAS)
            run(laid, upto_s, theta, price_C, np.zeros((2, num_classes)))
            for q, s in np.argwhere(np.isfinite(laid.scratch.stage_QSL[:, :, 0])).tolist():
                weight = theta * laid.paths.fill
                size, fill_s, load_s, step_s = traced(
                    laid.paths, laid.devices, laid.scratch, (q, s), upto_s, weight
                )
                chain = chain_of(laid, size)
                p = position[chain]
                replica = price_replica(laid.problem, laid.mode, chain)
                assert replica is not None
                assert (size, laid.problem.templates[chain[0].template_i].site_i) == (q + 1, s)
                assert step_s == pytest.approx(replica.step_s, rel=1e-12)
                assert fill_s == pytest.approx(laid.listed.fill_P[p], rel=1e-12)
                assert load_s == pytest.approx(laid.listed.load_P[p], rel=1e-12)
                assert laid.scratch.usage_C.tolist() == laid.listed.usage_PC[p].tolist()


@pytest.mark.parametrize(("seed", "condition"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_spreading_over_levels_changes_no_cell(seed: int, condition: Condition) -> None:
    rng = random.Random(seed)
    problem = problem_of(seed, condition)
    devices = build_devices(problem, build_shape(problem))
    for tables in build_tables(problem, build_signatures(problem)):
        paths = build_paths(tables, device_groups(problem))
        scratch = new_scratch(paths, devices)
        assert sorted(np.unique(paths.template_E)) == sorted(np.unique(tables.template_E))
        num_sites, num_signatures = tables.num_sites, len(tables.signatures.intervals)
        owns = set(zip(tables.cell_E.tolist(), tables.template_E.tolist(), strict=True))
        for upto_s in limits_s(tables.load_E, rng):
            for weight in THETAS:
                price_C = np.array([rng.uniform(0.0, 2.0) for _ in range(devices.devices_C.size)])
                charge(devices, scratch, price_C, 1.0, np.zeros((2, price_C.size)))
                cells_of(paths, scratch, upto_s, weight)
                raw_X = np.full(tables.num_cells, np.inf)
                cost_E = scratch.price_J[tables.template_E] + weight * tables.busy_E
                allowed_E = tables.load_E <= upto_s
                np.minimum.at(raw_X, tables.cell_E[allowed_E], cost_E[allowed_E])
                assert np.array_equal(scratch.cost_QSG.reshape(-1), raw_X)
                for cell in np.flatnonzero(np.isfinite(raw_X)).tolist():
                    level, place = divmod(cell, num_sites * num_signatures)
                    at = (level, *divmod(place, num_signatures))
                    e = entry_of(paths, scratch, at, upto_s, weight)
                    assert scratch.price_J[paths.template_E[e]] + weight * paths.busy_E[e] == raw_X[cell]
                    assert (cell, int(paths.template_E[e])) in owns
