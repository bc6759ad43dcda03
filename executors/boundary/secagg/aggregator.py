"""The aggregator's half: it relays, adds, and opens the sum of those that a quorum agreed on.

It holds one accumulator and, through the spool, the vectors still arriving. Every stage ends when all that
can answer have answered or when its deadline passes; then the window goes on without the missing, or ends
and names them.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

from executors.boundary.secagg.consensus import Seen
from executors.boundary.secagg.fixed_point import Aggregate, decode_sum
from executors.boundary.secagg.frames import (
    AGGREGATOR,
    NO_DIGEST,
    Kind,
    encode_frame,
)
from executors.boundary.secagg.graph import build_graph, check_connected, is_sparse
from executors.boundary.secagg.masks import apply_streams, to_bytes_view
from executors.boundary.secagg.messages import (
    Dealt,
    Survivor,
    dealers_digest,
    pack_abort,
    pack_consents,
    pack_inbox,
    pack_survivors,
    view_digest,
)
from executors.boundary.secagg.protocol import Outgoing
from executors.boundary.secagg.reasons import AbortedError, Reason, RefusedError
from executors.boundary.secagg.reception import Phase, Reception
from executors.boundary.secagg.recovery import ShareBook, leftover_streams
from executors.boundary.secagg.roster import freeze_roster
from executors.boundary.secagg.transcript import Transcript


class Aggregator(Reception):
    """The state machine of one window."""

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
        """Name the survivors; where too few are left nobody, so that all agree that nothing was released."""
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
        self._journal.record("release", name, sha256(to_bytes_view(total_N)).digest())
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
