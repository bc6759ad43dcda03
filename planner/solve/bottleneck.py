"""One replica in steady state: only the slowest stage or link counts. Exact, by a search over thresholds.

The seconds per step of the best replica are one of finitely many figures: those of the stages and links there
are. For a threshold z, keep the stages and links within z and ask whether some chain covers all layers within
the capacity rows (`bottleneck_reach`); bisection over the sorted figures ends at the least z for which the
answer is yes. The greatest z for which it is no is the proof: everything below the next figure is impossible,
whatever the costs look like (neither additivity nor monotony over layers, widths or micro-batches held is
used).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from costmodels.interface import FloatArray
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, ObjectiveKind
from planner.solve.bottleneck_reach import Reach, reach_for
from planner.solve.bottleneck_tables import ModeTables, build_tables
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from policies.errors import EchelonError

PROOF_KIND = "threshold"


class _StopError(Exception):
    """The limits ran out; carries why."""


class _Clock:
    """Raises `_StopError` when the limits say so."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def ask_stop(self) -> None:
        if self._limits.should_stop():
            self._stop("interrupted")
        if not self._limits.deterministic and self.elapsed_s >= self._limits.deadline_s:
            self._stop("deadline")

    def _stop(self, reason: str) -> NoReturn:
        raise _StopError(reason)


def is_bottleneck_problem(problem: BoundaryProblem) -> bool:
    """Whether exactly one replica is asked for and only its slowest stage or link counts."""
    steady = problem.objective.kind is ObjectiveKind.STEADY_STATE
    return steady and problem.replicas_max == 1 and problem.replicas_min <= 1


def solve_bottleneck(
    problem: BoundaryProblem, limits: Limits, *, faster_than_s: float = math.inf
) -> BoundaryResult:
    """The replica with the highest steady-state throughput, proven best unless the limits end the search.

    Only replicas whose step takes less than `faster_than_s` seconds count; `infeasible` then says that there
    is none. Ties are broken by fewer and cheaper devices. The proof is `{"kind": "threshold",
    "infeasible_below_s": z}`: no replica has a step shorter than z seconds, so `bound` is tokens per step /
    z.

    Raises:
        EchelonError: `not-one-steady-replica` when the problem asks for something else;
            `cost-model-inconsistent` when the cost model's table and its single figures disagree.
    """
    if not is_bottleneck_problem(problem):
        raise EchelonError(
            "not-one-steady-replica",
            f"objective {problem.objective.kind.value} with {problem.replicas_min} to {problem.replicas_max} "
            "replicas is not one replica in steady state",
            hint="use `--objective steady-state` with `replicas_max: 1` in the policy",
        )
    return _Search(problem, limits, faster_than_s).run()


