"""Frames and the transport's own messages: what is sent is read, in any pieces; anything else is refused."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.boundary.transport.control import (
    Offer,
    Tag,
    decode_chunk,
    decode_fetch,
    decode_offer,
    decode_refused,
    decode_resume,
    decode_welcome,
    encode_chunk,
    encode_done,
    encode_fetch,
    encode_hello,
    encode_offer,
    encode_refused,
    encode_resume,
    encode_welcome,
    require_done,
    require_hello,
)
from executors.boundary.transport.frames import (
    CHUNK_BYTES,
    CONTROL_BYTES,
    HEADER,
    Control,
    Frame,
    FrameReader,
    encode_frame,
    num_records,
    plain_bytes,
    wire_bytes,
)
from executors.boundary.transport.reasons import Reason, RefusedError

LIMITS = {32: 0, 33: 17, 255: 5000}
REFUSALS = {Reason.WRONG_VERSION, Reason.BAD_FRAME, Reason.UNEXPECTED_FRAME, Reason.TOO_LARGE}


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(sorted(LIMITS)))
    return Frame(kind, draw(st.binary(max_size=min(LIMITS[kind], 200))))


@given(sent=st.lists(frames(), max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_frames_are_read_in_whatever_pieces_they_come(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(frame.kind, frame.body) for frame in sent)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader, read = FrameReader(LIMITS), []
    for start, end in pairwise(edges):
        reader.feed(stream[start:end])
        while (frame := reader.next_frame()) is not None:
            read.append(frame)
    assert read == sent
    assert reader.num_buffered_bytes == 0


@pytest.mark.parametrize("kind", sorted(LIMITS))
def test_a_limit_holds_exactly(kind: int) -> None:
    reader = FrameReader(LIMITS)
    reader.feed(encode_frame(kind, bytes(LIMITS[kind])))
    assert reader.next_frame() == Frame(kind, bytes(LIMITS[kind]))
    reader.feed(HEADER.pack(1, kind, 0, LIMITS[kind] + 1))
    with pytest.raises(RefusedError) as refused:
        reader.next_frame()
    assert refused.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("kind", sorted(Control))
def test_the_transports_own_frames_have_fixed_sizes(kind: Control) -> None:
    least, most = CONTROL_BYTES[kind]
    for num_bytes, is_good in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
        if num_bytes < 0:
            continue
        reader = FrameReader({})
        reader.feed(encode_frame(kind, bytes(num_bytes)))
        if is_good:
            assert reader.next_frame() == Frame(kind, bytes(num_bytes))
        else:
            with pytest.raises(RefusedError):
                reader.next_frame()


def test_callers_can_not_take_the_transports_kinds() -> None:
    for kind in (0, 1, 31, 256):
        with pytest.raises(ValueError, match="32 to 255"):
            FrameReader({kind: 10})


def mutated(chance: random.Random, stream: bytes) -> bytes:
    """The stream with a few changes: bits, cuts, insertions, repeats."""
    data = bytearray(stream)
    for _ in range(chance.randrange(1, 4)):
        at, what = chance.randrange(len(data) + 1), chance.randrange(4)
        if what == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del data[at : at + chance.randrange(1, 20)]
        elif what == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 20))
        else:
            data[at:at] = data[at : at + chance.randrange(40)]
    return bytes(data)


def fuzz(num_inputs: int, seed: int) -> tuple[int, int]:
    """Feed mutated streams; how many were refused, and the most bytes held beyond what was fed."""
    chance = random.Random(seed)
    good = [
        encode_frame(33, chance.randbytes(17)),
        encode_frame(Control.RESUME, bytes(20)),
        encode_frame(32, b""),
    ]
    num_refused = most_held_bytes = 0
    for _ in range(num_inputs):
        stream = mutated(chance, b"".join(chance.sample(good, 3)))
        reader = FrameReader(LIMITS)
        try:
            reader.feed(stream)
            while (frame := reader.next_frame()) is not None:
                assert frame.kind in LIMITS or frame.kind in CONTROL_BYTES
                assert len(frame.body) <= LIMITS.get(frame.kind, 8 + CHUNK_BYTES)
        except RefusedError as error:
            num_refused += error.reason in REFUSALS
        most_held_bytes = max(most_held_bytes, reader.num_buffered_bytes - len(stream))
    return num_refused, most_held_bytes


def test_mutated_streams_are_read_or_refused() -> None:
    num_refused, most_held_bytes = fuzz(20_000, seed=1)
    assert num_refused > 5000
    assert most_held_bytes <= 0


@settings(max_examples=50)
@given(
    epoch=st.integers(0, 2**64 - 1),
    item=st.integers(0, 2**32 - 1),
    total=st.integers(0, 2**64 - 1),
    sha256=st.binary(min_size=32, max_size=32),
    data=st.binary(min_size=1, max_size=100),
)
def test_messages_read_as_written(epoch: int, item: int, total: int, sha256: bytes, data: bytes) -> None:
    tag = Tag(epoch, item)
    offer = Offer(tag=tag, total_bytes=total, sha256=sha256)
    assert decode_offer(encode_offer(offer)) == offer
    assert decode_resume(encode_resume(tag, total), offer) == total
    assert decode_fetch(encode_fetch(tag)) == tag
    offset, read = decode_chunk(encode_chunk(total, data))
    assert (offset, bytes(read)) == (total, data)
    require_done(encode_done(tag, sha256), offer)
    bodies = {
        Control.OFFER: encode_offer(offer),
        Control.RESUME: encode_resume(tag, total),
        Control.FETCH: encode_fetch(tag),
        Control.DONE: encode_done(tag, sha256),
        Control.HELLO: encode_hello(),
        Control.WELCOME: encode_welcome(1.5),
        Control.REFUSED: encode_refused(Reason.REVOKED),
        Control.HEARTBEAT: b"",
        Control.GOODBYE: b"",
        Control.CHUNK: encode_chunk(0, bytes(CHUNK_BYTES)),
    }
    assert set(bodies) == set(Control)
    assert all(len(body) in range(CONTROL_BYTES[k][0], CONTROL_BYTES[k][1] + 1) for k, body in bodies.items())


def test_messages_that_contradict_are_refused() -> None:
    offer = Offer(tag=Tag(1, 2), total_bytes=10, sha256=bytes(32))
    for body in (encode_resume(Tag(1, 3), 0), encode_resume(Tag(1, 2), 11)):
        with pytest.raises(RefusedError, match="never offered"):
            decode_resume(body, offer)
    with pytest.raises(RefusedError):
        require_done(encode_done(Tag(1, 2), b"x" * 32), offer)
    with pytest.raises(RefusedError):
        require_hello(b"\x00\x02")
    assert decode_welcome(encode_welcome(0.25)) == 0.25
    assert decode_refused(b"\xff\xff") is Reason.INTERNAL
    assert all(decode_refused(encode_refused(reason)) is reason for reason in Reason)


def test_the_overhead_is_as_declared() -> None:
    assert plain_bytes(100) == 108
    assert (num_records(1), num_records(16_384), num_records(16_385)) == (1, 1, 2)
    assert wire_bytes(16_385) == 16_385 + 44
    assert plain_bytes(8 + CHUNK_BYTES) == 16 * 16_384, "a full chunk fills its records"
