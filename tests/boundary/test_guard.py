"""A whole exchange in one process: windows summed, aggregates through guards, logs that an auditor passes.

Two boundaries of four participants; every byte between a boundary and the coordinator goes through both
guards. Then the same run with something smuggled, and the verdict is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.audit_runs import NAMES, POLICY_KEYS, private_key, public_key, run_terms, write_contract
from boundary.secagg_house import LENGTH, House, Run, update_of, weight_of
from executors.boundary.guard import COORDINATOR, Cleared, Guard
from policies.audit.checkpoint import sign_checkpoint
from policies.audit.messages import BoundaryDelta, GlobalState, Join, Leave, Message, Reason
from policies.audit.verdict import Outcome, Rule
from policies.audit.verify import verify_folder
from policies.contract import Contract, make_contract
from policies.envelope import EnvelopeRefusedError, Refusal
from policies.policy import Policy

BOUNDARIES = (1, 2)
CONTRACT = make_contract(Policy(min_cohort=3, accept_two_boundaries=True), run_terms(num_values=LENGTH))


def guard_of(owner_id: int, folder: Path, contract: Contract = CONTRACT) -> Guard:
    return Guard(
        contract=contract,
        owner_id=owner_id,
        message_key=private_key(NAMES[owner_id], "message"),
        log_key=private_key(NAMES[owner_id], "log"),
        peer_keys={i: public_key(NAMES[i], "message") for i in range(len(NAMES))},
        folder=folder,
    )


def released(house: House, epoch: int) -> tuple[BoundaryDelta, bytes]:
    """A window's aggregate as a message."""
    run = Run(house).finish()
    aggregate = run.aggregator.combine()
    payload = aggregate.mean().astype("<f4").tobytes()
    return delta(payload, epoch, cohort_size=aggregate.cohort_size, weight_sum=aggregate.weight_sum), payload


def delta(payload: bytes, epoch: int, **changes: Any) -> BoundaryDelta:
    fields: dict[str, Any] = {
        "base_version": epoch,
        "epoch": epoch,
        "cohort_size": 4,
        "weight_sum": 4.0,
        "tokens_sum": 1024,
        "clip_bound": 8.0,
        "scale": 1.0,
        "roster_root": hashlib.sha256(f"roster {epoch}".encode()).digest(),
        "manifest_sha256": CONTRACT.manifest_sha256,
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).digest(),
    }
    return BoundaryDelta(**{**fields, **changes})


def state(payload: bytes, version: int) -> GlobalState:
    return GlobalState(
        base_version=version,
        manifest_sha256=CONTRACT.manifest_sha256,
        payload_bytes=len(payload),
        payload_sha256=hashlib.sha256(payload).digest(),
    )


@dataclass
class Wire:
    """All guards of a run; `crossed` are the bytes that went between them."""

    guards: dict[int, Guard]
    crossed: list[bytes]

    def carry(self, cleared: Cleared, *, sender: int, boundary_id: int) -> Message | None:
        self.crossed.append(cleared.header + cleared.payload)
        if sender == COORDINATOR:
            return self.guards[boundary_id].take_in(cleared.header, cleared.payload)
        return self.guards[COORDINATOR].take_in(cleared.header, cleared.payload, boundary_id=boundary_id)

    def up(self, boundary_id: int, message: Message, payload: bytes = b"") -> Message | None:
        return self.carry(
            self.guards[boundary_id].let_out(message, payload), sender=boundary_id, boundary_id=boundary_id
        )

    def down(self, boundary_id: int, message: Message, payload: bytes = b"") -> Message | None:
        cleared = self.guards[COORDINATOR].let_out(message, payload, boundary_id=boundary_id)
        return self.carry(cleared, sender=COORDINATOR, boundary_id=boundary_id)

    def sign_off(self) -> None:
        """Close every log and have the counterparts sign it."""
        for owner_id, guard in self.guards.items():
            note = guard.checkpoint(closes=True)
            for other in BOUNDARIES if owner_id == COORDINATOR else (COORDINATOR,):
                note = sign_checkpoint(note, NAMES[other], private_key(NAMES[other], "log"))
            guard.keep_cosigned(note)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    write_contract(tmp_path, CONTRACT)
    made = Wire(guards={i: guard_of(i, tmp_path) for i in range(len(NAMES))}, crossed=[])
    yield made
    for guard in made.guards.values():
        guard.close()


def exchange(wire: Wire, num_windows: int = 2) -> list[bytes]:
    """Windows in both boundaries, their deltas up, the mean down; what comes back are the global payloads."""
    houses = {i: House(4, boundary=NAMES[i]) for i in BOUNDARIES}
    states: list[bytes] = []
    for boundary_id in BOUNDARIES:
        wire.up(boundary_id, Join(base_version=0, reason=Reason.PLANNED))
    for epoch in range(num_windows):
        payloads = []
        for boundary_id, house in houses.items():
            message, payload = released(house, epoch)
            assert wire.up(boundary_id, message, payload) == message
            payloads.append(np.frombuffer(payload, dtype="<f4"))
            house.next_epoch()
        states.append(np.mean(payloads, axis=0).astype("<f4").tobytes())
        for boundary_id in BOUNDARIES:
            wire.down(boundary_id, state(states[-1], epoch + 1), states[-1])
    for boundary_id in BOUNDARIES:
        wire.up(boundary_id, Leave(base_version=num_windows, reason=Reason.DONE))
    return states


