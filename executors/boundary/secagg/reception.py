"""What the aggregator takes in during one window: every frame checked against what was agreed before."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from executors.boundary.secagg.contributions import check_contribution, open_contribution
from executors.boundary.secagg.descriptor import Descriptor, scope_of, sign_descriptor
from executors.boundary.secagg.frames import (
    Frame,
    Kind,
    check_signature,
    decode_frame,
)
from executors.boundary.secagg.graph import Graph
from executors.boundary.secagg.identity import Trust
from executors.boundary.secagg.intake import Intake
from executors.boundary.secagg.messages import (
    Dealt,
    dealers_digest,
    unpack_dealt,
    unpack_shares,
)
from executors.boundary.secagg.protocol import Journal
from executors.boundary.secagg.reasons import AbortedError, Reason, RefusedError
from executors.boundary.secagg.recovery import ShareBook
from executors.boundary.secagg.roster import Member, Roster, check_distinct, parse_enrolment
from executors.boundary.secagg.spool import Spool


class Phase(IntEnum):
    """Where a window is."""

    ENROLLING = 0
    CONTRIBUTING = 1
    SHARING = 2
    UPLOADING = 3
    CONSENTING = 4
    REVEALING = 5
    READY = 6
    RELEASED = 7
    ABORTED = 8


# Share of the window that has gone when a phase ends; the one deadline of the window gives all the others.
PHASE_END_FRAC = {
    Phase.ENROLLING: 0.30,
    Phase.CONTRIBUTING: 0.36,
    Phase.SHARING: 0.42,
    Phase.UPLOADING: 0.84,
    Phase.CONSENTING: 0.92,
    Phase.REVEALING: 1.0,
}


class Reception:
    """The state of one window and the frames that change it; `Aggregator` moves it from phase to phase."""

    def __init__(
        self,
        *,
        descriptor: Descriptor,
        key: Ed25519PrivateKey,
        trust: Trust,
        spool: Spool,
        journal: Journal,
        expected: Collection[str] = (),
    ) -> None:
        """Be ready to open the window.

        `expected` are the names that enrolment waits for; with none, it waits for a full roster or its
        deadline.
        """
        self.descriptor, self._key, self._trust, self._journal = descriptor, key, trust, journal
        self._expected = frozenset(expected)
        self.scope = scope_of(descriptor)
        self.phase = Phase.ENROLLING
        self.abort: AbortedError | None = None
        self.blamed: dict[str, Reason] = {}
        self.roster: Roster | None = None
        self._graph: Graph | None = None
        self._lost: set[str] = set()
        self._members: dict[str, Member] = {}
        self._seats: dict[str, int] = {}
        self._contributions: dict[int, tuple[bytes, bytes]] = {}
        self._dealt: dict[int, dict[int, Dealt]] = {}
        self._intake = Intake(descriptor, spool)
        self._consents: dict[int, bytes] = {}
        self._revealed: set[int] = set()
        self._dealers: frozenset[int] = frozenset()
        self._survivors_body = b""
        self._view = b""
        self._book: ShareBook | None = None
        self._secrets: dict[int, bytes] = {}
        self._opening = sign_descriptor(descriptor, key)

    def deadline_s(self) -> float:
        """When the present phase ends at the latest."""
        d = self.descriptor
        return d.opened_s + PHASE_END_FRAC.get(self.phase, 1.0) * (d.deadline_s - d.opened_s)

    def lose(self, name: str) -> None:
        """Wait for this participant no longer, since its connection is gone."""
        self._lost.add(name)

    def find(self, name: str) -> None:
        """Wait for this participant again."""
        self._lost.discard(name)

    def waiting_for(self) -> list[str]:
        """Names that the present phase still waits for."""
        if self.phase is Phase.ENROLLING:
            return sorted(self._expected - set(self._members) - self._lost)
        return sorted(
            name for name in self._asked() if self._seats[name] not in self._answered() | self._lost_seats()
        )

    def _asked(self) -> list[str]:
        """Members whose answer this phase is about."""
        dealers_only = self.phase in (Phase.UPLOADING, Phase.CONSENTING, Phase.REVEALING)
        return [name for name, seat in self._seats.items() if not dealers_only or seat in self._dealers]

    def _lost_seats(self) -> set[int]:
        return {self._seats[name] for name in self._lost if name in self._seats}

    def _answered(self) -> set[int]:
        answered: dict[Phase, Collection[int]] = {
            Phase.CONTRIBUTING: self._contributions,
            Phase.SHARING: self._dealt,
            Phase.UPLOADING: self._intake.done,
            Phase.CONSENTING: self._consents,
            Phase.REVEALING: self._revealed,
        }
        return set(answered.get(self.phase, ()))

    def receive(self, frame: bytes | memoryview, *, sender: str, now_s: float) -> None:
        """Take one frame of the participant that the transport knows as `sender`.

        Raises:
            RefusedError: with the rule that the frame breaks; the window is as it was.
        """
        opened = decode_frame(frame, max_members=self.descriptor.max_members)
        if now_s > self.deadline_s():
            raise RefusedError(
                Reason.DEADLINE_PASSED, f"{opened.kind.name} came after {self.phase.name} had ended"
            )
        if opened.kind is Kind.ENROL:
            self._take_enrolment(bytes(frame), sender)
            return
        seat = self._check_origin(opened, sender)
        if opened.kind is Kind.CHUNK and self.phase is Phase.UPLOADING:
            self._intake.take_chunk(seat, opened.body)
        elif opened.kind is Kind.CONTRIBUTION and self.phase is Phase.CONTRIBUTING:
            self._take_contribution(seat, bytes(frame))
        elif opened.kind is Kind.SHARES and self.phase is Phase.SHARING:
            self._take_shares(seat, opened)
        elif opened.kind is Kind.UPLOAD and self.phase is Phase.UPLOADING:
            self._intake.finish(seat, opened, dealers=dealers_digest(self._dealers))
        elif opened.kind is Kind.CONSENT and self.phase is Phase.CONSENTING:
            self._take_consent(seat, opened)
        elif opened.kind is Kind.REVEAL and self.phase is Phase.REVEALING:
            self._take_reveal(seat, opened)
        else:
            raise RefusedError(Reason.OUT_OF_ORDER, f"{opened.kind.name} during {self.phase.name}")

    def received_bytes(self, name: str) -> int:
        """Masked bytes of this participant so far: where its upload goes on after a broken link."""
        return self._intake.received_bytes(self._seats[name]) if name in self._seats else 0

    def _check_origin(self, opened: Frame, sender: str) -> int:
        if self.roster is None or sender not in self._seats:
            raise RefusedError(Reason.SENDER_UNKNOWN, f"{sender} has no seat in this window")
        seat = self._seats[sender]
        if opened.sender != seat:
            raise RefusedError(
                Reason.SENDER_UNKNOWN, f"{sender} sent a frame of seat {opened.sender}", blamed=[sender]
            )
        if opened.scope != self.scope or opened.roster != self.roster.root:
            raise RefusedError(Reason.SCOPE_MISMATCH, f"{opened.kind.name} of another window or roster")
        if opened.kind is not Kind.CHUNK:
            check_signature(opened, self.roster.verifiers[seat], who=sender)
        return seat

    def _take_enrolment(self, frame: bytes, sender: str) -> None:
        if self.phase is not Phase.ENROLLING:
            raise RefusedError(Reason.OUT_OF_ORDER, "the roster is frozen")
        member = parse_enrolment(frame, scope=self.scope, epoch=self.descriptor.epoch, trust=self._trust)
        if member.name != sender:
            raise RefusedError(
                Reason.SENDER_UNKNOWN, f"{sender} sent the enrolment of {member.name}", blamed=[sender]
            )
        if sender in self._members:
            raise RefusedError(Reason.MESSAGE_REPEATED, f"{sender} is enrolled already", blamed=[sender])
        if len(self._members) >= self.descriptor.max_members:
            raise RefusedError(Reason.LIMIT_EXCEEDED, f"the roster is full at {self.descriptor.max_members}")
        check_distinct([*self._members.values(), member])
        self._members[sender] = member

    def _take_contribution(self, seat: int, frame: bytes) -> None:
        assert self.roster is not None
        _check_new(seat, self._contributions, self.roster)
        contribution = open_contribution(frame, seat=seat, roster=self.roster, scope=self.scope)
        check_contribution(seat, contribution, roster=self.roster, scope=self.scope)
        self._contributions[seat] = (contribution, frame)

    def _take_shares(self, seat: int, opened: Frame) -> None:
        assert self.roster is not None
        assert self._graph is not None
        _check_new(seat, self._dealt, self.roster)
        entries = unpack_dealt(opened.body, len(self.roster.members))
        if tuple(entry.seat for entry in entries) != self._graph.holders(seat):
            raise RefusedError(
                Reason.SHARE_BOX_INVALID,
                "the shares are not for the dealer's neighbours",
                blamed=self.roster.names([seat]),
            )
        self._dealt[seat] = {entry.seat: entry for entry in entries}

    def _take_consent(self, seat: int, opened: Frame) -> None:
        assert self.roster is not None
        _check_new(seat, self._consents, self.roster)
        if bytes(opened.body) != self._view:
            raise RefusedError(Reason.SURVIVORS_CONTRADICT, "a consent to another survivor set")
        if seat not in self._dealers:
            raise RefusedError(Reason.SENDER_UNKNOWN, "a consent of a member that dealt no shares")
        self._consents[seat] = opened.signature

    def _take_reveal(self, seat: int, opened: Frame) -> None:
        assert self.roster is not None
        assert self._book is not None
        _check_new(seat, self._revealed, self.roster)
        for share in unpack_shares(opened.body, len(self.roster.members)):
            if not self._book.add(seat, share):
                self.blamed[self.roster.members[seat].name] = Reason.SHARE_WRONG
        self._revealed.add(seat)


def _check_new(seat: int, known: Collection[int], roster: Roster) -> None:
    if seat in known:
        name = roster.members[seat].name
        raise RefusedError(Reason.MESSAGE_REPEATED, f"{name} answered this already", blamed=[name])
