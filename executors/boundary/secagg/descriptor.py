"""The window descriptor: everything about one window that all its members must see alike.

Its digest, the scope, stands in every later message, so a member that was shown another length, ring, clip
or cohort size than the rest understands none of their messages, nor they its.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from executors.boundary.secagg.frames import (
    AGGREGATOR,
    MAX_MEMBERS,
    NO_DIGEST,
    Frame,
    Kind,
    check_signature,
    decode_frame,
    encode_frame,
)
from executors.boundary.secagg.identity import Trust, decode_name, encode_name
from executors.boundary.secagg.reasons import Reason, RefusedError

FIELDS = struct.Struct("<32s32sQQQQBdddIIHHHdd")
HARD_MIN_COHORT = 3  # with two members each subtracts itself and sees the other
RINGS_BITS = (32, 64)
NUM_EXTRAS = 4  # weight sum, members clipped, coordinates clipped, squared norm
MAX_LENGTH = 1 << 40
_DOUBLE_BITS = 50  # value bits that double precision carries with room to round


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One window of one boundary.

    Attributes:
        epoch: number of the window; never used twice.
        base_first, base_last: model versions from which an update may start.
        length: coordinates of an update.
        ring_bits: sums are taken modulo 2^ring_bits.
        clip_l2, clip_linf: bounds on an update, applied in this order by the participant.
        weight_max: greatest weight times staleness factor that counts.
        max_members: most members the roster may have; the value bits follow from it.
        close_at_uploads: the upload closes at this many; 0 waits for all or for the deadline.
        min_cohort: fewest members whose sum may be released.
        corrupt_permille, drop_permille: what a sparse graph is laid out for.
        opened_s, deadline_s: seconds of a clock that all share; nothing is waited for beyond.
    """

    run: str
    boundary: str
    epoch: int
    base_first: int
    base_last: int
    length: int
    ring_bits: int = 32
    clip_l2: float
    clip_linf: float
    weight_max: float = 1.0
    max_members: int
    close_at_uploads: int = 0
    min_cohort: int = 5
    corrupt_permille: int = 100
    drop_permille: int = 100
    opened_s: float
    deadline_s: float

    @property
    def value_bits(self) -> int:
        """Bits of one member's magnitude, such that the sum over `max_members` can't leave the ring."""
        return min(self.ring_bits - 1 - (self.max_members - 1).bit_length(), _DOUBLE_BITS)

    @property
    def value_max(self) -> int:
        """Greatest magnitude of one member's coordinate, 2^value_bits - 1."""
        return (1 << self.value_bits) - 1

    @property
    def num_coordinates(self) -> int:
        """Coordinates of a masked vector: the update and the extra sums."""
        return self.length + NUM_EXTRAS

    @property
    def num_bytes(self) -> int:
        """Bytes of a masked vector."""
        return self.num_coordinates * self.ring_bits // 8

    def to_bytes(self) -> bytes:
        """The body of the DESCRIPTOR frame."""
        return FIELDS.pack(
            encode_name(self.run),
            encode_name(self.boundary),
            self.epoch,
            self.base_first,
            self.base_last,
            self.length,
            self.ring_bits,
            self.clip_l2,
            self.clip_linf,
            self.weight_max,
            self.max_members,
            self.close_at_uploads,
            self.min_cohort,
            self.corrupt_permille,
            self.drop_permille,
            self.opened_s,
            self.deadline_s,
        )


def parse_descriptor(body: bytes | memoryview) -> Descriptor:
    """The descriptor in a body, within the limits that hold for every window.

    Raises:
        RefusedError: RULES_VIOLATED, COHORT_TOO_SMALL or OVERFLOW_POSSIBLE.
    """
    run, boundary, *numbers = FIELDS.unpack(body)
    epoch, base_first, base_last, length, ring_bits, clip_l2, clip_linf, weight_max, *rest = numbers
    max_members, close_at_uploads, min_cohort, corrupt_permille, drop_permille, opened_s, deadline_s = rest
    descriptor = Descriptor(
        run=decode_name(run),
        boundary=decode_name(boundary),
        epoch=epoch,
        base_first=base_first,
        base_last=base_last,
        length=length,
        ring_bits=ring_bits,
        clip_l2=clip_l2,
        clip_linf=clip_linf,
        weight_max=weight_max,
        max_members=max_members,
        close_at_uploads=close_at_uploads,
        min_cohort=min_cohort,
        corrupt_permille=corrupt_permille,
        drop_permille=drop_permille,
        opened_s=opened_s,
        deadline_s=deadline_s,
    )
    check_sound(descriptor)
    return descriptor