def test_an_exchange_of_aggregates_passes_and_its_model_is_the_weighted_mean(
    wire: Wire, tmp_path: Path
) -> None:
    states = exchange(wire)
    wire.sign_off()
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.PASS, verdict
    names = House(4).names
    weights = [weight_of(name) for name in names]
    expected = np.average([update_of(name) for name in names], axis=0, weights=weights)
    np.testing.assert_allclose(np.frombuffer(states[0], dtype="<f4"), expected, atol=1e-5)


def test_no_participants_update_is_among_what_crossed(wire: Wire) -> None:
    exchange(wire)
    crossed = b"".join(wire.crossed)
    for name in House(4).names:
        assert update_of(name).astype("<f4").tobytes()[:8] not in crossed
        assert name.encode() not in crossed
    # The same search finds what is there.
    assert wire.crossed[2][-8:] in crossed


def test_what_never_went_through_a_guard_turns_the_verdict(wire: Wire, tmp_path: Path) -> None:
    """The coordinator logs a delta of which the boundary's log knows nothing."""
    exchange(wire)
    (tmp_path / "elsewhere").mkdir()
    payload = update_of("p000").astype("<f4").tobytes()
    with closing(guard_of(1, tmp_path / "elsewhere")) as bypass:
        # Joined, two deltas, left: the fifth message is the next one.
        *_, cleared = [bypass.let_out(delta(payload, epoch), payload) for epoch in range(5)]
    wire.guards[COORDINATOR].take_in(cleared.header, cleared.payload, boundary_id=1)
    wire.sign_off()
    verdict = verify_folder(tmp_path, POLICY_KEYS)
    assert verdict.outcome is Outcome.FAIL
    assert Rule.NOT_IN_SENDER_LOG in {failure.rule for failure in verdict.failures}, verdict.failures


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cohort_size": 1}, Refusal.COHORT),
        ({"manifest_sha256": bytes(32)}, Refusal.MANIFEST),
        ({"payload_bytes": 4 * LENGTH + 4}, Refusal.PAYLOAD),
        ({"payload_sha256": bytes(32)}, Refusal.PAYLOAD),
        ({"weight_sum": float("nan")}, Refusal.FIELD),
        ({"epoch": 0}, Refusal.FIELD),
    ],
)
def test_what_the_contract_has_no_place_for_is_neither_sent_nor_logged(
    wire: Wire, tmp_path: Path, changes: dict[str, Any], reason: Refusal
) -> None:
    payload = bytes(4 * LENGTH)
    wire.up(1, delta(payload, 0), payload)
    before = (tmp_path / f"{NAMES[1]}.log").read_bytes()
    with pytest.raises(EnvelopeRefusedError) as caught:
        wire.guards[1].let_out(delta(payload, **{"epoch": 1, **changes}), payload)
    assert caught.value.reason is reason
    assert (tmp_path / f"{NAMES[1]}.log").read_bytes() == before


def test_a_message_is_on_the_disk_before_its_bytes_are_handed_out(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / f"{NAMES[1]}.log"
    cleared = wire.guards[1].let_out(Join(base_version=0, reason=Reason.PLANNED))
    assert hashlib.sha256(cleared.header).digest() in path.read_bytes()


def test_numbers_go_on_after_a_restart_and_a_repetition_is_taken_once(wire: Wire, tmp_path: Path) -> None:
    payload = bytes(4 * LENGTH)
    cleared = wire.guards[1].let_out(delta(payload, 0), payload)
    assert wire.carry(cleared, sender=1, boundary_id=1) is not None
    assert wire.carry(cleared, sender=1, boundary_id=1) is None
    for owner_id in (COORDINATOR, 1):
        wire.guards[owner_id].close()
        wire.guards[owner_id] = guard_of(owner_id, tmp_path)
    assert wire.carry(cleared, sender=1, boundary_id=1) is None
    with pytest.raises(EnvelopeRefusedError, match="window 0 after 0 was released"):
        wire.guards[1].let_out(delta(payload, 0), payload)
    assert wire.up(1, delta(payload, 1), payload) is not None


def test_messages_out_of_turn_or_of_another_boundary_are_refused(wire: Wire) -> None:
    payload = bytes(4 * LENGTH)
    first = wire.guards[1].let_out(delta(payload, 0), payload)
    second = wire.guards[1].let_out(delta(payload, 1), payload)
    coordinator = wire.guards[COORDINATOR]
    with pytest.raises(EnvelopeRefusedError, match="message 1 came, 0 is the next"):
        coordinator.take_in(second.header, payload, boundary_id=1)
    with pytest.raises(EnvelopeRefusedError) as caught:
        coordinator.take_in(first.header, payload, boundary_id=2)
    assert caught.value.reason is Refusal.SENDER
    with pytest.raises(EnvelopeRefusedError) as caught:
        coordinator.take_in(first.header, b"\x01" + payload[1:], boundary_id=1)
    assert caught.value.reason is Refusal.PAYLOAD
    assert coordinator.take_in(first.header, payload, boundary_id=1) == delta(payload, 0)


def test_the_terms_are_those_of_this_contract(wire: Wire, tmp_path: Path) -> None:
    other = replace(CONTRACT, min_cohort=5)
    (tmp_path / "other").mkdir()
    with closing(guard_of(1, tmp_path / "other", other)) as stranger:
        cleared = stranger.let_out(Join(base_version=0, reason=Reason.PLANNED))
    with pytest.raises(EnvelopeRefusedError) as caught:
        wire.guards[COORDINATOR].take_in(cleared.header, boundary_id=1)
    assert caught.value.reason is Refusal.CONTRACT
