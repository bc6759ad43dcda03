"""The audit inside the boundary: the released sum recomputed from what the survivors signed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from executors.boundary.secagg.consensus import Seen, check_consents, check_survivors, member_frame
from executors.boundary.secagg.frames import Kind
from executors.boundary.secagg.graph import Graph
from executors.boundary.secagg.masks import apply_streams, from_bytes_view, to_bytes_view, zeros
from executors.boundary.secagg.messages import (
    Secret,
    dealers_digest,
    pack_consents,
    unpack_survivors,
    view_digest,
)
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.recovery import is_secret_of, leftover_streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A window as it ended, without the vectors.

    Attributes:
        survivors_body: survivors with the digests and signatures of their vectors.
        consents: seats and signatures of those that agreed to it.
        secrets: opened secret by dealer: self seeds of survivors, mask keys of the others.
    """

    seen: Seen
    graph: Graph
    survivors_body: bytes
    consents: tuple[tuple[int, bytes], ...]
    secrets: Mapping[int, bytes]


def verify_sum(transcript: Transcript, sum_digest: bytes, read_masked: Callable[[int], memoryview]) -> None:
    """Nothing, where the released sum is that of the survivors' signed vectors, less the opened masks.

    Args:
        transcript: the window as it ended.
        sum_digest: SHA-256 of the released ring elements, extra coordinates included.
        read_masked: the kept masked bytes of a seat.

    Raises:
        RefusedError: SUM_ALTERED, DIGEST_MISMATCH, NO_QUORUM, SIGNATURE_INVALID or DEALER_INCONSISTENT.
    """
    seen = transcript.seen
    survivors = unpack_survivors(memoryview(transcript.survivors_body), len(seen.roster.members))
    check_survivors(survivors, seen)
    view = view_digest(dealers_digest(seen.dealers), transcript.survivors_body)
    consents = member_frame(
        Kind.CONSENTS, seat=0, seen=seen, body=pack_consents(transcript.consents), signature=bytes(64)
    )
    check_consents(consents, seen, view)
    present = frozenset(survivor.seat for survivor in survivors)
    _check_secrets(transcript, present)
    total_N = zeros(seen.descriptor)
    for survivor in survivors:
        data = read_masked(survivor.seat)
        if sha256(data).digest() != survivor.digest:
            name = seen.roster.members[survivor.seat].name
            raise RefusedError(Reason.DIGEST_MISMATCH, f"the kept vector of {name} is not the one it signed")
        vector_N = from_bytes_view(data, seen.descriptor.ring_bits)
        np.add(total_N, vector_N, out=total_N)
    streams = leftover_streams(
        roster=seen.roster,
        graph=transcript.graph,
        scope=seen.scope,
        dealers=seen.dealers,
        survivors=present,
        secrets=transcript.secrets,
    )
    apply_streams(total_N, streams)
    if sha256(to_bytes_view(total_N)).digest() != sum_digest:
        raise RefusedError(
            Reason.SUM_ALTERED, "the released sum is not that of the vectors its cohort signed"
        )


def _check_secrets(transcript: Transcript, present: frozenset[int]) -> None:
    roster, scope = transcript.seen.roster, transcript.seen.scope
    for seat in sorted(transcript.seen.dealers):
        kind = Secret.SELF_SEED if seat in present else Secret.MASK_KEY
        secret = transcript.secrets.get(seat)
        if secret is None or not is_secret_of(secret, roster=roster, seat=seat, kind=kind, scope=scope):
            raise RefusedError(
                Reason.DEALER_INCONSISTENT, f"the opened secret of {roster.members[seat].name} is wrong"
            )
