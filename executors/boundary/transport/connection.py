"""A connection: one socket, one TLS session, frames with deadlines. One thread reads, any may write."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from executors.boundary.deadlines import Deadline, Wait, WaitEndedError, deadline_in
from executors.boundary.pki.identities import Identity
from executors.boundary.transport.control import decode_refused, encode_refused
from executors.boundary.transport.frames import Control, Frame, FrameReader, encode_frame
from executors.boundary.transport.reasons import Reason, RefusedError, reason_of_tls
from executors.boundary.transport.tls import READ_BYTES, ByteCounts, TlsSession
from policies.errors import ExecutorFailedError

CLOSE_S = 1.0
"""How long a close waits for the peer to read what was said last."""
MAX_DRAINED_BYTES = 8 << 20


class BrokenError(ExecutorFailedError):
    """The connection ended before its time; another one may do better. `peer` is who was at the other end."""

    def __init__(self, peer: str, message: str) -> None:
        super().__init__("connection-broken", f"{peer}: {message}", hint=f"look at {peer} and the link to it")
        self.peer = peer


class ClosedError(BrokenError):
    """The peer closed the connection in order."""


class Connection:
    """An open TLS connection; `client.connect` and `server.Server` make them.

    `peer` is who was found at the other end, `address` where. `silence_s` is how long nothing at all, not
    even a heartbeat, may be heard while a frame is awaited.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: TlsSession,
        *,
        max_body_bytes: Mapping[int, int],
        awaited: str,
        silence_s: float,
    ) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._tls = tls
        self._reader = FrameReader(max_body_bytes)
        self._send_lock = threading.Lock()
        self._unsent = b""
        self._wire = memoryview(bytearray(READ_BYTES))
        self._fault: ExecutorFailedError | None = None
        self._closed = False
        self._is_ending = False
        self._last_heard_s = time.monotonic()
        self.awaited = awaited
        self.silence_s = silence_s
        self.peer: Identity | None = None

    def handshake(self, wait: Wait) -> None:
        """Complete the TLS handshake.

        Raises:
            RefusedError, BrokenError, WaitEndedError: it came to nothing.
        """
        while True:
            try:
                is_done, wire = self._tls.handshake()
            except ssl.SSLError as error:
                with suppress(ExecutorFailedError):
                    self._push(self._tls.pending(), wait)
                raise self._tls_fault(error) from error
            self._push(wire, wait)
            if is_done:
                return
            self._receive_wire(wait)

    def peer_certificate(self) -> bytes:
        """The peer's certificate in DER.

        Raises:
            RefusedError: no-certificate.
        """
        certificate = self._tls.peer_certificate()
        if certificate is None:
            raise RefusedError(Reason.NO_CERTIFICATE, f"{self.awaited} presents no certificate")
        return certificate

    def send(self, kind: int, body: bytes | memoryview, wait: Wait) -> None:
        """Send one frame; returns when the kernel has it.

        Raises:
            BrokenError, WaitEndedError: it did not go out, or not whole; the connection is of no more use.
        """
        frame = encode_frame(kind, body)
        with self._send_lock:
            if self._fault is not None:
                raise self._fault
            if self._is_ending:
                raise BrokenError(self.awaited, "the connection was closed here")
            self._push(self._tls.seal(frame), wait)

    def send_heartbeat(self) -> None:
        """Tell the peer that we live, unless something is on its way to it anyway; never blocks."""
        if not self._send_lock.acquire(blocking=False):
            return
        try:
            if self._fault is None and not self._is_ending:
                # SSLError is an OSError; whatever is wrong, those who send or read will find it.
                with suppress(OSError):
                    if not self._unsent:
                        self._unsent = self._tls.seal(encode_frame(Control.HEARTBEAT, b""))
                    self._unsent = self._unsent[self._sock.send(self._unsent) :]
        finally:
            self._send_lock.release()

    def receive(self, wait: Wait) -> Frame:
        """The next frame that is not a heartbeat.

        Raises:
            RefusedError: the peer refuses us, or sent something that is refused here.
            ClosedError: the peer said goodbye.
            BrokenError: the stream ended or is damaged.
            WaitEndedError: the deadline passed, or the peer has been silent for too long.
        """
        while True:
            frame = self._frame_at_hand()
            if frame is not None:
                return frame
            self._read_more(wait)

    def poll(self) -> Frame | None:
        """A frame that is already there, or None; never blocks. Raises as `receive` does."""
        frame = self._frame_at_hand()
        while frame is None:
            if not self._try_read():
                return None
            frame = self._frame_at_hand()
        return frame

    def refuse(self, reason: Reason) -> None:
        """Tell the peer why, and close."""
        wait = deadline_in(CLOSE_S, awaited=self.awaited, what="a refusal to go out", now_s=time.monotonic())
        with suppress(ExecutorFailedError, OSError):
            self.send(Control.REFUSED, encode_refused(reason), wait)
            self._finish(wait)
        self.abandon()

    def close(self) -> None:
        """Say goodbye and close; takes at most a second, and never raises."""
        wait = deadline_in(CLOSE_S, awaited=self.awaited, what="a goodbye to go out", now_s=time.monotonic())
        with suppress(ExecutorFailedError, OSError):
            self.send(Control.GOODBYE, b"", wait)
            self._finish(wait)
        self.abandon()

    def part(self, reason: Reason) -> None:
        """Tell the peer why this ends, from a thread that does not read; the reading one then closes."""
        wait = deadline_in(CLOSE_S, awaited=self.awaited, what="a parting to go out", now_s=time.monotonic())
        with suppress(ExecutorFailedError, OSError):
            self.send(Control.REFUSED, encode_refused(reason), wait)
            self._end_sending(wait)
            self._sock.shutdown(socket.SHUT_RD)

    def abandon(self) -> None:
        """Close the socket at once; other threads in `send` or `receive` find the connection broken."""
        self._closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def counts(self) -> ByteCounts:
        """What went through so far. Exact once no thread is sending or receiving."""
        return self._tls.counts()

    def _frame_at_hand(self) -> Frame | None:
        while True:
            frame = self._reader.next_frame()
            if frame is None:
                return None
            self._tls.note_frame_in()
            if frame.kind == Control.REFUSED:
                reason = decode_refused(frame.body)
                raise RefusedError(reason, f"{self.awaited} refuses: {reason.word}", by_peer=True)
            if frame.kind == Control.GOODBYE:
                raise ClosedError(self.awaited, "has closed the connection")
            if frame.kind != Control.HEARTBEAT:
                return frame

    def _read_more(self, wait: Wait) -> None:
        """Have more plaintext read, waiting for it."""
        while not self._open_some():
            self._receive_wire(wait)

    def _try_read(self) -> bool:
        """Have more plaintext read if it is there."""
        if self._open_some():
            return True
        while self._receive_wire_now():
            if self._open_some():
                return True
        return False

    def _open_some(self) -> bool:
        try:
            plain = self._tls.open()
        except ssl.SSLError as error:
            raise self._tls_fault(error) from error
        if plain is None:
            return False
        if not len(plain):
            raise BrokenError(self.awaited, "ended the connection without a goodbye")
        self._reader.feed(plain)
        return True

    def _receive_wire(self, wait: Wait) -> None:
        """Wait for bytes of the TCP stream and take them in."""
        while True:
            num_bytes = self._receive_wire_now()
            now_s = time.monotonic()
            if num_bytes:
                wait.moved(num_bytes, now_s)
                return
            silent_left_s = self._last_heard_s + self.silence_s - now_s
            if silent_left_s <= 0.0:
                raise WaitEndedError(
                    "peer-silent",
                    f"nothing heard from {self.awaited} for {self.silence_s:.3g} s",
                    awaited=self.awaited,
                    what="a sign of life",
                    limit_s=self.silence_s,
                )
            self._wait_for(select.POLLIN, min(silent_left_s, wait.left_s(now_s)))

    def _receive_wire_now(self) -> int:
        """Take in what the kernel has; 0 if that is nothing, yet."""
        try:
            num_bytes = self._sock.recv_into(self._wire)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise BrokenError(self.awaited, f"the connection broke: {error.strerror or error}") from error
        self._last_heard_s = time.monotonic()
        # An empty read is the end of the stream; whether it is a sound one, TLS says at the next `open`.
        self._tls.receive(self._wire[:num_bytes])
        return max(num_bytes, 1)

    def _push(self, wire: bytes, wait: Wait) -> None:
        """Hand bytes to the kernel, all of them, and before them what a heartbeat left over."""
        rest = memoryview(self._unsent + wire if self._unsent else wire)
        self._unsent = b""
        try:
            while len(rest):
                try:
                    done = self._sock.send(rest)
                except (BlockingIOError, InterruptedError):
                    self._wait_for(select.POLLOUT, wait.left_s(time.monotonic()))
                    continue
                wait.moved(done, time.monotonic())
                rest = rest[done:]
        except OSError as error:
            self._fault = BrokenError(self.awaited, f"the connection broke: {error.strerror or error}")
            raise self._fault from error
        except WaitEndedError as error:
            self._fault = error
            raise

    def _wait_for(self, event: int, left_s: float) -> None:
        if self._closed:
            raise BrokenError(self.awaited, "the connection was closed here")
        poll = select.poll()
        try:
            poll.register(self._sock, event)
        except (OSError, ValueError) as error:
            raise BrokenError(self.awaited, "the connection was closed here") from error
        poll.poll(max(1, int(left_s * 1000.0 + 0.999)))

    def _finish(self, wait: Deadline) -> None:
        """Send the closing alert, and read until the peer has closed too, so that it gets our last word.

        Closing a socket with unread bytes in it resets the connection, and the peer's unread bytes are lost.
        """
        self._end_sending(wait)
        self._sock.shutdown(socket.SHUT_WR)
        drained_bytes = 0
        while drained_bytes < MAX_DRAINED_BYTES:
            self._wait_for(select.POLLIN, wait.left_s(time.monotonic()))
            with suppress(BlockingIOError):
                num_bytes = self._sock.recv_into(self._wire)
                if not num_bytes:
                    return
                self._tls.note_unread(num_bytes)
                drained_bytes += num_bytes

    def _end_sending(self, wait: Deadline) -> None:
        """Send the closing alert; nothing can follow it."""
        with self._send_lock:
            self._is_ending = True
            self._push(self._tls.close(), wait)

    def _tls_fault(self, error: ssl.SSLError) -> ExecutorFailedError:
        if isinstance(error, ssl.SSLEOFError):
            return BrokenError(self.awaited, "ended the connection in the middle")
        reason, by_peer = reason_of_tls(error)
        who = f"{self.awaited} refuses" if by_peer else f"{self.awaited} is refused"
        return RefusedError(reason, f"{who}: {reason.word} ({error.reason or error})", by_peer=by_peer)
