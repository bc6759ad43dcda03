"""Randomness for the graph: every member commits when it enrols and opens once the roster is frozen."""

from __future__ import annotations

from executors.boundary.secagg.frames import Kind, check_signature, decode_frame
from executors.boundary.secagg.graph import commit_contribution
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster


def open_contribution(data: bytes, *, seat: int, roster: Roster, scope: bytes) -> bytes:
    """The randomness in a CONTRIBUTION frame signed by the member in `seat`.

    Raises:
        RefusedError: SCOPE_MISMATCH, SENDER_UNKNOWN or SIGNATURE_INVALID.
    """
    frame = decode_frame(data, expect=Kind.CONTRIBUTION)
    if frame.scope != scope or frame.roster != roster.root:
        raise RefusedError(Reason.SCOPE_MISMATCH, "a contribution to another window or roster")
    if frame.sender != seat:
        raise RefusedError(
            Reason.SENDER_UNKNOWN, f"the contribution for seat {seat} is from seat {frame.sender}"
        )
    check_signature(frame, roster.verifiers[seat], who=roster.members[seat].name)
    return bytes(frame.body)


def check_contribution(seat: int, contribution: bytes, *, roster: Roster, scope: bytes) -> None:
    """Nothing, where the member committed to this randomness when it enrolled.

    Raises:
        RefusedError: CONTRIBUTION_MISMATCH.
    """
    member = roster.members[seat]
    if commit_contribution(contribution, scope) != member.contribution_commitment:
        raise RefusedError(
            Reason.CONTRIBUTION_MISMATCH,
            f"{member.name} opened other randomness than it had committed to",
            blamed=[member.name],
        )
