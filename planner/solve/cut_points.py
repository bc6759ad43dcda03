"""A plan finder in CP-SAT: cut points, one cluster per stage, class counts. No bound, any size it can carry.

One model finds one replica on what is left of the fleet; replicas are found one after another, each on an
equal share of the computing rate, for several numbers of replicas. Inside the model a stage costs the sum of
its layers' own busy seconds, which is only an estimate; what comes out is priced by the cost model before it
counts. Unused stages come first and hold nothing, so the stages left behind each one are known and memory
limits are exact.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from costmodels.interface import FloatArray, StageTable, tabulate
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, Mode, Template
from planner.solve.result import BoundaryResult, Limits
from planner.solve.units import RowSlack, best_choice, better, rule_result

STAGES_MAX = 8
TEMPLATES_MAX = 48
TICKS = 1_000_000
"""Integer time units in the largest single stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """Clusters a mode's model may choose from. J clusters, B borders (0..L), Q stages left - 1, S sites.

    `upto_JB` adds up the layers' own busy seconds before a border, `reach_JQB` is where a stage that begins
    at a border ends at the latest (the border itself when it holds nothing), `transfer_SS` the slowest transfer.
    """

    mode: Mode
    templates: tuple[Template, ...]
    rate_J: FloatArray
    upto_JB: FloatArray
    reach_JQB: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
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
    """The clusters worth modelling: of one class, per size the strategy that holds most and is fastest."""
    depth = min(mode.max_stages, problem.num_layers, STAGES_MAX)
    in_flight_max = min(mode.num_micro_batches, depth)
    intervals = tuple((a, b) for a in range(problem.num_layers) for b in range(a + 1, problem.num_layers + 1))
    chosen: dict[tuple[int, int], tuple[tuple[float, float], Template, StageTable]] = {}
    for template_i in mode.templates:
        template = problem.templates[template_i]
        if len(template.parts) > 1:
            continue
        table = tabulate(
            problem.cost_model,
            template.cluster,
            intervals,
            template.strategy,
            mode.micro_batch_size,
            in_flight_max,
        )
        fits_K = np.isfinite(table.busy_s_KQ[:, 0])
        if fits_K.any():
            merit = (-float(fits_K.sum()), float(table.busy_s_KQ[fits_K, 0].mean()))
            key = (template.parts[0].class_i, len(template.cluster.devices))
            if key not in chosen or merit < chosen[key][0]:
                chosen[key] = (merit, template, table)
    order = sorted(chosen, key=lambda key: (key[1], key[0]))[:TEMPLATES_MAX]
    if not order:
        return None
    templates = tuple(chosen[key][1] for key in order)
    dtype = problem.workload.job.dtype
    tables = [_reach(problem, chosen[key][1], chosen[key][2], mode, intervals, depth) for key in order]
    return Kit(
        mode=mode,
        templates=templates,
        rate_J=np.array([sum(d.rate_flop_per_s(dtype) for d in t.cluster.devices) for t in templates]),
        upto_JB=np.array([upto for upto, _ in tables]),
        reach_JQB=np.array([reach for _, reach in tables]),
        transfer_SS=_slowest_transfers(problem, mode),
    )


