"""What both sides check of the consistency round: who survives, and who has agreed to that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from executors.boundary.secagg.descriptor import Descriptor
from executors.boundary.secagg.frames import Frame, Kind, check_signature
from executors.boundary.secagg.messages import Survivor, Upload, dealers_digest, pack_upload, unpack_consents
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a member or auditor knows of a window by the time survivors are named."""

    scope: bytes
    roster: Roster
    dealers: frozenset[int]
    descriptor: Descriptor
    own: int | None = None  # a member's own seat, whose signatures it need not verify


def member_frame(kind: Kind, *, seat: int, seen: Seen, body: bytes, signature: bytes) -> Frame:
    """A member's frame put together again from what everyone knows of it and its signature."""
    return Frame(
        kind=kind,
        sender=seat,
        scope=seen.scope,
        roster=seen.roster.root,
        body=memoryview(body),
        signature=signature,
    )


def check_survivors(survivors: Sequence[Survivor], seen: Seen) -> None:
    """Nothing, where every survivor dealt shares and signed its vector under the same set of dealers.

    Raises:
        RefusedError: SURVIVORS_GREW, SIGNATURE_INVALID.
    """
    grown = [survivor.seat for survivor in survivors if survivor.seat not in seen.dealers]
    if grown:
        raise RefusedError(
            Reason.SURVIVORS_GREW, "members survive that never dealt shares", blamed=seen.roster.names(grown)
        )
    dealers = dealers_digest(seen.dealers)
    for survivor in survivors:
        if survivor.seat == seen.own:
            continue
        upload = Upload(seen.descriptor.num_bytes, dealers, survivor.digest)
        frame = member_frame(
            Kind.UPLOAD, seat=survivor.seat, seen=seen, body=pack_upload(upload), signature=survivor.signature
        )
        check_signature(
            frame, seen.roster.verifiers[survivor.seat], who=seen.roster.members[survivor.seat].name
        )


def check_consents(opened: Frame, seen: Seen, view: bytes) -> None:
    """Nothing, where a quorum of members that dealt shares consented to this view.

    Two quorums of more than two thirds share an honest member as long as fewer than a third are dishonest,
    and an honest member consents once: so there is one view.

    Raises:
        RefusedError: NO_QUORUM, SIGNATURE_INVALID or FRAME_MALFORMED.
    """
    consents = unpack_consents(opened.body, len(seen.roster.members))
    counted = [(seat, signature) for seat, signature in consents if seat in seen.dealers]
    quorum = seen.roster.thresholds.quorum
    if len(counted) < quorum:
        raise RefusedError(
            Reason.NO_QUORUM,
            f"{len(counted)} consents to the survivor set; {quorum} are needed before anything opens",
        )
    for seat, signature in sorted(counted, key=lambda consent: consent[0] != seen.own)[:quorum]:
        if seat == seen.own:
            continue
        frame = member_frame(Kind.CONSENT, seat=seat, seen=seen, body=view, signature=signature)
        check_signature(frame, seen.roster.verifiers[seat], who=seen.roster.members[seat].name)
