"""Bodies of the messages with entries: what they hold, packed and unpacked.

The frame decoder has checked sizes already, so a body here is a whole number of entries and no longer than
allowed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from itertools import pairwise

from executors.boundary.secagg.frames import (
    BOX_BYTES,
    DEALT_BYTES,
    DIGEST_BYTES,
    NAME_BYTES,
    SEAT_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
)
from executors.boundary.secagg.identity import decode_name, encode_name
from executors.boundary.secagg.reasons import Reason, RefusedError

_DEALT = struct.Struct(f"<H{BOX_BYTES}s{DIGEST_BYTES}s{DIGEST_BYTES}s")
_UPLOAD = struct.Struct(f"<Q{DIGEST_BYTES}s{DIGEST_BYTES}s")
_SURVIVOR = struct.Struct(f"<H{DIGEST_BYTES}s{SIGNATURE_BYTES}s")
_CONSENT = struct.Struct(f"<H{SIGNATURE_BYTES}s")
_REVEAL = struct.Struct(f"<HB{SHARE_BYTES}s")
assert _DEALT.size == DEALT_BYTES


class Secret(IntEnum):
    """Which of a member's two secrets a share belongs to; only one of them is ever given for a member."""

    SELF_SEED = 0
    MASK_KEY = 1


@dataclass(frozen=True, slots=True)
class Dealt:
    """The box for or from `seat`, with the digests of the two shares inside."""

    seat: int
    box: bytes
    seed_digest: bytes
    key_digest: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """The end of an upload: its length, who dealt shares (a digest), and the digest of the bytes."""

    num_bytes: int
    dealers: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Survivor:
    """A member whose vector is in the sum, with the digest it signed."""

    seat: int
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Share:
    """A share of one secret of the member in seat `about`."""

    about: int
    secret: Secret
    share: bytes


def check_ascending(seats: Sequence[int], num_members: int, what: str) -> None:
    """Nothing, where the seats ascend strictly and exist.

    Raises:
        RefusedError: FRAME_MALFORMED.
    """
    if any(a >= b for a, b in pairwise(seats)) or (seats and seats[-1] >= num_members):
        raise RefusedError(
            Reason.FRAME_MALFORMED,
            f"{what} names seats twice, out of order, or beyond the {num_members} there are",
        )


def pack_dealt(entries: Iterable[Dealt]) -> bytes:
    """Entries of a SHARES or INBOX body."""
    return b"".join(_DEALT.pack(e.seat, e.box, e.seed_digest, e.key_digest) for e in entries)


def unpack_dealt(body: memoryview, num_members: int) -> list[Dealt]:
    """Entries of a SHARES body, or of an INBOX body after its set of seats."""
    entries = [Dealt(*fields) for fields in _DEALT.iter_unpack(body)]
    check_ascending([entry.seat for entry in entries], num_members, "a list of shares")
    return entries


def pack_seats(seats: Set[int]) -> bytes:
    """A set of seats as a bit field of fixed length."""
    bits = sum(1 << seat for seat in seats)
    return bits.to_bytes(SEAT_BYTES, "little")


def unpack_seats(raw: bytes | memoryview, num_members: int) -> frozenset[int]:
    """The seats in a bit field."""
    bits = int.from_bytes(raw, "little")
    if bits >> num_members:
        raise RefusedError(Reason.FRAME_MALFORMED, f"a set names seats beyond the {num_members} there are")
    return frozenset(seat for seat in range(num_members) if bits >> seat & 1)


def pack_inbox(dealers: Set[int], entries: Iterable[Dealt]) -> bytes:
    """Body of an INBOX: who dealt shares at all, and the boxes for one holder."""
    return pack_seats(dealers) + pack_dealt(entries)


def unpack_inbox(body: memoryview, num_members: int) -> tuple[frozenset[int], list[Dealt]]:
    """Dealers and boxes of an INBOX."""
    return unpack_seats(body[:SEAT_BYTES], num_members), unpack_dealt(body[SEAT_BYTES:], num_members)


def dealers_digest(dealers: Set[int]) -> bytes:
    """Stands for the set of members that dealt shares."""
    return sha256(b"echelon/secagg/1/dealers\0" + pack_seats(dealers)).digest()


def pack_upload(upload: Upload) -> bytes:
    """Body of an UPLOAD."""
    return _UPLOAD.pack(upload.num_bytes, upload.dealers, upload.digest)


def unpack_upload(body: memoryview) -> Upload:
    """The upload that a body ends."""
    return Upload(*_UPLOAD.unpack(body))


def pack_survivors(entries: Iterable[Survivor]) -> bytes:
    """Body of a SURVIVORS."""
    return b"".join(_SURVIVOR.pack(e.seat, e.digest, e.signature) for e in entries)


def unpack_survivors(body: memoryview, num_members: int) -> list[Survivor]:
    """The survivors of a body."""
    entries = [Survivor(*fields) for fields in _SURVIVOR.iter_unpack(body)]
    check_ascending([entry.seat for entry in entries], num_members, "a survivor set")
    return entries


def view_digest(dealers: bytes, survivors_body: bytes | memoryview) -> bytes:
    """What members consent to: who dealt, who survives, and with which vectors."""
    return sha256(b"echelon/secagg/1/view\0" + dealers + survivors_body).digest()


def pack_consents(entries: Iterable[tuple[int, bytes]]) -> bytes:
    """Body of a CONSENTS from seats and signatures."""
    return b"".join(_CONSENT.pack(seat, signature) for seat, signature in entries)


def unpack_consents(body: memoryview, num_members: int) -> list[tuple[int, bytes]]:
    """Seats and signatures of a CONSENTS."""
    entries = [(seat, signature) for seat, signature in _CONSENT.iter_unpack(body)]
    check_ascending([seat for seat, _ in entries], num_members, "a list of consents")
    return entries


def pack_shares(entries: Iterable[Share]) -> bytes:
    """Body of a REVEAL."""
    return b"".join(_REVEAL.pack(e.about, e.secret, e.share) for e in entries)


def unpack_shares(body: memoryview, num_members: int) -> list[Share]:
    """The shares of a REVEAL: at most one for each member, whichever secret it belongs to."""
    entries = []
    for about, secret, share in _REVEAL.iter_unpack(body):
        if secret not in (Secret.SELF_SEED, Secret.MASK_KEY):
            raise RefusedError(Reason.FRAME_MALFORMED, f"a share of secret {secret}; there are only two")
        entries.append(Share(about, Secret(secret), share))
    check_ascending([entry.about for entry in entries], num_members, "a reveal")
    return entries


def pack_abort(code: int, missing: Iterable[str]) -> bytes:
    """Body of an ABORT: the position of the reason in `Reason`, and who was missing."""
    return bytes([code]) + b"".join(encode_name(name) for name in missing)


def unpack_abort(body: memoryview) -> tuple[Reason, list[str]]:
    """Reason and names of an ABORT."""
    reasons = list(Reason)
    if body[0] >= len(reasons):
        raise RefusedError(Reason.FRAME_MALFORMED, f"abort reason {body[0]} is not in the closed list")
    return reasons[body[0]], [
        decode_name(bytes(body[at : at + NAME_BYTES])) for at in range(1, len(body), NAME_BYTES)
    ]
