"""Tricks 1 to 7 of a malicious aggregator: each refused by name, each working without its defence."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.secagg_attacker import LyingAggregator, nothing, without
from boundary.secagg_house import House, MemoryJournal, Run, expected_sum, key_of, update_of, weight_of
from boundary.secagg_refusals import VICTIM, own_vector, refused
from executors.boundary.secagg import frames, roster
from executors.boundary.secagg.descriptor import scope_of, sign_descriptor
from executors.boundary.secagg.frames import NO_DIGEST, Kind
from executors.boundary.secagg.identity import Certificate, Identity, Trust, certify
from executors.boundary.secagg.participant import Participant
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.reception import Phase
from executors.boundary.secagg.roster import parse_enrolment
from executors.boundary.secagg.thresholds import Thresholds

# 1. both shares of one member


def both_shares(kind: type[Participant]) -> LyingAggregator:
    house = House(5)
    attack = LyingAggregator(house, house.participants(kind))
    attack.ask(house.names, house.names)
    attack.ask([n for n in house.names if n != VICTIM], [n for n in house.names if n != VICTIM])
    return attack


def test_01_both_shares_of_one_member_are_never_given() -> None:
    refused(Reason.EPOCH_BURNT, both_shares, Participant)
    house = House(5)
    attack = LyingAggregator(house, house.participants())
    first, second = attack.survivors(house.names), attack.survivors(n for n in house.names if n != VICTIM)
    attack.members["p000"].reveal(first, now_s=1.0)
    refused(Reason.SURVIVORS_CONTRADICT, attack.members["p000"].reveal, second, now_s=1.0)


def test_01_without_answering_once_the_victims_update_comes_out() -> None:
    careless = without(_check_first_view=nothing, _check_first_reveal=nothing, _burn=nothing)
    monkey = both_shares(with_forgetful_journal(careless))
    assert np.array_equal(monkey.open_with_both(VICTIM), own_vector(monkey.house, VICTIM))
    exposed = monkey.open_with_both(VICTIM).view(np.int32)[:-4].astype(np.float64)
    assert np.corrcoef(exposed, update_of(VICTIM))[0, 1] > 0.999999


class ForgetfulJournal(MemoryJournal):
    """Takes a second decision as it took the first."""

    def record(self, kind: str, key: str, value: bytes) -> None:
        self.values[kind, key] = value


def with_forgetful_journal(kind: type[Participant]) -> type[Participant]:
    def start(self: Participant, **fields: Any) -> None:
        kind.__init__(self, **{**fields, "journal": ForgetfulJournal()})

    return type("Forgetful", (kind,), {"__init__": start})


# 2. different survivor sets for different members


def two_faces() -> LyingAggregator:
    house = House(6)
    attack = LyingAggregator(house, house.participants())
    everyone, rest = house.names, [name for name in house.names if name != VICTIM]
    attack.ask(everyone[:3], everyone)
    attack.ask(everyone[3:], rest)
    return attack


def test_02_different_survivor_sets_find_no_quorum() -> None:
    error = refused(Reason.NO_QUORUM, two_faces)
    assert "3 consents" in error.message
    assert "5 are needed" in error.message


def test_02_with_thresholds_of_a_half_the_victims_update_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Thresholds(degree=5, recover=3, quorum=3, window=0, window_survivors=0)
    monkeypatch.setattr(roster, "thresholds", lambda *_: half)
    attack = two_faces()
    assert np.array_equal(attack.open_with_both(VICTIM), own_vector(attack.house, VICTIM))


def test_02_survivors_come_with_what_they_signed_and_never_grow() -> None:
    house = House(6)
    attack = LyingAggregator(house, house.participants())
    done = attack.aggregator._intake.done
    seat = attack.seat("p004")
    digest, signature = done[seat]
    done[seat] = (bytes(32), signature)
    error = refused(
        Reason.SIGNATURE_INVALID, attack.members["p000"].reveal, attack.survivors(house.names), now_s=1.0
    )
    assert error.blamed == ("p004",)
    done[seat] = (digest, signature)
    window = attack.members["p000"]._window
    assert window is not None
    window.dealers = window.dealers - {seat}
    refused(Reason.SURVIVORS_GREW, attack.members["p000"].reveal, attack.survivors(house.names), now_s=1.0)


# 3. reveal twice, or after a restore


def test_03_a_second_reveal_a_restart_and_a_rolled_back_journal_are_refused() -> None:
    house = House(5)
    backup = house.journals["p000"].copy()
    attack = LyingAggregator(house, house.participants())
    told = attack.survivors(house.names)
    consents = attack.consents({n: attack.members[n].reveal(told, now_s=1.0) for n in house.names})
    attack.collect(house.names, consents)
    refused(Reason.EPOCH_BURNT, attack.members["p000"].reveal, consents, now_s=1.0)
    opening = sign_descriptor(house.descriptor, house.aggregator_key)
    refused(Reason.EPOCH_OLD, house.participant("p000").enrol, opening, now_s=1.0)
    restored = house.participant("p000", journal=backup, epoch_floor=2)
    refused(Reason.EPOCH_OLD, restored.enrol, opening, now_s=1.0)


def test_03_rolled_back_without_a_floor_the_old_frames_no_longer_fit() -> None:
    house = House(5)
    backup = house.journals["p000"].copy()
    attack = LyingAggregator(house, house.participants())
    told = attack.survivors(house.names)
    restored = house.participant("p000", journal=backup, seed="after the restore")
    restored.enrol(sign_descriptor(house.descriptor, house.aggregator_key), now_s=1.0)
    assert attack.aggregator.roster is not None
    old_roster = b"".join(member.frame for member in attack.aggregator.roster.members)
    frame = attack.aggregator._sign(Kind.ROSTER, old_roster, roster=NO_DIGEST)
    refused(Reason.ROSTER_CHANGED, restored.prepare, frame, now_s=1.0)
    refused(Reason.SCOPE_MISMATCH, restored.reveal, told, now_s=1.0)


def restored_memory(*, journal_too: bool) -> LyingAggregator:
    """Every member's memory is put back to before its reveal, and it is asked again with another set."""
    house = House(5)
    attack = LyingAggregator(house, house.participants())
    memory = {name: copy(member._window) for name, member in attack.members.items()}
    journals = {name: journal.copy() for name, journal in house.journals.items()}
    attack.ask(house.names, house.names)
    for name, member in attack.members.items():
        member._window = memory[name]
        if journal_too:
            member._journal = journals[name]
    rest = [name for name in house.names if name != VICTIM]
    attack.ask(rest, rest)
    return attack


