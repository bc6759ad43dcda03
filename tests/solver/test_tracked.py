"""Tracked classes: the compiled search, the referee's and plain enumeration agree on what a path may cost."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from planner.check.columns import ColumnSource
from planner.check.dual import DualCheck
from planner.check.multipliers import Multipliers
from planner.check.relaxed import BoxPaths
from planner.check.report import Findings
from planner.problem import BoundaryProblem
from planner.solve.boxes import Cut
from planner.solve.columns import Shape, build_shape
from planner.solve.enumerate_replicas import enumerate_replicas
from planner.solve.path_kernels import Devices, Scratch, build_devices, new_scratch, price_paths
from planner.solve.paths import Paths, build_paths, device_groups
from planner.solve.proof import _cut as stated_cut
from planner.solve.tables import FloatArray, build_signatures, build_tables
from planner.solve.tracked_kernels import new_net, new_tracked, num_budgets, price_tracked
from solver.all_paths import AllPaths, all_paths
from solver.micro_fleets import CONDITIONS, micro_case

SEEDS = range(24)
Answer = tuple[float, float, float, float, bool, int, float]


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One mode of a micro problem, ready to be priced."""

    problem: BoundaryProblem
    mode_i: int
    shape: Shape
    paths: Paths
    devices: Devices
    scratch: Scratch

    def price(
        self,
        upto_s: float,
        theta: float,
        usage_2C: FloatArray,
        tracked: tuple[int, ...],
        enough: float = math.inf,
    ) -> Answer:
        """The cheapest path with all found replicas kept."""
        price_C = np.arange(1.0, 1.0 + self.shape.devices_C.size)
        weights = (upto_s, theta, 1.0, usage_2C, price_C, 0.5, 0.0, 1000.0, 0.0)
        if not tracked:
            return price_paths(self.paths, self.devices, self.scratch, *weights)
        guide_2C = usage_2C.copy()
        guide_2C[:, list(tracked)] += 0.7  # more charges on tracked classes lead to the same answer
        counts, net = new_tracked(self.paths, self.devices, tracked), new_net(self.paths)
        return price_tracked(self.paths, self.devices, self.scratch, counts, net, *weights, guide_2C, enough)


def labs(seed: int) -> Iterator[Lab]:
    """All modes of a seed's problem."""
    condition = CONDITIONS[seed % 6]
    problem = micro_case(seed, condition, num_devices=4 + seed % 3, foreign=seed % 4 != 0).problem()
    yield from labs_of(problem, build_shape(problem))


def draws(lab: Lab, rng: random.Random) -> tuple[float, float, FloatArray, tuple[int, ...]]:
    """A load limit, an angle, usage multipliers and classes to track."""
    num_classes = lab.shape.devices_C.size
    limit_s = rng.choice((math.inf, float(np.quantile(lab.paths.load_E, rng.uniform(0.3, 1.0)))))
    usage_2C = np.array(
        [[rng.choice((0.0, rng.uniform(0.0, 4.0))) for _ in range(num_classes)] for _ in "vo"]
    )
    tracked = tuple(rng.sample(range(num_classes), rng.randint(1, num_classes)))
    return limit_s, rng.choice((0.0, rng.uniform(0.0, 5.0))), usage_2C, tracked


def enumerated(lab: Lab, every: AllPaths, draw: tuple[float, float, FloatArray], tracked: list[int]) -> float:
    """The least cost of any listed path within the load limit and the tracked classes' devices."""
    upto_s, theta, usage_2C = draw
    devices_C = lab.shape.devices_C.astype(np.float64)
    cost_P = theta * every.fill_P + every.usage_PC @ np.arange(1.0, 1.0 + devices_C.size)
    cost_P = cost_P + (every.usage_PC - every.visits_PC * devices_C) @ usage_2C[0]
    cost_P = cost_P + (every.usage_PC - devices_C) @ usage_2C[1]
    allowed_P = (every.load_P <= upto_s) & np.all(
        every.usage_PC[:, tracked] <= devices_C[tracked] + 1e-9, axis=1
    )
    return float(cost_P[allowed_P].min(initial=math.inf))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_least_cost_is_that_of_the_cheapest_listed_path(seed: int) -> None:
    rng = random.Random(seed)
    for lab in labs(seed):
        every = all_paths(lab.problem, lab.problem.modes[lab.mode_i])
        if every is None or not every.chains:
            continue
        for _ in range(4):
            upto_s, theta, usage_2C, tracked = draws(lab, rng)
            for choice in (tracked, tuple(range(lab.shape.devices_C.size))):
                value = lab.price(upto_s, theta, usage_2C, choice)[0]
                expected = enumerated(lab, every, (upto_s, theta, usage_2C), list(choice))
                assert value == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_costs_are_told_apart_up_to_what_is_enough(seed: int) -> None:
    rng = random.Random(seed)
    for lab in labs(seed):
        for _ in range(4):
            upto_s, theta, usage_2C, tracked = draws(lab, rng)
            exact = lab.price(upto_s, theta, usage_2C, tracked)[0]
            if exact == math.inf:
                continue
            for share in (-0.2, -0.01, 0.01, 0.2):
                enough = exact + share * (abs(exact) + 1.0)
                value = lab.price(upto_s, theta, usage_2C, tracked, enough)[0]
                assert min(exact, enough) - 1e-7 <= value <= exact + 1e-7


