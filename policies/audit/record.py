"""One leaf of the log: what crossed, how much of it, for which window. It names no participant.

A record is 244 bytes, big-endian; docs/audit.md lists the offsets. Bytes 6 to 240 describe the message
itself, so they are the same in the sender's and in the receiver's log.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

from policies.errors import AuditFailedError

RECORD_VERSION = 1
RECORD_BYTES = 244
BODY_BYTES = 240
SHAPE_BYTES = 12
MESSAGE_START = 6
NOTHING = bytes(32)

_BODY = struct.Struct(">BBHHBBHHIQQQQQ8s16s32s32s32s32s32s")
_CRC = struct.Struct("<I")
# The CRC-32 of anything followed by its own CRC-32, least significant byte first.
CRC_RESIDUE = 0x2144DF1C
SHAPE = struct.Struct(">BBHHBBHH")
REST = struct.Struct(">IQQQQQ8s48s32s32s32s32s")
# The same without what a look at an ordinary record does not need: base version and digests.
QUICK_REST = struct.Struct(">IQQ8xQQ8s48s")


class RecordType(IntEnum):
    """What a record tells."""

    SENT = 1
    RECEIVED = 2
    KEY_STATEMENT = 3


class Channel(IntEnum):
    """Which way a message goes: from a boundary to the coordinator, or back."""

    UP = 1
    DOWN = 2


class Kind(IntEnum):
    """The closed list of messages that may cross a boundary."""

    BOUNDARY_DELTA = 1
    BOUNDARY_STATUS = 2
    GLOBAL_STATE = 3
    SYNC_DIRECTIVE = 4
    JOIN = 5
    LEAVE = 6
    ACK = 7
    ABORT = 8


class RecordDamagedError(AuditFailedError):
    """Bytes that are no record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One message in one log; the fields in the order of their bytes.

    `owner_id` and `counterpart_id` are positions in the contract: 0 the coordinator, from 1 on boundaries.
    `epoch` is the window, 0 where the kind has none. `participant_payload_bytes` is what a single
    participant's payload would take; the guard lets none out, so it is 0. `signer` is the id of the key that
    signed the message, `message_sha256` the digest of its header, which itself holds the payload's digest.
    """

    type: RecordType
    owner_id: int
    counterpart_id: int
    kind: Kind
    channel: Channel
    boundary_id: int
    header_bytes: int
    cohort_size: int = 0
    sequence: int
    epoch: int = 0
    base_version: int = 0
    payload_bytes: int = 0
    participant_payload_bytes: int = 0
    signer: bytes
    run: bytes
    contract_sha256: bytes
    roster_root: bytes = NOTHING
    manifest_sha256: bytes = NOTHING
    payload_sha256: bytes = NOTHING
    message_sha256: bytes


_NAMES = tuple(field.name for field in fields(Record))


def seal(body: bytes) -> bytes:
    """The body with its CRC-32, by which a torn write is recognised."""
    return body + _CRC.pack(zlib.crc32(body))


def is_whole(record: bytes) -> bool:
    """Whether this is a full record whose CRC-32 fits."""
    return len(record) == RECORD_BYTES and zlib.crc32(record) == CRC_RESIDUE


def encode_record(record: Record) -> bytes:
    """The 244 bytes of a record.

    Raises:
        RecordDamagedError: `record-range`, when a number does not fit or a digest has another length.
    """
    values = [getattr(record, name) for name in _NAMES]
    lengths = (8, 16, 32, 32, 32, 32, 32)
    if [len(value) for value in values[-len(lengths) :]] != list(lengths):
        raise RecordDamagedError("record-range", f"digests of {record.kind.name} have the wrong length")
    try:
        return seal(_BODY.pack(RECORD_VERSION, *values))
    except struct.error as error:
        raise RecordDamagedError(
            "record-range", f"a field of {record.kind.name} does not fit: {error}"
        ) from error


def decode_record(record: bytes) -> Record:
    """The record that these bytes hold.

    Raises:
        RecordDamagedError: `record-damaged`, for a wrong length, checksum, version or enumeration value.
    """
    if not is_whole(record):
        raise RecordDamagedError("record-damaged", f"{len(record)} bytes that are no whole record")
    version, *values = _BODY.unpack_from(record)
    named: dict[str, Any] = dict(zip(_NAMES, values, strict=True))
    if version != RECORD_VERSION or named["type"] not in (RecordType.SENT, RecordType.RECEIVED):
        raise RecordDamagedError("record-damaged", f"no message: version {version}, type {named['type']}")
    try:
        named |= {
            "type": RecordType(named["type"]),
            "kind": Kind(named["kind"]),
            "channel": Channel(named["channel"]),
        }
    except ValueError as error:
        raise RecordDamagedError("record-damaged", f"no record of a message: {error}") from error
    return Record(**named)


def record_view(record: Record) -> dict[str, Any]:
    """The record for people and programs that read JSON: names for enumerations, hexadecimal for bytes."""
    view: dict[str, Any] = {}
    for name in _NAMES:
        value = getattr(record, name)
        if isinstance(value, IntEnum):
            view[name] = value.name.lower()
        else:
            view[name] = value.hex() if isinstance(value, bytes) else value
    return view
