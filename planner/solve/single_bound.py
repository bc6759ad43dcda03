"""Lower bounds on the fill time of one replica whose load stays below a limit, by usage multipliers.

For any multipliers >= 0 the least relaxed path with the charges lambda_c * (devices used in a visit - N_c)
and mu_c * (devices used - N_c) costs no more than any real path. The best multipliers are found by cutting
planes: each path seen is linear in them, an LP says where all of them together allow the most, and the next
trial lies half-way there. Paths seen under a higher load limit go on holding under a lower one.

Legend: see single_arrays.py; N paths, C device classes; `usage_2C` holds visit and once multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from planner.solve.columns import Shape
from planner.solve.single_arrays import Clusters, View
from planner.solve.single_kernels import relaxed_paths
from planner.solve.single_views import SingleMode
from planner.solve.tables import FloatArray, IntArray

if TYPE_CHECKING:
    from ortools.linear_solver import pywraplp

PATHS = 6
TRIALS = 80
RECALLED = 400
TOWARDS_LP = 0.5
CLOSE_FRAC = 1e-3
ROUNDING = 1e-11


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPath:
    """A relaxed path: fill seconds, load, and how far it overuses each class per visit and in all."""

    fill_s: float
    load_s: float
    overuse_2C: FloatArray
    entries: tuple[int, ...]
    borders: tuple[int, ...]
    real: bool

    @property
    def key(self) -> tuple[float, bytes]:
        """Equal for paths that no multipliers tell apart."""
        return (round(self.fill_s, 9), self.overuse_2C.tobytes())


@dataclass(slots=True, kw_only=True)
class Bundle:
    """Paths of one mode under any load limit, those met last at the end."""

    paths: dict[tuple[float, bytes], SeenPath] = field(default_factory=dict)

    def add(self, path: SeenPath) -> None:
        """Keep a path, as the last one met."""
        self.paths.pop(path.key, None)
        self.paths[path.key] = path

    def recall(self, upto_s: float) -> list[SeenPath]:
        """The last paths met whose load stays within a limit."""
        within = [path for path in self.paths.values() if path.load_s <= upto_s]
        return within[-RECALLED:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """The best bound found, its multipliers, and the paths met on the way."""

    value: float
    usage_2C: FloatArray
    trials: int
    met: tuple[SeenPath, ...]


class FillBounds:
    """Bounds of one mode; `num_paths` counts relaxed path problems."""

    def __init__(self, mode: SingleMode, clusters: Clusters, shape: Shape) -> None:
        self.mode = mode
        self.clusters = clusters
        self.shape = shape
        self.bundle = Bundle()
        self.num_paths = 0
        num_stages = mode.tables.num_stages
        self._entry_NQ = np.zeros((PATHS, num_stages), dtype=np.int64)
        self._border_NQ = np.zeros((PATHS, num_stages), dtype=np.int64)
        self._num_N = np.zeros(PATHS, dtype=np.int64)

    def run(self, view: View, usage_2C: FloatArray) -> tuple[float, list[SeenPath]]:
        """Least cost of the relaxed path problem, rounded down, and its best paths; fills the costs."""
        costs, devices_C = self.mode.costs, self.shape.devices_C
        costs.credit_S[:] = self.shape.credit_S(usage_2C[0])
        once = float(usage_2C[1] @ devices_C)
        self.num_paths += 1
        value, num = relaxed_paths(
            view, self.clusters, costs, usage_2C.sum(axis=0), self._entry_NQ, self._border_NQ, self._num_N
        )
        if not num:
            return inf, []
        stages = self.mode.tables.num_stages
        margin = ROUNDING * (abs(value) + once + 2.0 * stages * float(costs.credit_S.sum()))
        return value - once - margin, [self._seen(view, n) for n in range(num)]

    def _seen(self, view: View, n: int) -> SeenPath:
        """The n-th path of the last run."""
        num = int(self._num_N[n])
        entry_Q, border_Q = self._entry_NQ[n, :num], self._border_NQ[n, :num]
        template_Q = view.template_E[entry_Q]
        used_C = self.shape.usage_JC[template_Q].sum(axis=0)
        # The site of a stage follows from its cell.
        site_Q = self._sites(view, entry_Q)
        visits_S = np.zeros(self.shape.num_sites)
        starts_Q = np.append(True, site_Q[1:] != site_Q[:-1])
        np.add.at(visits_S, site_Q[starts_Q], 1.0)
        hop_Q = view.hop_BSS[border_Q[:-1], site_Q[:-1], site_Q[1:]]
        devices_C = self.shape.devices_C
        load_s = max(float(view.load_E[entry_Q].max()), view.load_per_fill * float(hop_Q.max(initial=0.0)))
        per_visit_C = used_C - visits_S[self.shape.site_C] * devices_C
        rows_R = self.shape.coefficient_RC @ used_C
        return SeenPath(
            fill_s=float(view.fill_E[entry_Q].sum() + hop_Q.sum()),
            load_s=load_s,
            overuse_2C=np.stack([per_visit_C, used_C - devices_C]).astype(np.float64),
            entries=tuple(entry_Q.tolist()),
            borders=tuple(border_Q.tolist()),
            real=bool(np.all(rows_R <= self.shape.limit_R * (1 + 1e-12) + 1e-9)),
        )

    def _sites(self, view: View, entry_Q: IntArray) -> IntArray:
        p_Q = np.searchsorted(view.first_P, entry_Q, side="right") - 1
        _, num_sites, num_signatures = view.slot_QSG.shape
        sites: IntArray = view.cell_P[p_Q] // num_signatures % num_sites
        return sites

    def raise_fill(
        self,
        view: View,
        upto_s: float,
        start_2C: FloatArray,
        target: float,
        *,
        cap: float,
        trials: int = TRIALS,
    ) -> Raised:
        """Multipliers under which every path with loads up to `upto_s` costs as much as possible.

        Stops at `target` (seconds), or when no more than a thousandth of it could still be gained. No
        multiplier passes `cap`. The mode's costs are left as the best multipliers make them.
        """
        program = _Program(self.shape.devices_C.size, cap)
        for path in self.bundle.recall(upto_s):
            program.add(path)
        best, best_2C, trial_2C = -inf, start_2C, start_2C
        met: list[SeenPath] = []
        done = 0
        for done in range(1, trials + 1):
            value, paths = self.run(view, trial_2C)
            if not paths:
                return Raised(value=inf, usage_2C=trial_2C, trials=done, met=())
            if value > best:
                best, best_2C = value, trial_2C
            if best >= target:
                break
            for path in paths:
                self.bundle.add(path)
                if program.add(path):
                    met.append(path)
            proposal = program.propose()
            if proposal is None or proposal[1] - best <= CLOSE_FRAC * target:
                break
            trial_2C = (1.0 - TOWARDS_LP) * best_2C + TOWARDS_LP * proposal[0]
        if trial_2C is not best_2C:
            self.run(view, best_2C)
        return Raised(value=best, usage_2C=best_2C, trials=done, met=tuple(met))


class _Program:
    """max eta with eta <= fill_p + sum_k lambda_k overuse_pk for all paths p and 0 <= lambda <= scale.

    In units of the scale.
    """

    def __init__(self, num_classes: int, scale: float) -> None:
        from ortools.linear_solver import pywraplp

        self._scale = scale
        self._num_classes = num_classes
        self._rows: dict[tuple[float, bytes], SeenPath] = {}
        self._solver: pywraplp.Solver = pywraplp.Solver.CreateSolver("GLOP")
        self._restart()

    def _restart(self) -> None:
        solver = self._solver
        solver.Clear()
        self._lambda = [solver.NumVar(0.0, 1.0, "") for _ in range(2 * self._num_classes)]
        self._eta = solver.NumVar(-1e4, 10.0, "")
        solver.Objective().SetCoefficient(self._eta, 1.0)
        solver.Objective().SetMaximization()

    def add(self, path: SeenPath) -> bool:
        """One more path; says whether it was new."""
        if path.key in self._rows:
            return False
        self._rows[path.key] = path
        self._state(path)
        return True

    def _state(self, path: SeenPath) -> None:
        row = self._solver.Constraint(-self._solver.infinity(), path.fill_s / self._scale)
        row.SetCoefficient(self._eta, 1.0)
        overuse_K = path.overuse_2C.reshape(-1)
        for k in np.flatnonzero(overuse_K).tolist():
            row.SetCoefficient(self._lambda[k], -float(overuse_K[k]))

    def propose(self) -> tuple[FloatArray, float] | None:
        """The multipliers these paths like best and what they allow; None when the LP fails twice."""
        solver = self._solver
        if solver.Solve() != solver.OPTIMAL:
            self._restart()
            for path in self._rows.values():
                self._state(path)
            if solver.Solve() != solver.OPTIMAL:
                return None
        lambda_K = np.array([variable.solution_value() for variable in self._lambda])
        usage_2C = self._scale * np.maximum(lambda_K, 0.0).reshape(2, self._num_classes)
        return usage_2C, self._scale * float(solver.Objective().Value())
