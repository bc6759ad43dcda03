"""A participant's place in one window: what it knows, and the checks that every frame meets."""

from __future__ import annotations

from dataclasses import dataclass, field

from executors.boundary.secagg.consensus import Seen
from executors.boundary.secagg.dealing import Dealing, Held, Secrets
from executors.boundary.secagg.descriptor import Descriptor, Rules
from executors.boundary.secagg.frames import (
    AGGREGATOR,
    NO_DIGEST,
    UNSEATED,
    Frame,
    Kind,
    check_signature,
    decode_frame,
    encode_frame,
)
from executors.boundary.secagg.graph import Graph
from executors.boundary.secagg.identity import Identity, Trust
from executors.boundary.secagg.messages import (
    Survivor,
)
from executors.boundary.secagg.protocol import Journal, RandomBytes, UpdateFate
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster
from executors.boundary.secagg.upload import MaskedUpload


@dataclass(slots=True, kw_only=True)
class WindowState:
    """What a participant knows of the window it is in."""

    descriptor: Descriptor
    scope: bytes
    enrolment: bytes
    secrets: Secrets
    roster: Roster | None = None
    seat: int = UNSEATED
    graph: Graph | None = None
    dealing: Dealing | None = None
    dealers: frozenset[int] = frozenset()
    held: dict[int, Held] = field(default_factory=dict)
    upload: MaskedUpload | None = None
    update_key: str | None = None
    view: bytes | None = None
    survivors: list[Survivor] = field(default_factory=list)


class Membership:
    """One identity and the window it is in."""

    def __init__(
        self,
        *,
        identity: Identity,
        trust: Trust,
        rules: Rules,
        journal: Journal,
        random_bytes: RandomBytes,
        epoch_floor: int = 0,
    ) -> None:
        """Be ready for a window.

        `epoch_floor` is the least epoch still accepted, from a place that is not restored with the journal.
        """
        self._identity, self._trust, self._rules = identity, trust, rules
        self._journal, self._random_bytes, self._epoch_floor = journal, random_bytes, epoch_floor
        self._window: WindowState | None = None
        self.fate = UpdateFate.NOT_SENT
        self.wrong_dealers: tuple[str, ...] = ()

    def _check_origin(self, opened: Frame, roster: bytes, *, now_s: float | None) -> None:
        window = self._now()
        if opened.scope != window.scope or opened.roster != roster:
            raise RefusedError(Reason.SCOPE_MISMATCH, f"{opened.kind.name} of another window or roster")
        if opened.sender != AGGREGATOR:
            raise RefusedError(Reason.SENDER_UNKNOWN, f"{opened.kind.name} from seat {opened.sender}")
        check_signature(opened, self._trust.aggregator, who="the aggregator")
        if now_s is not None:
            check_time(window.descriptor, now_s)

    def _open(self, data: bytes, kind: Kind, *, now_s: float | None) -> Frame:
        window = self._now()
        opened = decode_frame(data, expect=kind, max_members=window.descriptor.max_members)
        self._check_origin(opened, NO_DIGEST if window.roster is None else window.roster.root, now_s=now_s)
        return opened

    def _now(self) -> WindowState:
        if self._window is None:
            raise RefusedError(
                Reason.EPOCH_BURNT, "this participant is in no window, or has ended its part in it"
            )
        return self._window

    def _seated(self) -> tuple[WindowState, Roster, Graph]:
        window = self._now()
        if window.roster is None or window.graph is None:
            raise RefusedError(Reason.OUT_OF_ORDER, "the roster is not frozen yet")
        return window, window.roster, window.graph

    def _seen(self) -> Seen:
        window, roster, _ = self._seated()
        return Seen(
            scope=window.scope,
            roster=roster,
            dealers=window.dealers,
            descriptor=window.descriptor,
            own=window.seat,
        )

    def _sign(self, kind: Kind, body: bytes) -> bytes:
        window = self._now()
        root = NO_DIGEST if window.roster is None else window.roster.root
        return encode_frame(
            kind, sender=window.seat, scope=window.scope, roster=root, body=body, key=self._identity.key
        )

    def _epoch_key(self) -> str:
        descriptor = self._now().descriptor
        return f"{descriptor.run}/{descriptor.boundary}/{descriptor.epoch}"

    def _free_update(self, update_id: str) -> str:
        turn = 0
        while self._journal.seen("update", f"{update_id}#{turn}") is not None:
            if self._journal.seen("returned", f"{update_id}#{turn}") is None:
                raise RefusedError(
                    Reason.UPDATE_SPENT, f"update {update_id} is, or may be, in an earlier aggregate already"
                )
            turn += 1
        return f"{update_id}#{turn}"

    def _burn(self) -> None:
        self._window = None


def check_time(descriptor: Descriptor, now_s: float) -> None:
    """Nothing, as long as the window lasts; DEADLINE_PASSED afterwards."""
    if now_s > descriptor.deadline_s:
        raise RefusedError(
            Reason.DEADLINE_PASSED,
            f"the window ended {now_s - descriptor.deadline_s:.3f} s ago; nothing more is done for it",
        )