def _reach(
    problem: BoundaryProblem,
    template: Template,
    table: StageTable,
    mode: Mode,
    intervals: tuple[tuple[int, int], ...],
    depth: int,
) -> tuple[FloatArray, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Busy seconds before each border, and the latest end of a stage by stages left and first layer."""
    num_layers = problem.num_layers
    own_s = np.zeros(num_layers)
    reach_QB = np.tile(np.arange(num_layers + 1, dtype=np.int64), (depth, 1))
    for k, (start, stop) in enumerate(intervals):
        if max(problem.tier_required[start:stop]) > template.tier_i:
            continue
        if stop == start + 1 and np.isfinite(table.busy_s_KQ[k, 0]):
            own_s[start] = table.busy_s_KQ[k, 0]
        for q in range(depth):
            if np.isfinite(table.busy_s_KQ[k, min(mode.num_micro_batches, q + 1) - 1]):
                reach_QB[q, start] = max(reach_QB[q, start], stop)
    return np.concatenate(([0.0], np.cumsum(own_s))), reach_QB


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
    """The replica of least estimated step time on what is left, or None when none was found."""
    from ortools.sat.python import cp_model

    able = [j for j, template in enumerate(kit.templates) if slack.fits(template.usage)]
    if not able:
        return None
    model = CutPointModel(problem, kit, able)
    model.keep_rows(slack, rate_budget)
    model.minimise_step()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = limits.seed
    solver.parameters.max_deterministic_time = 2.0
    if not limits.deterministic:
        solver.parameters.max_time_in_seconds = max(0.5, limits.deadline_s / 8.0)
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return price_replica(problem, kit.mode, model.stages(solver))


class CutPointModel:
    """Variables: `cut[s]` the first layer of stage s, `y[s][j]` whether stage s runs on cluster j."""

    def __init__(self, problem: BoundaryProblem, kit: Kit, able: list[int]) -> None:
        from ortools.sat.python import cp_model

        self.problem, self.kit, self.able = problem, kit, able
        self.depth = kit.reach_JQB.shape[1]
        self.tick_s = max(float(kit.upto_JB[:, -1].max()), 1e-12) / TICKS
        num_layers = problem.num_layers
        self.model = cp_model.CpModel()
        self.cut = [self.model.new_int_var(0, num_layers, f"cut[{s}]") for s in range(self.depth + 1)]
        self.y = [{j: self.model.new_bool_var(f"y[{s},{j}]") for j in able} for s in range(self.depth)]
        self.busy = [self.model.new_int_var(0, TICKS, f"busy[{s}]") for s in range(self.depth)]
        self.moves: list[Any] = []
        self.order_stages()
        self.cost_stages()
        self.cost_moves()

    def order_stages(self) -> None:
        """`start`, `end`, `chain`: cuts rise from 0 to L over the stages in use, which stand at the end."""
        self.model.add(self.cut[0] == 0)
        self.model.add(self.cut[-1] == self.problem.num_layers)
        used = [sum(self.y[s].values()) for s in range(self.depth)]
        for s in range(self.depth):
            self.model.add(used[s] <= 1)
            self.model.add(self.cut[s + 1] - self.cut[s] >= used[s])
            self.model.add(self.cut[s + 1] <= self.problem.num_layers * used[s])
        for before, after in pairwise(used):
            self.model.add(before <= after)

    def cost_stages(self) -> None:
        """In-flight memory and tier bound the end of a stage; its busy seconds are those of its layers."""
        num_layers = self.problem.num_layers
        for j in self.able:
            upto = [round(v / self.tick_s) for v in self.kit.upto_JB[j].tolist()]
            spent = []
            for s, cut in enumerate(self.cut):
                value = self.model.new_int_var(0, max(upto), f"upto[{s},{j}]")
                self.model.add_element(cut, upto, value)
                spent.append(value)
            for s in range(self.depth):
                y = self.y[s][j]
                reach = self.model.new_int_var(0, num_layers, f"reach[{s},{j}]")
                self.model.add_element(self.cut[s], self.kit.reach_JQB[j, self.depth - s - 1].tolist(), reach)
                self.model.add(self.cut[s + 1] <= reach).only_enforce_if(y)
                self.model.add(self.busy[s] >= spent[s + 1] - spent[s]).only_enforce_if(y)

    def cost_moves(self) -> None:
        """`link`: neighbours stand in linked sites, at the slowest transfer over that link."""
        sites = sorted({self.kit.templates[j].site_i for j in self.able})
        at = [
            {
                site_i: sum(y for j, y in row.items() if self.kit.templates[j].site_i == site_i)
                for site_i in sites
            }
            for row in self.y
        ]
        transfer_SS = self.kit.transfer_SS
        longest_s = float(np.max(transfer_SS, initial=0.0, where=np.isfinite(transfer_SS)))
        most = round(longest_s / self.tick_s)
        for s in range(self.depth - 1):
            move = self.model.new_int_var(0, max(most, 1), f"move[{s}]")
            self.moves.append(move)
            for a in sites:
                for b in sites:
                    seconds = float(transfer_SS[a, b])
                    if np.isinf(seconds):
                        self.model.add(at[s][a] + at[s + 1][b] <= 1)
                    else:
                        self.model.add(move >= round(seconds / self.tick_s) * (at[s][a] + at[s + 1][b] - 1))

    def keep_rows(self, slack: RowSlack, rate_budget: float) -> None:
        """`class[c]`, `pool[..]`, `price` on what is left, and at most the replica's share of the rate."""
        for weights, left in slack.rows():
            scale = 1e6 / max(left, 1e-9)
            terms = []
            for row in self.y:
                for j, y in row.items():
                    use = sum(weights.get(c, 0.0) * count for c, count in self.kit.templates[j].usage)
                    if use > 0.0:
                        terms.append(int(np.ceil(use * scale - 1e-3)) * y)
            if terms:
                self.model.add(sum(terms) <= 1_000_000)
        total = float(self.kit.rate_J.sum())
        share_J = [int(rate / total * 1e6) for rate in self.kit.rate_J.tolist()]
        rates = [share_J[j] * y for row in self.y for j, y in row.items()]
        self.model.add(sum(rates) <= max(int(rate_budget / total * 1.1e6), 1))

    def minimise_step(self) -> None:
        """The objective: fill * (sum busy + sum moves) + repeats * slowest, in ticks."""
        formula = self.problem.formula(self.kit.mode)
        slowest = self.model.new_int_var(0, 1 << 40, "slowest")
        for seconds in (*self.busy, *self.moves):
            self.model.add(slowest >= seconds)
        fill, repeats = round(formula.fill), round(formula.repeats)
        self.model.minimize(fill * (sum(self.busy) + sum(self.moves)) + repeats * slowest)

    def stages(self, solver: Any) -> list[StageChoice]:
        """The chain the solver chose."""
        chosen = []
        for s, row in enumerate(self.y):
            for j, y in row.items():
                if solver.value(y):
                    template_i = self.kit.templates[j].template_i
                    start, stop = int(solver.value(self.cut[s])), int(solver.value(self.cut[s + 1]))
                    chosen.append(StageChoice(template_i=template_i, start=start, stop=stop))
        return chosen
