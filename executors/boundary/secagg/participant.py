"""One participant's half: bytes in, bytes out, with the time, the randomness and the journal handed in.

Whatever the aggregator says is checked against what the roster signed. A refused frame changes nothing. The
secrets of a window live in memory alone and go with it: after a restart, or once it has revealed, a
participant can't answer for that window again, and its journal refuses the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from executors.boundary.secagg.consensus import check_consents, check_survivors
from executors.boundary.secagg.contributions import check_contribution, open_contribution
from executors.boundary.secagg.dealing import Dealing, draw_secrets
from executors.boundary.secagg.descriptor import open_descriptor
from executors.boundary.secagg.fixed_point import encode_update
from executors.boundary.secagg.frames import (
    CONTRIBUTION_FRAME_BYTES,
    NO_DIGEST,
    UNSEATED,
    Frame,
    Kind,
    decode_frame,
    encode_frame,
)
from executors.boundary.secagg.graph import build_graph, check_connected, is_sparse
from executors.boundary.secagg.keys import mask_context, pair_key, self_key
from executors.boundary.secagg.masks import Stream, apply_streams
from executors.boundary.secagg.membership import Membership, WindowState, check_time
from executors.boundary.secagg.messages import (
    Secret,
    Share,
    dealers_digest,
    pack_dealt,
    pack_shares,
    unpack_inbox,
    unpack_survivors,
    view_digest,
)
from executors.boundary.secagg.protocol import UpdateFate
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster, parse_roster
from executors.boundary.secagg.upload import MaskedUpload


class Participant(Membership):
    """The state machine of one identity; one window at a time."""

    def receive(self, frame: bytes, *, now_s: float) -> bytes | None:
        """Take any frame of the aggregator; the answer, if there is one."""
        kind = decode_frame(frame).kind
        if kind is Kind.DESCRIPTOR:
            return self.enrol(frame, now_s=now_s)
        if kind in (Kind.ROSTER, Kind.CONTRIBUTIONS):
            return self.prepare(frame, now_s=now_s)
        if kind in (Kind.SURVIVORS, Kind.CONSENTS):
            return self.reveal(frame, now_s=now_s) or None
        if kind is Kind.INBOX:
            self.take_shares(frame, now_s=now_s)
        elif kind is Kind.ABORT:
            if self._window is None:  # its part ended before the window did
                return None
            self._open(frame, Kind.ABORT, now_s=None)
            self._window = None
        else:
            raise RefusedError(Reason.OUT_OF_ORDER, f"{kind.name} is not for a participant")
        return None

    def enrol(self, descriptor: bytes, *, now_s: float) -> bytes:
        """The ENROL frame for a window; it burns this and every earlier epoch for new enrolments.

        Raises:
            RefusedError: EPOCH_OLD, DEADLINE_PASSED, RULES_VIOLATED, COHORT_TOO_SMALL, SCOPE_MISMATCH, ...
        """
        opened, scope = open_descriptor(descriptor, self._trust)
        self._rules.check(opened)
        name = f"{opened.run}/{opened.boundary}"
        highest = max(self._journal.highest_epoch(name), self._epoch_floor - 1)
        if opened.epoch <= highest:
            raise RefusedError(
                Reason.EPOCH_OLD,
                f"epoch {opened.epoch} of {name} is offered; up to {highest} all are burnt here",
            )
        check_time(opened, now_s)
        self._trust.check(self._identity.certificate, epoch=opened.epoch)
        secrets = draw_secrets(self._random_bytes)
        body = self._identity.certificate.to_bytes() + secrets.public_part(scope)
        enrolment = encode_frame(
            Kind.ENROL, sender=UNSEATED, scope=scope, roster=NO_DIGEST, body=body, key=self._identity.key
        )
        self._journal.begin_epoch(name, opened.epoch)
        self._window = WindowState(descriptor=opened, scope=scope, enrolment=enrolment, secrets=secrets)
        self.fate = UpdateFate.NOT_SENT
        return enrolment

    def prepare(self, frame: bytes, *, now_s: float) -> bytes:
        """The answer to a ROSTER (SHARES, in a sparse graph CONTRIBUTION) or to CONTRIBUTIONS (SHARES)."""
        if decode_frame(frame).kind is Kind.ROSTER:
            roster = self._freeze(frame, now_s=now_s)
            if is_sparse(roster.thresholds):
                return self._sign(Kind.CONTRIBUTION, self._now().secrets.contribution)
            return self._deal([])
        opened = self._open(frame, Kind.CONTRIBUTIONS, now_s=now_s)
        return self._deal(self._contributions(opened))

    def take_shares(self, frame: bytes, *, now_s: float) -> None:
        """Take the boxes of the neighbours; after this the participant can mask.

        Raises:
            RefusedError: COHORT_TOO_SMALL, GRAPH_TOO_THIN or SHARE_BOX_INVALID.
        """
        opened = self._open(frame, Kind.INBOX, now_s=now_s)
        window, roster, graph = self._seated()
        if window.dealing is None or window.held:
            raise RefusedError(
                Reason.OUT_OF_ORDER, "shares came before this participant dealt, or a second time"
            )
        dealers, entries = unpack_inbox(opened.body, len(roster.members))
        self._check_cohort(dealers)
        check_connected(graph, dealers)
        expected = [seat for seat in graph.neighbours[window.seat] if seat in dealers]
        if window.seat not in dealers or [entry.seat for entry in entries] != expected:
            raise RefusedError(
                Reason.SHARE_BOX_INVALID, "the boxes are not those of this member's neighbours"
            )
        held, wrong = window.dealing.take(entries)
        if len(held) < graph.thresholds.recover:
            raise RefusedError(
                Reason.SHARE_BOX_INVALID,
                f"{len(held)} boxes could be opened; {graph.thresholds.recover} are needed",
                blamed=roster.names(wrong),
            )
        window.dealers, window.held = dealers, held
        self.wrong_dealers = tuple(roster.names(wrong))

    def mask(
        self, update_N: NDArray[np.float32], *, weight: float, update_id: str, now_s: float
    ) -> MaskedUpload:
        """The update, clipped, weighted, rounded and masked. Each update is sent in one window only.

        `weight` is the member's weight times its staleness factor. `update_id` names this update for good,
        whichever window or level of aggregation it is offered to.

        Raises:
            RefusedError: UPDATE_SPENT, UPDATE_INVALID, OUT_OF_ORDER or DEADLINE_PASSED.
        """
        window, roster, _ = self._seated()
        check_time(window.descriptor, now_s)
        if not window.held or window.upload is not None or window.view is not None:
            raise RefusedError(
                Reason.OUT_OF_ORDER, "no shares are held yet, or this window was answered already"
            )
        update_key = self._free_update(update_id)
        vector_N = encode_update(update_N, weight, window.descriptor)
        apply_streams(vector_N, self._streams())
        self._journal.record("update", update_key, window.scope)
        self.fate = UpdateFate.SPENT
        window.update_key = update_key
        window.upload = MaskedUpload(
            vector_N,
            seat=window.seat,
            scope=window.scope,
            roster=roster.root,
            dealers=dealers_digest(window.dealers),
            sign=lambda body: self._sign(Kind.UPLOAD, body),
        )
        return window.upload

    def reveal(self, frame: bytes, *, now_s: float) -> bytes:
        """The answer to SURVIVORS (a CONSENT) or to CONSENTS (the REVEAL, once, which ends the window).

        It is empty where the members agreed that nobody survives: nothing opens, and updates come back.
        """
        if decode_frame(frame).kind is Kind.SURVIVORS:
            return self._consent(self._open(frame, Kind.SURVIVORS, now_s=now_s))
        return self._reveal(self._open(frame, Kind.CONSENTS, now_s=now_s))

    def _freeze(self, frame: bytes, *, now_s: float) -> Roster:
        window = self._now()
        opened = decode_frame(frame, expect=Kind.ROSTER, max_members=window.descriptor.max_members)
        self._check_origin(opened, NO_DIGEST, now_s=now_s)
        if window.roster is not None:
            raise RefusedError(Reason.ROSTER_CHANGED, "a second roster in one window")
        roster = parse_roster(
            opened.body, descriptor=window.descriptor, scope=window.scope, trust=self._trust
        )
        seats = [seat for seat, member in enumerate(roster.members) if member.frame == window.enrolment]
        if not seats:
            raise RefusedError(
                Reason.ROSTER_CHANGED, "the roster does not hold this participant's own enrolment"
            )
        window.roster, window.seat = roster, seats[0]
        return roster

    def _contributions(self, opened: Frame) -> list[bytes]:
        window = self._now()
        assert window.roster is not None
        raw = bytes(opened.body)
        frames = [
            raw[at : at + CONTRIBUTION_FRAME_BYTES] for at in range(0, len(raw), CONTRIBUTION_FRAME_BYTES)
        ]
        if len(frames) != len(window.roster.members):
            raise RefusedError(
                Reason.CONTRIBUTION_MISMATCH,
                f"{len(frames)} contributions for {len(window.roster.members)} members",
            )
        return [self._contribution(seat, data) for seat, data in enumerate(frames)]

    def _contribution(self, seat: int, data: bytes) -> bytes:
        window = self._now()
        assert window.roster is not None
        contribution = open_contribution(data, seat=seat, roster=window.roster, scope=window.scope)
        self._check_contribution(seat, contribution)
        return contribution

    def _check_contribution(self, seat: int, contribution: bytes) -> None:
        window = self._now()
        assert window.roster is not None
        check_contribution(seat, contribution, roster=window.roster, scope=window.scope)

    def _deal(self, contributions: Sequence[bytes]) -> bytes:
        window = self._now()
        if window.roster is None or window.dealing is not None:
            raise RefusedError(Reason.OUT_OF_ORDER, "no roster is frozen yet, or shares were dealt already")
        window.graph = build_graph(window.roster, contributions)
        window.dealing = Dealing(
            roster=window.roster,
            graph=window.graph,
            seat=window.seat,
            scope=window.scope,
            secrets=window.secrets,
        )
        return self._sign(Kind.SHARES, pack_dealt(window.dealing.deal(self._random_bytes)))

    def _streams(self) -> list[Stream]:
        window, roster, graph = self._seated()
        context = mask_context(window.scope, roster.root, dealers_digest(window.dealers))
        secret = window.secrets.mask_key()
        streams = [Stream(self_key(window.secrets.self_seed, context=context, seat=window.seat), True)]
        for other in graph.neighbours[window.seat]:
            if other in window.dealers:
                member = roster.members[other]
                key = pair_key(
                    secret, member.mask_key, context=context, own=window.seat, other=other, who=member.name
                )
                streams.append(Stream(key, window.seat < other))
        return streams

    def _consent(self, opened: Frame) -> bytes:
        window, roster, graph = self._seated()
        if not window.held:
            raise RefusedError(Reason.OUT_OF_ORDER, "survivors were named before shares were given")
        survivors = unpack_survivors(opened.body, len(roster.members))
        dealers = dealers_digest(window.dealers)
        view = view_digest(dealers, opened.body)
        self._check_first_view(view)
        if survivors:
            present = frozenset(survivor.seat for survivor in survivors)
            self._check_cohort(present)
            check_connected(graph, present)
            check_survivors(survivors, self._seen())
        self._journal.record("consent", self._epoch_key(), view)
        window.view, window.survivors = view, survivors
        return self._sign(Kind.CONSENT, view)

    def _reveal(self, opened: Frame) -> bytes:
        window, _, _ = self._seated()
        if window.view is None:
            raise RefusedError(Reason.OUT_OF_ORDER, "consents came before this participant gave its own")
        self._check_quorum(opened)
        self._check_first_reveal()
        present = {survivor.seat for survivor in window.survivors}
        body = pack_shares(self._answers(present))
        self._journal.record("reveal", self._epoch_key(), window.view)
        if window.upload is not None and window.seat not in present:
            assert window.update_key is not None
            self._journal.record("returned", window.update_key, window.view)
            self.fate = UpdateFate.RETURNED
        answer = self._sign(Kind.REVEAL, body) if present else b""
        self._burn()
        return answer

    def _answers(self, present: set[int]) -> list[Share]:
        """Exactly one share for each dealer: the self seed of a survivor, the mask key of anyone else."""
        window = self._now()
        if not present:
            return []
        return [
            Share(dealer, Secret.SELF_SEED, held.seed_share)
            if dealer in present
            else Share(dealer, Secret.MASK_KEY, held.key_share)
            for dealer, held in sorted(window.held.items())
        ]

    def _check_cohort(self, present: frozenset[int]) -> None:
        window, roster, graph = self._seated()
        least = max(window.descriptor.min_cohort, self._rules.min_cohort, graph.thresholds.quorum)
        if len(present) < least:
            raise RefusedError(
                Reason.COHORT_TOO_SMALL,
                f"{len(present)} of {len(roster.members)} members are left; {least} are needed",
            )

    def _check_first_view(self, view: bytes) -> None:
        window = self._now()
        before = window.view or self._journal.seen("consent", self._epoch_key())
        if before is not None and before != view:
            raise RefusedError(
                Reason.SURVIVORS_CONTRADICT, "another survivor set than the one this participant consented to"
            )

    def _check_first_reveal(self) -> None:
        if self._journal.seen("reveal", self._epoch_key()) is not None:
            raise RefusedError(
                Reason.EPOCH_BURNT, f"epoch {self._now().descriptor.epoch} was answered already"
            )

    def _check_quorum(self, opened: Frame) -> None:
        window = self._now()
        assert window.view is not None
        check_consents(opened, self._seen(), window.view)