def test_03_restored_memory_is_stopped_by_the_journal() -> None:
    refused(Reason.SURVIVORS_CONTRADICT, restored_memory, journal_too=False)


def test_03_without_the_journal_the_victims_update_comes_out() -> None:
    attack = restored_memory(journal_too=True)
    assert np.array_equal(attack.open_with_both(VICTIM), own_vector(attack.house, VICTIM))


# 4. invented members, swapped keys


class Gullible(Trust):
    """Believes every certificate."""

    def check(self, certificate: Certificate, *, epoch: int) -> None:
        """Check nothing."""


def surrounded(trust: Trust | None) -> tuple[House, NDArray[Any]]:
    """The victim among four members that the aggregator invented; what the aggregator learns of it."""
    house = House(5)
    members = {}
    for name in house.names:
        fields: dict[str, Any] = {"trust": trust or house.trust()}
        if name != VICTIM:
            invented = certify(key_of("the aggregator's own authority"), house.certificate(name))
            fields = {
                "trust": gullible(house),
                "identity": Identity(key=key_of(name), certificate=invented),
            }
        members[name] = house.participant(name, **fields)
    run = Run(house, members=members, aggregator=house.aggregator(trust=gullible(house))).finish()
    total = run.aggregator.combine().sum_N.view(np.uint32)
    return house, total - expected_sum(house, [n for n in house.names if n != VICTIM])[:-4]


def gullible(house: House) -> Trust:
    trust = house.trust()
    return Gullible(boundary=trust.boundary, authority=trust.authority, aggregator=trust.aggregator)


def test_04_invented_members_are_not_certified() -> None:
    error = refused(Reason.CERTIFICATE_INVALID, surrounded, None)
    assert error.blamed


def test_04_without_certificates_the_victim_stands_alone() -> None:
    house, learnt = surrounded(gullible(House(5)))
    assert np.array_equal(learnt, own_vector(house, VICTIM)[:-4])


