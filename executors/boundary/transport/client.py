"""The calling side: connect to a peer by its identity, carry payloads over as many connections as needed."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from executors.boundary.deadlines import Deadline, WaitEndedError, deadline_in
from executors.boundary.pki.identities import Identity
from executors.boundary.transport.connection import BrokenError, Connection
from executors.boundary.transport.control import Offer, Tag, decode_welcome, encode_hello
from executors.boundary.transport.frames import Control
from executors.boundary.transport.inbox import Sink, Source
from executors.boundary.transport.reasons import Reason, RefusedError
from executors.boundary.transport.tls import TlsSession
from executors.boundary.transport.transfer import Pace, fetch_payload, send_payload
from executors.boundary.transport.trust import Credentials, Trust, client_context

SILENT_HEARTBEATS = 4
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
RETRYABLE = frozenset(
    {Reason.TOO_MANY_CONNECTIONS, Reason.SHUTTING_DOWN, Reason.NOT_READY, Reason.SUPERSEDED}
)
"""Refusals that another moment may lift."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Connects to one peer, always the same: `expected`, at `host` and `port`.

    `max_body_bytes` are the kinds the peer may send. The server tells its heartbeat; a peer that misses four
    of them counts as silent, but never before `least_silence_s`.
    """

    credentials: Credentials
    trust: Trust
    expected: Identity
    host: str
    port: int
    max_body_bytes: Mapping[int, int] = field(default_factory=dict)
    connect_s: float = 10.0
    least_silence_s: float = 5.0
    pace: Pace = field(default_factory=Pace)

    def connect(self, end: Deadline | None = None) -> Connection:
        """An open connection, both sides having accepted each other.

        Raises:
            RefusedError: either refuses the other, naming the reason.
            BrokenError: nobody answers there, or the connection broke; another try may do better.
            WaitEndedError: no answer within `connect_s`.
        """
        now_s = time.monotonic()
        awaited = str(self.expected)
        limit_s = self.connect_s if end is None else min(self.connect_s, end.left_s(now_s))
        wait = deadline_in(limit_s, awaited=awaited, what="a connection", now_s=now_s)
        try:
            sock = socket.create_connection((self.host, self.port), timeout=limit_s)
        except TimeoutError as error:
            wait.left_s(wait.at_s)
            raise BrokenError(awaited, "timed out") from error
        except OSError as error:
            raise BrokenError(
                awaited, f"can't be reached at {self.host}:{self.port}: {error.strerror or error}"
            ) from error
        connection = Connection(
            sock,
            TlsSession(client_context(self.credentials, self.trust), server_side=False),
            max_body_bytes=self.max_body_bytes,
            awaited=awaited,
            silence_s=math.inf,
        )
        try:
            self._introduce(connection, wait)
        except BaseException:
            connection.abandon()
            raise
        return connection

    def upload(self, tag: Tag, source: Source, *, end: Deadline) -> int:
        """Get a payload to the peer, over as many connections as it takes; payload bytes sent over the last.

        Raises:
            RefusedError: the peer won't have it.
            WaitEndedError: `end` passed; the message names the peer and what went wrong last.
        """
        return self.with_retries(
            lambda connection: send_payload(connection, tag, source, pace=self.pace, end=end), end=end
        )

    def download(self, tag: Tag, open_sink: Callable[[Offer], Sink | None], *, end: Deadline) -> int:
        """Get a payload from the peer, over as many connections as it takes; payload bytes received last.

        Raises:
            As `upload`.
        """
        return self.with_retries(
            lambda connection: fetch_payload(connection, tag, open_sink, pace=self.pace, end=end), end=end
        )

    def with_retries(self, work: Callable[[Connection], _Result], *, end: Deadline) -> _Result:
        """Do `work` on a fresh connection, again after each break, until it is done or the end has come.

        Raises:
            RefusedError: for good.
            WaitEndedError: the end passed.
        """
        pause_s = FIRST_PAUSE_S
        last: Exception | None = None
        while True:
            try:
                end.left_s(time.monotonic())
                connection = self.connect(end)
                try:
                    result = work(connection)
                except BrokenError:
                    # It was good for a while: the next one may be at once.
                    pause_s = FIRST_PAUSE_S
                    raise
                finally:
                    connection.close()
            except (BrokenError, WaitEndedError) as error:
                if time.monotonic() >= end.at_s:
                    raise _with_cause(end, last or error) from error
                last = error
            except RefusedError as error:
                if error.reason not in RETRYABLE:
                    raise
                last = error
            else:
                return result
            time.sleep(max(0.0, min(pause_s, end.at_s - time.monotonic())))
            pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)

    def _introduce(self, connection: Connection, wait: Deadline) -> None:
        connection.handshake(wait)
        try:
            identity = self.trust.check(connection.peer_certificate(), now=datetime.now(UTC))
            require_same(identity, self.expected)
        except RefusedError as error:
            connection.refuse(error.reason)
            raise
        connection.peer = identity
        try:
            connection.send(Control.HELLO, encode_hello(), wait)
        except BrokenError:
            connection.poll()
            raise
        frame = connection.receive(wait)
        if frame.kind != Control.WELCOME:
            raise RefusedError(Reason.UNEXPECTED_FRAME, f"{self.expected} sent kind {frame.kind}, no welcome")
        heartbeat_s = decode_welcome(frame.body)
        connection.silence_s = max(self.least_silence_s, SILENT_HEARTBEATS * heartbeat_s)


def _with_cause(end: Deadline, last: Exception) -> WaitEndedError:
    """The passing of `end`, told with what went wrong before it."""
    return WaitEndedError(
        "deadline-passed",
        f"waited {end.limit_s:.3g} s for {end.what} from {end.awaited}, in vain; the last try: {last}",
        awaited=end.awaited,
        what=end.what,
        limit_s=end.limit_s,
    )


def require_same(found: Identity, expected: Identity) -> None:
    """Check that a peer is the one expected.

    Raises:
        RefusedError: wrong-run, wrong-boundary, wrong-role or bad-identity.
    """
    for reason, have, want in (
        (Reason.WRONG_RUN, found.run, expected.run),
        (Reason.WRONG_BOUNDARY, found.boundary, expected.boundary),
        (Reason.WRONG_ROLE, found.role, expected.role),
        (Reason.BAD_IDENTITY, found.name, expected.name),
    ):
        if have != want:
            raise RefusedError(reason, f"{found} answers where {expected} is expected")
