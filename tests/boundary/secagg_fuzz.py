"""Frames bent in every way, thrown at a decoder and at both state machines."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

from boundary.secagg_house import House, Run
from executors.boundary.secagg.descriptor import parse_descriptor
from executors.boundary.secagg.frames import HEADER, Kind, decode_frame
from executors.boundary.secagg.messages import (
    unpack_abort,
    unpack_consents,
    unpack_dealt,
    unpack_inbox,
    unpack_shares,
    unpack_survivors,
    unpack_upload,
)
from executors.boundary.secagg.reasons import RefusedError

UNPACK: dict[Kind, Any] = {
    Kind.DESCRIPTOR: parse_descriptor,
    Kind.SHARES: lambda body: unpack_dealt(body, 5),
    Kind.INBOX: lambda body: unpack_inbox(body, 5),
    Kind.UPLOAD: unpack_upload,
    Kind.SURVIVORS: lambda body: unpack_survivors(body, 5),
    Kind.CONSENTS: lambda body: unpack_consents(body, 5),
    Kind.REVEAL: lambda body: unpack_shares(body, 5),
    Kind.ABORT: unpack_abort,
}


def golden_frames() -> list[bytes]:
    """Every kind of frame of one window."""
    house = House(5)
    seen: list[bytes] = []

    def keep(_name: str, frame: bytes) -> bytes:
        seen.append(frame)
        return frame

    run = Run(house, change=keep)
    while not seen or run.aggregator.phase < 6:
        run.step()
        seen += [frame for _, frame in run.inbox]
    seen.append(run.aggregator._opening)
    return list({bytes(frame[6:7]) + bytes([frame[4]]): frame for frame in seen}.values())


def mutate(frame: bytes, rng: random.Random) -> bytes:
    """A frame with bits flipped, bytes cut or added, or its header's numbers set to extremes."""
    bent = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        how = rng.randrange(6)
        at = rng.randrange(len(bent)) if bent else 0
        if how == 0 and bent:
            bent[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del bent[at:]
        elif how == 2:
            bent += rng.randbytes(rng.choice((1, 4, 64, 500)))
        elif how == 3 and bent:
            bent[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f"))
        elif how == 4 and len(bent) >= HEADER.size:
            bent[4] = rng.randrange(256)
        elif len(bent) >= HEADER.size:
            bent[HEADER.size - 4 : HEADER.size] = (len(bent) - HEADER.size - 64).to_bytes(
                4, "little", signed=True
            )
    return bytes(bent)


def fuzz(num: int, seed: int) -> dict[str, int]:
    """How many of `num` bent frames were decoded or refused; anything else than these two is an error."""
    rng = random.Random(seed)
    frames = golden_frames()
    counts = {"decoded": 0, "refused": 0}
    tracemalloc.start()
    base_bytes = tracemalloc.get_traced_memory()[0]
    for _ in range(num):
        bent = mutate(rng.choice(frames), rng)
        try:
            frame = decode_frame(bent, max_members=64)
            UNPACK.get(frame.kind, bytes)(frame.body)
            counts["decoded"] += 1
        except RefusedError as error:
            counts["refused"] += 1
            error.__traceback__ = None
    peak_bytes = tracemalloc.get_traced_memory()[1] - base_bytes
    tracemalloc.stop()
    counts["peak_bytes"] = peak_bytes
    return counts
