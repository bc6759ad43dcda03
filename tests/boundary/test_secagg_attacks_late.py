"""Tricks 8 to 13 of a malicious aggregator: each refused by name, each working without its defence."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from boundary.secagg_attacker import LyingAggregator, nothing, without
from boundary.secagg_house import House, Run, key_of
from boundary.secagg_refusals import VICTIM, own_vector, refused
from executors.boundary.secagg import frames, graph
from executors.boundary.secagg.descriptor import Rules, sign_descriptor
from executors.boundary.secagg.frames import Kind, decode_frame, encode_frame
from executors.boundary.secagg.masks import to_bytes_view
from executors.boundary.secagg.participant import Participant
from executors.boundary.secagg.reasons import AbortedError, Reason
from executors.boundary.secagg.reception import Phase
from executors.boundary.secagg.transcript import verify_sum

# 8. a survivor set of one


def alone(kind: type[Participant]) -> LyingAggregator:
    house = House(5)
    attack = LyingAggregator(house, house.participants(kind))
    attack.ask(house.names, [VICTIM])
    return attack


def test_08_members_count_the_cohort_themselves() -> None:
    refused(Reason.COHORT_TOO_SMALL, alone, Participant)


def test_08_without_counting_the_victims_update_comes_out() -> None:
    attack = alone(without(_check_cohort=nothing))
    assert np.array_equal(attack.open_one(VICTIM), own_vector(attack.house, VICTIM))


def test_08_two_members_never_make_a_window() -> None:
    house = House(3)
    refused(
        Reason.COHORT_TOO_SMALL,
        sign_descriptor,
        replace(house.descriptor, min_cohort=2),
        house.aggregator_key,
    )
    refused(Reason.COHORT_TOO_SMALL, house.rules(min_cohort=5).check, house.descriptor)


# 9. a graph that surrounds the victim


def ground_graph(kind: type[Participant]) -> tuple[int, int]:
    """Friends beside the victim as the shuffle fell, and after one of them opened other randomness."""
    num_tries = 400
    house = House(66, length=3, corrupt_permille=50, drop_permille=50)
    friends = set(house.names[-16:])
    members = {name: house.participant(name, kind if name == VICTIM else Participant) for name in house.names}
    run = Run(house, members=members).until(Phase.CONTRIBUTING)
    enrolled = run.aggregator.roster
    assert enrolled is not None
    run.deliver()
    true = [run.aggregator._contributions[seat] for seat in range(66)]
    friend = run.aggregator._seats[house.names[-1]]

    def friends_beside(contribution: bytes) -> int:
        values = [value for value, _ in true]
        values[friend] = contribution
        found = graph.build_graph(enrolled, values).neighbours[run.aggregator._seats[VICTIM]]
        return sum(enrolled.members[seat].name in friends for seat in found)

    best = max((i.to_bytes(32, "little") for i in range(num_tries)), key=friends_beside)
    opened = encode_frame(
        Kind.CONTRIBUTION,
        sender=friend,
        scope=run.aggregator.scope,
        roster=enrolled.root,
        body=best,
        key=key_of(house.names[-1]),
    )
    told = b"".join(opened if seat == friend else frame for seat, (_, frame) in enumerate(true))
    members[VICTIM].prepare(run.aggregator._sign(Kind.CONTRIBUTIONS, told), now_s=1.0)
    return friends_beside(true[friend][0]), friends_beside(best)


def test_09_randomness_is_committed_before_the_graph_is_known() -> None:
    error = refused(Reason.CONTRIBUTION_MISMATCH, ground_graph, Participant)
    assert error.blamed == ("p065",)


def test_09_without_commitments_the_aggregator_picks_the_victims_neighbours() -> None:
    fallen, picked = ground_graph(without(_check_contribution=nothing))
    assert picked >= 8 > fallen


# 10. another window for one member


class NoRules(Rules):
    """Agrees to anything."""

    def check(self, descriptor: Any) -> None:
        """Check nothing."""


@pytest.mark.parametrize(
    "change",
    [
        {"clip_linf": 0.5},
        {"clip_l2": 9.0},
        {"length": 38},
        {"ring_bits": 64},
        {"weight_max": 2.0},
        {"corrupt_permille": 0},
    ],
)
def test_10_another_window_for_one_member_is_refused_by_it_and_by_the_rest(change: dict[str, Any]) -> None:
    house = House(5)
    other = sign_descriptor(replace(house.descriptor, **change), house.aggregator_key)
    refused(Reason.RULES_VIOLATED, house.participant(VICTIM).enrol, other, now_s=1.0)
    agreed = house.rules()
    rules = NoRules(**{name: getattr(agreed, name) for name in Rules.__slots__})
    enrolment = house.participant(VICTIM, rules=rules).enrol(other, now_s=1.0)
    refused(Reason.SCOPE_MISMATCH, house.aggregator().receive, enrolment, sender=VICTIM, now_s=1.0)


# 11. another sum


def test_11_an_altered_sum_is_found_from_what_the_survivors_signed() -> None:
    house = House(5)
    run = Run(house, aggregator=house.aggregator(keep=True), drops={Phase.UPLOADING: {"p003"}}).finish()
    intake = run.aggregator._intake
    honest = run.aggregator.combine()
    transcript = run.aggregator.transcript()
    name = f"{house.descriptor.run}/{house.descriptor.boundary}/{house.descriptor.epoch}"
    digest = house.aggregator_journal.seen("release", name)
    assert digest is not None
    read = lambda seat: intake._spool.view(intake._key(seat))  # noqa: E731
    verify_sum(transcript, digest, read)
    altered = intake.total_N.copy()
    altered[0] += 1
    refused(Reason.SUM_ALTERED, verify_sum, transcript, sha256(to_bytes_view(altered)).digest(), read)
    refused(
        Reason.DIGEST_MISMATCH,
        verify_sum,
        transcript,
        digest,
        lambda seat: memoryview(bytes(house.descriptor.num_bytes)),
    )
    refused(Reason.NO_QUORUM, verify_sum, replace(transcript, consents=transcript.consents[:3]), digest, read)
    wrong = {**transcript.secrets, 0: bytes(32)}
    refused(Reason.DEALER_INCONSISTENT, verify_sum, replace(transcript, secrets=wrong), digest, read)
    # without the audit nothing about the result itself shows it
    shifted = replace(honest, sum_N=altered.view(np.int32)[:-4])
    assert shifted.weight_sum == honest.weight_sum


# 12. frames that are no frames


def test_12_trailing_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = sign_descriptor(House(5).descriptor, key_of("aggregator ward"))
    refused(Reason.FRAME_LENGTH, decode_frame, frame + b"x")
    monkeypatch.setattr(frames, "_check_length", nothing)
    assert decode_frame(frame + b"x").kind is Kind.DESCRIPTOR


# 13. stalling


def test_13_a_silent_window_ends_at_its_deadline_and_names_who_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stalled() -> Run:
        run = Run(House(5)).until(Phase.CONSENTING)
        run.inbox = run.inbox[:2]
        run.deliver()
        return run

    run = stalled()
    ends_s = run.aggregator.deadline_s()
    assert run.aggregator.advance(now_s=ends_s - 0.001) == []
    assert run.aggregator.waiting_for()
    outgoing = run.aggregator.advance(now_s=ends_s)
    assert decode_frame(outgoing[0].frame).kind is Kind.ABORT
    error = refused(Reason.BELOW_THRESHOLD, run.aggregator.combine)
    assert isinstance(error, AbortedError)
    assert len(error.blamed) == 3
    assert all(name in error.message for name in error.blamed)
    late = stalled()
    for member in late.members.values():
        if member._window is not None:
            refused(
                Reason.DEADLINE_PASSED, member.reveal, late.aggregator._sign(Kind.CONSENTS, b""), now_s=101.0
            )
    forever = stalled()
    monkeypatch.setattr(type(forever.aggregator), "deadline_s", lambda _self: float("inf"))
    assert forever.aggregator.advance(now_s=1e9) == []
