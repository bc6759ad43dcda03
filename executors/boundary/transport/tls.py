"""TLS as a state machine over bytes: no socket, so that the bytes of both sides are counted exactly.

One lock guards OpenSSL's state, since a reader and writers may work at a time; encryption runs without the
interpreter's lock only as far as OpenSSL allows, sockets are elsewhere.
"""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass

from executors.boundary.transport.frames import (
    CLOSE_ALERT_BYTES,
    RECORD_OVERHEAD_BYTES,
    num_records,
)

READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCounts:
    """What one connection carried each way: plaintext, TCP stream, handshake within that, records, frames."""

    plain_out_bytes: int
    plain_in_bytes: int
    wire_out_bytes: int
    wire_in_bytes: int
    handshake_out_bytes: int
    handshake_in_bytes: int
    records_out: int
    frames_out: int
    frames_in: int
    closed_by_us: bool

    @property
    def declared_out_bytes(self) -> int:
        """What `wire_out_bytes` must be by the formula of `frames`, once all is flushed."""
        closing = CLOSE_ALERT_BYTES if self.closed_by_us else 0
        framing = RECORD_OVERHEAD_BYTES * self.records_out
        return self.handshake_out_bytes + self.plain_out_bytes + framing + closing


class TlsSession:
    """One side of a TLS connection. Wire bytes go in by `receive`; those to be sent come out of each call."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._in, self._out, server_side=server_side)
        self._lock = threading.Lock()
        self._read_buffer = memoryview(bytearray(READ_BYTES))
        self._plain_out = self._plain_in = self._wire_out = self._wire_in = 0
        self._handshake_out = self._handshake_in = self._records_out = self._frames_out = self._frames_in = 0
        self._closed_by_us = False

    def receive(self, wire: bytes | memoryview) -> None:
        """Take in bytes of the TCP stream; an empty string is its end."""
        with self._lock:
            if len(wire):
                self._in.write(wire)
                self._wire_in += len(wire)
            else:
                self._in.write_eof()

    def handshake(self) -> tuple[bool, bytes]:
        """Go on with the handshake: whether it is done, and bytes to send.

        Raises:
            ssl.SSLError: it failed; `pending` then has the alert for the peer.
        """
        with self._lock:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                return False, self._take()
            wire = self._take()
            self._handshake_out = self._wire_out
            # What follows the handshake may have come with its last bytes.
            self._handshake_in = self._wire_in - self._in.pending
            return True, wire

    def seal(self, frame: bytes) -> bytes:
        """The frame as wire bytes."""
        with self._lock:
            done = self._ssl.write(frame)
            assert done == len(frame), "a memory BIO takes everything"
            self._plain_out += done
            self._records_out += num_records(done)
            self._frames_out += 1
            return self._take()

    def open(self) -> memoryview | None:
        """Plaintext that has arrived (good until the next call), None if none has, empty at the peer's close.

        Raises:
            ssl.SSLError: the stream is not sound, or ended without a closing alert.
        """
        with self._lock:
            num_bytes = 0
            try:
                while num_bytes < READ_BYTES:
                    done = self._ssl.read(READ_BYTES - num_bytes, self._read_buffer[num_bytes:])
                    if not done:
                        break
                    num_bytes += int(done)
            except ssl.SSLWantReadError:
                if not num_bytes:
                    return None
            except ssl.SSLZeroReturnError:
                pass
            except ssl.SSLError:
                # What came before the fault is still good, and may say why; the fault comes up again.
                if not num_bytes:
                    raise
            self._plain_in += num_bytes
            return self._read_buffer[:num_bytes]

    def pending(self) -> bytes:
        """Bytes that OpenSSL wants sent: alerts, answers to key updates."""
        with self._lock:
            return self._take()

    def close(self) -> bytes:
        """The closing alert."""
        with self._lock:
            if self._closed_by_us:
                return b""
            with suppress(ssl.SSLError):
                self._ssl.unwrap()
            wire = self._take()
            self._closed_by_us = bool(wire)
            return wire

    def note_unread(self, num_bytes: int) -> None:
        """Count bytes of the TCP stream that came after all that is read."""
        with self._lock:
            self._wire_in += num_bytes

    def note_frame_in(self) -> None:
        """Count a frame that was read."""
        self._frames_in += 1

    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER."""
        return self._ssl.getpeercert(binary_form=True)

    def counts(self) -> ByteCounts:
        """What went through so far."""
        with self._lock:
            return ByteCounts(
                plain_out_bytes=self._plain_out,
                plain_in_bytes=self._plain_in,
                wire_out_bytes=self._wire_out,
                wire_in_bytes=self._wire_in,
                handshake_out_bytes=self._handshake_out,
                handshake_in_bytes=self._handshake_in,
                records_out=self._records_out,
                frames_out=self._frames_out,
                frames_in=self._frames_in,
                closed_by_us=self._closed_by_us,
            )

    def _take(self) -> bytes:
        wire = self._out.read()
        self._wire_out += len(wire)
        return wire
