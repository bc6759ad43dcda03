"""Frames: an 8-byte header and a body, and a reader that bounds every allocation. Pure.

    version u8 = 1 | kind u8 | reserved u16 = 0 | body length u32     big-endian

Kinds below 32 are the transport's own, of fixed sizes and without text; those from 32 on are the caller's,
who gives the largest body of each. A frame is one write to TLS 1.3, which cuts it into records of at most
16,384 bytes and adds 22 to each (RFC 8446 section 5.2: header 5, content type 1, tag 16). So a frame with a
body of b bytes takes on the wire, in bytes of the TCP stream:

    b + 8 + 22 * ceil((b + 8) / 16384)

and a connection besides these its handshake, counted as it happens, and 24 for the closing alert.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from executors.boundary.transport.reasons import Reason, RefusedError

VERSION = 1
HEADER = struct.Struct(">BBHI")
FIRST_FREE_KIND = 32
RECORD_BYTES = 16_384
RECORD_OVERHEAD_BYTES = 22
CLOSE_ALERT_BYTES = 24
CHUNK_BYTES = 16 * RECORD_BYTES - HEADER.size - 8
"""Payload bytes of a chunk: with header and offset it fills 16 records exactly."""


class Control(IntEnum):
    """The transport's own kinds."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    HEARTBEAT = 4
    GOODBYE = 5
    OFFER = 6
    RESUME = 7
    CHUNK = 8
    DONE = 9
    FETCH = 10


CONTROL_BYTES: dict[int, tuple[int, int]] = {
    Control.HELLO: (2, 2),
    Control.WELCOME: (4, 4),
    Control.REFUSED: (2, 2),
    Control.HEARTBEAT: (0, 0),
    Control.GOODBYE: (0, 0),
    Control.OFFER: (52, 52),
    Control.RESUME: (20, 20),
    Control.CHUNK: (9, 8 + CHUNK_BYTES),
    Control.DONE: (44, 44),
    Control.FETCH: (12, 12),
}
"""Smallest and largest body of each of them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `body` is a copy of its own."""

    kind: int
    body: bytes


def encode_frame(kind: int, body: bytes | memoryview) -> bytes:
    """The frame's bytes."""
    return b"".join((HEADER.pack(VERSION, kind, 0, len(body)), body))


def plain_bytes(body_bytes: int) -> int:
    """Bytes of a frame before TLS."""
    return HEADER.size + body_bytes


def num_records(frame_bytes: int) -> int:
    """TLS records that a frame takes."""
    return -(-frame_bytes // RECORD_BYTES)


def wire_bytes(frame_bytes: int) -> int:
    """Bytes of a frame in the TCP stream: n + 22 ceil(n / 16384)."""
    return frame_bytes + RECORD_OVERHEAD_BYTES * num_records(frame_bytes)


class FrameReader:
    """Cuts a stream of bytes into frames; holds at most one frame and what was fed last.

    `max_body_bytes` gives the caller's kinds with the largest body of each; any other kind is refused as soon
    as its header is there, before its body is awaited. After a refusal the stream is unusable.
    """

    __slots__ = ("_buffer", "_sizes")

    def __init__(self, max_body_bytes: Mapping[int, int]) -> None:
        if any(not FIRST_FREE_KIND <= kind <= 255 for kind in max_body_bytes):
            raise ValueError(f"kinds of one's own are {FIRST_FREE_KIND} to 255, not {sorted(max_body_bytes)}")
        self._sizes = CONTROL_BYTES | {kind: (0, most) for kind, most in max_body_bytes.items()}
        self._buffer = bytearray()

    @property
    def num_buffered_bytes(self) -> int:
        """Bytes fed and not yet given out as frames."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Take in what arrived."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None as long as there is none.

        Raises:
            RefusedError: bad-frame, unexpected-frame or too-large.
        """
        if len(self._buffer) < HEADER.size:
            return None
        version, kind, reserved, body_bytes = HEADER.unpack_from(self._buffer)
        self._require_sound(version, kind, reserved, body_bytes)
        end = HEADER.size + body_bytes
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[HEADER.size : end])
        del self._buffer[:end]
        return Frame(kind, body)

    def _require_sound(self, version: int, kind: int, reserved: int, body_bytes: int) -> None:
        if version != VERSION:
            raise RefusedError(
                Reason.WRONG_VERSION, f"a frame of version {version}, {VERSION} is spoken here"
            )
        if reserved != 0:
            raise RefusedError(Reason.BAD_FRAME, f"a frame with {reserved} in its reserved field")
        sizes = self._sizes.get(kind)
        if sizes is None:
            raise RefusedError(Reason.UNEXPECTED_FRAME, f"a frame of kind {kind}, which has no meaning here")
        if body_bytes > sizes[1]:
            limit = f"the limit is {sizes[1]:,}"
            raise RefusedError(Reason.TOO_LARGE, f"a frame of kind {kind} with {body_bytes:,} bytes, {limit}")
        if body_bytes < sizes[0]:
            raise RefusedError(Reason.BAD_FRAME, f"a frame of kind {kind} with {body_bytes} bytes only")
