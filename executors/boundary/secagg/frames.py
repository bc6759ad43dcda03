"""The outer form of every message: one fixed header, a bounded body, one Ed25519 signature.

    magic 4 | kind 1 | sender 2 | scope 32 | roster 32 | body length 4 | body | signature 64

Little-endian. `scope` is the digest of the signed window descriptor, `roster` the root of the frozen roster
(zeros before it is frozen), so that a frame of another run, boundary, epoch or cohort never fits. A CHUNK
carries no signature of its own: the signed UPLOAD that ends it holds the digest of all of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from executors.boundary.secagg.reasons import Reason, RefusedError

MAGIC = b"ESA1"
HEADER = struct.Struct("<4sBH32s32sI")
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
AGGREGATOR = 0xFFFF  # sender field of the aggregator
UNSEATED = 0xFFFE  # sender field of a participant before the roster is frozen
MAX_MEMBERS = 4096
MAX_CHUNK_BYTES = 1 << 20
SIGNING_DOMAIN = b"echelon/secagg/1/frame\0"


class Kind(IntEnum):
    """The closed list of messages."""

    DESCRIPTOR = 1
    ENROL = 2
    ROSTER = 3
    CONTRIBUTION = 4
    CONTRIBUTIONS = 5
    SHARES = 6
    INBOX = 7
    CHUNK = 8
    UPLOAD = 9
    SURVIVORS = 10
    CONSENT = 11
    CONSENTS = 12
    REVEAL = 13
    ABORT = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyShape:
    """Body bytes allowed: `fixed_bytes` + a whole number of entries, at most `max_entries` of them."""

    fixed_bytes: int
    entry_bytes: int = 0
    max_entries: int = 0


NAME_BYTES = 32
CERTIFICATE_BYTES = 2 * NAME_BYTES + 32 + 32 + 8 + 8 + SIGNATURE_BYTES
DESCRIPTOR_BYTES = 2 * NAME_BYTES + 8 + 16 + 8 + 1 + 24 + 2 * 4 + 3 * 2 + 16
ENROL_BODY_BYTES = CERTIFICATE_BYTES + 4 * 32
ENROL_FRAME_BYTES = HEADER.size + ENROL_BODY_BYTES + SIGNATURE_BYTES
CONTRIBUTION_FRAME_BYTES = HEADER.size + 32 + SIGNATURE_BYTES
SHARE_BYTES = 66
BOX_BYTES = 2 * SHARE_BYTES + 16
DEALT_BYTES = 2 + BOX_BYTES + 2 * DIGEST_BYTES
SEAT_BYTES = MAX_MEMBERS // 8

SHAPES: dict[Kind, BodyShape] = {
    Kind.DESCRIPTOR: BodyShape(fixed_bytes=DESCRIPTOR_BYTES),
    Kind.ENROL: BodyShape(fixed_bytes=ENROL_BODY_BYTES),
    Kind.ROSTER: BodyShape(fixed_bytes=0, entry_bytes=ENROL_FRAME_BYTES, max_entries=MAX_MEMBERS),
    Kind.CONTRIBUTION: BodyShape(fixed_bytes=32),
    Kind.CONTRIBUTIONS: BodyShape(
        fixed_bytes=0, entry_bytes=CONTRIBUTION_FRAME_BYTES, max_entries=MAX_MEMBERS
    ),
    Kind.SHARES: BodyShape(fixed_bytes=0, entry_bytes=DEALT_BYTES, max_entries=MAX_MEMBERS),
    Kind.INBOX: BodyShape(fixed_bytes=SEAT_BYTES, entry_bytes=DEALT_BYTES, max_entries=MAX_MEMBERS),
    Kind.CHUNK: BodyShape(fixed_bytes=8, entry_bytes=1, max_entries=MAX_CHUNK_BYTES),
    Kind.UPLOAD: BodyShape(fixed_bytes=8 + 2 * DIGEST_BYTES),
    Kind.SURVIVORS: BodyShape(
        fixed_bytes=0, entry_bytes=2 + DIGEST_BYTES + SIGNATURE_BYTES, max_entries=MAX_MEMBERS
    ),
    Kind.CONSENT: BodyShape(fixed_bytes=DIGEST_BYTES),
    Kind.CONSENTS: BodyShape(fixed_bytes=0, entry_bytes=2 + SIGNATURE_BYTES, max_entries=MAX_MEMBERS),
    Kind.REVEAL: BodyShape(fixed_bytes=0, entry_bytes=3 + SHARE_BYTES, max_entries=MAX_MEMBERS),
    Kind.ABORT: BodyShape(fixed_bytes=1, entry_bytes=NAME_BYTES, max_entries=MAX_MEMBERS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A decoded message; `body` is a view of the bytes it was decoded from."""

    kind: Kind
    sender: int
    scope: bytes
    roster: bytes
    body: memoryview
    signature: bytes


