"""The access-aware rule of thumb: first the fastest cleared devices, then the nearest and fastest ones.

A replica starts on the fastest unit (one device, or one host) that may see raw tokens. Units are added,
nearest first and among equally near ones fastest first, until memory suffices and the last stage may see the
labels. Layers are shared out in proportion to rates, clipped by memory and clearance, once more in proportion
to the speeds that result. Replicas are built until devices run out; the best over modes and kinds of unit is
returned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

import numpy as np

from costmodels.interface import Interval, StageTable, TabulatedCostModel
from planner.kinds import LayerKinds, layer_kinds
from planner.objective import Replica, StageChoice, price_replica, stage_costs, step_time_s, transfers_s
from planner.problem import BoundaryProblem, Mode, ObjectiveKind, Template
from planner.solve.result import BoundaryResult, Limits
from planner.solve.units import RowSlack, Unit, UnitRule, best_choice, better, rule_result, units_of

Chain = tuple[Unit, ...]


def solve_boundary(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """FEASIBLE or UNKNOWN: a quick plan without any bound."""
    return Workshop(problem).solve(problem, limits)


class Workshop:
    """What solves of one boundary share that differ in rows and numbers of replicas only.

    Fits, prices of chains and the order of units depend on neither. Kinds of layers that are at hand already
    may be passed in.
    """

    def __init__(self, problem: BoundaryProblem, kinds: LayerKinds | None = None) -> None:
        self._problem = problem
        if kinds is None and isinstance(problem.cost_model, TabulatedCostModel):
            kinds = layer_kinds(problem.cost_model, problem.num_layers)
        self._kinds = kinds
        self._builders: list[Builder] = []
        self._rest = self._further_builders()

    def solve(self, problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
        """FEASIBLE or UNKNOWN, for a problem with this one's clusters, modes and objective."""
        started = time.monotonic()
        best: tuple[Replica, ...] | None = None
        for builder in self._all_builders():
            late = not limits.deterministic and time.monotonic() - started > limits.deadline_s
            if limits.should_stop() or (late and best is not None):
                return rule_result(problem, best, "limits reached")
            best = better(problem, best, best_choice(problem, builder.build(problem)))
        return rule_result(problem, best, "rule applied")

    def _all_builders(self) -> Iterator[Builder]:
        """Those made before, then the rest, each made when it is asked for."""
        yield from list(self._builders)
        for builder in self._rest:
            self._builders.append(builder)
            yield builder

    def _further_builders(self) -> Iterator[Builder]:
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for mode in self._problem.modes:
            probe = Probe(self._problem, mode, self._kinds)
            for rule in UnitRule:
                units = units_of(self._problem, mode, rule)
                shape = (mode.mode_i, tuple(unit.template.template_i for unit in units))
                if shape not in seen:
                    seen.add(shape)
                    yield Builder(self._problem, mode, probe, units)


class Probe:
    """Whether a stage fits a cluster in one mode, remembered; from tables where the cost model has them."""

    def __init__(self, problem: BoundaryProblem, mode: Mode, kinds: LayerKinds | None = None) -> None:
        self._problem = problem
        self._mode = mode
        self._depth = min(mode.num_micro_batches, mode.max_stages, problem.num_layers)
        self._table_model = problem.cost_model if isinstance(problem.cost_model, TabulatedCostModel) else None
        self._kinds = kinds or LayerKinds(intervals=(), kind_LL=np.zeros((0, 0), dtype=np.int64))
        self._tables: dict[int, StageTable] = {}
        self._fits: dict[tuple[int, int, Interval], bool] = {}
        if self._table_model is not None and kinds is None:
            self._kinds = layer_kinds(self._table_model, problem.num_layers)

    def fits(self, template: Template, start: int, stop: int, stages_left: int) -> bool:
        """Whether the cluster is cleared for layers [start, stop) and holds them that far from the end."""
        if max(self._problem.tier_required[start:stop]) > template.tier_i:
            return False
        in_flight = min(stages_left, self._depth)
        key = (template.template_i, in_flight, (start, stop))
        if key not in self._fits:
            self._fits[key] = self._ask(template, (start, stop), in_flight)
        return self._fits[key]

    def _ask(self, template: Template, interval: Interval, in_flight: int) -> bool:
        size = self._mode.micro_batch_size
        if self._table_model is None:
            cost = self._problem.cost_model.stage(
                template.cluster, interval, template.strategy, size, in_flight
            )
            return cost is not None and cost.fits
        table = self._tables.get(template.template_i)
        if table is None:
            table = self._table_model.stage_table(
                template.cluster, self._kinds.intervals, template.strategy, size, self._depth
            )
            self._tables[template.template_i] = table
        return bool(np.isfinite(table.busy_s_KQ[self._kinds.kind_LL[interval], in_flight - 1]))

    def least_start(self, template: Template, stop: int, stages_left: int) -> int | None:
        """The first layer a stage that ends before `stop` can begin with; None when it holds nothing."""
        if not self.fits(template, stop - 1, stop, stages_left):
            return None
        low, high = 0, stop - 1
        while low < high:
            middle = (low + high) // 2
            if self.fits(template, middle, stop, stages_left):
                high = middle
            else:
                low = middle + 1
        return high

    def largest_stop(self, template: Template, start: int, stages_left: int) -> int | None:
        """Where a stage that begins with layer `start` has to end; None when it holds nothing."""
        if not self.fits(template, start, start + 1, stages_left):
            return None
        low, high = start + 1, self._problem.num_layers
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(template, start, middle, stages_left):
                low = middle
            else:
                high = middle - 1
        return low


