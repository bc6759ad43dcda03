"""Only what the contract lists can be encoded or decoded, and nothing else, bit by bit."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.audit_messages import (
    CONTRACT,
    DELTA,
    DIRECTIVE,
    MESSAGES,
    PAYLOAD,
    STATE,
    STATUS,
    address,
    fuzzed_headers,
)
from boundary.audit_runs import private_key, public_key
from policies.audit import keys
from policies.audit.messages import (
    Abort,
    Ack,
    BoundaryDelta,
    BoundaryStatus,
    Join,
    Leave,
    Message,
    Reason,
)
from policies.audit.record import Channel, Kind, RecordType, decode_record, encode_record
from policies.contract import KIND_RULES
from policies.envelope import (
    COMMON_BYTES,
    DOMAIN,
    EnvelopeRefusedError,
    Refusal,
    decode_header,
    encode_header,
    header_bytes_of,
    record_of,
    require_payload,
)

KEYS = {Channel.UP: private_key("clinic", "message"), Channel.DOWN: private_key("coordinator", "message")}
PUBLIC = {Channel.UP: public_key("clinic", "message"), Channel.DOWN: public_key("coordinator", "message")}
CASES = pytest.mark.parametrize(("message", "channel"), MESSAGES, ids=[type(m).__name__ for m, _ in MESSAGES])


def encoded(message: Message, channel: Channel) -> bytes:
    return encode_header(message, address(channel), CONTRACT, KEYS[channel])


def decoded(header: bytes, channel: Channel) -> Message:
    return decode_header(header, CONTRACT, PUBLIC[channel], boundary_id=1, channel=channel)[0]


def signed_anew(header: bytes, channel: Channel, position: int, value: bytes) -> bytes:
    """The header with other bytes at `position`, signed again by its sender: a lying sender's message."""
    content = header[:position] + value + header[position + len(value) : -keys.SIGNATURE_BYTES]
    return content + keys.sign(KEYS[channel], DOMAIN, content)


def refusal_of(header: bytes, channel: Channel) -> Refusal:
    with pytest.raises(EnvelopeRefusedError) as refused:
        decoded(header, channel)
    return refused.value.reason


@CASES
def test_what_goes_in_comes_out(message: Message, channel: Channel) -> None:
    header = encoded(message, channel)
    kind = {rule.kind for rule in KIND_RULES.values() if rule.header_bytes == len(header)}
    assert Kind(header[1]) in kind
    found, where = decode_header(header, CONTRACT, PUBLIC[channel], boundary_id=1, channel=channel)
    assert (found, where) == (message, address(channel))
    assert header_bytes_of(header[:2]) == len(header)


@CASES
def test_every_single_bit_change_is_refused(message: Message, channel: Channel) -> None:
    header = encoded(message, channel)
    for bit in range(8 * len(header)):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeRefusedError):
            decoded(bytes(changed), channel)


@CASES
def test_shorter_longer_and_smuggled_headers_are_refused(message: Message, channel: Channel) -> None:
    header = encoded(message, channel)
    for wrong in (header[:-1], header + b"\0", b"", header[:1], header[:2]):
        assert refusal_of(wrong, channel) is Refusal.LENGTH
    longer = header[: -keys.SIGNATURE_BYTES] + b"participant-7"
    assert refusal_of(longer + keys.sign(KEYS[channel], DOMAIN, longer), channel) is Refusal.LENGTH


@CASES
def test_messages_of_other_senders_ways_and_contracts_are_refused(message: Message, channel: Channel) -> None:
    header = encoded(message, channel)
    other_way = Channel.UP if channel is Channel.DOWN else Channel.DOWN
    with pytest.raises(EnvelopeRefusedError) as refused:
        decode_header(header, CONTRACT, PUBLIC[channel], boundary_id=2, channel=channel)
    assert refused.value.reason is Refusal.SENDER
    with pytest.raises(EnvelopeRefusedError) as refused:
        decode_header(header, CONTRACT, PUBLIC[channel], boundary_id=1, channel=other_way)
    assert refused.value.reason is Refusal.SENDER
    with pytest.raises(EnvelopeRefusedError) as refused:
        decode_header(header, CONTRACT, PUBLIC[other_way], boundary_id=1, channel=channel)
    assert refused.value.reason is Refusal.SENDER
    other = replace(CONTRACT, num_values=CONTRACT.num_values + 1)
    with pytest.raises(EnvelopeRefusedError) as refused:
        decode_header(header, other, PUBLIC[channel], boundary_id=1, channel=channel)
    assert refused.value.reason is Refusal.CONTRACT