def check_sound(descriptor: Descriptor) -> None:
    """Nothing, where a window like this can be run at all."""
    d = descriptor
    if d.min_cohort < HARD_MIN_COHORT or d.max_members < d.min_cohort:
        raise RefusedError(
            Reason.COHORT_TOO_SMALL,
            f"a window for {d.min_cohort} to {d.max_members} members; the least is {HARD_MIN_COHORT}",
            hint="with two members each subtracts itself and sees the other",
        )
    positive = (d.clip_l2, d.clip_linf, d.weight_max)
    faults = {
        "ring_bits": d.ring_bits not in RINGS_BITS,
        "length": not 1 <= d.length <= MAX_LENGTH,
        "max_members": d.max_members > MAX_MEMBERS,
        "close_at_uploads": d.close_at_uploads > d.max_members or 0 < d.close_at_uploads < d.min_cohort,
        "base": d.base_first > d.base_last,
        "clip or weight": not all(isfinite(value) and value > 0 for value in positive)
        or d.clip_linf > d.clip_l2,
        "permille": d.corrupt_permille > 333 or d.drop_permille > 333,
        "times": not (isfinite(d.opened_s) and isfinite(d.deadline_s) and d.opened_s < d.deadline_s),
    }
    wrong = [name for name, is_wrong in faults.items() if is_wrong]
    if wrong:
        raise RefusedError(Reason.RULES_VIOLATED, f"the window descriptor is unsound in: {', '.join(wrong)}")
    if d.value_bits < 17:
        raise RefusedError(
            Reason.OVERFLOW_POSSIBLE,
            f"{d.max_members} members leave {d.value_bits} value bits of {d.ring_bits}; 17 are needed",
            hint="take the ring of 64 bits",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a participant has agreed to beforehand; a window that differs is refused by it alone."""

    run: str
    boundary: str
    length: int
    ring_bits: int = 32
    clip_l2: float
    clip_linf: float
    weight_max: float = 1.0
    min_cohort: int = 5
    corrupt_permille: int = 100

    def check(self, descriptor: Descriptor) -> None:
        """Nothing, where the window keeps the rules.

        Raises:
            RefusedError: SCOPE_MISMATCH, COHORT_TOO_SMALL or RULES_VIOLATED.
        """
        if (descriptor.run, descriptor.boundary) != (self.run, self.boundary):
            raise RefusedError(
                Reason.SCOPE_MISMATCH,
                f"a window of {descriptor.run}/{descriptor.boundary}; this is {self.run}/{self.boundary}",
            )
        if descriptor.min_cohort < self.min_cohort:
            raise RefusedError(
                Reason.COHORT_TOO_SMALL,
                f"the window releases sums of {descriptor.min_cohort}; the least is {self.min_cohort}",
            )
        for name in ("length", "ring_bits", "clip_l2", "clip_linf", "weight_max"):
            offered, agreed = getattr(descriptor, name), getattr(self, name)
            if offered != agreed:
                raise RefusedError(
                    Reason.RULES_VIOLATED, f"the window's {name} is {offered}; agreed was {agreed}"
                )
        if descriptor.corrupt_permille < self.corrupt_permille:
            raise RefusedError(
                Reason.RULES_VIOLATED,
                f"the window reckons with {descriptor.corrupt_permille} dishonest members per thousand; "
                f"agreed were {self.corrupt_permille}",
            )


def sign_descriptor(descriptor: Descriptor, key: Ed25519PrivateKey) -> bytes:
    """The DESCRIPTOR frame that opens the window."""
    check_sound(descriptor)
    return encode_frame(
        Kind.DESCRIPTOR,
        sender=AGGREGATOR,
        scope=NO_DIGEST,
        roster=NO_DIGEST,
        body=descriptor.to_bytes(),
        key=key,
    )


def open_descriptor(data: bytes, trust: Trust) -> tuple[Descriptor, bytes]:
    """Descriptor and scope from a DESCRIPTOR frame that the boundary's aggregator signed."""
    frame: Frame = decode_frame(data, expect=Kind.DESCRIPTOR)
    if (frame.sender, frame.scope, frame.roster) != (AGGREGATOR, NO_DIGEST, NO_DIGEST):
        raise RefusedError(Reason.FRAME_MALFORMED, "a DESCRIPTOR with a sender, scope or roster of its own")
    check_signature(frame, trust.aggregator, who="the aggregator")
    descriptor = parse_descriptor(frame.body)
    if descriptor.boundary != trust.boundary:
        raise RefusedError(
            Reason.SCOPE_MISMATCH, f"a window of boundary {descriptor.boundary} in {trust.boundary}"
        )
    return descriptor, scope_of(descriptor)


def scope_of(descriptor: Descriptor) -> bytes:
    """The digest that ties every message and key to this window."""
    return sha256(b"echelon/secagg/1/scope\0" + descriptor.to_bytes()).digest()
