"""The sum is exact whoever is lost and whenever; where too few are left, there is none, and it says who."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.secagg_house import House, Run, expected_sum, update_of, weight_of
from executors.boundary.secagg.protocol import UpdateFate
from executors.boundary.secagg.reasons import AbortedError, Reason, RefusedError
from executors.boundary.secagg.reception import Phase

STAGES = (Phase.ENROLLING, Phase.SHARING, Phase.UPLOADING, Phase.CONSENTING, Phase.REVEALING)


def quorum_of(num: int) -> int:
    return 2 * num // 3 + 1


def check_outcome(house: House, run: Run, drops: dict[Phase, set[str]]) -> None:
    """Exact, or aborted for the right reason, by what the drops leave."""
    gone: set[str] = set()
    by_stage = {}
    for stage in STAGES:
        gone |= drops.get(stage, set())
        by_stage[stage] = set(house.names) - gone
    num_enrolled = len(by_stage[Phase.ENROLLING])
    least = max(house.descriptor.min_cohort, quorum_of(num_enrolled))
    enough = num_enrolled >= house.descriptor.min_cohort and all(
        len(by_stage[stage]) >= least for stage in STAGES[1:3]
    )
    quorum = quorum_of(num_enrolled)
    if enough and all(len(by_stage[stage]) >= quorum for stage in STAGES[3:]):
        result = run.aggregator.combine()
        total = expected_sum(house, by_stage[Phase.UPLOADING])
        assert np.array_equal(result.sum_N.astype(total.dtype), total[:-4])
        assert result.cohort_size == len(by_stage[Phase.UPLOADING])
        assert result.weight_sum == pytest.approx(
            sum(weight_of(name) for name in by_stage[Phase.UPLOADING]), rel=1e-6
        )
        return
    assert run.aggregator.phase is Phase.ABORTED
    with pytest.raises(AbortedError) as caught:
        run.aggregator.combine()
    assert caught.value.reason in (Reason.BELOW_THRESHOLD, Reason.COHORT_TOO_SMALL)
    assert set(caught.value.blamed) <= gone
    if caught.value.reason is Reason.BELOW_THRESHOLD:
        assert caught.value.blamed
        assert all(name in caught.value.message for name in caught.value.blamed)


@pytest.mark.parametrize("num", [3, 4, 5, 6])
def test_every_subset_lost_at_every_stage(num: int) -> None:
    # A roster of five after a loss of one is the case of five members, so the largest starts with the roster.
    for stage in STAGES[1:] if num == 6 else STAGES:
        for size in range(num + 1):
            for lost in combinations(range(num), size):
                house = House(num, length=5)
                drops = {stage: {house.names[i] for i in lost}}
                check_outcome(house, Run(house, drops=drops).finish(), drops)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), num=st.integers(3, 9), ring_bits=st.sampled_from([32, 64]))
def test_losses_at_any_stages_together(data: st.DataObject, num: int, ring_bits: int) -> None:
    length = data.draw(st.integers(1, 70))
    house = House(num, length=length, ring_bits=ring_bits)
    when = data.draw(st.lists(st.sampled_from([None, None, None, *STAGES]), min_size=num, max_size=num))
    drops: dict[Phase, set[str]] = {}
    for name, stage in zip(house.names, when, strict=True):
        if stage is not None:
            drops.setdefault(stage, set()).add(name)
    check_outcome(house, Run(house, drops=drops).finish(), drops)


def test_a_shuffled_ring_of_many_members_is_exact_and_not_complete() -> None:
    house = House(70, length=9, corrupt_permille=50, drop_permille=50)
    drops = {Phase.UPLOADING: {"p007"}, Phase.CONSENTING: {"p033"}, Phase.REVEALING: {"p061"}}
    run = Run(house, drops=drops).finish()
    assert run.aggregator.roster is not None
    assert run.aggregator.roster.thresholds.degree < 30
    result = run.aggregator.combine()
    cohort = set(house.names) - {"p007"}
    assert np.array_equal(result.sum_N.view(np.uint32), expected_sum(house, cohort)[:-4])


def test_a_shuffled_ring_needs_everyones_randomness() -> None:
    house = House(65, length=3, corrupt_permille=50, drop_permille=50)
    run = Run(house, drops={Phase.CONTRIBUTING: {"p011"}}).finish()
    with pytest.raises(AbortedError, match="p011") as caught:
        run.aggregator.combine()
    assert caught.value.reason is Reason.MISSING_MEMBERS
    assert caught.value.blamed == ("p011",)


def test_the_mean_of_ten_is_right_to_1e_8() -> None:
    house = House(10, length=20_000)
    result = Run(house).finish().aggregator.combine()
    weights = np.array([weight_of(name) for name in house.names])
    updates = np.array([update_of(name, 20_000) for name in house.names], dtype=np.float64)
    error = result.mean() - weights @ updates / weights.sum()
    assert np.sqrt(np.mean(error**2)) <= 1e-8


def test_clips_norms_and_weights_come_as_sums() -> None:
    house = House(4, length=2_000, clip_l2=10.0, clip_linf=0.5)
    result = Run(house).finish().aggregator.combine()
    norms = [float(np.linalg.norm(update_of(name, 2_000))) for name in house.names]
    over = [
        np.mean(np.abs(update_of(name, 2_000)) * min(1.0, 10.0 / norm) > 0.5)
        for name, norm in zip(house.names, norms, strict=True)
    ]
    assert result.num_clipped == sum(norm > 10.0 for norm in norms) == 4
    assert result.clipped_frac == pytest.approx(np.mean(over), abs=1e-6)
    assert result.squared_norm == pytest.approx(np.mean([min(norm, 10.0) ** 2 for norm in norms]), rel=1e-6)


def test_a_late_member_keeps_its_update() -> None:
    house = House(7, close_at_uploads=6)
    run = Run(house).until(Phase.UPLOADING)
    late = run.members["p002"]
    held = [(name, frame) for name, frame in run.inbox if name == "p002"]
    run.inbox = [(name, frame) for name, frame in run.inbox if name != "p002"]
    run.step()
    late.receive(held[0][1], now_s=run.now_s)
    masked = late.mask(update_of("p002"), weight=1.0, update_id="kept", now_s=run.now_s)
    with pytest.raises(RefusedError) as caught:
        run.send("p002", next(iter(masked.chunks())))
    assert caught.value.reason is Reason.OUT_OF_ORDER
    assert run.members["p002"].fate is UpdateFate.SPENT
    run.finish()
    assert late.fate is UpdateFate.RETURNED
    assert run.aggregator.combine().cohort_size == 6
    house.next_epoch()
    late_again = house.participant("p002", epoch_floor=0)
    members = {**house.participants(), "p002": late_again}
    again = Run(house, members=members).until(Phase.UPLOADING)
    again.members["p002"].receive(dict(again.inbox)["p002"], now_s=1.0)
    late_again.mask(update_of("p002"), weight=1.0, update_id="kept", now_s=1.0)
    assert late_again.fate is UpdateFate.SPENT


def test_too_few_uploads_return_the_updates_that_came() -> None:
    house = House(6)
    run = Run(house).until(Phase.UPLOADING)
    keep = {name: frame for name, frame in run.inbox if name in ("p000", "p001")}
    run.inbox = list(keep.items())
    run.deliver()
    run.now_s = run.aggregator.deadline_s()
    outgoing = run.aggregator.advance(now_s=run.now_s)
    for name in house.names:
        if name not in keep:
            run.members[name].receive(house_inbox(run, name), now_s=run.now_s)
    run.inbox = [(str(item.to), item.frame) for item in outgoing]
    run.finish()
    run.deliver()
    assert run.members["p000"].fate is UpdateFate.RETURNED
    with pytest.raises(AbortedError) as caught:
        run.aggregator.combine()
    assert caught.value.reason is Reason.BELOW_THRESHOLD
    assert caught.value.blamed == ("p002", "p003", "p004", "p005")


def house_inbox(run: Run, name: str) -> bytes:
    """The INBOX of a member once more."""
    from executors.boundary.secagg.frames import Kind

    seat = run.aggregator._seats[name]
    return run.aggregator._sign(Kind.INBOX, run.aggregator._inbox(seat))


def test_an_upload_goes_on_where_the_link_broke() -> None:
    house = House(4, length=600_000)
    run = Run(house).until(Phase.UPLOADING)
    inbox = dict(run.inbox)
    run.inbox = [(name, frame) for name, frame in run.inbox if name != "p000"]
    run.members["p000"].receive(inbox["p000"], now_s=1.0)
    masked = run.members["p000"].mask(
        update_of("p000", 600_000), weight=weight_of("p000"), update_id="u", now_s=1.0
    )
    first = next(iter(masked.chunks()))
    run.send("p000", first)
    with pytest.raises(RefusedError) as caught:
        run.send("p000", first)
    assert caught.value.reason is Reason.OUT_OF_ORDER
    for chunk in masked.chunks(run.aggregator.received_bytes("p000")):
        run.send("p000", chunk)
    run.send("p000", masked.trailer())
    result = run.finish().aggregator.combine()
    assert np.array_equal(result.sum_N.view(np.uint32), expected_sum(house, house.names)[:-4])