def test_kinds_and_channels_outside_the_list_do_not_exist() -> None:
    header = encoded(DELTA, Channel.UP)
    assert refusal_of(signed_anew(header, Channel.UP, 1, b"\x09"), Channel.UP) is Refusal.KIND
    assert refusal_of(signed_anew(header, Channel.UP, 1, b"\x00"), Channel.UP) is Refusal.KIND
    assert refusal_of(signed_anew(header, Channel.UP, 0, b"\x02"), Channel.UP) is Refusal.VERSION
    assert refusal_of(signed_anew(header, Channel.UP, 2, b"\x07"), Channel.UP) is Refusal.CHANNEL
    assert refusal_of(signed_anew(header, Channel.UP, 2, b"\x02"), Channel.UP) is Refusal.CHANNEL
    with pytest.raises(EnvelopeRefusedError, match="does not go down"):
        encode_header(DELTA, address(Channel.DOWN), CONTRACT, KEYS[Channel.DOWN])
    with pytest.raises(EnvelopeRefusedError, match="not in the contract"):
        encode_header(DELTA, address(Channel.UP, boundary_id=3), CONTRACT, KEYS[Channel.UP])


LIES: list[tuple[Message, Channel, dict[str, Any], Refusal]] = [
    (DELTA, Channel.UP, {"cohort_size": 1}, Refusal.COHORT),
    (DELTA, Channel.UP, {"cohort_size": 2}, Refusal.COHORT),
    (DELTA, Channel.UP, {"manifest_sha256": bytes(32)}, Refusal.MANIFEST),
    (DELTA, Channel.UP, {"payload_bytes": 4004}, Refusal.PAYLOAD),
    (DELTA, Channel.UP, {"weight_sum": math.nan}, Refusal.FIELD),
    (DELTA, Channel.UP, {"weight_sum": math.inf}, Refusal.FIELD),
    (DELTA, Channel.UP, {"weight_sum": 0.0}, Refusal.FIELD),
    (DELTA, Channel.UP, {"clip_bound": -0.0}, Refusal.FIELD),
    (DELTA, Channel.UP, {"clip_bound": -1.0}, Refusal.FIELD),
    (DELTA, Channel.UP, {"roster_root": bytes(32)}, Refusal.FIELD),
    (STATUS, Channel.UP, {"window_state": 9}, Refusal.FIELD),
    (STATUS, Channel.UP, {"is_ready": 2}, Refusal.FIELD),
    (STATUS, Channel.UP, {"signals": 16}, Refusal.FIELD),
    (STATUS, Channel.UP, {"queue_s": 1.0}, Refusal.FIELD),
    (STATUS, Channel.UP, {"projection": math.nan}, Refusal.FIELD),
    (STATUS, Channel.UP, {"projection": -0.0}, Refusal.FIELD),
    (STATE, Channel.DOWN, {"manifest_sha256": bytes(32)}, Refusal.MANIFEST),
    (STATE, Channel.DOWN, {"payload_bytes": 0}, Refusal.PAYLOAD),
    (DIRECTIVE, Channel.DOWN, {"num_steps": 0}, Refusal.FIELD),
    (DIRECTIVE, Channel.DOWN, {"outer_rate_id": 4}, Refusal.FIELD),
    (DIRECTIVE, Channel.DOWN, {"window_deadline_s": math.inf}, Refusal.FIELD),
    (MESSAGES[6][0], Channel.DOWN, {"acked_kind": 12}, Refusal.FIELD),
    (MESSAGES[7][0], Channel.UP, {"reason": 0}, Refusal.FIELD),
]


@pytest.mark.parametrize(("message", "channel", "change", "reason"), LIES)
def test_encoding_and_decoding_refuse_the_same(
    message: Message, channel: Channel, change: dict[str, Any], reason: Refusal
) -> None:
    lie = replace(message, **change)
    with pytest.raises(EnvelopeRefusedError) as refused:
        encoded(lie, channel)
    assert refused.value.reason is reason
    # A sender whose encoder has been tampered with: the field's bytes, signed with the right key.
    from policies.envelope import _LAYOUTS  # the widths, to forge with

    fields = _LAYOUTS[type(message)].fields_of.pack(
        *(getattr(lie, name) for name in lie.__dataclass_fields__)
    )
    forged = signed_anew(encoded(message, channel), channel, COMMON_BYTES, fields)
    assert refusal_of(forged, channel) is reason


