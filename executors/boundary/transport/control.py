"""Bodies of the transport's own frames: fixed fields, big-endian, sizes in `frames.CONTROL_BYTES`. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from executors.boundary.transport.frames import CHUNK_BYTES
from executors.boundary.transport.reasons import Reason, RefusedError

PROTOCOL = 1
_HELLO = struct.Struct(">H")
_WELCOME = struct.Struct(">I")
_REFUSED = struct.Struct(">H")
_TAG = struct.Struct(">QI")
_OFFER = struct.Struct(">QIQ32s")
_RESUME = struct.Struct(">QIQ")
_DONE = struct.Struct(">QI32s")
_OFFSET = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """Which payload of a sender: the epoch, and the caller's number of the item in it."""

    epoch: int
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A payload about to be sent."""

    tag: Tag
    total_bytes: int
    sha256: bytes


def encode_hello() -> bytes:
    """First word of a client."""
    return _HELLO.pack(PROTOCOL)


def require_hello(body: bytes) -> None:
    """Check a client's first word.

    Raises:
        RefusedError: wrong-version.
    """
    (protocol,) = _HELLO.unpack(body)
    if protocol != PROTOCOL:
        raise RefusedError(Reason.WRONG_VERSION, f"protocol {protocol}, {PROTOCOL} is spoken here")


def encode_welcome(heartbeat_s: float) -> bytes:
    """A server's consent, with the interval of its heartbeats (kept in milliseconds)."""
    return _WELCOME.pack(round(heartbeat_s * 1000))


def decode_welcome(body: bytes) -> float:
    """The interval of the server's heartbeats in seconds."""
    (milliseconds,) = _WELCOME.unpack(body)
    return float(milliseconds) / 1000.0


def encode_refused(reason: Reason) -> bytes:
    """A refusal."""
    return _REFUSED.pack(reason)


def decode_refused(body: bytes) -> Reason:
    """The reason of a refusal; one that this version doesn't know is an internal one."""
    (number,) = _REFUSED.unpack(body)
    return Reason(number) if number in set(Reason) else Reason.INTERNAL


def encode_offer(offer: Offer) -> bytes:
    """An offer."""
    return _OFFER.pack(offer.tag.epoch, offer.tag.item, offer.total_bytes, offer.sha256)


def decode_offer(body: bytes) -> Offer:
    """An offer."""
    epoch, item, total_bytes, sha256 = _OFFER.unpack(body)
    return Offer(tag=Tag(epoch, item), total_bytes=total_bytes, sha256=sha256)


def encode_resume(tag: Tag, offset: int) -> bytes:
    """From where the sender of `tag` shall go on."""
    return _RESUME.pack(tag.epoch, tag.item, offset)


def decode_resume(body: bytes, offer: Offer) -> int:
    """The offset to go on from, for this offer.

    Raises:
        RefusedError: bad-frame.
    """
    epoch, item, offset = _RESUME.unpack(body)
    if Tag(epoch, item) != offer.tag or offset > offer.total_bytes:
        raise RefusedError(
            Reason.BAD_FRAME, f"asked for epoch {epoch} item {item} from {offset} on, never offered"
        )
    return int(offset)


def encode_chunk(offset: int, data: bytes | memoryview) -> bytes:
    """Payload bytes from `offset` on; at most `CHUNK_BYTES` of them."""
    assert 0 < len(data) <= CHUNK_BYTES
    return b"".join((_OFFSET.pack(offset), data))


def decode_chunk(body: bytes) -> tuple[int, memoryview]:
    """Offset and payload bytes."""
    (offset,) = _OFFSET.unpack_from(body)
    return int(offset), memoryview(body)[_OFFSET.size :]


def encode_done(tag: Tag, sha256: bytes) -> bytes:
    """The receiver's word that it has the whole payload with that digest."""
    return _DONE.pack(tag.epoch, tag.item, sha256)


def require_done(body: bytes, offer: Offer) -> None:
    """Check the receiver's word against what was offered.

    Raises:
        RefusedError: wrong-digest.
    """
    if body != encode_done(offer.tag, offer.sha256):
        raise RefusedError(Reason.WRONG_DIGEST, f"the receiver confirms another payload than {offer.tag}")


def encode_fetch(tag: Tag) -> bytes:
    """A request for the payload of that tag."""
    return _TAG.pack(tag.epoch, tag.item)


def decode_fetch(body: bytes) -> Tag:
    """The tag asked for."""
    return Tag(*_TAG.unpack(body))
