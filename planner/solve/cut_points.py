"""A plan finder in CP-SAT: cut points, one cluster per stage, class counts. No bound, any size it can carry.

One model finds one replica on what is left of the fleet; replicas are found one after another, each on an
equal share of the computing rate, for several numbers of replicas. Cut points lie on a grid, as fine as the
size of the model allows and exact for short chains. Unused stages come first and hold nothing, so the stages
left behind each one are known and its memory limit and seconds are those of the cost model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from costmodels.interface import FloatArray, Interval, StageTable, tabulate
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, Mode, Template
from planner.solve.result import BoundaryResult, Limits
from planner.solve.units import RowSlack, best_choice, better, rule_result

STAGES_MAX = 6
TEMPLATES_MAX = 48
STAGE_OPTIONS_MAX = 1200
TICKS = 20_000
"""Integer time units in the largest single stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Layers [start, stop) on a cluster; seconds by stages left - 1, infinite where it doesn't fit."""

    template: Template
    rate_flop_per_s: float
    start: int
    stop: int
    busy_s_Q: FloatArray
    sync_s_Q: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What a mode's model may choose from; `transfer_SS` is the slowest transfer between two sites."""

    mode: Mode
    depth: int
    options: tuple[Option, ...]
    transfer_SS: FloatArray


