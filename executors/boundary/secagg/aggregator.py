"""The aggregator's half: it relays, adds, and opens the sum of those that a quorum agreed on.

It holds one accumulator and, through the spool, the vectors still arriving. Every stage ends when all that can answer
have answered or when its deadline passes; then the window goes on without the missing, or ends and names them.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from executors.boundary.secagg.consensus import Seen
from executors.boundary.secagg.contributions import check_contribution, open_contribution
from executors.boundary.secagg.descriptor import Descriptor, scope_of, sign_descriptor
from executors.boundary.secagg.fixed_point import Aggregate, decode_sum
from executors.boundary.secagg.frames import (
    AGGREGATOR,
    NO_DIGEST,
    Frame,
    Kind,
    check_signature,
    decode_frame,
    encode_frame,
)
from executors.boundary.secagg.graph import Graph, build_graph, check_connected, is_sparse
from executors.boundary.secagg.identity import Trust
from executors.boundary.secagg.intake import Intake
from executors.boundary.secagg.masks import apply_streams
from executors.boundary.secagg.messages import (
    Dealt,
    Survivor,
    dealers_digest,
    pack_abort,
    pack_consents,
    pack_inbox,
    pack_survivors,
    unpack_dealt,
    unpack_shares,
    view_digest,
)
from executors.boundary.secagg.protocol import Journal, Outgoing
from executors.boundary.secagg.reasons import AbortedError, Reason, RefusedError
from executors.boundary.secagg.recovery import ShareBook, leftover_streams
from executors.boundary.secagg.roster import Member, Roster, check_distinct, freeze_roster, parse_enrolment
from executors.boundary.secagg.spool import Spool
from executors.boundary.secagg.transcript import Transcript


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


class Aggregator:
    """The state machine of one window."""

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

        Args:
            expected: names that enrolment waits for; with none, it waits for a full roster or its deadline.
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

    # life cycle

    def open(self) -> bytes:
        """The DESCRIPTOR frame; an epoch is opened once, even after a crash.

        Raises:
            RefusedError: EPOCH_OLD.
        """
        name = f"aggregator/{self.descriptor.run}/{self.descriptor.boundary}"
        if self.descriptor.epoch <= self._journal.highest_epoch(name):
            raise RefusedError(Reason.EPOCH_OLD, f"epoch {self.descriptor.epoch} was opened before")
        self._journal.begin_epoch(name, self.descriptor.epoch)
        return self._opening

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

    # frames in

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

    # going on

    def advance(self, *, now_s: float) -> list[Outgoing]:
        """Frames that are due now. Call it after every frame taken, and at `deadline_s`."""
        if self.phase >= Phase.READY or not self._is_over(now_s):
            return []
        try:
            return self._next()
        except RefusedError as error:
            return self._give_up(error.reason, error.message, error.blamed)

    def _is_over(self, now_s: float) -> bool:
        if now_s >= self.deadline_s():
            return True
        if self.phase is Phase.ENROLLING:
            full = len(self._members) >= self.descriptor.max_members
            return full or (bool(self._expected) and not self.waiting_for())
        if self.phase is Phase.UPLOADING:
            enough = self.descriptor.close_at_uploads
            if enough and len(self._intake.done) >= max(enough, self._least()):
                return True
        if self.phase is Phase.REVEALING and self._book is not None and self._book.is_complete():
            return True
        return not self.waiting_for()

    def _next(self) -> list[Outgoing]:
        steps = {
            Phase.ENROLLING: self._freeze,
            Phase.CONTRIBUTING: self._close_contributions,
            Phase.SHARING: self._close_shares,
            Phase.UPLOADING: self._close_uploads,
            Phase.CONSENTING: self._close_consents,
            Phase.REVEALING: self._close_reveals,
        }
        return steps[self.phase]()

    def _freeze(self) -> list[Outgoing]:
        self.roster = freeze_roster(list(self._members.values()), self.descriptor)
        self._seats = {member.name: seat for seat, member in enumerate(self.roster.members)}
        body = b"".join(member.frame for member in self.roster.members)
        frame = self._sign(Kind.ROSTER, body, roster=NO_DIGEST)
        if is_sparse(self.roster.thresholds):
            self.phase = Phase.CONTRIBUTING
        else:
            self._graph = build_graph(self.roster, [])
            self.phase = Phase.SHARING
        return [Outgoing(to=None, frame=frame)]

    def _close_contributions(self) -> list[Outgoing]:
        assert self.roster is not None
        if len(self._contributions) < len(self.roster.members):
            # Going on without the missing would let them choose between two graphs by staying silent.
            return self._give_up(
                Reason.MISSING_MEMBERS, "the graph needs every member's randomness", self._missing()
            )
        ordered = [self._contributions[seat] for seat in range(len(self.roster.members))]
        self._graph = build_graph(self.roster, [contribution for contribution, _ in ordered])
        self.phase = Phase.SHARING
        return [
            Outgoing(to=None, frame=self._sign(Kind.CONTRIBUTIONS, b"".join(frame for _, frame in ordered)))
        ]

    def _close_shares(self) -> list[Outgoing]:
        assert self.roster is not None
        assert self._graph is not None
        dealers = frozenset(self._dealt)
        if len(dealers) < self._least():
            return self._give_up(
                Reason.BELOW_THRESHOLD, self._too_few(len(dealers), "dealt shares"), self._missing()
            )
        check_connected(self._graph, dealers)
        self._dealers = dealers
        self.phase = Phase.UPLOADING
        return [
            Outgoing(to=self.roster.members[seat].name, frame=self._sign(Kind.INBOX, self._inbox(seat)))
            for seat in sorted(dealers)
        ]

    def _inbox(self, holder: int) -> bytes:
        assert self._graph is not None
        entries = []
        for dealer in self._graph.neighbours[holder]:
            if dealer in self._dealers:
                dealt = self._dealt[dealer][holder]
                entries.append(Dealt(dealer, dealt.box, dealt.seed_digest, dealt.key_digest))
        return pack_inbox(self._dealers, entries)

    def _close_uploads(self) -> list[Outgoing]:
        """Name the survivors; where too few are left, nobody, so that members agree that nothing was released."""
        assert self._graph is not None
        self._intake.drop_partial()
        survivors = sorted(self._intake.done)
        if len(survivors) < self._least():
            self._set_abort(
                Reason.BELOW_THRESHOLD, self._too_few(len(survivors), "uploaded"), self._missing()
            )
            survivors = []
        else:
            check_connected(self._graph, frozenset(survivors))
        entries = [Survivor(seat, *self._intake.done[seat]) for seat in survivors]
        self._survivors_body = pack_survivors(entries)
        self._view = view_digest(dealers_digest(self._dealers), self._survivors_body)
        self.phase = Phase.CONSENTING
        frame = self._sign(Kind.SURVIVORS, self._survivors_body)
        return [Outgoing(to=name, frame=frame) for name in self._asked()]

    def _close_consents(self) -> list[Outgoing]:
        assert self.roster is not None
        assert self._graph is not None
        quorum = self.roster.thresholds.quorum
        if len(self._consents) < quorum:
            if self.abort is None:
                return self._give_up(
                    Reason.BELOW_THRESHOLD,
                    f"{len(self._consents)} members consented to the survivor set; {quorum} are needed",
                    self._missing(),
                )
            return self._give_up(self.abort.reason, self.abort.message, self.abort.blamed)
        frame = self._sign(Kind.CONSENTS, pack_consents(sorted(self._consents.items())))
        outgoing = [Outgoing(to=name, frame=frame) for name in self._asked()]
        if self.abort is not None:
            return outgoing + self._give_up(self.abort.reason, self.abort.message, self.abort.blamed)
        self._book = ShareBook(
            roster=self.roster,
            graph=self._graph,
            scope=self.scope,
            dealt={dealer: self._dealt[dealer] for dealer in self._dealers},
            survivors=frozenset(self._intake.done),
        )
        self.phase = Phase.REVEALING
        return outgoing

    def _close_reveals(self) -> list[Outgoing]:
        assert self.roster is not None
        assert self._book is not None
        lacking = self._book.lacking()
        if lacking:
            return self._give_up(
                Reason.BELOW_THRESHOLD,
                f"too few shares of {', '.join(self.roster.names(lacking))} came; "
                f"{self.roster.thresholds.recover} are needed",
                self._missing(),
            )
        self._secrets = self._book.recover()
        self.phase = Phase.READY
        return []

    def combine(self) -> Aggregate:
        """The sum, opened. It is journaled before it is handed out, and handed out once.

        Raises:
            AbortedError: the window ended without a result.
            RefusedError: OUT_OF_ORDER or ALREADY_RELEASED.
        """
        if self.abort is not None:
            raise self.abort
        if self.phase is Phase.RELEASED:
            raise RefusedError(Reason.ALREADY_RELEASED, f"epoch {self.descriptor.epoch} was released already")
        if self.phase is not Phase.READY:
            raise RefusedError(Reason.OUT_OF_ORDER, f"nothing to combine during {self.phase.name}")
        assert self.roster is not None
        assert self._graph is not None
        survivors = frozenset(self._intake.done)
        streams = leftover_streams(
            roster=self.roster,
            graph=self._graph,
            scope=self.scope,
            dealers=self._dealers,
            survivors=survivors,
            secrets=self._secrets,
        )
        total_N = self._intake.total_N
        apply_streams(total_N, streams)
        result = decode_sum(total_N, len(survivors), self.descriptor)
        name = f"{self.descriptor.run}/{self.descriptor.boundary}/{self.descriptor.epoch}"
        self._journal.record("release", name, sha256(memoryview(total_N).cast("B")).digest())
        self.phase = Phase.RELEASED
        return result

    def transcript(self) -> Transcript:
        """What an auditor inside the boundary needs besides the kept vectors."""
        assert self.roster is not None
        assert self._graph is not None
        return Transcript(
            seen=Seen(
                scope=self.scope, roster=self.roster, dealers=self._dealers, descriptor=self.descriptor
            ),
            graph=self._graph,
            survivors_body=self._survivors_body,
            consents=tuple(sorted(self._consents.items())),
            secrets=dict(self._secrets),
        )

    # ends

    def close(self, message: str) -> list[Outgoing]:
        """End the window without a result because its operator wants that."""
        return [] if self.phase >= Phase.READY else self._give_up(Reason.CLOSED_BY_OPERATOR, message, ())

    def _give_up(self, reason: Reason, message: str, missing: Collection[str]) -> list[Outgoing]:
        self._set_abort(reason, message, missing)
        self.phase = Phase.ABORTED
        self._intake.drop_all()
        root = NO_DIGEST if self.roster is None else self.roster.root
        named = sorted(missing)[: self.descriptor.max_members]
        body = pack_abort(list(Reason).index(reason), named)
        return [Outgoing(to=None, frame=self._sign(Kind.ABORT, body, roster=root))]

    def _set_abort(self, reason: Reason, message: str, missing: Collection[str]) -> None:
        names = tuple(sorted(missing))
        suffix = (
            f" (missing: {', '.join(names)})" if names and reason is not Reason.DEALER_INCONSISTENT else ""
        )
        text = message if message.endswith(suffix) else message + suffix
        self.abort = AbortedError(reason, text, blamed=names)

    def _missing(self) -> list[str]:
        answered = self._answered()
        return [name for name in self._asked() if self._seats[name] not in answered]

    def _least(self) -> int:
        assert self.roster is not None
        return max(self.descriptor.min_cohort, self.roster.thresholds.quorum)

    def _too_few(self, num: int, what: str) -> str:
        return f"{num} members {what}; {self._least()} are needed"

    def _sign(self, kind: Kind, body: bytes, *, roster: bytes | None = None) -> bytes:
        root = self.roster.root if roster is None and self.roster is not None else roster
        assert root is not None
        return encode_frame(kind, sender=AGGREGATOR, scope=self.scope, roster=root, body=body, key=self._key)


def _check_new(seat: int, known: Collection[int], roster: Roster) -> None:
    if seat in known:
        name = roster.members[seat].name
        raise RefusedError(Reason.MESSAGE_REPEATED, f"{name} answered this already", blamed=[name])
