"""The frozen roster: who takes part in a window, with which keys, in an order that nobody chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from executors.boundary.secagg.descriptor import Descriptor
from executors.boundary.secagg.frames import (
    CERTIFICATE_BYTES,
    ENROL_FRAME_BYTES,
    NO_DIGEST,
    UNSEATED,
    Frame,
    Kind,
    check_signature,
    decode_frame,
)
from executors.boundary.secagg.identity import Certificate, Trust, parse_certificate
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.thresholds import Thresholds, thresholds
from policies.audit.tree import root_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One enrolment.

    Attributes:
        mask_key: fresh X25519 key from which pair masks come; its secret is shared.
        box_key: fresh X25519 key under which shares travel; its secret never leaves the participant.
        seed_commitment: digest of the self-mask seed.
        contribution_commitment: digest of the randomness it will add to the graph's.
        frame: the signed enrolment as it came.
    """

    certificate: Certificate
    mask_key: bytes
    box_key: bytes
    seed_commitment: bytes
    contribution_commitment: bytes
    frame: bytes

    @property
    def name(self) -> str:
        """The certified name."""
        return self.certificate.name

    def verifier(self) -> Ed25519PublicKey:
        """Checks this member's signatures."""
        return Ed25519PublicKey.from_public_bytes(self.certificate.public_key)


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The members in seat order (ascending public keys) and the Merkle root over their enrolments."""

    members: tuple[Member, ...]
    corrupt_permille: int
    drop_permille: int

    @cached_property
    def root(self) -> bytes:
        """Root of the tree of signed enrolments (RFC 6962)."""
        return root_of(member.frame for member in self.members)

    @cached_property
    def thresholds(self) -> Thresholds:
        """What this roster must keep."""
        return thresholds(len(self.members), self.corrupt_permille, self.drop_permille)

    @cached_property
    def verifiers(self) -> tuple[Ed25519PublicKey, ...]:
        """Signature keys by seat."""
        return tuple(member.verifier() for member in self.members)

    def names(self, seats: Sequence[int]) -> list[str]:
        """Names of the members in these seats."""
        return [self.members[seat].name for seat in seats]


def parse_enrolment(data: bytes, *, scope: bytes, epoch: int, trust: Trust) -> Member:
    """The member that a signed ENROL frame describes.

    Raises:
        RefusedError: SCOPE_MISMATCH, CERTIFICATE_INVALID, SENDER_REVOKED, SIGNATURE_INVALID, ...
    """
    frame: Frame = decode_frame(data, expect=Kind.ENROL)
    if frame.scope != scope:
        raise RefusedError(Reason.SCOPE_MISMATCH, "an enrolment for another window")
    if frame.sender != UNSEATED or frame.roster != NO_DIGEST:
        raise RefusedError(
            Reason.FRAME_MALFORMED, "an enrolment that claims a seat before the roster is frozen"
        )
    body = bytes(frame.body)
    keys = body[CERTIFICATE_BYTES:]
    member = Member(
        certificate=parse_certificate(body[:CERTIFICATE_BYTES]),
        mask_key=keys[:32],
        box_key=keys[32:64],
        seed_commitment=keys[64:96],
        contribution_commitment=keys[96:],
        frame=bytes(data),
    )
    trust.check(member.certificate, epoch=epoch)
    check_signature(frame, member.verifier(), who=member.name)
    return member


def check_distinct(members: Sequence[Member]) -> None:
    """Nothing, where no name, slot or key occurs twice.

    Raises:
        RefusedError: MEMBER_REPEATED, blaming the later holder.
    """
    seen: dict[tuple[str, bytes], str] = {}
    for member in members:
        certificate = member.certificate
        for what, value in (
            ("name", certificate.name.encode()),
            ("trust slot", certificate.slot.encode()),
            ("identity key", certificate.public_key),
            ("epoch key", member.mask_key),
            ("epoch key", member.box_key),
            ("contribution", member.contribution_commitment),
        ):
            other = seen.setdefault((what, value), member.name)
            if other != member.name or (what == "epoch key" and member.mask_key == member.box_key):
                raise RefusedError(
                    Reason.MEMBER_REPEATED,
                    f"{member.name} and {other} have the same {what}",
                    blamed=[member.name],
                )


def freeze_roster(members: Sequence[Member], descriptor: Descriptor) -> Roster:
    """The roster of these enrolments, in seat order.

    Raises:
        RefusedError: COHORT_TOO_SMALL, LIMIT_EXCEEDED or MEMBER_REPEATED.
    """
    if len(members) < descriptor.min_cohort:
        raise RefusedError(
            Reason.COHORT_TOO_SMALL,
            f"{len(members)} members enrolled; the window needs {descriptor.min_cohort}",
        )
    if len(members) > descriptor.max_members:
        raise RefusedError(
            Reason.LIMIT_EXCEEDED,
            f"{len(members)} members enrolled; the window has room for {descriptor.max_members}",
        )
    check_distinct(members)
    return Roster(
        members=tuple(sorted(members, key=lambda member: member.certificate.public_key)),
        corrupt_permille=descriptor.corrupt_permille,
        drop_permille=descriptor.drop_permille,
    )


def parse_roster(body: memoryview, *, descriptor: Descriptor, scope: bytes, trust: Trust) -> Roster:
    """The roster in the body of a ROSTER frame, every enrolment checked."""
    enrolments = [bytes(body[at : at + ENROL_FRAME_BYTES]) for at in range(0, len(body), ENROL_FRAME_BYTES)]
    if len(enrolments) > descriptor.max_members:
        raise RefusedError(
            Reason.LIMIT_EXCEEDED,
            f"a roster of {len(enrolments)}; the window has room for {descriptor.max_members}",
        )
    members = [parse_enrolment(raw, scope=scope, epoch=descriptor.epoch, trust=trust) for raw in enrolments]
    roster = freeze_roster(members, descriptor)
    if roster.members != tuple(members):
        raise RefusedError(
            Reason.ROSTER_CHANGED, "the members of a roster are not in the order of their keys"
        )
    return roster