@pytest.mark.parametrize("seed", SEEDS)
def test_tracking_lies_between_the_relaxation_and_real_replicas(seed: int) -> None:
    rng = random.Random(seed)
    for lab in labs(seed):
        for _ in range(4):
            upto_s, theta, usage_2C, tracked = draws(lab, rng)
            loose = lab.price(upto_s, theta, usage_2C, ())[0]
            some = lab.price(upto_s, theta, usage_2C, tracked)
            used_C = lab.scratch.usage_C[list(tracked)].copy()
            full = lab.price(upto_s, theta, usage_2C, tuple(range(lab.shape.devices_C.size)))[0]
            if some[0] == math.inf:
                assert full == math.inf
                continue
            assert loose - 1e-7 <= some[0] <= full + 1e-7
            assert np.all(used_C <= lab.shape.devices_C[list(tracked)])
            if lab.scratch.size_I[0] and some[5]:
                assert some[6] > 0.0


@pytest.mark.parametrize("seed", range(12))
def test_all_classes_tracked_give_the_cheapest_replica(seed: int) -> None:
    case = micro_case(seed, CONDITIONS[0], num_devices=4, foreign=seed % 2 == 0)
    problem = case.problem()
    best: dict[int, float] = {}
    price_C = np.arange(1.0, 1.0 + len(problem.classes))
    for replica in enumerate_replicas(problem):
        price = sum(price_C[c] * count for c, count in replica.usage)
        best[0] = min(best.get(0, math.inf), price)
    found = math.inf
    shape = build_shape(problem)
    nothing_2C = np.zeros((2, len(problem.classes)))
    for lab in labs_of(problem, shape):
        found = min(found, lab.price(math.inf, 0.0, nothing_2C, tuple(range(len(problem.classes))))[0])
    assert found == pytest.approx(best.get(0, math.inf), rel=1e-9)


def labs_of(problem: BoundaryProblem, shape: Shape) -> Iterator[Lab]:
    """All modes of a problem."""
    devices, groups_J = build_devices(problem, shape), device_groups(problem)
    for tables in build_tables(problem, build_signatures(problem)):
        if tables.busy_E.size:
            paths = build_paths(tables, groups_J)
            yield Lab(
                problem=problem,
                mode_i=tables.mode.mode_i,
                shape=shape,
                paths=paths,
                devices=devices,
                scratch=new_scratch(paths, devices),
            )


def referee(problem: BoundaryProblem) -> DualCheck:
    """The referee at the prices the solver is asked with here: the class's number plus one."""
    findings = Findings()
    price_C = np.arange(1.0, 1.0 + len(problem.classes))
    multipliers = Multipliers(price_C=price_C, limit_sum=0.0, rho=0.5, nu=0.0, factor=1.0, coupling=0.0)
    return DualCheck(problem=problem, multipliers=multipliers, findings=findings, place="proof")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_referee_finds_what_the_solver_found(seed: int) -> None:
    rng = random.Random(seed)
    for lab in labs(seed):
        check = referee(lab.problem)
        columns = ColumnSource(lab.problem).columns(lab.problem.modes[lab.mode_i])
        for _ in range(3):
            upto_s, theta, usage_2C, tracked = draws(lab, rng)
            value = lab.price(upto_s, theta, usage_2C, tracked)[0]
            cut = Cut(time_weight=theta, price_weight=1.0, value=value, usage_2C=usage_2C, tracked=tracked)
            read = check._read_cuts([stated_cut(cut)], "here")
            assert read is not None
            least, _ = check.least(BoxPaths(columns, upto_s), columns, read[0])
            assert least == pytest.approx(value, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("tracked", [[99], [-1], [0, 0], [True], ["0"], 0, {"0": 1}, [0.0]])
def test_classes_that_can_not_be_tracked_are_refused(tracked: Any) -> None:
    lab = next(labs(2))
    check = referee(lab.problem)
    assert check._read_cuts([{"w": 0.0, "c": 1.0, "visit": {}, "once": {}, "tracked": tracked}], "x") is None
    assert [v.rule for v in check.findings.violations] == ["proof-multipliers"]


def test_budgets_multiply() -> None:
    lab = next(labs(2))
    sizes = lab.shape.devices_C + 1
    assert num_budgets(lab.devices, ()) == 1
    assert num_budgets(lab.devices, tuple(range(sizes.size))) == int(np.prod(sizes))


def test_a_factor_below_what_tracked_cuts_show_is_refused() -> None:
    """The tracked cut shows more than the same cut without; a factor beyond even that doesn't stand."""
    stronger = 0
    for seed in SEEDS:
        for lab in labs(seed):
            check = referee(lab.problem)
            columns = ColumnSource(lab.problem).columns(lab.problem.modes[lab.mode_i])
            cut = {"w": 1.0, "c": 1.0, "visit": {}, "once": {}}
            every = list(range(lab.shape.devices_C.size))
            loose = check._box(columns, 0.1, math.inf, check._read_cuts([cut], "x") or ())
            tight = check._box(
                columns, 0.1, math.inf, check._read_cuts([cut | {"tracked": every}], "x") or ()
            )
            assert tight <= loose * (1.0 + 1e-12)
            stronger += tight < loose * (1.0 - 1e-6)
            if tight > 0.0:
                for stated, rules in ((tight, []), (tight * (1.0 - 1e-6), ["proof-factor"])):
                    check.multipliers = replace(check.multipliers, factor=stated)
                    check.require_factor(tight)
                    assert [v.rule for v in check.findings.violations] == rules
    assert stronger > 3
