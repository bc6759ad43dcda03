"""The answering side: a thread per connection, and a bound on everything a stranger could pile up."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from executors.boundary.deadlines import WaitEndedError, deadline_in
from executors.boundary.pki.identities import Identity, Role
from executors.boundary.transport.connection import BrokenError, ClosedError, Connection
from executors.boundary.transport.control import encode_welcome, require_hello
from executors.boundary.transport.frames import Control
from executors.boundary.transport.reasons import Reason, RefusedError
from executors.boundary.transport.tls import TlsSession
from executors.boundary.transport.trust import Credentials, Trust, server_context
from policies.errors import EchelonError, ExecutorFailedError

STRANGER = "a stranger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server bears.

    `num_strangers` connections may be in the middle of introducing themselves; one more, and the oldest of
    them is dropped. `introduce_s` is what each has for it.
    """

    num_strangers: int = 32
    num_connections: int = 512
    num_per_peer: int = 4
    introduce_s: float = 10.0
    heartbeat_s: float = 5.0
    silence_s: float = 60.0
    backlog: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server does: whom it lets in, which kinds of frames they may send, and what it does with them.

    `handle` runs in the connection's own thread, and the connection is closed when it returns. What it raises
    is told to the peer as a reason, and to `report`.
    """

    credentials: Credentials
    trust: Trust
    admits: Callable[[Identity], bool]
    handle: Callable[[Connection], None]
    max_body_bytes: Mapping[int, int] = field(default_factory=dict)
    report: Callable[[str, EchelonError], None] = lambda who, error: None
    limits: Limits = field(default_factory=Limits)


def admits_members_of(boundary: str) -> Callable[[Identity], bool]:
    """Lets in the participants of one boundary: what a boundary's aggregator wants."""
    return lambda peer: peer.role is Role.PARTICIPANT and peer.boundary == boundary


def admits_aggregators(peer: Identity) -> bool:
    """Lets in the aggregators of all boundaries: what the coordinator wants."""
    return peer.role is Role.AGGREGATOR


class Server:
    """Listens from construction on; `start` begins to accept, `stop` ends it all."""

    def __init__(self, service: Service, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Take the address.

        Raises:
            ExecutorFailedError: `address-not-free`.
        """
        try:
            self._listener = socket.create_server((host, port), backlog=service.limits.backlog)
        except OSError as error:
            raise ExecutorFailedError(
                "address-not-free", f"can't listen on {host}:{port}: {error.strerror or error}"
            ) from error
        self.host, self.port = self._listener.getsockname()[:2]
        self._service = service
        self._context = server_context(service.credentials, service.trust)
        self._lock = threading.Lock()
        self._strangers: dict[Connection, None] = {}
        self._peers: dict[Connection, Identity] = {}
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()
        self.num_refused: Counter[Reason] = Counter()

    def start(self) -> None:
        """Accept from now on."""
        for work in (self._accept, self._beat):
            thread = threading.Thread(target=work, daemon=True, name=f"{self._service.credentials.identity}")
            self._threads.add(thread)
            thread.start()

    def peers(self) -> list[Identity]:
        """Who is connected, once per connection."""
        with self._lock:
            return list(self._peers.values())

    def stop(self, within_s: float = 5.0) -> None:
        """Stop listening, tell all peers, close, and wait for the handlers that long."""
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        end_s = time.monotonic() + within_s
        with self._lock:
            strangers, peers, threads = list(self._strangers), list(self._peers), list(self._threads)
        for connection in strangers:
            connection.abandon()
        for connection in peers:
            connection.part(Reason.SHUTTING_DOWN)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end_s - time.monotonic()))
        for connection in peers:
            connection.abandon()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, address = self._listener.accept()
            except OSError:
                if self._stopping.is_set():
                    return
                # Out of descriptors, or the caller left already: neither is a reason to stop, nor to spin.
                self._stopping.wait(0.05)
                continue
            self._admit(sock, f"{address[0]}:{address[1]}")

    def _admit(self, sock: socket.socket, address: str) -> None:
        limits = self._service.limits
        connection = Connection(
            sock,
            TlsSession(self._context, server_side=True),
            max_body_bytes=self._service.max_body_bytes,
            awaited=f"{STRANGER} at {address}",
            silence_s=math.inf,
        )
        with self._lock:
            oldest = next(iter(self._strangers)) if len(self._strangers) >= limits.num_strangers else None
            if oldest is not None:
                del self._strangers[oldest]
            self._strangers[connection] = None
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True, name=address)
            self._threads.add(thread)
        if oldest is not None:
            oldest.abandon()
        thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            try:
                self._introduce(connection)
                self._service.handle(connection)
            finally:
                with self._lock:
                    self._strangers.pop(connection, None)
                    self._peers.pop(connection, None)
            connection.close()
        except ClosedError:
            connection.close()
        except EchelonError as error:
            self._end(connection, error)
        except Exception as error:
            self._end(connection, ExecutorFailedError("internal", f"{type(error).__name__}: {error}"))
        finally:
            connection.abandon()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _introduce(self, connection: Connection) -> None:
        service = self._service
        limits = service.limits
        wait = deadline_in(
            limits.introduce_s,
            awaited=connection.awaited,
            what="its introduction",
            now_s=time.monotonic(),
        )
        connection.handshake(wait)
        identity = service.trust.check(connection.peer_certificate(), now=datetime.now(UTC))
        connection.awaited = str(identity)
        self._require_admitted(identity)
        frame = connection.receive(wait)
        if frame.kind != Control.HELLO:
            raise RefusedError(Reason.UNEXPECTED_FRAME, f"{identity} began with kind {frame.kind}")
        require_hello(frame.body)
        with self._lock:
            self._strangers.pop(connection, None)
            self._require_room(identity)
            self._peers[connection] = identity
        connection.peer = identity
        connection.silence_s = limits.silence_s
        connection.send(Control.WELCOME, encode_welcome(limits.heartbeat_s), wait)

    def _require_admitted(self, identity: Identity) -> None:
        if self._service.admits(identity):
            return
        own = self._service.credentials.identity
        same = identity.boundary == own.boundary
        reason = Reason.WRONG_ROLE if same or own.role is Role.COORDINATOR else Reason.WRONG_BOUNDARY
        raise RefusedError(reason, f"{own} does not let in {identity}")

    def _require_room(self, identity: Identity) -> None:
        limits = self._service.limits
        if self._stopping.is_set():
            raise RefusedError(Reason.SHUTTING_DOWN, "shutting down")
        num_own = sum(peer == identity for peer in self._peers.values())
        if len(self._peers) >= limits.num_connections or num_own >= limits.num_per_peer:
            raise RefusedError(
                Reason.TOO_MANY_CONNECTIONS,
                f"{identity} has {num_own} connections of {limits.num_per_peer}, "
                f"all have {len(self._peers)} of {limits.num_connections}",
            )

    def _end(self, connection: Connection, error: EchelonError) -> None:
        """Tell peer and owner why a connection ends."""
        reason = Reason.INTERNAL
        if isinstance(error, RefusedError):
            reason = error.reason
        elif isinstance(error, WaitEndedError):
            reason = Reason.DEADLINE_PASSED
        is_ours = not isinstance(error, BrokenError) and not getattr(error, "by_peer", False)
        with suppress(Exception):
            self._service.report(connection.awaited, error)
        if is_ours:
            self.num_refused[reason] += 1
            connection.refuse(reason)

    def _beat(self) -> None:
        while not self._stopping.wait(self._service.limits.heartbeat_s):
            with self._lock:
                connections = list(self._peers)
            for connection in connections:
                connection.send_heartbeat()
