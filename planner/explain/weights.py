"""Weights of devices that prove a number of replicas out of reach, at any size of fleet.

With a weight mu_r >= 0 per capacity row, let w be the least weight of any chain of stages, device counts left
out. k replicas within the rows weigh at least k w and at most sum_r mu_r limit_r, so no more than
sum_r mu_r limit_r / w of them exist (weak duality of the packing LP). The weights come from cutting planes
over chains; the bound needs none of them to be right.

Legend of array suffixes: R capacity rows, C device classes, H holders, S sites, A first layer, B borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite

import numpy as np

from costmodels.interface import FloatArray
from planner.explain.fits import BoolArray, Holder, IntArray, ModeFits, mode_fits
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem
from planner.solve.small_master import capacity_rows

ROUNDS = 60
TRIES = 12
WHOLE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """Weights per capacity row and the replicas they leave room for (infinite when they prove nothing)."""

    weight_R: FloatArray
    most: float

    def refutes(self, wanted: int) -> bool:
        """Whether so many replicas are proven impossible."""
        return floor(self.most + WHOLE) < wanted


def weigh(problem: BoundaryProblem, wanted: int, all_fits: Sequence[ModeFits] | None = None) -> Weighing:
    """The weights found that leave the least room; stops as soon as `wanted` replicas are refuted.

    `all_fits` are the problem's `mode_fits`, where they are known already.
    """
    if all_fits is None:
        all_fits = tuple(mode_fits(problem)) if problem.classes else ()
    weight_RC, limit_R = capacity_rows(problem)
    best = Weighing(weight_R=np.zeros(len(limit_R)), most=inf)
    if not problem.classes:
        return Weighing(weight_R=best.weight_R, most=0.0)
    # The first guess: every device weighs its share of its class.
    mu_R = np.where(limit_R > 0.0, 1.0 / np.maximum(limit_R, 1e-12), 0.0)
    rows: list[FloatArray] = []
    for _ in range(ROUNDS):
        chain = lightest(all_fits, mu_R @ weight_RC)
        if chain is None:
            return Weighing(weight_R=mu_R, most=0.0)
        least, usage_C = chain.weight, chain.usage_C
        if least > 0.0 and float(mu_R @ limit_R) / least < best.most:
            best = Weighing(weight_R=mu_R / least, most=float(mu_R @ limit_R) / least)
        if best.refutes(wanted) or (rows and least >= 1.0 - 1e-7):
            return best
        rows.append(weight_RC @ usage_C)
        solved = _cheapest_weights(rows, limit_R)
        if solved is None:
            return best
        mu_R = solved
    return best


def _cheapest_weights(rows: list[FloatArray], limit_R: FloatArray) -> FloatArray | None:
    """The least sum_r mu_r limit_r subject to every known chain weighing at least 1."""
    from ortools.linear_solver.python import model_builder as mb

    model = mb.Model()
    mu = [model.new_num_var(0.0, 1e6, f"mu[{r}]") for r in range(len(limit_R))]
    for row_R in rows:
        model.add(sum(float(a) * x for a, x in zip(row_R, mu, strict=True) if a) >= 1.0)
    model.minimize(sum(float(limit) * x for limit, x in zip(limit_R, mu, strict=True)))
    solver = mb.Solver("glop")
    solver.enable_output(False)
    if solver.solve(model) != mb.SolveStatus.OPTIMAL:
        return None
    return np.array([max(0.0, float(solver.value(x))) for x in mu])


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A chain of stages that holds all layers; its devices may be more than there are."""

    weight: float
    usage_C: IntArray
    fits: ModeFits
    stages: tuple[tuple[Holder, int, int], ...]

    def replica(self) -> Replica | None:
        """The chain as a priced replica; None where the cost model refuses it."""
        problem, mode = self.fits.problem, self.fits.mode
        choices = []
        for i, (holder, start, stop) in enumerate(self.stages):
            held = min(mode.num_micro_batches, len(self.stages) - i)
            template_i = holder.template_for(problem, mode, (start, stop), held)
            choices.append(StageChoice(template_i=template_i, start=start, stop=stop))
        return price_replica(problem, mode, choices)


def lightest(all_fits: Sequence[ModeFits], weight_C: FloatArray) -> Chain | None:
    """The chain of least weight over all modes; None where there is no chain at all."""
    best: Chain | None = None
    for fits in all_fits:
        found = _Search(fits, weight_C).least()
        if found is not None and (best is None or found.weight < best.weight):
            best = found
    return best


