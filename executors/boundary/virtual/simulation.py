"""The simulation: events in virtual time around the same state machines that the services run.

Secure aggregation is exact up to its rounding, so the sum is taken directly here, inside the boundary, and
its cost is charged as time. What crosses a boundary is serialised and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from executors.boundary.outer.account import Traffic
from executors.boundary.outer.global_model import Arrival, GlobalModel, drift_signals, start_global
from executors.boundary.outer.local import LocalTraining
from executors.boundary.outer.policy import CoordinatorSituation, Due, Report, SyncPolicy
from executors.boundary.outer.scheduler import Scheduler
from executors.boundary.outer.vectors import Vector, from_bytes, to_bytes
from executors.boundary.virtual.agenda import Agenda
from executors.boundary.virtual.boundary_sim import NUM_STALENESS_BINS, BoundarySim
from executors.boundary.virtual.fleet import ChurnKind, VirtualFleet
from executors.boundary.virtual.records import Limits, RunResult, SyncRecord
from policies.drift import DriftSignals, dispersion
from policies.errors import EchelonError

ACTS_PER_SYNC_AND_MEMBER_MAX = 2_000
Evaluate = Callable[[Vector], float]


class Simulation:
    """One run of one policy on one fleet; `run` is called once."""

    def __init__(
        self,
        fleet: VirtualFleet,
        policy: SyncPolicy,
        *,
        start_P: Vector,
        train: LocalTraining,
        evaluate: Evaluate | None = None,
        evaluate_every: int = 1,
        tokens_per_step: int = 1,
    ) -> None:
        self._fleet = fleet
        self._scheduler = Scheduler(policy)
        self._agenda = Agenda()
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._tokens_per_step = tokens_per_step
        self._model: GlobalModel = start_global(start_P)
        self._records: list[SyncRecord] = []
        self._num_acts = 0
        self._staleness_totals: tuple[int, ...] = (0,) * NUM_STALENESS_BINS
        rng = np.random.default_rng(fleet.seed)
        self._boundaries = [
            BoundarySim(
                m,
                fleet,
                self._scheduler,
                self._agenda,
                start_P=start_P,
                train=train,
                rng=rng,
                ship=self._on_ship,
            )
            for m in range(len(fleet.boundaries))
        ]

    def run(self, limits: Limits, *, enough: Limits | None = None) -> RunResult:
        """The run until any of `limits`, or all that is set in `enough`, is reached."""
        for boundary in self._boundaries:
            boundary.start(0.0)
        for churn in self._fleet.churn:
            boundary = self._boundaries[churn.boundary]
            change = boundary.leave if churn.kind is ChurnKind.LEAVE else boundary.come_back
            self._agenda.add(churn.at_s, partial(change, churn.participant))
        now_s = 0.0
        while not self._is_over(limits, enough):
            upcoming = self._agenda.pop()
            if upcoming is None or (limits.at_s is not None and upcoming[0] > limits.at_s):
                break
            now_s, act = upcoming
            act(now_s)
            self._require_progress(now_s)
        account = self._scheduler.account
        return RunResult(
            policy=self._scheduler.policy.name,
            records=tuple(self._records),
            decisions=tuple(self._scheduler.decisions),
            w_P=self._model.w_P,
            num_released=sum(b.num_released for b in self._boundaries),
            num_dropped=sum(b.num_dropped for b in self._boundaries),
            crossing_bytes=account.crossing_bytes,
            inside_bytes=account.inside_bytes,
            at_s=now_s,
            num_steps=self._num_steps(),
        )

    def _is_over(self, limits: Limits, enough: Limits | None) -> bool:
        if not self._records:
            return False
        last = self._records[-1]
        return any(limits.reached(last)) or (enough is not None and all(enough.reached(last)))

    def _require_progress(self, now_s: float) -> None:
        self._num_acts += 1
        num_acts_max = ACTS_PER_SYNC_AND_MEMBER_MAX * sum(len(b.members) for b in self._boundaries)
        if self._num_acts > num_acts_max:
            raise EchelonError(
                "simulation-stalled",
                f"{len(self._records)} outer steps, none in the last {num_acts_max} acts up to {now_s:.6g} s",
                hint="a boundary has too few participants left for a cohort, or waits have no end",
            )

    def _num_steps(self) -> int:
        return sum(member.total_steps for b in self._boundaries for member in b.members)

    def _on_ship(self, boundary: int, delta_P: Vector, base_version: int, at_s: float) -> None:
        buffer = to_bytes(delta_P)
        self._scheduler.account.add(Traffic.BOUNDARY_DELTA, buffer)
        delay_s = self._fleet.boundaries[boundary].link.one_way_s(len(buffer))
        self._agenda.add(at_s + delay_s, partial(self._on_arrival, boundary, buffer, base_version))

    def _on_arrival(self, boundary: int, buffer: bytes, base_version: int, at_s: float) -> None:
        arrival = Arrival(boundary=boundary, delta_P=from_bytes(buffer), base_version=base_version)
        self._model = self._model.arrive(arrival)
        if len(self._model.pending) == 1:
            version = self._model.version
            self._agenda.add(at_s + self._fleet.global_deadline_s, partial(self._on_global_deadline, version))
        self._merge_if_due(at_s, is_expired=False)

    def _on_global_deadline(self, version: int, at_s: float) -> None:
        if self._model.version == version and self._model.pending:
            self._merge_if_due(at_s, is_expired=True)

    def _merge_if_due(self, at_s: float, *, is_expired: bool) -> None:
        num_live = len(self._boundaries)
        situation = CoordinatorSituation(
            num_reported=len(self._model.pending), num_live=num_live, is_expired=is_expired
        )
        if Due.MERGE not in self._scheduler.due(situation):
            return
        reports = self._model.reports()
        self._model = self._model.merge(self._scheduler.policy, num_live=num_live)
        for boundary in self._boundaries:
            boundary.advance_all(at_s)
        link_s = self._answer(reports, at_s)
        signals = drift_signals(
            reports,
            link_s=link_s,
            step_s=self._mean_step_s(),
            overhead_s=self._fleet.secure_sum_s,
            staleness_counts=self._new_staleness_counts(),
            loss=self._loss_if_due(),
        )
        if self._scheduler.observe(signals) is not None:
            for boundary in self._boundaries:
                boundary.on_new_cadence(at_s)
        self._record(at_s, signals)

    def _answer(self, reports: Sequence[Report], at_s: float) -> float:
        """Send the new model to those who reported; returns the slowest link's time for both directions."""
        buffer = to_bytes(self._model.w_P)
        slowest_s = 0.0
        for report in reports:
            one_way_s = self._fleet.boundaries[report.boundary].link.one_way_s(len(buffer))
            slowest_s = max(slowest_s, 2.0 * one_way_s)
            self._scheduler.account.add(Traffic.GLOBAL_STATE, buffer)
            receive = self._boundaries[report.boundary].receive
            self._agenda.add(at_s + one_way_s, partial(receive, from_bytes(buffer), self._model.version))
        return slowest_s

    def _mean_step_s(self) -> float:
        steps_s = [p.step_s for b in self._fleet.boundaries for p in b.participants]
        return sum(steps_s) / len(steps_s)

    def _new_staleness_counts(self) -> tuple[int, ...]:
        """Released updates by staleness since the last outer step."""
        columns = zip(*(b.staleness_counts for b in self._boundaries), strict=True)
        totals = tuple(sum(column) for column in columns)
        counts = tuple(now - before for now, before in zip(totals, self._staleness_totals, strict=True))
        self._staleness_totals = totals
        return counts

    def _loss_if_due(self) -> float | None:
        is_due = (len(self._records) + 1) % self._evaluate_every == 0
        return self._evaluate(self._model.w_P) if self._evaluate is not None and is_due else None

    def _record(self, at_s: float, signals: DriftSignals) -> None:
        self._num_acts = 0
        num_steps = self._num_steps()
        mean_square = signals.squared_mean_norm
        rho = math.nan if mean_square is None else dispersion(signals.squared_norms_B, mean_square)
        self._records.append(
            SyncRecord(
                num_syncs=len(self._records) + 1,
                at_s=at_s,
                num_steps=num_steps,
                num_tokens=num_steps * self._tokens_per_step,
                crossing_bytes=self._scheduler.account.crossing_bytes,
                loss=signals.loss,
                num_local_steps=self._scheduler.num_local_steps,
                num_reports=len(signals.squared_norms_B),
                staleness_counts=signals.staleness_counts,
                rho=rho if math.isfinite(rho) else None,
            )
        )