@pytest.mark.parametrize(
    "change", [{"base_version": -1}, {"base_version": 2**64}, {"cohort_size": "4"}, {"roster_root": b"short"}]
)
def test_values_that_do_not_fit_their_width_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeRefusedError) as refused:
        encoded(replace(DELTA, **change), Channel.UP)
    assert refused.value.reason is Refusal.FIELD


def test_a_payload_is_the_announced_one_or_refused() -> None:
    for message in (DELTA, STATE):
        require_payload(message, PAYLOAD, CONTRACT)
        require_payload(message, memoryview(bytearray(PAYLOAD)), CONTRACT)
        for wrong in (PAYLOAD[:-4], PAYLOAD + bytes(4), b"", bytes([PAYLOAD[0] ^ 1]) + PAYLOAD[1:]):
            with pytest.raises(EnvelopeRefusedError) as refused:
                require_payload(message, wrong, CONTRACT)
            assert refused.value.reason is Refusal.PAYLOAD
    require_payload(STATUS, b"", CONTRACT)
    with pytest.raises(EnvelopeRefusedError, match="without payload"):
        require_payload(STATUS, b"x", CONTRACT)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_cross(value: float) -> None:
    values = np.frombuffer(PAYLOAD, dtype="<f4").copy()
    values[617] = value
    digest = hashlib.sha256(values.tobytes()).digest()
    with pytest.raises(EnvelopeRefusedError, match="not finite"):
        require_payload(replace(DELTA, payload_sha256=digest), values.tobytes(), CONTRACT)


@CASES
def test_both_logs_keep_the_same_of_a_message(message: Message, channel: Channel) -> None:
    header = encoded(message, channel)
    at_boundary, at_coordinator = (
        record_of(message, address(channel), header, CONTRACT, owner_id=owner) for owner in (1, 0)
    )
    assert encode_record(at_boundary)[6:240] == encode_record(at_coordinator)[6:240]
    sender = at_boundary if channel is Channel.UP else at_coordinator
    assert (sender.type, sender.signer) == (RecordType.SENT, keys.key_id(PUBLIC[channel]))
    assert decode_record(encode_record(at_boundary)) == at_boundary
    assert at_boundary.participant_payload_bytes == 0
    assert at_boundary.payload_bytes == getattr(message, "payload_bytes", 0)


def test_no_field_of_any_message_can_hold_text_or_name_a_participant() -> None:
    types: tuple[Any, ...] = (
        BoundaryDelta,
        BoundaryStatus,
        type(STATE),
        type(DIRECTIVE),
        Join,
        Leave,
        Ack,
        Abort,
    )
    for kind in types:
        for name, field in kind.__dataclass_fields__.items():
            assert field.type != "str"
            assert not any(word in name for word in ("participant", "device", "host", "name", "text"))
            assert field.type != "bytes" or name.endswith(("_sha256", "_root"))


def test_no_fuzzed_header_is_taken_or_breaks_the_decoder() -> None:
    for data, channel in fuzzed_headers(random.Random(11), 5000):
        with pytest.raises(EnvelopeRefusedError):
            decoded(data, channel)


@given(st.binary(max_size=120), st.sampled_from([channel for _, channel in MESSAGES]))
def test_no_signed_nonsense_is_taken_unless_it_means_something(fields: bytes, channel: Channel) -> None:
    """Fields of arbitrary bytes, rightly signed: refused, or exactly what encoding gives."""
    for message, way in MESSAGES:
        if way is not channel:
            continue
        header = encoded(message, channel)
        width = len(header) - COMMON_BYTES - keys.SIGNATURE_BYTES
        forged = signed_anew(header, channel, COMMON_BYTES, fields[:width])
        try:
            found = decoded(forged, channel)
        except EnvelopeRefusedError:
            continue
        assert encoded(found, channel) == forged


def test_reasons_are_a_closed_list() -> None:
    for reason in Reason:
        assert decoded(encoded(Abort(epoch=1, reason=reason), Channel.UP), Channel.UP) == Abort(
            epoch=1, reason=reason
        )
