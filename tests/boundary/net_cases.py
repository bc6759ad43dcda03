"""A run's PKI, made once, and services on this machine that answer as the real ones do."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from executors.boundary.deadlines import Deadline, deadline_in
from executors.boundary.pki.administration import set_up
from executors.boundary.pki.identities import GLOBAL, Identity, Role
from executors.boundary.transport.client import Caller
from executors.boundary.transport.connection import Connection
from executors.boundary.transport.control import Tag, decode_fetch, decode_offer
from executors.boundary.transport.frames import Control
from executors.boundary.transport.inbox import BufferSource, Inbox
from executors.boundary.transport.reasons import Reason, RefusedError
from executors.boundary.transport.server import Limits, Server, Service, admits_members_of
from executors.boundary.transport.transfer import Pace, receive_payload, send_payload
from executors.boundary.transport.trust import Credentials, Trust, credentials_in
from policies.errors import EchelonError

RUN = "trial"
ECHO = 40
MAX_ECHO_BYTES = 100_000
PACE = Pace(stall_s=20.0, min_bytes=1)


@cache
def pki() -> Path:
    """The folder of a PKI with two boundaries, `lab` and `ward`, of four participants each."""
    folder = Path(tempfile.mkdtemp(prefix="echelon-pki-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    set_up(folder / "pki", run=RUN, boundaries=["lab", "ward"], num_participants=4, days=30, now=now())
    return folder / "pki"


def now() -> datetime:
    return datetime.now(UTC)


def identity(boundary: str, role: str, name: str = "") -> Identity:
    return Identity(run=RUN, boundary=boundary, role=Role(role), name=name or role)


COORDINATOR = identity(GLOBAL, "coordinator")
AGGREGATOR = identity("lab", "aggregator")
MEMBER = identity("lab", "participant", "p0")


def trust() -> Trust:
    return Trust(pki() / "trust")


def credentials(who: Identity) -> Credentials:
    return credentials_in(pki(), who)


def end_in(limit_s: float, awaited: str = "the test") -> Deadline:
    return deadline_in(limit_s, awaited=awaited, what="this step", now_s=time.monotonic())


@dataclass(kw_only=True)
class Desk:
    """A service that echoes, takes uploads of the expected size and gives downloads; notes what happens."""

    inbox: Inbox
    offered: dict[Tag, bytes] = field(default_factory=dict)
    faults: list[EchelonError] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    num_received_bytes: list[int] = field(default_factory=list)
    ended: threading.Condition = field(default_factory=threading.Condition)

    def handle(self, connection: Connection) -> None:
        self.connections.append(connection)
        while True:
            frame = connection.receive(end_in(30.0))
            if frame.kind == ECHO:
                connection.send(ECHO, frame.body, end_in(10.0))
            elif frame.kind == Control.OFFER:
                self.take(connection, frame.body)
            elif frame.kind == Control.FETCH:
                self.give(connection, decode_fetch(frame.body))
            else:
                raise RefusedError(Reason.UNEXPECTED_FRAME, f"kind {frame.kind}")

    def take(self, connection: Connection, body: bytes) -> None:
        peer = connection.peer
        assert peer is not None
        offer = decode_offer(body)
        done = receive_payload(connection, offer, lambda offer: self.inbox.open(peer, offer), pace=PACE)
        self.num_received_bytes.append(done)

    def give(self, connection: Connection, tag: Tag) -> None:
        if tag not in self.offered:
            raise RefusedError(Reason.NOT_READY, f"{tag} is not ready")
        send_payload(connection, tag, BufferSource(self.offered[tag]), pace=PACE)

    def report(self, who: str, error: EchelonError) -> None:
        with self.ended:
            self.faults.append(error)
            self.ended.notify_all()

    def wait_for_fault(self, code: str) -> EchelonError:
        """The first fault of that code that the service reports."""
        with self.ended:
            found = self.ended.wait_for(
                lambda: next((fault for fault in self.faults if fault.code == code), None), 20.0
            )
        assert found is not None, [fault.code for fault in self.faults]
        return found


@contextmanager
def serving(
    folder: Path,
    *,
    expect: Callable[[Identity, Tag], int | None] = lambda sender, tag: None,
    who: Identity = AGGREGATOR,
    admits: Callable[[Identity], bool] | None = None,
    limits: Limits | None = None,
    max_body_bytes: Mapping[int, int] | None = None,
    trusting: Trust | None = None,
) -> Iterator[tuple[Server, Desk]]:
    """A running service with its desk."""
    desk = Desk(inbox=Inbox(folder, expect, durable=False))
    service = Service(
        credentials=credentials(who),
        trust=trusting or trust(),
        admits=admits or admits_members_of("lab"),
        handle=desk.handle,
        max_body_bytes={ECHO: MAX_ECHO_BYTES} if max_body_bytes is None else max_body_bytes,
        report=desk.report,
        limits=limits or Limits(heartbeat_s=1.0),
    )
    server = Server(service)
    server.start()
    try:
        yield server, desk
    finally:
        server.stop()


def caller(
    port: int,
    *,
    who: Identity = MEMBER,
    expected: Identity = AGGREGATOR,
    connect_s: float = 10.0,
    pace: Pace = PACE,
    trusting: Trust | None = None,
    own: Credentials | None = None,
) -> Caller:
    """Someone who calls the service at that port."""
    return Caller(
        credentials=own or credentials(who),
        trust=trusting or trust(),
        expected=expected,
        host="127.0.0.1",
        port=port,
        max_body_bytes={ECHO: MAX_ECHO_BYTES},
        connect_s=connect_s,
        pace=pace,
    )


def payload(num_bytes: int) -> bytes:
    return os.urandom(num_bytes)