class _Search:
    """State of one solve: figures in front of `_low` are refuted, the one at `_high` is the incumbent's."""

    def __init__(self, problem: BoundaryProblem, limits: Limits, faster_than_s: float) -> None:
        self._problem = problem
        self._limits = limits
        self._clock = _Clock(limits)
        self._faster_than_s = faster_than_s
        self._values_s: FloatArray = np.zeros(0)
        self._reaches: list[tuple[int, Reach]] = []
        self._low = self._high = 0
        self._best: Replica | None = None
        self._prepared = False

    def run(self) -> BoundaryResult:
        """The fastest replica, or the best and what is proven when limits end the search."""
        try:
            self._prepare()
            stop = self._bisect()
        except _StopError as reason:
            return self._result(str(reason))
        return self._result(stop)

    def _prepare(self) -> None:
        tables: list[ModeTables] = []
        for mode in self._problem.modes:
            tables.append(build_tables(self._problem, mode, self._clock.ask_stop))
            self._reaches.append((mode.mode_i, reach_for(self._problem, tables[-1], self._clock.ask_stop)))
        values_s = np.unique(np.concatenate([np.zeros(0), *(table.values_s() for table in tables)]))
        self._values_s = values_s[values_s < self._faster_than_s]
        self._high = len(self._values_s)
        self._prepared = True

    def _bisect(self) -> str:
        if self._high and not self._improve(self._high - 1):
            self._low = self._high
        while self._best is not None:
            if self._low >= self._high:
                self._break_ties()
                break
            if self._best.step_s <= self._values_s[self._low] * (1.0 + self._limits.max_excess_frac):
                return "excess"
            middle = (self._low + self._high) // 2
            if not self._improve(middle):
                self._low = middle + 1
                self._report(f"nothing within {self._values_s[middle]:.6g} s per step")
        return "proven"

    def _improve(self, threshold: int) -> bool:
        """Replace the incumbent by a replica within a figure; False when no mode has one."""
        step_s = float(self._values_s[threshold])
        for mode_i, reach in self._reaches:
            self._clock.ask_stop()
            stages = reach.chain(step_s)
            if stages is not None:
                self._best = self._price(mode_i, stages, step_s)
                self._high = min(threshold, int(np.searchsorted(self._values_s, self._best.step_s)))
                self._report(f"{len(stages)} stages, {self._best.step_s:.6g} s per step")
                return True
        return False

    def _break_ties(self) -> None:
        """Among the modes, take the one whose best replica needs the fewest, then the cheapest devices."""
        assert self._best is not None
        for mode_i, reach in self._reaches:
            if mode_i != self._best.mode_i:
                stages = reach.chain(self._best.step_s)
                if stages is not None:
                    other = self._price(mode_i, stages, self._best.step_s)
                    self._best = min(self._best, other, key=_thrift)

    def _price(self, mode_i: int, stages: Sequence[StageChoice], step_s: float) -> Replica:
        replica = price_replica(self._problem, self._problem.modes[mode_i], stages)
        if replica is None or replica.step_s > step_s * (1.0 + 1e-9):
            found = "does not fit" if replica is None else f"takes {replica.step_s:.9g} s"
            raise EchelonError(
                "cost-model-inconsistent",
                f"cost model {self._problem.cost_model.name!r}: by its table a chain of {len(stages)} stages "
                f"takes at most {step_s:.9g} s per step, by its single figures it {found}",
                hint="`stage_table` must give the figures of `stage`",
            )
        return replica

    def _bound(self) -> float | None:
        """Tokens per second at the least figure that is not refuted; None before the figures are known."""
        limit_s = self._infeasible_below_s()
        if not limit_s:
            return None
        bound = self._problem.tokens_per_step / limit_s
        return bound if self._best is None else max(bound, self._best.tokens_per_s)

    def _infeasible_below_s(self) -> float | None:
        """The least seconds per step not refuted; None when unknown, or when no step time at all is left."""
        if not self._prepared:
            return None
        if self._low < len(self._values_s):
            return float(self._values_s[self._low])
        return self._faster_than_s if math.isfinite(self._faster_than_s) else None

    def _report(self, note: str) -> None:
        value = None if self._best is None else self._best.tokens_per_s
        self._limits.report(
            Progress(elapsed_s=self._clock.elapsed_s, value=value, bound=self._bound(), note=note)
        )

    def _result(self, stop: str) -> BoundaryResult:
        best, limit_s = self._best, self._infeasible_below_s()
        if best is None:
            status = Status.INFEASIBLE if stop == "proven" else Status.UNKNOWN
        else:
            status = Status.OPTIMAL if self._low >= self._high else Status.FEASIBLE
        return BoundaryResult(
            boundary=self._problem.name,
            status=status,
            replicas=() if best is None else (best,),
            value=None if best is None else best.tokens_per_s,
            bound=self._bound(),
            proof={"kind": PROOF_KIND} | ({} if limit_s is None else {"infeasible_below_s": limit_s}),
            stop=stop,
        )


def _thrift(replica: Replica) -> tuple[int, float]:
    return sum(count for _, count in replica.usage), replica.usd_per_hour
