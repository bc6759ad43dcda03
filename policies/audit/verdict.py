"""What an audit can say: the rules in the order in which the first broken one decides, and the verdict.

PASS          every rule of the scope was checked and holds
FAIL          a rule is broken: its name, the file and the record
INCONCLUSIVE  nothing is broken as far as could be seen, but evidence is missing: what
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from policies.errors import AuditFailedError, AuditInconclusiveError, EchelonError

MAX_FAILURES_IN_TEXT = 20
REPORT_SCHEMA = "echelon/audit-report/1"


class Outcome(StrEnum):
    """The verdict in one word."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Scope(StrEnum):
    """What the verdict speaks of: what the guard let out, or everything that left."""

    GATE = "gate"
    EGRESS = "egress"


class Rule(StrEnum):
    """Every rule by its name, first things first."""

    CONTRACT = "contract"
    UNLISTED_LOG = "unlisted-log"
    CHECKPOINT_MALFORMED = "checkpoint-malformed"
    CHECKPOINT_SIGNATURE = "checkpoint-signature"
    KEY_STATEMENT = "key-statement"
    REVOKED_KEY = "revoked-key"
    LOG_TRUNCATED = "log-truncated"
    LOG_FORKED = "log-forked"
    RECORD_CHANGED = "record-changed"
    RECORD_AFTER_CLOSE = "record-after-close"
    RECORD_MALFORMED = "record-malformed"
    WRONG_OWNER = "wrong-owner"
    WRONG_COUNTERPART = "wrong-counterpart"
    SEQUENCE_DUPLICATE = "sequence-duplicate"
    SEQUENCE_REORDERED = "sequence-reordered"
    SEQUENCE_GAP = "sequence-gap"
    COUNTERPART_MISMATCH = "counterpart-mismatch"
    NOT_IN_SENDER_LOG = "not-in-sender-log"
    NOT_RECEIVED = "not-received"
    OTHER_CONTRACT = "other-contract"
    UNKNOWN_KIND = "unknown-kind"
    WRONG_CHANNEL = "wrong-channel"
    METADATA_CAP = "metadata-cap"
    HEADER_SIZE = "header-size"
    FIELD_NOT_ALLOWED = "field-not-allowed"
    WRONG_MESSAGE_KEY = "wrong-message-key"
    CAPTURE = "capture"
    SIDE_CHANNEL = "side-channel"
    EGRESS_UNLOGGED = "egress-unlogged"
    EGRESS_MISSING = "egress-missing"
    WRONG_MANIFEST = "wrong-manifest"
    PAYLOAD_SIZE = "payload-size"
    COHORT_TOO_SMALL = "cohort-too-small"
    WINDOW_RELEASED_TWICE = "window-released-twice"
    PARTICIPANT_PAYLOAD = "participant-payload"


RULE_ORDER = {rule: position for position, rule in enumerate(Rule)}

_ALWAYS_UNPROVEN = (
    "that an aggregate is really the sum over as many participants as its record says",
    "what an aggregate itself reveals, or what is hidden in the low bits of its values",
    "that coordinator and boundaries did not agree to leave the same message out of all logs",
    "that the private keys were in nobody else's hands",
)
_UNPROVEN_AT_GATE = "that nothing left by another way than the guard: that is scope egress"
_UNPROVEN_AT_EGRESS = "that nothing left by a way that the recorder does not see"
_UNPROVEN_BLIND = (
    "the content of the wire bytes within the declared overhead, which the capture did not decrypt"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A broken rule; `place` is file and record number or, for checkpoints, their number."""

    rule: Rule
    place: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """What was read of one log: records, message bytes out and in, and the root over all records."""

    party: str
    num_records: int
    sent_bytes: int
    received_bytes: int
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer. `failures` stand in the order of the rules, so the first one decides."""

    scope: Scope
    failures: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()
    logs: tuple[LogSummary, ...] = ()
    run: bytes = b""
    contract_sha256: bytes = b""
    blind_captures: tuple[str, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        """FAIL before INCONCLUSIVE before PASS."""
        if self.failures:
            return Outcome.FAIL
        return Outcome.INCONCLUSIVE if self.missing else Outcome.PASS

    @property
    def unproven(self) -> tuple[str, ...]:
        """What no verdict of this scope can prove."""
        if self.scope is Scope.GATE:
            return (*_ALWAYS_UNPROVEN, _UNPROVEN_AT_GATE)
        blind = (_UNPROVEN_BLIND,) if self.blind_captures else ()
        return (*_ALWAYS_UNPROVEN, _UNPROVEN_AT_EGRESS, *blind)


def in_rule_order(failures: list[Failure]) -> tuple[Failure, ...]:
    """The failures, the one that decides first; equal rules keep the order in which they were found."""
    return tuple(sorted(failures, key=lambda failure: RULE_ORDER[failure.rule]))


def error_of(verdict: Verdict) -> EchelonError | None:
    """The error a command ends with, None for PASS."""
    if verdict.outcome is Outcome.PASS:
        return None
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return AuditInconclusiveError(
            "audit-inconclusive",
            f"the evidence is not enough: {verdict.missing[0]}",
            hint="hand in what is missing and verify again",
        )
    first = verdict.failures[0]
    return AuditFailedError(f"audit-{first.rule}", f"{first.place}: {first.found}")


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """The report for programs."""
    return {
        "schema": REPORT_SCHEMA,
        "verdict": verdict.outcome.value,
        "scope": verdict.scope.value,
        "run": verdict.run.hex(),
        "contract_sha256": verdict.contract_sha256.hex(),
        "failures": [{"rule": f.rule.value, "place": f.place, "found": f.found} for f in verdict.failures],
        "missing": list(verdict.missing),
        "logs": [
            {
                "party": log.party,
                "records": log.num_records,
                "sent_bytes": log.sent_bytes,
                "received_bytes": log.received_bytes,
                "root": log.root.hex(),
            }
            for log in verdict.logs
        ],
        "unproven": list(verdict.unproven),
    }


def verdict_text(verdict: Verdict) -> str:
    """The report for people."""
    lines = [f"verdict   {verdict.outcome.value.upper()} (scope {verdict.scope.value})"]
    shown = verdict.failures[:MAX_FAILURES_IN_TEXT]
    lines += [f"broken    {f.rule.value} at {f.place}: {f.found}" for f in shown]
    if len(verdict.failures) > len(shown):
        lines.append(f"broken    and {len(verdict.failures) - len(shown):,} more (all of them as JSON)")
    lines += [f"missing   {text}" for text in verdict.missing]
    if verdict.run:
        lines.append(f"run       {verdict.run.hex()} under contract {verdict.contract_sha256.hex()[:16]}")
    for log in verdict.logs:
        size = f"{log.num_records:,} records, {log.sent_bytes:,} bytes sent, {log.received_bytes:,} received"
        lines.append(f"log       {log.party}: {size}")
    lines += [f"unproven  {text}" for text in verdict.unproven]
    return "\n".join(lines) + "\n"