class Builder:
    """Replicas of one mode and one kind of unit, taken from the fleet one after another."""

    def __init__(self, problem: BoundaryProblem, mode: Mode, probe: Probe, units: Sequence[Unit]) -> None:
        self.problem, self.mode, self.probe = problem, mode, probe
        self.depth = min(mode.max_stages, problem.num_layers)
        work = [layer.forward_flops_per_token for layer in problem.workload.layers]
        self.work_upto = [0.0, *accumulate(work)]
        self.by_rate = sorted(units, key=lambda u: (-u.rate_flop_per_s, u.class_i))
        self.by_site = [self._nearest(site_i) for site_i in range(len(problem.site_ids))]
        self.known: dict[tuple[int, ...], Replica | None] = {}

    def _nearest(self, site_i: int) -> list[Unit]:
        """Units that can follow a site: its own first, then by link rate; among equally near the fastest."""
        links = self.problem.links[site_i]
        keyed = []
        for unit in self.by_rate:
            link = links[unit.template.site_i]
            if link is not None:
                away = unit.template.site_i != site_i
                keyed.append(((away, -link.bytes_per_s if away else 0.0), unit))
        return [unit for _, unit in sorted(keyed, key=lambda pair: pair[0])]

    def build(self, problem: BoundaryProblem) -> list[Replica]:
        """Replicas until no further one can be formed, or as many as may run, within this problem's rows."""
        slack = RowSlack(problem)
        most = problem.replicas_max
        if problem.objective.kind is ObjectiveKind.PRICE:
            most = None
        replicas: list[Replica] = []
        while most is None or len(replicas) < most:
            replica = self._next(slack, extend=most is not None)
            if replica is None:
                break
            slack.take(replica.usage)
            replicas.append(replica)
        return replicas

    def _next(self, slack: RowSlack, *, extend: bool) -> Replica | None:
        """The replica of the shortest chain that holds the model; `extend` goes on while that gains."""
        best: Replica | None = None
        for units in self._chains(slack):
            replica = self._priced(units)
            if replica is not None:
                if not extend:
                    return replica
                if best is not None and replica.step_s >= best.step_s:
                    return best
                best = replica
        return best

    def _chains(self, slack: RowSlack) -> Iterator[Chain]:
        """Ever longer chains whose two ends are cleared for their layers."""
        last_tier_i, left = self.problem.tier_required[-1], slack.copy()
        units: Chain = ()
        while len(units) < self.depth:
            order = self.by_site[units[-1].template.site_i] if units else self.by_rate
            floor_i = 0 if units else self.problem.tier_required[0]
            able = (u for u in order if u.template.tier_i >= floor_i and left.fits(u.template.usage))
            following = next(able, None)
            if following is None:
                return
            closing = next((u for u in chain([following], able) if u.template.tier_i >= last_tier_i), None)
            if closing is not None:
                yield (*units, closing)
            left.take(following.template.usage)
            units = (*units, following)

    def _priced(self, units: Chain) -> Replica | None:
        key = tuple(unit.template.template_i for unit in units)
        if key not in self.known:
            self.known[key] = self._shared_out(units)
        return self.known[key]

    def _shared_out(self, units: Chain) -> Replica | None:
        rates = [unit.rate_flop_per_s for unit in units]
        formula = self.problem.formula(self.mode)
        best: tuple[float, list[StageChoice]] | None = None
        for _ in range(2):
            stages = self._cuts(units, rates)
            if stages is None or (best is not None and stages == best[1]):
                break
            costs = stage_costs(self.problem, self.mode, stages)
            moves_s = transfers_s(self.problem, self.mode, stages)
            if costs is None or moves_s is None:
                break
            busy_s = [cost.busy_s for cost in costs]
            step_s = step_time_s(formula, busy_s, moves_s, [cost.sync_s for cost in costs])
            if best is None or step_s < best[0]:
                best = (step_s, stages)
            rates = [
                (self.work_upto[s.stop] - self.work_upto[s.start]) / max(seconds, 1e-12)
                for s, seconds in zip(stages, busy_s, strict=True)
            ]
        return None if best is None else price_replica(self.problem, self.mode, best[1])

    def _cuts(self, units: Chain, rates: Sequence[float]) -> list[StageChoice] | None:
        """Layers in proportion to rates, within what each stage and all behind it can hold."""
        least = self.problem.num_layers
        least_start = [0] * len(units) + [least]
        for i in range(len(units) - 1, 0, -1):
            reach = self.probe.least_start(units[i].template, least, len(units) - i)
            if reach is None:
                return None
            least = least_start[i] = max(reach, i)
        share = list(accumulate(rates))
        stages, start = [], 0
        for i, unit in enumerate(units):
            behind = len(units) - i - 1
            most = self.probe.largest_stop(unit.template, start, behind + 1)
            if most is None or most < least_start[i + 1]:
                return None
            work = share[i] / share[-1] * self.work_upto[-1]
            wanted = round(float(np.interp(work, self.work_upto, range(len(self.work_upto)))))
            stop = min(max(wanted, least_start[i + 1], start + 1), most, self.problem.num_layers - behind)
            stages.append(StageChoice(template_i=unit.template.template_i, start=start, stop=stop))
            start = stop
        return stages