def gathered(problem: BoundaryProblem, all_fits: Sequence[ModeFits], wanted: int) -> tuple[Replica, ...]:
    """Up to `wanted` disjoint replicas, each the lightest chain on what the ones before left over.

    Every device weighs its share of what is left of its class; a class that a chain overuses grows heavier.
    """
    weight_RC, limit_R = capacity_rows(problem)
    chosen: list[Replica] = []
    left_R = limit_R.copy()
    while len(chosen) < wanted:
        chain = _within(all_fits, weight_RC, left_R)
        replica = None if chain is None else chain.replica()
        if chain is None or replica is None:
            break
        left_R = left_R - weight_RC @ chain.usage_C
        chosen.append(replica)
    return tuple(chosen)


def _within(all_fits: Sequence[ModeFits], weight_RC: FloatArray, left_R: FloatArray) -> Chain | None:
    """A chain that keeps what is left of every row, light where little is left; None when none was met."""
    factor_R = np.ones(len(left_R))
    for _ in range(TRIES):
        mu_R = np.where(left_R >= 1.0, factor_R / np.maximum(left_R, 1e-12), 1e6)
        chain = lightest(all_fits, mu_R @ weight_RC)
        if chain is None:
            return None
        over_R = weight_RC @ chain.usage_C > left_R
        if not over_R.any():
            return chain
        factor_R[over_R] *= 3.0
    return None


class _Search:
    """Backwards over stages: the least weight from each layer and site on, by stages behind."""

    def __init__(self, fits: ModeFits, weight_C: FloatArray) -> None:
        self.fits = fits
        self.weight_H = [float(weight_C @ holder.usage_C) for holder in fits.holders]

    def least(self) -> Chain | None:
        """The lightest chain over all numbers of stages and starting sites."""
        fits = self.fits
        num_layers, num_sites = fits.problem.num_layers, len(fits.problem.site_ids)
        after: dict[int, FloatArray] = {}
        onward_SB = np.full((num_sites, num_layers + 1), np.inf)
        onward_SB[:, num_layers] = 0.0
        best: tuple[float, int, int] = (inf, 0, 0)
        steps: list[tuple[IntArray, IntArray]] = []
        for behind in range(fits.max_stages):
            total_SA = np.full((num_sites, num_layers), np.inf)
            choice_SA = np.full((num_sites, num_layers), -1, dtype=np.int64)
            stop_SA = np.zeros((num_sites, num_layers), dtype=np.int64)
            for h, holder in enumerate(fits.holders):
                fits_AB = self._fits(h, behind)
                total_AB = np.where(fits_AB, onward_SB[holder.site_i][None, :], np.inf)
                stop_A = total_AB.argmin(axis=1)
                total_A = total_AB[np.arange(num_layers), stop_A] + self.weight_H[h]
                better_A = total_A < total_SA[holder.site_i]
                total_SA[holder.site_i][better_A] = total_A[better_A]
                choice_SA[holder.site_i][better_A] = h
                stop_SA[holder.site_i][better_A] = stop_A[better_A]
            steps.append((choice_SA, stop_SA))
            after[behind] = total_SA
            for s in range(num_sites):
                if total_SA[s, 0] < best[0]:
                    best = (float(total_SA[s, 0]), behind, s)
            onward_SB = np.full((num_sites, num_layers + 1), np.inf)
            for s in range(num_sites):
                linked = np.flatnonzero(fits.linked_SS[s])
                if len(linked):
                    onward_SB[s, :num_layers] = total_SA[linked].min(axis=0)
            if not np.isfinite(onward_SB).any():
                break
        if not isfinite(best[0]):
            return None
        stages = self._stages(best[1], best[2], steps, after)
        usage_C = np.sum([holder.usage_C for holder, _, _ in stages], axis=0)
        return Chain(weight=best[0], usage_C=usage_C, fits=fits, stages=stages)

    def _fits(self, h: int, behind: int) -> BoolArray:
        holder = self.fits.holders[h]
        if not self.fits.round_robin:
            return self.fits.fits_AB(holder, behind, 0)
        # Widths behind are unknown here: whatever fits at some number in flight is let pass.
        return np.asarray(holder.fits_QAB.any(axis=0))

    def _stages(
        self,
        behind: int,
        site: int,
        steps: list[tuple[IntArray, IntArray]],
        after: dict[int, FloatArray],
    ) -> tuple[tuple[Holder, int, int], ...]:
        fits = self.fits
        stages = []
        layer = 0
        while True:
            choice_SA, stop_SA = steps[behind]
            stop = int(stop_SA[site, layer])
            stages.append((fits.holders[int(choice_SA[site, layer])], layer, stop))
            layer = stop
            if behind == 0:
                return tuple(stages)
            behind -= 1
            linked = np.flatnonzero(fits.linked_SS[site])
            site = int(linked[after[behind][linked, layer].argmin()])
