"""The one way out of a party and into it: what crosses is named in the contract and stands in the log.

A message leaves in this order: its header is encoded (whatever the closed schema has no place for is
refused), its record is on the disk, and only then its bytes are handed out. One that arrives is decoded,
numbered, compared with its payload and recorded before anybody acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit.checkpoint import Checkpoint, sign_checkpoint
from policies.audit.ledger import Ledger, iter_records
from policies.audit.messages import Address, Message
from policies.audit.record import Channel, Kind, Record, RecordType, decode_record, encode_record
from policies.contract import Contract
from policies.envelope import (
    EnvelopeRefusedError,
    Refusal,
    decode_header,
    encode_header,
    record_of,
    require_payload,
)

COORDINATOR = 0
Way = tuple[int, Channel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """A message that is in the log and may go: its bytes are `header` and behind them `payload`."""

    header: bytes
    payload: bytes


@dataclass(slots=True)
class _Count:
    """What went one way so far: the next number, the digest of the last header, the last released epoch."""

    next_sequence: int = 0
    last_sha256: bytes = b""
    last_epoch: int = -1


class Guard:
    """The guard of one party: `owner_id` is its position in the contract, 0 for the coordinator.

    `peer_keys` are the public message keys of the parties it hears. Numbers go on where the log ends.
    """

    def __init__(
        self,
        *,
        contract: Contract,
        owner_id: int,
        message_key: Ed25519PrivateKey,
        log_key: Ed25519PrivateKey,
        peer_keys: Mapping[int, bytes],
        folder: Path,
    ) -> None:
        """Open the party's log in `folder`, or begin one.

        Raises:
            LedgerDamagedError: the log can't be gone on with.
        """
        self._contract, self._owner_id = contract, owner_id
        self._message_key, self._log_key, self._peer_keys = message_key, log_key, dict(peer_keys)
        self._party = contract.parties[owner_id].name
        self._ledger = Ledger(folder, self._party)
        self._counts: dict[Way, _Count] = {}
        for content in iter_records(folder / f"{self._party}.log"):
            self._recount(content)

    def let_out(self, message: Message, payload: bytes = b"", *, boundary_id: int | None = None) -> Cleared:
        """Record a message and clear it; `boundary_id` is whom the coordinator sends it to.

        Raises:
            EnvelopeRefusedError: the contract has no place for it; nothing is recorded.
            LedgerDamagedError: it could not be recorded; it may not go.
        """
        channel = Channel.DOWN if self._owner_id == COORDINATOR else Channel.UP
        way = (boundary_id if boundary_id is not None else self._owner_id, channel)
        address = Address(boundary_id=way[0], channel=channel, sequence=self._count(way).next_sequence)
        header = encode_header(message, address, self._contract, self._message_key)
        require_payload(message, payload, self._contract)
        self._require_one_release(way, message)
        self._log(record_of(message, address, header, self._contract, owner_id=self._owner_id))
        return Cleared(header=header, payload=payload)

    def take_in(
        self, header: bytes, payload: bytes = b"", *, boundary_id: int | None = None
    ) -> Message | None:
        """Record a message that arrived; None for one that is a repetition of the last, after a crash.

        Raises:
            EnvelopeRefusedError: not signed by its sender, out of turn, or not what the contract allows.
            LedgerDamagedError: it could not be recorded; nobody may act on it.
        """
        channel = Channel.UP if self._owner_id == COORDINATOR else Channel.DOWN
        way = (boundary_id if boundary_id is not None else self._owner_id, channel)
        sender_id = way[0] if channel is Channel.UP else COORDINATOR
        message, address = decode_header(
            header, self._contract, self._peer_keys[sender_id], boundary_id=way[0], channel=channel
        )
        require_payload(message, payload, self._contract)
        record = record_of(message, address, header, self._contract, owner_id=self._owner_id)
        count = self._count(way)
        if address.sequence == count.next_sequence - 1 and record.message_sha256 == count.last_sha256:
            return None
        if address.sequence != count.next_sequence:
            raise EnvelopeRefusedError(
                Refusal.SENDER, f"message {address.sequence} came, {count.next_sequence} is the next"
            )
        self._require_one_release(way, message)
        self._log(record)
        return message

    def checkpoint(self, *, closes: bool = False) -> Checkpoint:
        """The party's signature on its log as it is now, kept beside it; after `closes` nothing is logged."""
        note = Checkpoint(
            run=self._contract.run,
            party=self._party,
            size=self._ledger.num_durable,
            root=self._ledger.root(),
            is_closed=closes,
        )
        signed = sign_checkpoint(note, self._party, self._log_key)
        self._ledger.add_checkpoint(signed)
        return signed

    def keep_cosigned(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint of this log with the counterparts' signatures.

        Raises:
            LedgerDamagedError: it is of other content.
        """
        self._ledger.add_checkpoint(checkpoint)

    def close(self) -> None:
        """Let go of the log."""
        self._ledger.close()

    def _log(self, record: Record) -> None:
        content = encode_record(record)
        self._ledger.append(content)
        self._ledger.commit()
        self._recount(content)

    def _recount(self, content: bytes) -> None:
        if content[1] == RecordType.KEY_STATEMENT:
            return
        record = decode_record(content)
        count = self._count((record.boundary_id, record.channel))
        count.next_sequence, count.last_sha256 = record.sequence + 1, record.message_sha256
        if record.kind is Kind.BOUNDARY_DELTA:
            count.last_epoch = record.epoch

    def _count(self, way: Way) -> _Count:
        return self._counts.setdefault(way, _Count())

    def _require_one_release(self, way: Way, message: Message) -> None:
        """A window is released once, and no earlier one after it."""
        epoch = getattr(message, "epoch", None)
        if epoch is None or not hasattr(message, "cohort_size"):
            return
        last = self._count(way).last_epoch
        if epoch <= last:
            raise EnvelopeRefusedError(Refusal.FIELD, f"window {epoch} after {last} was released")
