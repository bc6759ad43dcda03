"""Large payloads over a connection, in chunks, going on where an earlier connection broke.

    sender                receiver
    OFFER tag size digest
                          RESUME offset       how many bytes it has; the size itself: all of them
    CHUNK offset bytes    ...
                          DONE tag digest     after the digest of the whole has been checked

A download is the same with the roles exchanged, after the client's FETCH.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from executors.boundary.deadlines import Deadline, Progress
from executors.boundary.transport.connection import BrokenError, Connection
from executors.boundary.transport.control import (
    Offer,
    Tag,
    decode_chunk,
    decode_offer,
    decode_resume,
    encode_chunk,
    encode_done,
    encode_fetch,
    encode_offer,
    encode_resume,
    require_done,
)
from executors.boundary.transport.frames import CHUNK_BYTES, Control, Frame
from executors.boundary.transport.inbox import Sink, Source
from executors.boundary.transport.reasons import Reason, RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The slowest transfer that is waited for: `min_bytes` in every `stall_s`."""

    stall_s: float = 30.0
    min_bytes: int = 4096

    def progress(self, awaited: str, what: str, end: Deadline | None) -> Progress:
        """The wait for a transfer at this pace."""
        return Progress(
            awaited=awaited,
            what=what,
            stall_s=self.stall_s,
            min_bytes=self.min_bytes,
            now_s=time.monotonic(),
            end=end,
        )


def send_payload(
    connection: Connection, tag: Tag, source: Source, *, pace: Pace, end: Deadline | None = None
) -> int:
    """Offer a payload and send what the receiver lacks; the number of payload bytes sent now.

    Raises:
        RefusedError: the receiver won't have it, naming the reason.
        BrokenError: try again over another connection.
        WaitEndedError: too slow, or past the end.
    """
    wait = pace.progress(connection.awaited, f"sending {tag}", end)
    offer = Offer(tag=tag, total_bytes=source.total_bytes, sha256=source.sha256)
    _say(connection, Control.OFFER, encode_offer(offer), wait)
    start = offset = decode_resume(_hear(connection, Control.RESUME, wait).body, offer)
    while offset < offer.total_bytes:
        piece = source.piece(offset, min(CHUNK_BYTES, offer.total_bytes - offset))
        _say(connection, Control.CHUNK, encode_chunk(offset, piece), wait)
        offset += len(piece)
        # A refusal need not wait until all is sent; after the last chunk the next word is due anyway.
        frame = connection.poll() if offset < offer.total_bytes else None
        if frame is not None:
            raise _unexpected(connection, frame)
    require_done(_hear(connection, Control.DONE, wait).body, offer)
    return offset - start


def receive_payload(
    connection: Connection,
    offer: Offer,
    open_sink: Callable[[Offer], Sink | None],
    *,
    pace: Pace,
    end: Deadline | None = None,
) -> int:
    """Answer an offer and take in what is missing; the number of payload bytes received now.

    `open_sink` gives the place for it, or None where it is all here already (it is confirmed again).

    Raises:
        RefusedError: as `open_sink` and the sink refuse; the caller tells the peer with `connection.refuse`.
        BrokenError, WaitEndedError: what came is kept by the sink.
    """
    wait = pace.progress(connection.awaited, f"receiving {offer.tag}", end)
    sink = open_sink(offer)
    start = offer.total_bytes if sink is None else sink.offset
    try:
        connection.send(Control.RESUME, encode_resume(offer.tag, start), wait)
        if sink is not None:
            _take_in(connection, offer, sink, wait)
        connection.send(Control.DONE, encode_done(offer.tag, offer.sha256), wait)
    finally:
        if sink is not None:
            sink.release()
    return offer.total_bytes - start


def fetch_payload(
    connection: Connection,
    tag: Tag,
    open_sink: Callable[[Offer], Sink | None],
    *,
    pace: Pace,
    end: Deadline | None = None,
) -> int:
    """Ask the peer for a payload and take it in; the number of payload bytes received now.

    Raises:
        As `receive_payload`.
    """
    wait = pace.progress(connection.awaited, f"fetching {tag}", end)
    _say(connection, Control.FETCH, encode_fetch(tag), wait)
    offer = decode_offer(_hear(connection, Control.OFFER, wait).body)
    if offer.tag != tag:
        raise RefusedError(
            Reason.UNEXPECTED_FRAME, f"asked for {tag}, {connection.awaited} offers {offer.tag}"
        )
    return receive_payload(connection, offer, open_sink, pace=pace, end=end)


def _take_in(connection: Connection, offer: Offer, sink: Sink, wait: Progress) -> None:
    while sink.offset < offer.total_bytes:
        offset, data = decode_chunk(_hear(connection, Control.CHUNK, wait).body)
        if offset != sink.offset:
            raise RefusedError(Reason.BAD_FRAME, f"a chunk at {offset:,}, the next byte is {sink.offset:,}")
        sink.write(data)
    sink.finish()


def _say(connection: Connection, kind: int, body: bytes, wait: Progress) -> None:
    try:
        connection.send(kind, body, wait)
    except BrokenError:
        # The peer may have said why before it closed.
        connection.poll()
        raise


def _hear(connection: Connection, kind: Control, wait: Progress) -> Frame:
    frame = connection.receive(wait)
    if frame.kind != kind:
        raise _unexpected(connection, frame)
    return frame


def _unexpected(connection: Connection, frame: Frame) -> RefusedError:
    return RefusedError(
        Reason.UNEXPECTED_FRAME, f"{connection.awaited} sent a frame of kind {frame.kind} out of turn"
    )
