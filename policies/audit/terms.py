"""What the contract says about single records: the shapes that a log's records may have, and why one has not.

A shape is the first 12 bytes of a record (version, type, owner, counterpart, kind, channel, boundary, header
size) with what follows from them. There are few, so a record is checked by one look-up and a few comparisons;
only a record without a shape, or unlike its shape, is looked at field by field.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.audit.record import (
    NOTHING,
    RECORD_VERSION,
    REST,
    SHAPE,
    SHAPE_BYTES,
    Channel,
    Kind,
    RecordType,
)
from policies.audit.verdict import Rule
from policies.contract import KIND_RULES, Contract, KindRule, contract_sha256

# Offsets of the last four digests, from which the fixed parts of a record are cut.
ROSTER, MANIFEST, PAYLOAD, MESSAGE = 112, 144, 176, 208


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What every record that begins with the same 12 bytes has in common."""

    is_sent: bool
    is_delta: bool
    header_bytes: int
    payload_bytes: int
    channel_key: tuple[int, int]
    fixed: slice
    fixed_content: bytes


def shapes_of(contract: Contract, owner_id: int) -> dict[bytes, Shape]:
    """The shapes that records of this party's log may have, by their first 12 bytes."""
    boundary_ids = [owner_id] if owner_id else list(range(1, len(contract.boundaries) + 1))
    shapes: dict[bytes, Shape] = {}
    for rule in KIND_RULES.values():
        for channel in rule.channels:
            for boundary_id in boundary_ids:
                is_sent = (channel is Channel.UP) == bool(owner_id)
                start = SHAPE.pack(
                    RECORD_VERSION,
                    RecordType.SENT if is_sent else RecordType.RECEIVED,
                    owner_id,
                    0 if owner_id else boundary_id,
                    rule.kind,
                    channel,
                    boundary_id,
                    rule.header_bytes,
                )
                shapes[start] = _shape(rule, contract, is_sent, (boundary_id, int(channel)))
    return shapes


def record_faults(record: bytes, contract: Contract, owner_id: int, signer: bytes) -> list[tuple[Rule, str]]:
    """Every rule that this one record breaks by itself, with what was found.

    Args:
        record: 244 bytes.
        contract: of the run.
        owner_id: whose log it stands in.
        signer: id of the owner's message key in force.
    """
    version, kind_of_record, owner, counterpart, kind, channel, boundary_id, header_bytes = SHAPE.unpack_from(
        record
    )
    if version != RECORD_VERSION or kind_of_record not in (RecordType.SENT, RecordType.RECEIVED):
        return [(Rule.RECORD_MALFORMED, f"version {version}, type {kind_of_record}")]
    faults: list[tuple[Rule, str]] = []
    if owner != owner_id:
        faults.append((Rule.WRONG_OWNER, f"a record of party {owner} in the log of party {owner_id}"))
    wanted_counterpart = 0 if owner_id else boundary_id
    in_contract = 1 <= boundary_id <= len(contract.boundaries)
    if counterpart != wanted_counterpart or not in_contract or (owner_id and boundary_id != owner_id):
        faults.append((Rule.WRONG_COUNTERPART, f"boundary {boundary_id} with party {counterpart}"))
    if kind not in tuple(Kind):
        return [*faults, (Rule.UNKNOWN_KIND, f"kind {kind}")]
    rule = KIND_RULES[Kind(kind)]
    faults += _channel_faults(rule, channel, kind_of_record == RecordType.SENT, bool(owner_id))
    if header_bytes > contract.metadata_cap_bytes:
        faults.append(
            (Rule.METADATA_CAP, f"{header_bytes} bytes of header, cap {contract.metadata_cap_bytes}")
        )
    elif header_bytes != rule.header_bytes:
        faults.append((Rule.HEADER_SIZE, f"{header_bytes} bytes, {rule.kind.name} has {rule.header_bytes}"))
    return faults + _content_faults(
        record, rule, contract, signer if kind_of_record == RecordType.SENT else b""
    )


def _shape(rule: KindRule, contract: Contract, is_sent: bool, channel_key: tuple[int, int]) -> Shape:
    if rule.kind is Kind.BOUNDARY_DELTA:
        fixed, content = slice(MANIFEST, PAYLOAD), contract.manifest_sha256
    elif rule.has_payload:
        fixed, content = slice(ROSTER, PAYLOAD), NOTHING + contract.manifest_sha256
    else:
        fixed, content = slice(ROSTER, MESSAGE), NOTHING * 3
    return Shape(
        is_sent=is_sent,
        is_delta=rule.kind is Kind.BOUNDARY_DELTA,
        header_bytes=rule.header_bytes,
        payload_bytes=contract.payload_bytes if rule.has_payload else 0,
        channel_key=channel_key,
        fixed=fixed,
        fixed_content=content,
    )


def _channel_faults(rule: KindRule, channel: int, is_sent: bool, of_boundary: bool) -> list[tuple[Rule, str]]:
    if channel not in rule.channels:
        return [(Rule.WRONG_CHANNEL, f"{rule.kind.name} on channel {channel}")]
    if is_sent != ((channel == Channel.UP) == of_boundary):
        return [(Rule.WRONG_CHANNEL, f"{rule.kind.name} is marked {'sent' if is_sent else 'received'}")]
    return []


def _content_faults(
    record: bytes, rule: KindRule, contract: Contract, signer: bytes
) -> list[tuple[Rule, str]]:
    cohort, _, _, _, payload_bytes, of_participant, by, bound, roster, manifest, payload, _ = (
        REST.unpack_from(record, SHAPE_BYTES)
    )
    faults: list[tuple[Rule, str]] = []
    name = rule.kind.name
    if bound != contract.run + contract_sha256(contract):
        faults.append((Rule.OTHER_CONTRACT, f"{name} of run {bound[:16].hex()}"))
    if signer and by != signer:
        faults.append(
            (Rule.WRONG_MESSAGE_KEY, f"{name} is signed with key {by.hex()}, {signer.hex()} is in force")
        )
    if manifest != (contract.manifest_sha256 if rule.has_payload else NOTHING):
        faults.append((Rule.WRONG_MANIFEST, f"{name} with manifest {manifest.hex()[:16]}"))
    wanted_bytes = contract.payload_bytes if rule.has_payload else 0
    if payload_bytes != wanted_bytes:
        faults.append(
            (Rule.PAYLOAD_SIZE, f"{name} with {payload_bytes:,} bytes of payload, {wanted_bytes:,} allowed")
        )
    is_delta = rule.kind is Kind.BOUNDARY_DELTA
    if is_delta and cohort < contract.min_cohort:
        faults.append(
            (Rule.COHORT_TOO_SMALL, f"a cohort of {cohort}, at least {contract.min_cohort} are wanted")
        )
    if (not is_delta and (cohort or roster != NOTHING)) or (not rule.has_payload and payload != NOTHING):
        faults.append((Rule.FIELD_NOT_ALLOWED, f"{name} with a cohort, a roster or a payload digest"))
    if of_participant:
        faults.append(
            (Rule.PARTICIPANT_PAYLOAD, f"{of_participant:,} bytes of a single participant's payload")
        )
    return faults
