"""The same transfers over bad links, and under the eyes of a recorder that counts for itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from boundary.net_cases import (
    AGGREGATOR,
    ECHO,
    MEMBER,
    PACE,
    caller,
    credentials,
    end_in,
    payload,
    pki,
    serving,
)
from boundary.net_forwarder import Wan, forwarding
from boundary.net_recorder import recording
from executors.boundary.transport.control import Tag
from executors.boundary.transport.frames import CHUNK_BYTES, Control, Frame, FrameReader, wire_bytes
from executors.boundary.transport.inbox import BufferSource
from executors.boundary.transport.server import Limits
from executors.boundary.transport.transfer import send_payload

pytestmark = pytest.mark.net

LINKS = {
    "200 ms": Wan(delay_s=0.1),
    "4 MB/s": Wan(rate_bytes_per_s=4e6),
    "20 % loss": Wan(loss_frac=0.2, delay_s=0.01, seed=3),
    "200 ms, 20 % loss, 8 MB/s, cut": Wan(
        delay_s=0.1, rate_bytes_per_s=8e6, loss_frac=0.2, cuts=[12_000], seed=4
    ),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_payload_arrives_over_a_bad_link(link: str, tmp_path: Path) -> None:
    data = payload(30_000 if "loss" in link else 2 * CHUNK_BYTES)
    wan = LINKS[link]
    with (
        serving(tmp_path, expect=lambda sender, tag: len(data)) as (server, desk),
        forwarding(server.port, wan) as port,
    ):
        caller(port).upload(Tag(0, 0), BufferSource(data), end=end_in(120, str(AGGREGATOR)))
        path = desk.inbox.payload(MEMBER, Tag(0, 0))
    assert path is not None
    assert path.read_bytes() == data


@pytest.mark.parametrize("num_bytes", [0, 1000, 3 * CHUNK_BYTES + 17])
def test_a_recorder_counts_what_the_connection_counts(num_bytes: int, tmp_path: Path) -> None:
    """Plaintext to the byte; the TCP stream too, by the declared formula of frames, on both sides."""
    data = payload(num_bytes)
    with (
        serving(tmp_path / "in", expect=lambda sender, tag: num_bytes, limits=Limits(heartbeat_s=0.02)) as (
            server,
            desk,
        ),
        recording(
            listener_tls=credentials(AGGREGATOR).tls_file,
            dialler_tls=credentials(MEMBER).tls_file,
            roots=pki() / "trust",
            target_port=server.port,
            output=tmp_path / "record",
        ) as recorder,
    ):
        connection = caller(recorder.port).connect()
        for length in (0, 1, 16_376, 16_377, 100_000):
            connection.send(ECHO, bytes(length), end_in(5))
            assert len(connection.receive(end_in(5)).body) == length
        send_payload(connection, Tag(0, 0), BufferSource(data), pace=PACE)
        connection.close()
        counted = recorder.finish()
        client = connection.counts()
    ours = desk.connections[0].counts()
    up, down = (tmp_path / "record.up").read_bytes(), (tmp_path / "record.down").read_bytes()
    assert client.plain_out_bytes == counted["up"] == len(up) == ours.plain_in_bytes
    assert ours.plain_out_bytes == counted["down"] == len(down)
    assert client.wire_out_bytes == counted["caller_wire_in"] == client.declared_out_bytes
    assert ours.wire_out_bytes == counted["server_wire_in"] == ours.declared_out_bytes
    assert client.wire_in_bytes <= counted["caller_wire_out"]
    assert data in b"".join(chunks_of(up))
    for sent, counts in ((up, client), (down, ours)):
        framed = sum(wire_bytes(8 + len(frame.body)) for frame in frames_of(sent))
        assert counts.wire_out_bytes == counts.handshake_out_bytes + framed + 24
        assert counts.frames_out == len(frames_of(sent))


def frames_of(stream: bytes) -> list[Frame]:
    reader, found = FrameReader({ECHO: 100_000}), []
    reader.feed(stream)
    while (frame := reader.next_frame()) is not None:
        found.append(frame)
    assert reader.num_buffered_bytes == 0
    return found


def chunks_of(stream: bytes) -> list[bytes]:
    return [frame.body[8:] for frame in frames_of(stream) if frame.kind == Control.CHUNK]
