"""Payloads arrive whole, whatever the connection does; what can't be right is refused by name."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from pathlib import Path

import pytest

from boundary.net_cases import AGGREGATOR, MEMBER, PACE, caller, end_in, payload, serving
from boundary.net_forwarder import Wan, forwarding
from executors.boundary.deadlines import WaitEndedError
from executors.boundary.transport.control import Offer, Tag, encode_chunk, encode_offer
from executors.boundary.transport.frames import CHUNK_BYTES, Control, wire_bytes
from executors.boundary.transport.inbox import BufferSink, BufferSource, FileSource, Inbox
from executors.boundary.transport.reasons import RefusedError
from executors.boundary.transport.transfer import send_payload

pytestmark = pytest.mark.net

TAG = Tag(7, 1)
NUM_CHUNKS = 4
CHUNK_WIRE_BYTES = wire_bytes(8 + 8 + CHUNK_BYTES)
DATA = payload(NUM_CHUNKS * CHUNK_BYTES - 1000)
OFFER = Offer(tag=TAG, total_bytes=len(DATA), sha256=hashlib.sha256(DATA).digest())


def before_chunks_bytes(port: int) -> int:
    """Bytes in the stream before the first chunk."""
    connection = caller(port).connect()
    so_far_bytes = connection.counts().wire_out_bytes
    connection.close()
    return so_far_bytes + wire_bytes(8 + 52)


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_payload_of_any_size_arrives_once(num_bytes: int, tmp_path: Path) -> None:
    data = payload(num_bytes)
    with serving(tmp_path, expect=lambda sender, tag: num_bytes) as (server, desk):
        for expected in (num_bytes, 0):
            sent = caller(server.port).upload(TAG, BufferSource(data), end=end_in(20))
            assert sent == expected, "the second time it is there already"
        path = desk.inbox.payload(MEMBER, TAG)
    assert path is not None
    assert path.read_bytes() == data


def test_an_upload_goes_on_from_every_chunk_and_around_it(tmp_path: Path) -> None:
    """One connection ends on the first bytes of a chunk, on its last, or amid it; the next one goes on."""
    places = [(chunk, shift) for chunk in range(NUM_CHUNKS) for shift in (-2, 0, 2, CHUNK_WIRE_BYTES // 2)]
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        for epoch, (chunk, shift) in enumerate(places):
            wan = Wan(cuts=[before_chunks_bytes(server.port) + chunk * CHUNK_WIRE_BYTES + shift])
            with forwarding(server.port, wan) as port:
                caller(port).upload(Tag(epoch, 0), BufferSource(DATA), end=end_in(20))
            path = desk.inbox.payload(MEMBER, Tag(epoch, 0))
            assert path is not None
            assert path.read_bytes() == DATA
            assert wan.num_connections == 2
            num_kept = chunk - (shift < 0)
            assert desk.num_received_bytes[-1] == len(DATA) - max(0, num_kept) * CHUNK_BYTES


def test_transfers_survive_cuts_anywhere(tmp_path: Path) -> None:
    chance = random.Random(5)
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        desk.offered[TAG] = DATA
        for epoch in range(8):
            cuts = [chance.choice((chance.randrange(1, 3000), chance.randrange(len(DATA)))) for _ in range(4)]
            with forwarding(server.port, Wan(cuts=cuts)) as port:
                caller(port).upload(Tag(epoch, 0), BufferSource(DATA), end=end_in(20))
            path = desk.inbox.payload(MEMBER, Tag(epoch, 0))
            assert path is not None
            assert path.read_bytes() == DATA, cuts


def test_a_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    received = bytearray(len(DATA))
    sink = BufferSink(received)

    def open_sink(offer: Offer) -> BufferSink:
        sink.begin(offer)
        return sink

    with serving(tmp_path) as (server, desk):
        desk.offered[TAG] = DATA
        with forwarding(server.port, Wan(down_cuts=[700_000, 300_000, 2000])) as port:
            last = caller(port).download(TAG, open_sink, end=end_in(20))
    assert bytes(received) == DATA
    assert last < len(DATA)


def test_an_inbox_goes_on_after_its_process_died(tmp_path: Path) -> None:
    first = Inbox(tmp_path, lambda sender, tag: len(DATA))
    sink = first.open(MEMBER, OFFER)
    assert sink is not None
    sink.write(memoryview(DATA)[:100_000])
    sink.release()
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        sent = caller(server.port).upload(TAG, BufferSource(DATA), end=end_in(20))
        assert sent == len(DATA) - 100_000
        path = desk.inbox.payload(MEMBER, TAG)
    assert path is not None
    assert path.read_bytes() == DATA


def test_a_spoilt_part_is_found_out_and_sent_anew(tmp_path: Path) -> None:
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        sink = desk.inbox.open(MEMBER, OFFER)
        assert sink is not None
        sink.write(memoryview(bytes(5000)))
        sink.release()
        with pytest.raises(RefusedError) as refused:
            caller(server.port).upload(TAG, BufferSource(DATA), end=end_in(20))
        assert refused.value.code == "refused-wrong-digest"
        assert caller(server.port).upload(TAG, BufferSource(DATA), end=end_in(20)) == len(DATA)


def test_memory_stays_constant(tmp_path: Path) -> None:
    path = tmp_path / "large"
    num_bytes = 24_000_000
    path.write_bytes(payload(num_bytes))
    with serving(tmp_path / "in", expect=lambda sender, tag: num_bytes) as (server, _):
        source = FileSource(path)
        tracemalloc.start()
        try:
            caller(server.port).upload(TAG, source, end=end_in(20))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            source.close()
    assert peak_bytes < 6_000_000, "both sides together"


def test_what_is_not_right_is_refused_by_name(tmp_path: Path) -> None:
    def expect(sender: object, tag: Tag) -> int | None:
        return 1000 if tag.item == 0 else None

    with serving(tmp_path, expect=expect) as (server, desk):
        client = caller(server.port)
        client.upload(Tag(1, 0), BufferSource(bytes(1000)), end=end_in(10))
        for tag, data, code in (
            (Tag(1, 5), bytes(1000), "refused-not-expected"),
            (Tag(2, 0), bytes(1001), "refused-too-large"),
            (Tag(2, 0), bytes(999), "refused-not-expected"),
            (Tag(1, 0), b"x" * 1000, "refused-content-changed"),
        ):
            with pytest.raises(RefusedError) as refused:
                client.upload(tag, BufferSource(data), end=end_in(10))
            assert refused.value.code == code
            assert refused.value.by_peer
            assert str(AGGREGATOR) in refused.value.message
            desk.wait_for_fault(code)


@pytest.mark.parametrize("offset", [1, CHUNK_BYTES, 2**63])
def test_a_chunk_out_of_place_is_refused(offset: int, tmp_path: Path) -> None:
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        connection = caller(server.port).connect()
        connection.send(Control.OFFER, encode_offer(OFFER), end_in(5))
        connection.send(Control.CHUNK, encode_chunk(offset, b"x"), end_in(5))
        desk.wait_for_fault("refused-bad-frame")
        connection.abandon()


def test_a_newer_connection_takes_a_transfer_over(tmp_path: Path) -> None:
    with serving(tmp_path, expect=lambda sender, tag: len(DATA)) as (server, desk):
        stuck = caller(server.port).connect()
        stuck.send(Control.OFFER, encode_offer(OFFER), end_in(5))
        assert stuck.receive(end_in(5)).kind == Control.RESUME
        stuck.send(Control.CHUNK, encode_chunk(0, DATA[:1000]), end_in(5))
        caller(server.port).upload(TAG, BufferSource(DATA), end=end_in(20))
        stuck.send(Control.CHUNK, encode_chunk(1000, DATA[1000:2000]), end_in(5))
        desk.wait_for_fault("refused-superseded")
        path = desk.inbox.payload(MEMBER, TAG)
        assert path is not None
        assert path.read_bytes() == DATA
        stuck.abandon()


def test_what_is_not_ready_is_asked_for_again_until_the_end(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        with pytest.raises(WaitEndedError) as ended:
            caller(server.port).download(TAG, lambda offer: None, end=end_in(0.3, str(AGGREGATOR)))
        assert ended.value.code == "deadline-passed"
        assert "not-ready" in ended.value.message
        assert ended.value.awaited == str(AGGREGATOR)


def test_many_transfers_share_one_connection(tmp_path: Path) -> None:
    with serving(tmp_path, expect=lambda sender, tag: 3000) as (server, desk):
        connection = caller(server.port).connect()
        for epoch in range(20):
            assert send_payload(connection, Tag(epoch, 0), BufferSource(bytes(3000)), pace=PACE) == 3000
        connection.close()
        assert all(desk.inbox.payload(MEMBER, Tag(epoch, 0)) for epoch in range(20))
