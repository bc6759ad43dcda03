"""Runs for the audit: a contract, honest logs of all parties, and ways to tell lies in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import keys
from policies.audit.capture import Capture, signed_capture_bytes
from policies.audit.checkpoint import Checkpoint, checkpoint_bytes, sign_checkpoint
from policies.audit.record import NOTHING, Channel, Kind, Record, RecordType, decode_record, encode_record
from policies.audit.tree import TreeAppender
from policies.contract import (
    KIND_RULES,
    Contract,
    Overhead,
    Party,
    Ring,
    Run,
    contract_sha256,
    make_contract,
    sign_contract,
    signed_contract_bytes,
)
from policies.policy import Policy

NAMES = ("coordinator", "clinic", "lab")
OVERHEAD = Overhead(per_connection_bytes=8192, per_message_bytes=64, per_mille=20, max_connections=16)
ROLES = ("policy", "log", "message", "next-log", "next-message", "recorder")


def private_key(name: str, role: str) -> Ed25519PrivateKey:
    """The same key for the same words in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{name} {role}".encode()).digest())


def public_key(name: str, role: str) -> bytes:
    return keys.public_bytes(private_key(name, role))


def party(name: str) -> Party:
    return Party(
        name=name,
        policy_key=public_key(name, "policy"),
        log_key=public_key(name, "log"),
        message_key=public_key(name, "message"),
    )


def run_terms(**changes: Any) -> Run:
    terms = Run(
        run=bytes(range(16)),
        coordinator=party(NAMES[0]),
        boundaries=tuple(party(name) for name in NAMES[1:]),
        manifest_sha256=hashlib.sha256(b"adapter").digest(),
        num_values=1000,
        ring=Ring.FLOAT32,
        num_outer_rates=4,
        overhead=OVERHEAD,
    )
    return replace(terms, **changes)


def contract_of_run() -> Contract:
    return make_contract(Policy(min_cohort=3, accept_two_boundaries=True), run_terms())


POLICY_KEYS: Mapping[str, bytes] = {name: public_key(name, "policy") for name in NAMES}
CAPTURE_KEYS: Mapping[str, bytes] = {name: public_key(name, "recorder") for name in NAMES[1:]}


def write_contract(folder: Path, contract: Contract) -> None:
    signatures = {name: sign_contract(contract, private_key(name, "policy")) for name in NAMES}
    (folder / "contract.json").write_bytes(signed_contract_bytes(contract, signatures))


@dataclass
class Diary:
    """One party's log while it is written; `marks` are the sizes at which it is signed."""

    owner_id: int
    records: list[bytes] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def edit(self, index: int, **changes: Any) -> None:
        """Let record `index` say something else, with a fitting checksum."""
        self.records[index] = encode_record(replace(decode_record(self.records[index]), **changes))

    def find(self, kind: Kind, number: int = 0) -> int:
        """The position of the record of this kind with this number of its kind."""
        return [i for i, record in enumerate(self.records) if record[1] != 3 and record[6] == kind][number]


