"""Sync policies: equalities with what they reduce to, and the variants that must not be built."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.sync_problems import even_fleet, quadratics, run, start
from executors.boundary.outer.diloco import diloco
from executors.boundary.outer.echelon import echelon_fixed
from executors.boundary.outer.echelon_da import echelon_da
from executors.boundary.outer.fedbuff import fedbuff
from executors.boundary.outer.fedprox import fedavg, fedprox
from executors.boundary.outer.local import LocalTask, Proximal
from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.overlapped import overlapped_diloco
from executors.boundary.outer.policy import (
    BoundarySituation,
    CoordinatorSituation,
    Due,
    ParticipantSituation,
    Report,
    SyncPolicy,
)
from executors.boundary.outer.vectors import HEADER_BYTES
from policies.drift import DriftRule
from policies.errors import InputError, PolicyRefusedError

ALL = (
    diloco(num_local_steps=5),
    overlapped_diloco(num_local_steps=5, momentum=0.5),
    fedprox(num_local_steps=5, mu=0.1),
    fedbuff(num_local_steps=5, num_boundaries=2),
    echelon_fixed(num_local_steps=5),
    echelon_da(drift=DriftRule(h_fixed=5)),
)


def test_diloco_with_one_step_rate_one_and_sgd_is_data_parallel_sgd() -> None:
    problem = quadratics(rate=0.1)
    result = run(problem, even_fleet(), diloco(num_local_steps=1, rate=1.0, momentum=0.0), num_syncs=60)
    w_P = start(problem).astype(np.float64)
    for _ in range(60):
        slopes = [problem.gradient(m, i, w_P.astype(np.float32)) for m in range(2) for i in range(4)]
        w_P = w_P - 0.1 * np.mean(np.array(slopes, dtype=np.float64), axis=0)
    assert np.abs(result.w_P - w_P).max() <= 1e-6


@pytest.mark.parametrize("num_local_steps", [2, 7, 30])
def test_bytes_fall_by_exactly_the_number_of_local_steps(num_local_steps: int) -> None:
    problem = quadratics()
    every_step = run(problem, even_fleet(), diloco(num_local_steps=1), num_syncs=60)
    rarely = run(problem, even_fleet(), diloco(num_local_steps=num_local_steps), num_syncs=2)
    assert every_step.records[-1].num_steps == 60 * 8
    assert rarely.records[-1].num_steps == 2 * num_local_steps * 8
    per_step = every_step.crossing_bytes / every_step.records[-1].num_steps
    assert per_step * rarely.records[-1].num_steps == num_local_steps * rarely.crossing_bytes
    assert every_step.crossing_bytes == 60 * 2 * 2 * (HEADER_BYTES + 4 * 12)


def test_fedbuff_with_full_buffer_and_no_delay_is_federated_averaging() -> None:
    problem = quadratics(num_boundaries=1)
    fleet = even_fleet(num_boundaries=1)
    buffered = run(problem, fleet, fedbuff(num_local_steps=5, close_frac=1.0), num_syncs=20)
    averaged = run(problem, fleet, fedavg(num_local_steps=5), num_syncs=20)
    assert buffered.w_P.tobytes() == averaged.w_P.tobytes()
    assert [r.loss for r in buffered.records] == [r.loss for r in averaged.records]


def test_fedprox_without_pull_is_federated_averaging_bit_for_bit() -> None:
    problem = quadratics()
    plain = run(problem, even_fleet(), fedavg(num_local_steps=9), num_syncs=10)
    without = run(problem, even_fleet(), fedprox(num_local_steps=9, mu=0.0), num_syncs=10)
    held = run(problem, even_fleet(), fedprox(num_local_steps=9, mu=0.5), num_syncs=10)
    assert without.w_P.tobytes() == plain.w_P.tobytes()
    assert held.w_P.tobytes() != plain.w_P.tobytes()


def test_absolute_spread_of_deltas_falls_with_the_proximal_strength() -> None:
    problem = quadratics()
    begin_P = start(problem)

    def spread(mu: float) -> float:
        deltas = []
        for m in range(2):
            for i in range(4):
                task = LocalTask(
                    boundary=m,
                    participant=i,
                    start_P=begin_P,
                    anchor_P=begin_P,
                    num_steps=40,
                    proximal=Proximal(mu=mu),
                )
                deltas.append(problem.train(task) - begin_P)
        deltas_NP = np.array(deltas)
        return float(np.linalg.norm(deltas_NP - deltas_NP.mean(axis=0)))

    spreads = [spread(mu) for mu in (0.0, 0.01, 0.1, 1.0, 10.0)]
    assert all(later < earlier for earlier, later in itertools.pairwise(spreads))
    assert spreads[-1] < 0.15 * spreads[0]


def test_nesterov_follows_its_formula() -> None:
    optimiser = OuterOptimiser(rate=0.7, momentum=0.9)
    w, u = 1.0, 0.0
    w_P, u_P = np.array([1.0], dtype=np.float32), np.zeros(1, dtype=np.float32)
    for delta in (0.5, -0.25, 0.125):
        u = 0.9 * u - delta
        w = w - 0.7 * (-delta + 0.9 * u)
        w_P, u_P = optimiser.step(w_P, u_P, np.array([delta], dtype=np.float32))
    assert w_P[0] == pytest.approx(w, abs=1e-6)
    assert u_P[0] == pytest.approx(u, abs=1e-6)


def outer_distance(optimiser: OuterOptimiser, *, gain: float, alone: bool) -> float:
    """Distance to the optimum after 60 exchanges of two boundaries: each delta applied alone, or their mean.

    Deltas go the share `gain` of the way to each boundary's own optimum and are one exchange old when
    applied, as in any overlapped scheme; the same optimiser is used either way.
    """
    targets = [np.array([1.0, -1.0], dtype=np.float32), np.array([-1.0, 1.0], dtype=np.float32)]
    w_P = seen_P = np.array([3.0, 3.0], dtype=np.float32)
    velocity_P = np.zeros(2, dtype=np.float32)
    for _ in range(60):
        deltas = [(gain * (target_P - seen_P)).astype(np.float32) for target_P in targets]
        seen_P = w_P
        steps = deltas if alone else [((deltas[0] + deltas[1]) / 2).astype(np.float32)]
        for delta_P in steps:
            w_P, velocity_P = optimiser.step(w_P, velocity_P, delta_P)
    return float(np.linalg.norm(w_P.astype(np.float64)))


@pytest.mark.parametrize(("rate", "momentum", "gain"), [(0.7, 0.9, 0.2), (0.9, 0.5, 0.5)])
def test_each_delta_alone_with_momentum_diverges(rate: float, momentum: float, gain: float) -> None:
    """Why the coordinator waits for all boundaries, and why a policy refuses to be set otherwise."""
    optimiser = OuterOptimiser(rate=rate, momentum=momentum)
    assert outer_distance(optimiser, gain=gain, alone=False) < 0.5
    assert outer_distance(optimiser, gain=gain, alone=True) > 1e3


def test_lone_deltas_with_momentum_are_refused_as_a_setting() -> None:
    with pytest.raises(PolicyRefusedError) as refused:
        replace(echelon_fixed(num_local_steps=5), report_frac=0.5)
    assert refused.value.code == "lone-delta-momentum"


def test_a_lone_delta_after_a_deadline_meets_no_momentum() -> None:
    policy = diloco(num_local_steps=5, rate=0.7, momentum=0.9)
    w_P, velocity_P = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    report = Report(boundary=0, delta_P=np.ones(2, dtype=np.float32), staleness=0)
    next_P, next_velocity_P = policy.merge(w_P, velocity_P, [report], num_live=2)
    assert next_P == pytest.approx([0.35, 0.35])
    assert next_velocity_P is velocity_P


def test_stale_reports_count_less_and_the_absent_one_as_zero() -> None:
    policy = echelon_fixed(num_local_steps=5, rate=1.0, momentum=0.0)
    zero_P = np.zeros(1, dtype=np.float32)
    reports = [
        Report(boundary=0, delta_P=np.array([1.0], dtype=np.float32), staleness=0),
        Report(boundary=1, delta_P=np.array([0.0], dtype=np.float32), staleness=3),
    ]
    both_P, _ = policy.merge(zero_P, zero_P, reports, num_live=2)
    assert both_P[0] == pytest.approx(1.0 / 1.5)
    of_three_P, _ = policy.merge(zero_P, zero_P, reports, num_live=3)
    assert of_three_P[0] == pytest.approx(2.0 / 3.0 / 1.5)
    none_P, _ = policy.merge(zero_P, zero_P, [replace(reports[0], staleness=99)], num_live=2)
    assert none_P[0] == 0.0


def test_a_participant_weights_by_staleness_and_examples() -> None:
    policy = echelon_fixed(num_local_steps=5, exponent=0.5)
    assert policy.weight(staleness=3, num_examples=10.0) == pytest.approx(5.0)
    assert policy.weight(staleness=99, num_examples=10.0) == 0.0


def test_what_is_due_at_each_plane() -> None:
    policy = overlapped_diloco(num_local_steps=5)

    def due(situation: ParticipantSituation | BoundarySituation | CoordinatorSituation) -> set[Due]:
        return set(policy.due(situation, num_local_steps=5))

    assert due(ParticipantSituation(num_steps=4, is_waiting=False)) == {Due.TRAIN}
    assert due(ParticipantSituation(num_steps=5, is_waiting=False)) == {Due.COMMIT}
    assert due(ParticipantSituation(num_steps=4, is_waiting=True)) == {Due.TRAIN}
    assert due(ParticipantSituation(num_steps=5, is_waiting=True)) == set()
    assert due(BoundarySituation(num_releases=1, is_in_flight=False)) == {Due.SHIP}
    assert due(BoundarySituation(num_releases=1, is_in_flight=True)) == set()
    assert due(BoundarySituation(num_releases=0, is_in_flight=False)) == set()
    assert due(CoordinatorSituation(num_reported=1, num_live=2, is_expired=False)) == set()
    assert due(CoordinatorSituation(num_reported=2, num_live=2, is_expired=False)) == {Due.MERGE}
    assert due(CoordinatorSituation(num_reported=1, num_live=2, is_expired=True)) == {Due.MERGE}
    assert due(CoordinatorSituation(num_reported=0, num_live=2, is_expired=True)) == set()


@pytest.mark.parametrize(
    "change", [{"num_local_steps": 0}, {"num_ahead_steps": -1}, {"close_frac": 0.0}, {"num_releases": 0}]
)
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError):
        replace(ALL[0], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
def test_every_policy_learns_what_all_boundaries_share(policy: SyncPolicy) -> None:
    problem = quadratics()
    result = run(problem, even_fleet(round_trip_s=1.0, secure_sum_s=0.1), policy, num_syncs=150)
    assert result.records[0].loss is not None
    assert problem.distance(result.w_P) < 0.25 * problem.distance(start(problem))


@given(rate=st.floats(0.1, 1.0), momentum=st.floats(0.0, 0.9), seed=st.integers(0, 50))
def test_zero_deltas_move_nothing_without_velocity(rate: float, momentum: float, seed: int) -> None:
    w_P = np.random.default_rng(seed).normal(size=5).astype(np.float32)
    zero_P = np.zeros(5, dtype=np.float32)
    next_P, velocity_P = OuterOptimiser(rate=rate, momentum=momentum).step(w_P, zero_P, zero_P)
    assert next_P.tobytes() == w_P.tobytes()
    assert not velocity_P.any()
