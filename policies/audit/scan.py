"""One pass over one log: its tree, its keys, its sequences, and each record under the contract's terms.

Memory does not depend on the log's length: records are read some hundred at a time.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from policies.audit import keys
from policies.audit.key_statement import KeyAction, KeyRole, decode_statement, is_signed
from policies.audit.record import (
    BODY_BYTES,
    CRC_RESIDUE,
    MESSAGE_START,
    QUICK_REST,
    RECORD_BYTES,
    REST,
    SHAPE,
    SHAPE_BYTES,
    RecordDamagedError,
    RecordType,
    is_whole,
)
from policies.audit.terms import record_faults, shapes_of
from policies.audit.tree import TreeAppender
from policies.audit.verdict import Failure, Rule
from policies.contract import Contract, contract_sha256

CHUNK_RECORDS = 512
MAX_GAPS = 1024


@dataclass(slots=True, kw_only=True)
class ChannelScan:
    """What one log says about one channel of one boundary.

    `digest` runs over what both logs must agree on; `epoch` is the last window a delta was released for.
    """

    num_messages: int = 0
    num_bytes: int = 0
    next_sequence: int = 0
    epoch: int = -1
    gaps: set[int] = field(default_factory=set)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    pending: list[bytes] = field(default_factory=list)

    def flush(self) -> None:
        """Bring the digest up to date."""
        self.digest.update(b"".join(self.pending))
        self.pending.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """From record `index` + 1 on, `new_key` is in force."""

    index: int
    action: KeyAction
    old_key: bytes
    new_key: bytes


@dataclass(slots=True, kw_only=True)
class LogScan:
    """Everything the verifier keeps of one log. `roots` holds the root at each size that was asked for."""

    owner_id: int
    party: str
    path: Path
    num_records: int = 0
    roots: dict[int, bytes] = field(default_factory=dict)
    channels: dict[tuple[int, int], ChannelScan] = field(default_factory=dict)
    log_keys: list[KeyChange] = field(default_factory=list)
    message_keys: list[KeyChange] = field(default_factory=list)
    failures: dict[Rule, Failure] = field(default_factory=dict)

    def fail(self, rule: Rule, index: int, found: str) -> None:
        """Keep the first failure of each rule."""
        if rule not in self.failures:
            self.failures[rule] = Failure(rule=rule, place=f"{self.path.name} record {index}", found=found)

    def log_key_at(self, size: int, first: bytes) -> bytes:
        """The log key in force behind the first `size` records; `first` is the contract's."""
        return next((c.new_key for c in reversed(self.log_keys) if c.index < size), first)


def scan_log(path: Path, contract: Contract, owner_id: int, sizes: Iterable[int]) -> LogScan:
    """Read a whole log.

    Args:
        path: the log file.
        contract: of the run.
        owner_id: whose log it is: 0 the coordinator, from 1 on the boundaries.
        sizes: at which the roots are wanted; the root over the whole log is always given.
    """
    scan = LogScan(owner_id=owner_id, party=contract.parties[owner_id].name, path=path)
    reader = _Reader(contract, scan)
    tree = TreeAppender()
    wanted = sorted(set(sizes), reverse=True)
    while wanted and wanted[-1] <= 0:
        scan.roots[wanted.pop()] = tree.root()
    with path.open("rb") as file:
        while True:
            limit = min(CHUNK_RECORDS, wanted[-1] - tree.size) if wanted else CHUNK_RECORDS
            content = file.read(limit * RECORD_BYTES)
            records = [content[i : i + RECORD_BYTES] for i in range(0, len(content), RECORD_BYTES)]
            if records and len(records[-1]) < RECORD_BYTES:
                torn = records.pop()
                scan.fail(
                    Rule.RECORD_MALFORMED, tree.size + len(records), f"{len(torn)} bytes of {RECORD_BYTES}"
                )
            if not records:
                break
            reader.read(records, tree.size)
            tree.extend(records)
            if wanted and wanted[-1] == tree.size:
                scan.roots[wanted.pop()] = tree.root()
    scan.num_records = tree.size
    scan.roots[tree.size] = tree.root()
    return scan