def body_limits(kind: Kind, *, max_members: int = MAX_MEMBERS) -> tuple[int, int]:
    """Least and greatest body bytes of a kind where at most `max_members` members exist."""
    shape = SHAPES[kind]
    entries = shape.max_entries if kind is Kind.CHUNK else min(shape.max_entries, max_members)
    return shape.fixed_bytes, shape.fixed_bytes + shape.entry_bytes * entries


def max_frame_bytes(kind: Kind, *, max_members: int = MAX_MEMBERS) -> int:
    """The longest frame of a kind; a transport need never read more."""
    return HEADER.size + body_limits(kind, max_members=max_members)[1] + _signature_bytes(kind)


def _signature_bytes(kind: Kind) -> int:
    return 0 if kind is Kind.CHUNK else SIGNATURE_BYTES


def _header(kind: Kind, sender: int, scope: bytes, roster: bytes, body_bytes: int) -> bytes:
    return HEADER.pack(MAGIC, kind, sender, scope, roster, body_bytes)


def encode_frame(
    kind: Kind, *, sender: int, scope: bytes, roster: bytes, body: bytes, key: Ed25519PrivateKey
) -> bytes:
    """A signed frame."""
    unsigned = _header(kind, sender, scope, roster, len(body)) + body
    return unsigned + key.sign(SIGNING_DOMAIN + unsigned)


def encode_chunk(*, sender: int, scope: bytes, roster: bytes, offset_bytes: int, data: memoryview) -> bytes:
    """A piece of a masked vector; its integrity comes from the digest in the UPLOAD that follows."""
    head = _header(Kind.CHUNK, sender, scope, roster, 8 + len(data))
    return b"".join((head, struct.pack("<Q", offset_bytes), data))


def decode_frame(
    data: bytes | memoryview, *, expect: Kind | None = None, max_members: int = MAX_MEMBERS
) -> Frame:
    """The frame that `data` holds exactly, nothing copied but the header.

    Raises:
        RefusedError: FRAME_MALFORMED, FRAME_LENGTH, KIND_UNKNOWN, LIMIT_EXCEEDED or OUT_OF_ORDER (another
            kind than `expect`).
    """
    view = memoryview(data).toreadonly()
    if len(view) < HEADER.size:
        raise RefusedError(
            Reason.FRAME_LENGTH, f"a frame of {len(view)} bytes; the header alone has {HEADER.size}"
        )
    magic, number, sender, scope, roster, body_bytes = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise RefusedError(Reason.FRAME_MALFORMED, f"a frame begins with {magic!r}, not {MAGIC!r}")
    try:
        kind = Kind(number)
    except ValueError:
        raise RefusedError(Reason.KIND_UNKNOWN, f"message kind {number} is not in the closed list") from None
    if expect is not None and kind is not expect:
        raise RefusedError(Reason.OUT_OF_ORDER, f"a {kind.name} where only {expect.name} is accepted")
    _check_length(kind, body_bytes, len(view), max_members)
    end = HEADER.size + body_bytes
    return Frame(
        kind=kind,
        sender=sender,
        scope=scope,
        roster=roster,
        body=view[HEADER.size : end],
        signature=bytes(view[end:]),
    )


def _check_length(kind: Kind, body_bytes: int, frame_bytes: int, max_members: int) -> None:
    least, greatest = body_limits(kind, max_members=max_members)
    if not least <= body_bytes <= greatest:
        raise RefusedError(
            Reason.LIMIT_EXCEEDED,
            f"{kind.name} with a body of {body_bytes} bytes; {least} to {greatest} are allowed",
        )
    entry_bytes = SHAPES[kind].entry_bytes
    if entry_bytes and (body_bytes - least) % entry_bytes:
        raise RefusedError(Reason.FRAME_LENGTH, f"{kind.name} holds {body_bytes} bytes, not whole entries")
    expected = HEADER.size + body_bytes + _signature_bytes(kind)
    if frame_bytes != expected:
        raise RefusedError(
            Reason.FRAME_LENGTH, f"{kind.name} of {frame_bytes} bytes; its header says {expected}"
        )


def check_signature(frame: Frame, key: Ed25519PublicKey, *, who: str) -> None:
    """Nothing, where the frame was signed by `key`.

    Raises:
        RefusedError: SIGNATURE_INVALID, blaming `who`.
    """
    signed = _header(frame.kind, frame.sender, frame.scope, frame.roster, len(frame.body)) + bytes(frame.body)
    try:
        key.verify(frame.signature, SIGNING_DOMAIN + signed)
    except InvalidSignature:
        raise RefusedError(
            Reason.SIGNATURE_INVALID,
            f"the signature under {frame.kind.name} is not that of {who}",
            blamed=[who],
        ) from None