def test_04_swapped_keys_revoked_members_and_copies_are_refused() -> None:
    house = House(5)
    run = Run(house).until(Phase.SHARING)
    assert run.aggregator.roster is not None
    enrolled = [member.frame for member in run.aggregator.roster.members]
    swapped = bytearray(enrolled[0])
    swapped[frames.HEADER.size + frames.CERTIFICATE_BYTES] ^= 1
    told = run.aggregator._sign(Kind.ROSTER, b"".join([bytes(swapped), *enrolled[1:]]), roster=NO_DIGEST)
    refused(Reason.SIGNATURE_INVALID, run.members[VICTIM].prepare, told, now_s=1.0)
    scope, epoch = scope_of(house.descriptor), house.descriptor.epoch
    gone = house.trust(revoked=frozenset([key_of("p000").public_key().public_bytes_raw()]))
    frame = run.aggregator._members["p000"].frame
    refused(Reason.SENDER_REVOKED, parse_enrolment, frame, scope=scope, epoch=epoch, trust=gone)
    twin = house.certificate("p900", slot="slot-p000")
    copy_of = house.participant("p900", identity=Identity(key=key_of("p900"), certificate=twin))
    late = house.aggregator(expected=[], descriptor=replace(house.descriptor, max_members=9))
    opening = sign_descriptor(late.descriptor, house.aggregator_key)
    late.receive(
        house.participant("p000", journal=MemoryJournal()).enrol(opening, now_s=1.0), sender="p000", now_s=1
    )
    refused(Reason.MEMBER_REPEATED, late.receive, copy_of.enrol(opening, now_s=1.0), sender="p900", now_s=1.0)


# 5. replay


def replayed(kind: type[Participant]) -> Participant:
    """An ABORT of the first window, sent again in the second."""
    house = House(4)
    first = Run(house, members=house.participants(kind)).until(Phase.UPLOADING)
    abort = first.aggregator.close("told so")[0].frame
    house.next_epoch()
    second = Run(house, members=house.participants(kind)).until(Phase.UPLOADING)
    second.members[VICTIM].receive(abort, now_s=1.0)
    return second.members[VICTIM]


def test_05_frames_of_an_earlier_epoch_fit_nowhere() -> None:
    refused(Reason.SCOPE_MISMATCH, replayed, Participant)
    house = House(4)
    sent: list[tuple[str, bytes]] = []

    def keep(name: str, frame: bytes) -> bytes:
        sent.append((name, frame))
        return frame

    Run(house, change=keep).finish()
    house.next_epoch()
    for phase in (Phase.ENROLLING, Phase.SHARING, Phase.UPLOADING, Phase.CONSENTING, Phase.REVEALING):
        house.next_epoch()
        run = Run(house).until(phase)
        for name, frame in sent:
            with pytest.raises(RefusedError) as caught:
                run.aggregator.receive(frame, sender=name, now_s=run.now_s)
            assert caught.value.reason in (Reason.SCOPE_MISMATCH, Reason.SENDER_UNKNOWN, Reason.OUT_OF_ORDER)
        run.finish().aggregator.combine()


def test_05_without_the_scope_an_old_abort_ends_a_new_window() -> None:
    careless = without(_check_origin=nothing)
    assert replayed(careless)._window is None


# 6 and 7. the same update in two aggregates


def differenced(kind: type[Participant], *, second_boundary: str) -> tuple[House, NDArray[Any]]:
    """The same updates summed with and without the victim; the difference."""
    house = House(5)
    journals = house.journals
    totals: list[NDArray[Any]] = []
    for boundary, names in (
        ("ward", house.names),
        (second_boundary, [n for n in house.names if n != VICTIM]),
    ):
        level = House(5, boundary=boundary)
        level.descriptor = replace(level.descriptor, epoch=len(totals) + 1)
        members = {name: level.participant(name, kind, journal=journals[name]) for name in names}
        run = Run(level, members=members, aggregator=level.aggregator(expected=names)).until(Phase.UPLOADING)
        for name, frame in run.inbox:
            members[name].receive(frame, now_s=1.0)
            masked = members[name].mask(
                update_of(name), weight=weight_of(name), update_id=f"{name} round 7", now_s=1.0
            )
            for chunk in masked.chunks():
                run.send(name, chunk)
            run.send(name, masked.trailer())
        run.inbox = []
        totals.append(run.finish().aggregator.combine().sum_N.view(np.uint32))
    return house, totals[0] - totals[1]


@pytest.mark.parametrize("second_boundary", ["ward", "hospital"])
def test_06_07_an_update_enters_one_aggregate_at_one_level(second_boundary: str) -> None:
    refused(Reason.UPDATE_SPENT, differenced, Participant, second_boundary=second_boundary)


@pytest.mark.parametrize("second_boundary", ["ward", "hospital"])
def test_06_07_otherwise_two_aggregates_differ_by_the_victim(second_boundary: str) -> None:
    careless = without(_free_update=lambda self, update_id: f"{update_id}@{self._now().scope.hex()}")
    house, learnt = differenced(careless, second_boundary=second_boundary)
    assert np.array_equal(learnt, own_vector(house, VICTIM)[:-4])