class _Reader:
    """Checks records in turn and fills a `LogScan`."""

    def __init__(self, contract: Contract, scan: LogScan) -> None:
        self._contract = contract
        self._scan = scan
        self._party = contract.parties[scan.owner_id]
        self._shapes = shapes_of(contract, scan.owner_id)
        self._bound = contract.run + contract_sha256(contract)
        self._signer = keys.key_id(self._party.message_key)
        for shape in self._shapes.values():
            scan.channels.setdefault(shape.channel_key, ChannelScan())

    def read(self, records: list[bytes], first: int) -> None:
        """Check these records, the first of which has index `first`."""
        shapes, bound, min_cohort = self._shapes.get, self._bound, self._contract.min_cohort
        channels, unpack, crc32 = self._scan.channels, QUICK_REST.unpack_from, zlib.crc32
        for index, record in enumerate(records, first):
            shape = shapes(record[:SHAPE_BYTES])
            if shape is None:
                self._odd(record, index)
                continue
            cohort, sequence, epoch, payload_bytes, of_participant, signer, found_bound = unpack(
                record, SHAPE_BYTES
            )
            channel = channels[shape.channel_key]
            if (
                found_bound != bound
                or payload_bytes != shape.payload_bytes
                or of_participant
                or record[shape.fixed] != shape.fixed_content
                or (cohort < min_cohort if shape.is_delta else cohort)
                or (shape.is_sent and signer != self._signer)
                or crc32(record) != CRC_RESIDUE
            ):
                self._unlike(record, index)
            if sequence == channel.next_sequence:
                channel.next_sequence += 1
            else:
                self._out_of_turn(channel, sequence, index)
            if shape.is_delta:
                if epoch <= channel.epoch:
                    self._scan.fail(
                        Rule.WINDOW_RELEASED_TWICE, index, f"window {epoch} after {channel.epoch}"
                    )
                channel.epoch = max(epoch, channel.epoch)
            channel.num_messages += 1
            channel.num_bytes += shape.header_bytes + payload_bytes
            channel.pending.append(record[MESSAGE_START:BODY_BYTES])
        for channel in channels.values():
            channel.flush()

    def _odd(self, record: bytes, index: int) -> None:
        if record[1] == RecordType.KEY_STATEMENT:
            self._key_statement(record, index)
            return
        self._unlike(record, index)
        # A record of no allowed shape still takes its place in its channel, so that only it is named.
        *_, channel_id, boundary_id, header_bytes = SHAPE.unpack_from(record)
        channel = self._scan.channels.get((boundary_id, channel_id))
        if channel is not None:
            _, sequence, _, _, payload_bytes, *_ = REST.unpack_from(record, SHAPE_BYTES)
            self._take_turn(channel, sequence, index)
            channel.num_messages += 1
            channel.num_bytes += header_bytes + payload_bytes
            channel.pending.append(record[MESSAGE_START:BODY_BYTES])

    def _unlike(self, record: bytes, index: int) -> None:
        faults = record_faults(record, self._contract, self._scan.owner_id, self._signer)
        if not faults or not is_whole(record):
            faults.append((Rule.RECORD_MALFORMED, "the checksum does not fit"))
        for rule, found in faults:
            self._scan.fail(rule, index, found)

    def _take_turn(self, channel: ChannelScan, sequence: int, index: int) -> None:
        if sequence == channel.next_sequence:
            channel.next_sequence += 1
        else:
            self._out_of_turn(channel, sequence, index)

    def _out_of_turn(self, channel: ChannelScan, sequence: int, index: int) -> None:
        found = f"number {sequence} of its channel, {channel.next_sequence} is next"
        if sequence > channel.next_sequence:
            self._scan.fail(Rule.SEQUENCE_GAP, index, found)
            room = MAX_GAPS - len(channel.gaps)
            channel.gaps.update(range(channel.next_sequence, min(sequence, channel.next_sequence + room)))
            channel.next_sequence = sequence + 1
        elif sequence in channel.gaps:
            channel.gaps.discard(sequence)
            self._scan.fail(Rule.SEQUENCE_REORDERED, index, found)
        else:
            self._scan.fail(Rule.SEQUENCE_DUPLICATE, index, found)

    def _key_statement(self, record: bytes, index: int) -> None:
        try:
            statement, signature = decode_statement(record)
        except RecordDamagedError as error:
            self._scan.fail(Rule.KEY_STATEMENT, index, error.message)
            return
        is_log = statement.role is KeyRole.LOG
        history = self._scan.log_keys if is_log else self._scan.message_keys
        first = self._party.log_key if is_log else self._party.message_key
        in_force = history[-1].new_key if history else first
        used = {first, *(change.new_key for change in history)}
        if (
            statement.owner_id != self._scan.owner_id
            or statement.run + statement.contract_sha256 != self._bound
            or statement.old_key != in_force
            or statement.new_key in used
            or not is_signed(statement, signature, self._party.policy_key)
        ):
            self._scan.fail(
                Rule.KEY_STATEMENT, index, "not by this party's policy key, or not for the key in force"
            )
            return
        history.append(
            KeyChange(
                index=index, action=statement.action, old_key=statement.old_key, new_key=statement.new_key
            )
        )
        if not is_log:
            self._signer = keys.key_id(statement.new_key)