class Story:
    """A run as all its parties log it; `write` signs and stores what the diaries hold by then."""

    def __init__(self, num_windows: int = 4) -> None:
        self.contract = contract_of_run()
        self.diaries = [Diary(owner_id=i) for i in range(len(NAMES))]
        self.sequences: dict[tuple[int, int], int] = {}
        self.signers = {i: keys.key_id(p.message_key) for i, p in enumerate(self.contract.parties)}
        for boundary_id in (1, 2):
            self.say(Kind.JOIN, boundary_id, Channel.UP)
        for window in range(num_windows):
            for boundary_id in (1, 2):
                self.say(Kind.BOUNDARY_STATUS, boundary_id, Channel.UP, epoch=window)
                self.say(Kind.BOUNDARY_DELTA, boundary_id, Channel.UP, epoch=window, base_version=window)
            for boundary_id in (1, 2):
                self.say(Kind.GLOBAL_STATE, boundary_id, Channel.DOWN, base_version=window + 1)
                self.say(Kind.SYNC_DIRECTIVE, boundary_id, Channel.DOWN, base_version=window + 1)
            for diary in self.diaries:
                diary.marks.append(len(diary.records))
        for boundary_id in (1, 2):
            self.say(Kind.LEAVE, boundary_id, Channel.UP)

    def record(self, kind: Kind, boundary_id: int, channel: Channel, owner_id: int, **values: int) -> Record:
        """An honest record of the next message of its channel."""
        rule = KIND_RULES[kind]
        sequence = self.sequences.get((boundary_id, channel), 0)
        sender = boundary_id if channel is Channel.UP else 0
        told = hashlib.sha256(f"{kind} {boundary_id} {channel} {sequence} {values}".encode()).digest()
        return Record(
            type=RecordType.SENT if owner_id == sender else RecordType.RECEIVED,
            owner_id=owner_id,
            counterpart_id=0 if owner_id else boundary_id,
            kind=kind,
            channel=channel,
            boundary_id=boundary_id,
            header_bytes=rule.header_bytes,
            cohort_size=4 if kind is Kind.BOUNDARY_DELTA else 0,
            sequence=sequence,
            payload_bytes=self.contract.payload_bytes if rule.has_payload else 0,
            signer=self.signers[sender],
            run=self.contract.run,
            contract_sha256=contract_sha256(self.contract),
            roster_root=told if kind is Kind.BOUNDARY_DELTA else NOTHING,
            manifest_sha256=self.contract.manifest_sha256 if rule.has_payload else NOTHING,
            payload_sha256=told if rule.has_payload else NOTHING,
            message_sha256=told,
            **values,
        )

    def say(self, kind: Kind, boundary_id: int, channel: Channel, **values: int) -> None:
        """One message: sent, received, and in both logs."""
        for owner_id in (boundary_id, 0):
            record = encode_record(self.record(kind, boundary_id, channel, owner_id, **values))
            self.diaries[owner_id].records.append(record)
        self.sequences[(boundary_id, channel)] = self.sequences.get((boundary_id, channel), 0) + 1

    def both(self, boundary_id: int, kind: Kind, number: int = 0, /, **changes: Any) -> None:
        """The same lie in the boundary's log and in the coordinator's, as after a real deed."""
        index = self.diaries[boundary_id].find(kind, number)
        original = self.diaries[boundary_id].records[index][6:240]
        self.diaries[boundary_id].edit(index, **changes)
        other = next(i for i, r in enumerate(self.diaries[0].records) if r[6:240] == original)
        self.diaries[0].edit(other, **changes)

    def write(self, folder: Path, *, log_roles: Mapping[int, str] | None = None) -> None:
        """Contract, logs, and checkpoints at the marks and a closing one, cosigned by the counterparts."""
        write_contract(folder, self.contract)
        for diary in self.diaries:
            name = NAMES[diary.owner_id]
            (folder / f"{name}.log").write_bytes(b"".join(diary.records))
            key_role = (log_roles or {}).get(diary.owner_id, "log")
            notes = checkpoints_of(
                diary.records, name, diary.marks, role=key_role, cosigner_roles=log_roles or {}
            )
            (folder / f"{name}.checkpoints").write_bytes(b"".join(map(checkpoint_bytes, notes)))

    def capture(self, folder: Path, boundary_id: int, *, role: str = "recorder", **changes: Any) -> None:
        """What an honest recorder at this boundary's border would have seen, but for `changes`."""
        sums = {Channel.UP: 0, Channel.DOWN: 0}
        for content in self.diaries[boundary_id].records:
            if content[1] != RecordType.KEY_STATEMENT:
                record = decode_record(content)
                sums[record.channel] += record.header_bytes + record.payload_bytes
        capture = Capture(
            run=self.contract.run,
            contract_sha256=contract_sha256(self.contract),
            boundary=NAMES[boundary_id],
            is_whole=1,
            num_dropped_packets=0,
            num_connections=2,
            sees_messages=1,
            up_message_bytes=sums[Channel.UP],
            down_message_bytes=sums[Channel.DOWN],
            up_wire_bytes=sums[Channel.UP] + 5000,
            down_wire_bytes=sums[Channel.DOWN] + 5000,
            other_up_bytes=0,
        )
        name = NAMES[boundary_id]
        content = signed_capture_bytes(replace(capture, **changes), private_key(name, role))
        (folder / f"{name}.capture.json").write_bytes(content)


def checkpoints_of(
    records: Sequence[bytes],
    name: str,
    marks: Sequence[int],
    *,
    role: str = "log",
    cosigner_roles: Mapping[int, str] | None = None,
    is_closed: bool = True,
) -> list[Checkpoint]:
    """Signed and cosigned checkpoints of these records at the marks, and one at the end."""
    notes: list[Checkpoint] = []
    tree = TreeAppender()
    cosigners = NAMES[1:] if name == NAMES[0] else NAMES[:1]
    for size in [*[mark for mark in marks if mark < len(records)], len(records)]:
        tree.extend(records[tree.size : size])
        closes = is_closed and size == len(records)
        note = Checkpoint(run=bytes(range(16)), party=name, size=size, root=tree.root(), is_closed=closes)
        note = sign_checkpoint(note, name, private_key(name, role))
        for cosigner in cosigners:
            key_role = (cosigner_roles or {}).get(NAMES.index(cosigner), "log")
            note = sign_checkpoint(note, cosigner, private_key(cosigner, key_role))
        notes.append(note)
    return notes
