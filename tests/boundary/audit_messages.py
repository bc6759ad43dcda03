"""One honest message of every kind, and the contract they go under."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import numpy as np

from boundary.audit_runs import contract_of_run, private_key
from policies.audit.messages import (
    Abort,
    Ack,
    Address,
    BoundaryDelta,
    BoundaryStatus,
    GlobalState,
    Join,
    Leave,
    Message,
    Reason,
    Signals,
    SyncDirective,
    WindowState,
)
from policies.audit.record import Channel, Kind
from policies.envelope import encode_header

CONTRACT = contract_of_run()
PAYLOAD = np.linspace(-1.0, 1.0, CONTRACT.num_values, dtype="<f4").tobytes()
PAYLOAD_SHA256 = hashlib.sha256(PAYLOAD).digest()

DELTA = BoundaryDelta(
    base_version=7,
    epoch=9,
    cohort_size=4,
    weight_sum=3.25,
    tokens_sum=49_152,
    clip_bound=8.0,
    scale=1.0,
    roster_root=hashlib.sha256(b"roster").digest(),
    manifest_sha256=CONTRACT.manifest_sha256,
    payload_bytes=CONTRACT.payload_bytes,
    payload_sha256=PAYLOAD_SHA256,
)
STATUS = BoundaryStatus(
    base_version=7,
    epoch=9,
    window_state=WindowState.OPEN,
    is_ready=1,
    signals=Signals.SQUARED_NORM | Signals.PROJECTION | Signals.STEP_S,
    squared_norm=0.5,
    projection=-0.25,
    queue_s=0.0,
    step_s=0.125,
)
STATE = GlobalState(
    base_version=8,
    manifest_sha256=CONTRACT.manifest_sha256,
    payload_bytes=CONTRACT.payload_bytes,
    payload_sha256=PAYLOAD_SHA256,
)
DIRECTIVE = SyncDirective(
    base_version=8, num_steps=30, window_deadline_s=2.5, clip_bound=8.0, outer_rate_id=3
)
MESSAGES: list[tuple[Message, Channel]] = [
    (DELTA, Channel.UP),
    (STATUS, Channel.UP),
    (STATE, Channel.DOWN),
    (DIRECTIVE, Channel.DOWN),
    (Join(base_version=0, reason=Reason.PLANNED), Channel.UP),
    (Leave(base_version=8, reason=Reason.DONE), Channel.DOWN),
    (Ack(acked_kind=Kind.BOUNDARY_DELTA, acked_sequence=4, reason=Reason.DONE), Channel.DOWN),
    (Abort(epoch=9, reason=Reason.COHORT_TOO_SMALL), Channel.UP),
]


def address(channel: Channel, sequence: int = 5, boundary_id: int = 1) -> Address:
    return Address(boundary_id=boundary_id, channel=channel, sequence=sequence)


def fuzzed_headers(draw: random.Random, count: int) -> Iterator[tuple[bytes, Channel]]:
    """Random bytes, and changed, cut, lengthened and spliced headers with their channel; none is honest."""
    senders = {Channel.UP: "clinic", Channel.DOWN: "coordinator"}
    honest = [
        (encode_header(message, address(way), CONTRACT, private_key(senders[way], "message")), way)
        for message, way in MESSAGES
    ]
    whole = {header for header, _ in honest}
    for number in range(count):
        header, way = draw.choice(honest)
        data = bytearray(header)
        match number % 5:
            case 0:
                data = bytearray(draw.randbytes(draw.randrange(400)))
            case 1:
                data[draw.randrange(len(data))] = draw.randrange(256)
            case 2:
                del data[draw.randrange(len(data)) :]
            case 3:
                data += draw.randbytes(draw.randrange(1, 40))
            case _:
                cut = draw.randrange(len(data))
                data[cut:] = draw.choice(honest)[0][cut:]
        if bytes(data) not in whole:
            yield bytes(data), way
