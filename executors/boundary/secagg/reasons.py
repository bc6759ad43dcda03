"""Every way in which a message or a window is refused, by name."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from policies.errors import PolicyRefusedError


class Reason(StrEnum):
    """Why something was refused or given up; the value is part of the error's code."""

    # frames
    FRAME_MALFORMED = "frame-malformed"
    FRAME_LENGTH = "frame-length"
    KIND_UNKNOWN = "kind-unknown"
    LIMIT_EXCEEDED = "limit-exceeded"
    OUT_OF_ORDER = "out-of-order"
    # origin and context
    SIGNATURE_INVALID = "signature-invalid"
    CERTIFICATE_INVALID = "certificate-invalid"
    SENDER_UNKNOWN = "sender-unknown"
    SENDER_REVOKED = "sender-revoked"
    SCOPE_MISMATCH = "scope-mismatch"
    MESSAGE_REPEATED = "message-repeated"
    # window and roster
    RULES_VIOLATED = "rules-violated"
    EPOCH_OLD = "epoch-old"
    EPOCH_BURNT = "epoch-burnt"
    DEADLINE_PASSED = "deadline-passed"
    ROSTER_CHANGED = "roster-changed"
    MEMBER_REPEATED = "member-repeated"
    COHORT_TOO_SMALL = "cohort-too-small"
    CONTRIBUTION_MISMATCH = "contribution-mismatch"
    GRAPH_TOO_THIN = "graph-too-thin"
    # shares and release
    SHARE_BOX_INVALID = "share-box-invalid"
    SHARE_WRONG = "share-wrong"
    DEALER_INCONSISTENT = "dealer-inconsistent"
    SURVIVORS_GREW = "survivors-grew"
    SURVIVORS_CONTRADICT = "survivors-contradict"
    NO_QUORUM = "no-quorum"
    DIGEST_MISMATCH = "digest-mismatch"
    SUM_ALTERED = "sum-altered"
    ALREADY_RELEASED = "already-released"
    # the update itself
    UPDATE_SPENT = "update-spent"
    UPDATE_INVALID = "update-invalid"
    OVERFLOW_POSSIBLE = "overflow-possible"
    # ends without a result
    MISSING_MEMBERS = "missing-members"
    BELOW_THRESHOLD = "below-threshold"
    CLOSED_BY_OPERATOR = "closed-by-operator"


class RefusedError(PolicyRefusedError):
    """A message is refused and the state of whoever got it is unchanged.

    Attributes:
        reason: which rule refused it.
        blamed: names of the members that broke it, where they are known.
    """

    def __init__(self, reason: Reason, message: str, *, blamed: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(f"secagg-{reason.value}", message, hint=hint)
        self.reason = reason
        self.blamed = tuple(blamed)


class AbortedError(RefusedError):
    """The window has ended without a result; no aggregate exists. `blamed` names who was missing."""