def find_plan(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """FEASIBLE with the best plan found within the limits, else UNKNOWN."""
    started = time.monotonic()
    kits = [kit for mode in problem.modes if (kit := build_kit(problem, mode)) is not None]
    num_devices = sum(c.num_devices for c in problem.classes)
    most = num_devices if problem.replicas_max is None else min(problem.replicas_max, num_devices)
    count = max(1, problem.replicas_min)
    best: tuple[Replica, ...] | None = None
    while count <= most and kits:
        replicas = _side_by_side(problem, kits, count, limits, started)
        best = better(problem, best, best_choice(problem, replicas))
        if len(replicas) < count or _over(limits, started):
            break
        count = count + 1 if count < 4 else count + max(1, count // 3)
    return rule_result(problem, best, "limits reached" if _over(limits, started) else "plan finder ended")


def _over(limits: Limits, started: float) -> bool:
    late = not limits.deterministic and time.monotonic() - started > limits.deadline_s
    return late or limits.should_stop()


def _side_by_side(
    problem: BoundaryProblem, kits: list[Kit], count: int, limits: Limits, started: float
) -> list[Replica]:
    """Up to `count` disjoint replicas, each on its share of what is left."""
    slack = RowSlack(problem)
    dtype = problem.workload.job.dtype
    rate_C = [c.device.rate_flop_per_s(dtype) for c in problem.classes]
    left = sum(rate * c.num_devices for rate, c in zip(rate_C, problem.classes, strict=True))
    replicas: list[Replica] = []
    while len(replicas) < count and not _over(limits, started):
        budget = left / (count - len(replicas))
        found = [find_replica(problem, kit, slack, budget, limits) for kit in kits]
        known = [replica for replica in found if replica is not None]
        if not known:
            break
        fastest = min(known, key=lambda replica: replica.step_s)
        slack.take(fastest.usage)
        left -= sum(rate_C[class_i] * n for class_i, n in fastest.usage)
        replicas.append(fastest)
    return replicas


def build_kit(problem: BoundaryProblem, mode: Mode) -> Kit | None:
    """Clusters of one class, per size the strategy that holds most and is fastest, on a cut grid."""
    depth = min(mode.max_stages, problem.num_layers, STAGES_MAX)
    single = [t for t in (problem.templates[i] for i in mode.templates) if len(t.parts) == 1]
    sizes = {(t.parts[0].class_i, len(t.cluster.devices)) for t in single}
    num_kept = min(len(sizes), TEMPLATES_MAX)
    if num_kept == 0:
        return None
    grid = cut_grid(problem, int((2.0 * STAGE_OPTIONS_MAX / num_kept) ** 0.5))
    intervals = tuple((a, b) for i, a in enumerate(grid) for b in grid[i + 1 :])
    chosen: dict[tuple[int, int], tuple[tuple[float, float], Template, StageTable]] = {}
    for template in single:
        table = tabulate(
            problem.cost_model,
            template.cluster,
            intervals,
            template.strategy,
            mode.micro_batch_size,
            min(mode.num_micro_batches, depth),
        )
        fits_K = np.isfinite(table.busy_s_KQ[:, 0])
        if fits_K.any():
            merit = (-float(fits_K.sum()), float(table.busy_s_KQ[fits_K, 0].mean()))
            key = (template.parts[0].class_i, len(template.cluster.devices))
            if key not in chosen or merit < chosen[key][0]:
                chosen[key] = (merit, template, table)
    order = sorted(chosen, key=lambda key: (key[1], key[0]))[:TEMPLATES_MAX]
    options = [
        option
        for key in order
        for option in _options(problem, mode, chosen[key][1], chosen[key][2], intervals, depth)
    ]
    if not options:
        return None
    transfer_SS = _slowest_transfers(problem, mode)
    return Kit(mode=mode, depth=depth, options=tuple(options), transfer_SS=transfer_SS)


def cut_grid(problem: BoundaryProblem, num_points: int) -> list[int]:
    """Both ends, the layers next to them, changes of the required tier, and equal shares of work between."""
    num_layers, tiers = problem.num_layers, problem.tier_required
    points = {0, num_layers}
    points |= {b for b in range(1, num_layers) if tiers[b] != tiers[b - 1]}
    points |= {1, num_layers - 1} if num_layers > 1 else set()
    if num_layers + 1 <= num_points:
        return list(range(num_layers + 1))
    work = np.cumsum([layer.forward_flops_per_token for layer in problem.workload.layers])
    num_shares = max(2, num_points - len(points))
    marks = np.searchsorted(work, work[-1] * np.arange(1, num_shares) / num_shares) + 1
    return sorted(points | {int(mark) for mark in marks if mark < num_layers})


def _options(
    problem: BoundaryProblem,
    mode: Mode,
    template: Template,
    table: StageTable,
    intervals: tuple[Interval, ...],
    depth: int,
) -> list[Option]:
    columns = [min(mode.num_micro_batches, q + 1) - 1 for q in range(depth)]
    dtype = problem.workload.job.dtype
    rate = sum(device.rate_flop_per_s(dtype) for device in template.cluster.devices)
    options = []
    for k, (start, stop) in enumerate(intervals):
        busy_s_Q = table.busy_s_KQ[k][columns]
        if max(problem.tier_required[start:stop]) <= template.tier_i and np.isfinite(busy_s_Q).any():
            options.append(
                Option(
                    template=template,
                    rate_flop_per_s=rate,
                    start=start,
                    stop=stop,
                    busy_s_Q=busy_s_Q,
                    sync_s_Q=table.sync_s_KQ[k][columns],
                )
            )
    return options


def _slowest_transfers(problem: BoundaryProblem, mode: Mode) -> FloatArray:
    num_sites = len(problem.site_ids)
    transfer_SS = np.full((num_sites, num_sites), np.inf)
    for source_i, links in enumerate(problem.links):
        for target_i, link in enumerate(links):
            if link is not None:
                transfer_SS[source_i, target_i] = max(
                    (
                        problem.cost_model.transfer_s(link, border, mode.micro_batch_size)
                        for border in range(1, problem.num_layers)
                    ),
                    default=0.0,
                )
    return transfer_SS


def find_replica(
    problem: BoundaryProblem, kit: Kit, slack: RowSlack, rate_budget: float, limits: Limits
) -> Replica | None:
    """The replica of least step time on the grid and on what is left, or None when none was found."""
    from ortools.sat.python import cp_model

    able = [o for o in kit.options if slack.fits(o.template.usage) and o.rate_flop_per_s <= 1.1 * rate_budget]
    if not able:
        return None
    model = CutPointModel(problem, kit, able)
    model.keep_rows(slack, rate_budget)
    model.minimise_step()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = limits.seed
    solver.parameters.max_deterministic_time = 3.0
    # Probing alone can use up the time before a first plan is found.
    solver.parameters.cp_model_probing_level = 0
    if not limits.deterministic:
        solver.parameters.max_time_in_seconds = max(0.5, limits.deadline_s / 8.0)
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return price_replica(problem, kit.mode, model.stages(solver))


class CutPointModel:
    """Binaries `x[s]`: the option stage s runs; equal borders join neighbours and make the cut points."""

    def __init__(self, problem: BoundaryProblem, kit: Kit, able: list[Option]) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.kit = problem, kit
        self.model = cp_model.CpModel()
        self.x: list[list[tuple[Option, Any]]] = []
        for s in range(kit.depth):
            left_i = kit.depth - s - 1
            row = [
                (o, self.model.new_bool_var(f"x[{s},{o.template.template_i},{o.start},{o.stop}]"))
                for o in able
                if np.isfinite(o.busy_s_Q[left_i]) and (left_i == 0) == (o.stop == problem.num_layers)
            ]
            self.x.append(row)
        slowest_s = max((float(o.busy_s_Q[np.isfinite(o.busy_s_Q)].max()) for o in able), default=1e-12)
        self.tick_s = max(slowest_s, 1e-12) / TICKS
        self.busy: list[Any] = [self._sum_ticks(s, "busy_s_Q") for s in range(kit.depth)]
        self.sync: list[Any] = [self._sum_ticks(s, "sync_s_Q") for s in range(kit.depth)]
        self.moves: list[Any] = []
        self.join_stages()
        self.cost_moves()

    def _sum_ticks(self, s: int, figure: str) -> Any:
        left_i = self.kit.depth - s - 1
        return sum(round(float(getattr(o, figure)[left_i]) / self.tick_s) * x for o, x in self.x[s])

    def join_stages(self) -> None:
        """`start`, `end`, `chain`: one path from layer 0 to L; at each border as many stages end as begin."""
        self.model.add(sum(x for _, x in self.x[-1]) == 1)
        for row in self.x[:-1]:
            self.model.add_at_most_one(x for _, x in row)
        self.model.add_exactly_one(x for row in self.x for o, x in row if o.start == 0)
        for before, after in pairwise(self.x):
            ends: dict[int, list[Any]] = defaultdict(list)
            begins: dict[int, list[Any]] = defaultdict(list)
            for o, x in before:
                ends[o.stop].append(x)
            for o, x in after:
                begins[o.start].append(x)
            for border in {*ends, *begins} - {0}:
                self.model.add(sum(ends[border]) == sum(begins[border]))
        for o, x in self.x[0]:
            if o.start > 0:
                self.model.add(x == 0)

    def cost_moves(self) -> None:
        """`link`: neighbours stand in linked sites, at the slowest transfer over that link."""
        transfer_SS = self.kit.transfer_SS
        longest_s = float(np.max(transfer_SS, initial=0.0, where=np.isfinite(transfer_SS)))
        at: list[dict[int, Any]] = []
        for row in self.x:
            by_site: dict[int, list[Any]] = defaultdict(list)
            for o, x in row:
                by_site[o.template.site_i].append(x)
            at.append({site_i: sum(xs) for site_i, xs in by_site.items()})
        for s, (before, after) in enumerate(pairwise(at)):
            move = self.model.new_int_var(0, max(round(longest_s / self.tick_s), 1), f"move[{s}]")
            self.moves.append(move)
            for a, left in before.items():
                for b, right in after.items():
                    if np.isinf(transfer_SS[a, b]):
                        self.model.add(left + right <= 1)
                    else:
                        ticks = round(float(transfer_SS[a, b]) / self.tick_s)
                        self.model.add(move >= ticks * (left + right - 1))

    def keep_rows(self, slack: RowSlack, rate_budget: float) -> None:
        """`class[c]`, `pool[..]`, `price` on what is left, and at most the replica's share of the rate."""
        everything = [(o, x) for row in self.x for o, x in row]
        for weights, left in slack.rows():
            whole = all(float(weight).is_integer() for weight in weights.values())
            scale = 1.0 if whole else 10_000.0 / max(left, 1e-9)
            uses = [(sum(weights.get(c, 0.0) * n for c, n in o.template.usage), x) for o, x in everything]
            terms = [int(np.ceil(use * scale - 1e-6)) * x for use, x in uses if use > 0.0]
            if terms:
                self.model.add(sum(terms) <= int(left * scale + 1e-6))
        shares = [(o.rate_flop_per_s / max(rate_budget, 1e-9), x) for o, x in everything]
        self.model.add(sum(int(share * 1000) * x for share, x in shares) <= 1_100)

    def minimise_step(self) -> None:
        """The objective: fill * (sum busy + sum moves) + repeats * slowest + sync, in ticks."""
        formula = self.problem.formula(self.kit.mode)
        slowest = self.model.new_int_var(0, 1 << 40, "slowest")
        for seconds in (*self.busy, *self.moves):
            self.model.add(slowest >= seconds)
        latest = self.model.new_int_var(0, 1 << 40, "sync")
        if formula.sync:
            for seconds in self.sync:
                self.model.add(latest >= seconds)
        fill, repeats = round(formula.fill), round(formula.repeats)
        self.model.minimize(fill * (sum(self.busy) + sum(self.moves)) + repeats * slowest + latest)

    def stages(self, solver: Any) -> list[StageChoice]:
        """The chain the solver chose."""
        return [
            StageChoice(template_i=o.template.template_i, start=o.start, stop=o.stop)
            for row in self.x
            for o, x in row
            if solver.value(x)
        ]
