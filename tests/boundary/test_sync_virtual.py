"""The simulation: runs repeat bit for bit, time and bytes add up, churn and dropouts stop nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from boundary.sync_problems import even_fleet, quadratics, run, start
from boundary.test_sync_policies import ALL
from executors.boundary.outer.diloco import diloco
from executors.boundary.outer.echelon import echelon_fixed
from executors.boundary.outer.echelon_da import echelon_da
from executors.boundary.outer.exchange import LocalCopy
from executors.boundary.outer.local import Proximal
from executors.boundary.outer.overlapped import overlapped_diloco
from executors.boundary.outer.policy import SyncPolicy
from executors.boundary.outer.vectors import HEADER_BYTES
from executors.boundary.virtual.agenda import Agenda, Rank
from executors.boundary.virtual.fleet import Churn, ChurnKind, VirtualFleet, VirtualLink, even_boundaries
from executors.boundary.virtual.member import Member
from executors.boundary.virtual.records import Limits
from executors.boundary.virtual.simulation import Simulation
from policies.drift import DriftAction, DriftRule
from policies.errors import EchelonError, InputError


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
def test_equal_seeds_give_equal_runs_bit_for_bit(policy: SyncPolicy) -> None:
    problem = quadratics()
    fleet = even_fleet(round_trip_s=0.7, speed_spread=4.0, secure_sum_s=0.1, dropout_frac=0.2, seed=3)
    first, again = (run(problem, fleet, policy, num_syncs=25) for _ in range(2))
    assert first.records == again.records
    assert first.w_P.tobytes() == again.w_P.tobytes()
    other = run(problem, replace(fleet, seed=4), policy, num_syncs=25)
    assert other.w_P.tobytes() != first.w_P.tobytes()


def test_a_blocking_round_takes_steps_sum_and_round_trip() -> None:
    result = run(
        quadratics(), even_fleet(round_trip_s=2.0, secure_sum_s=0.5), diloco(num_local_steps=4), num_syncs=3
    )
    assert [record.at_s for record in result.records] == pytest.approx([2.5, 6.0, 9.5])
    assert [record.num_tokens for record in result.records] == [32, 64, 96]


def test_an_overlapped_round_hides_the_round_trip() -> None:
    fleet = even_fleet(round_trip_s=1.0)
    result = run(quadratics(), fleet, overlapped_diloco(num_local_steps=8), num_syncs=5)
    times_s = [record.at_s for record in result.records]
    assert times_s == pytest.approx([2.5, 4.5, 6.5, 8.5, 10.5])


def test_transfer_time_follows_serialised_bytes() -> None:
    problem = quadratics()
    size_bytes = HEADER_BYTES + 4 * 12
    link = VirtualLink(round_trip_s=0.0, bytes_per_s=float(size_bytes))
    boundaries = even_boundaries(num_boundaries=2, num_participants=4, step_s=0.25, link=link)
    result = run(problem, VirtualFleet(boundaries=boundaries), diloco(num_local_steps=4), num_syncs=2)
    assert [record.at_s for record in result.records] == pytest.approx([2.0, 5.0])
    assert result.crossing_bytes == 2 * 2 * 2 * size_bytes


def test_echelon_throughput_does_not_follow_the_link_delay() -> None:
    problem = quadratics()

    def steps_per_s(policy: SyncPolicy, round_trip_s: float) -> float:
        fleet = even_fleet(round_trip_s=round_trip_s, speed_spread=2.0, secure_sum_s=0.1)
        last = run(problem, fleet, policy, num_syncs=30).records[-1]
        return last.num_steps / last.at_s

    echelon = echelon_fixed(num_local_steps=8)
    assert steps_per_s(echelon, 2.0) == pytest.approx(steps_per_s(echelon, 0.0), rel=0.03)
    assert steps_per_s(diloco(num_local_steps=8), 2.0) < 0.75 * steps_per_s(diloco(num_local_steps=8), 0.0)


@pytest.mark.parametrize("policy", ALL, ids=lambda p: p.name)
def test_dropouts_and_churn_stop_no_policy(policy: SyncPolicy) -> None:
    problem = quadratics(num_participants=6)
    churn = (
        Churn(at_s=5.0, boundary=0, participant=1, kind=ChurnKind.LEAVE),
        Churn(at_s=25.0, boundary=0, participant=1, kind=ChurnKind.RETURN),
        Churn(at_s=9.0, boundary=1, participant=0, kind=ChurnKind.LEAVE),
    )
    fleet = replace(
        even_fleet(num_participants=6, round_trip_s=0.5, speed_spread=3.0, dropout_frac=0.1), churn=churn
    )
    result = run(problem, fleet, policy, num_syncs=60)
    assert len(result.records) == 60
    assert problem.distance(result.w_P) < 0.5 * problem.distance(start(problem))


def test_stale_work_shows_with_uneven_speeds_only() -> None:
    policy = echelon_fixed(num_local_steps=4)
    even = run(quadratics(), even_fleet(), replace(policy, close_frac=1.0), num_syncs=20)
    uneven = run(quadratics(), even_fleet(speed_spread=4.0), policy, num_syncs=20)
    assert all(sum(record.staleness_counts[1:]) == 0 for record in even.records)
    assert any(sum(record.staleness_counts[1:]) > 0 for record in uneven.records)


def test_the_controller_decides_at_every_outer_step_and_h_follows() -> None:
    policy = echelon_da(drift=DriftRule(h_fixed=8, h_max=40))
    result = run(quadratics(), even_fleet(round_trip_s=1.0, secure_sum_s=0.1), policy, num_syncs=20)
    assert len(result.decisions) == len(result.records) == 20
    assert [d.num_local_steps for d in result.decisions] == [r.num_local_steps for r in result.records]
    assert len({d.num_local_steps for d in result.decisions}) > 1
    assert all(d.rho == r.rho for d, r in zip(result.decisions, result.records, strict=True))
    assert result.decisions[0].signals.link_s == pytest.approx(1.0)


def test_with_one_boundary_drift_is_unknown_and_h_stays_fixed() -> None:
    policy = echelon_da(drift=DriftRule(h_fixed=6))
    fixed = echelon_fixed(num_local_steps=6)
    fleet = even_fleet(num_boundaries=1, speed_spread=1.37)
    adapted = run(quadratics(num_boundaries=1), fleet, policy, num_syncs=10)
    assert {d.action for d in adapted.decisions} == {DriftAction.FALL_BACK}
    same = run(quadratics(num_boundaries=1), fleet, fixed, num_syncs=10)
    assert adapted.w_P.tobytes() == same.w_P.tobytes()


def test_examples_weight_the_sum_inside_a_boundary() -> None:
    problem = quadratics(num_boundaries=1, rate=1.0)
    boundary = even_fleet(num_boundaries=1).boundaries[0]
    counts = (1.0, 2.0, 3.0, 4.0)
    members = tuple(replace(p, num_examples=n) for p, n in zip(boundary.participants, counts, strict=True))
    fleet = VirtualFleet(boundaries=(replace(boundary, participants=members),))
    result = run(problem, fleet, diloco(num_local_steps=1, rate=1.0, momentum=0.0), num_syncs=1)
    # One gradient step of rate 1 on a quadratic ends at its target, so the mean is that of the targets.
    assert result.w_P == pytest.approx(np.average(problem.targets[0], axis=0, weights=counts), abs=1e-5)


def test_a_member_takes_whole_steps_and_none_beyond_what_is_due() -> None:
    problem = quadratics()
    start_P = start(problem)
    member = Member(
        boundary=0,
        participant=0,
        step_s=0.5,
        num_examples=1.0,
        copy=LocalCopy(now_P=start_P, anchor_P=start_P),
        running_since_s=1.0,
    )
    for now_s, num_steps in ((1.4, 0), (2.2, 2), (2.2, 2), (2.5, 3), (99.0, 4)):
        member.advance(now_s, steps_max=4, train=problem.train, proximal=Proximal())
        assert (member.num_steps, member.total_steps) == (num_steps, num_steps)


def test_limits_stop_a_run() -> None:
    problem = quadratics()

    def last(limits: Limits) -> tuple[int, int, float]:
        simulation = Simulation(
            even_fleet(),
            diloco(num_local_steps=4),
            start_P=start(problem),
            train=problem.train,
            tokens_per_step=10,
        )
        result = simulation.run(limits)
        return len(result.records), result.records[-1].num_tokens, result.at_s

    assert last(Limits(num_syncs=3)) == (3, 960, 3.0)
    assert last(Limits(num_tokens=600)) == (2, 640, 2.0)
    assert last(Limits(at_s=5.5)) == (5, 1600, 5.0)


def test_a_boundary_without_a_cohort_ends_in_an_error_not_in_silence() -> None:
    churn = tuple(Churn(at_s=1.0, boundary=0, participant=i, kind=ChurnKind.LEAVE) for i in (0, 1))
    fleet = replace(even_fleet(), churn=churn, window_deadline_s=2.0)
    with pytest.raises(EchelonError) as stalled:
        run(quadratics(), fleet, diloco(num_local_steps=8), num_syncs=5, at_s=1e9)
    assert stalled.value.code == "simulation-stalled"
    late = run(quadratics(), fleet, diloco(num_local_steps=8), num_syncs=5, at_s=100.0)
    assert late.records == ()


def test_equal_times_go_by_rank_then_entry() -> None:
    agenda, seen = Agenda(), []
    for name, rank in (("pull", Rank.PULL), ("one", Rank.NORMAL), ("two", Rank.NORMAL)):
        agenda.add(1.0, lambda _at_s, name=name: seen.append(name), rank=rank)  # type: ignore[misc]
    while (upcoming := agenda.pop()) is not None:
        upcoming[1](upcoming[0])
    assert seen == ["one", "two", "pull"]


def test_boundaries_below_the_cohort_are_refused() -> None:
    with pytest.raises(InputError) as refused:
        even_fleet(num_participants=2)
    assert refused.value.code == "virtual-fleet"
    with pytest.raises(InputError):
        replace(even_fleet(), dropout_frac=1.0)


def test_bytes_inside_are_one_masked_vector_per_update() -> None:
    result = run(quadratics(), even_fleet(), diloco(num_local_steps=4), num_syncs=5)
    assert result.num_released == 5 * 8
    assert result.inside_bytes == 5 * 8 * (HEADER_BYTES + 4 * 12)
    assert np.isfinite(result.w_P).all()
