"""The messages that may cross a boundary, and nothing else: fixed-width headers, closed kinds, no free text.

A message is a header and, for two kinds only, a payload of exactly the contract's length. The header is a
common part, the fields of its kind, and an Ed25519 signature of the sender over both; it holds the SHA-256 of
the payload. Encoding and decoding refuse the same things. No field can name a participant.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import keys
from policies.audit.messages import (
    Abort,
    Ack,
    Address,
    BoundaryDelta,
    BoundaryStatus,
    GlobalState,
    Join,
    Leave,
    Message,
    Reason,
    Signals,
    SyncDirective,
    WindowState,
)
from policies.audit.record import NOTHING, Channel, Kind, Record, RecordType
from policies.contract import KIND_RULES, Contract, KindRule, Ring, contract_sha256
from policies.errors import PolicyRefusedError

ENVELOPE_VERSION = 1
DOMAIN = "echelon/message/1"
MAX_COORDINATE_PIECE = 1 << 20
_COMMON = struct.Struct(">BBBH16s32sQ8s")
COMMON_BYTES = _COMMON.size


class Refusal(StrEnum):
    """Why a message is refused; also the code of the error."""

    LENGTH = "envelope-length"
    VERSION = "envelope-version"
    KIND = "envelope-kind"
    CHANNEL = "envelope-channel"
    CONTRACT = "envelope-contract"
    SENDER = "envelope-sender"
    SIGNATURE = "envelope-signature"
    FIELD = "envelope-field"
    COHORT = "envelope-cohort"
    MANIFEST = "envelope-manifest"
    PAYLOAD = "envelope-payload"


class EnvelopeRefusedError(PolicyRefusedError):
    """A message that may not cross; `reason` says why."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(reason.value, message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    kind: Kind
    fields_of: struct.Struct
    check: Callable[[Any, Contract], None]


def encode_header(message: Message, address: Address, contract: Contract, key: Ed25519PrivateKey) -> bytes:
    """The signed header of a message; its payload, if any, goes behind it.

    Raises:
        EnvelopeRefusedError: for whatever `decode_header` would refuse.
    """
    layout = _LAYOUTS[type(message)]
    _require_address(layout.kind, address, contract)
    values = [getattr(message, field.name) for field in fields(message)]
    try:
        content = _COMMON.pack(
            ENVELOPE_VERSION,
            layout.kind,
            address.channel,
            address.boundary_id,
            contract.run,
            contract_sha256(contract),
            address.sequence,
            keys.key_id(keys.public_bytes(key)),
        ) + layout.fields_of.pack(*values)
    except struct.error as error:
        raise EnvelopeRefusedError(Refusal.FIELD, f"{layout.kind.name}: {error}") from error
    read = _message_of(type(message), layout, content, contract)
    if read != message:
        raise EnvelopeRefusedError(
            Refusal.FIELD, f"{layout.kind.name}: a field is not what its width can hold"
        )
    return content + keys.sign(key, DOMAIN, content)


def decode_header(
    header: bytes, contract: Contract, public_key: bytes, *, boundary_id: int, channel: Channel
) -> tuple[Message, Address]:
    """The message of a header that arrived from the owner of `public_key`.

    Args:
        header: exactly the bytes of one header.
        contract: of the run.
        public_key: the sender's message key in force.
        boundary_id: of the boundary that this connection belongs to.
        channel: the way the message came.

    Raises:
        EnvelopeRefusedError: with its `reason`; nothing of a refused message is given away.
    """
    rule, address, signer = _parse_common(header, contract)
    _require_address(rule.kind, address, contract)
    if (address.boundary_id, address.channel) != (boundary_id, channel):
        raise EnvelopeRefusedError(Refusal.SENDER, f"{rule.kind.name} of another boundary or channel")
    if signer != keys.key_id(public_key):
        raise EnvelopeRefusedError(Refusal.SENDER, f"{rule.kind.name} is signed with another key")
    content, signature = header[: -keys.SIGNATURE_BYTES], header[-keys.SIGNATURE_BYTES :]
    if not keys.holds(public_key, signature, keys.signed_bytes(DOMAIN, content)):
        raise EnvelopeRefusedError(Refusal.SIGNATURE, f"{rule.kind.name}: the signature does not hold")
    kind_type = _TYPES[rule.kind]
    return _message_of(kind_type, _LAYOUTS[kind_type], content, contract), address


def header_bytes_of(start: bytes) -> int:
    """How long the header is that begins with these two bytes (version, kind).

    Raises:
        EnvelopeRefusedError: `envelope-length`, `envelope-version` or `envelope-kind`.
    """
    if len(start) < 2:
        raise EnvelopeRefusedError(Refusal.LENGTH, f"{len(start)} bytes tell no kind")
    if start[0] != ENVELOPE_VERSION:
        raise EnvelopeRefusedError(Refusal.VERSION, f"version {start[0]}, this is {ENVELOPE_VERSION}")
    if start[1] not in _KINDS:
        raise EnvelopeRefusedError(Refusal.KIND, f"kind {start[1]} is not in the contract")
    return KIND_RULES[Kind(start[1])].header_bytes


def require_payload(message: Message, payload: bytes | bytearray | memoryview, contract: Contract) -> None:
    """Refuse a payload that is not the one its header announces.

    Raises:
        EnvelopeRefusedError: `envelope-payload`, for another length or digest, values behind a kind that has
            none, or float values that are not finite.
    """
    if not isinstance(message, BoundaryDelta | GlobalState):
        if len(payload):
            raise EnvelopeRefusedError(Refusal.PAYLOAD, f"{len(payload)} bytes behind a kind without payload")
        return
    view = memoryview(payload).cast("B")
    if len(view) != contract.payload_bytes:
        raise EnvelopeRefusedError(
            Refusal.PAYLOAD, f"{len(view):,} bytes of payload, the contract has {contract.payload_bytes:,}"
        )
    if hashlib.sha256(view).digest() != message.payload_sha256:
        raise EnvelopeRefusedError(Refusal.PAYLOAD, "the payload's digest is not the one in the header")
    if contract.ring is Ring.FLOAT32 and not _all_finite(view):
        raise EnvelopeRefusedError(Refusal.PAYLOAD, "the payload has a value that is not finite")


def record_of(
    message: Message, address: Address, header: bytes, contract: Contract, *, owner_id: int
) -> Record:
    """What the log of party `owner_id` (0: the coordinator) keeps of a message it sends or receives."""
    layout = _LAYOUTS[type(message)]
    sender_id = address.boundary_id if address.channel is Channel.UP else 0
    start = _COMMON.size - keys.KEY_ID_BYTES
    return Record(
        type=RecordType.SENT if owner_id == sender_id else RecordType.RECEIVED,
        owner_id=owner_id,
        counterpart_id=0 if owner_id else address.boundary_id,
        kind=layout.kind,
        channel=address.channel,
        boundary_id=address.boundary_id,
        header_bytes=len(header),
        cohort_size=getattr(message, "cohort_size", 0),
        sequence=address.sequence,
        epoch=getattr(message, "epoch", 0),
        base_version=getattr(message, "base_version", 0),
        payload_bytes=getattr(message, "payload_bytes", 0),
        signer=header[start : _COMMON.size],
        run=contract.run,
        contract_sha256=contract_sha256(contract),
        roster_root=getattr(message, "roster_root", NOTHING),
        manifest_sha256=getattr(message, "manifest_sha256", NOTHING),
        payload_sha256=getattr(message, "payload_sha256", NOTHING),
        message_sha256=hashlib.sha256(header).digest(),
    )


def _parse_common(header: bytes, contract: Contract) -> tuple[KindRule, Address, bytes]:
    if len(header) != header_bytes_of(header[:2]):
        raise EnvelopeRefusedError(
            Refusal.LENGTH, f"{len(header)} bytes, {header_bytes_of(header[:2])} expected"
        )
    _, kind, channel, boundary_id, run, contract_hash, sequence, signer = _COMMON.unpack_from(header)
    if (run, contract_hash) != (contract.run, contract_sha256(contract)):
        raise EnvelopeRefusedError(
            Refusal.CONTRACT, "the message is of another run or under another contract"
        )
    if channel not in tuple(Channel):
        raise EnvelopeRefusedError(Refusal.CHANNEL, f"channel {channel} does not exist")
    address = Address(boundary_id=boundary_id, channel=Channel(channel), sequence=sequence)
    return KIND_RULES[Kind(kind)], address, signer


def _require_address(kind: Kind, address: Address, contract: Contract) -> None:
    if address.channel not in KIND_RULES[kind].channels:
        raise EnvelopeRefusedError(Refusal.CHANNEL, f"{kind.name} does not go {address.channel.name.lower()}")
    if not 1 <= address.boundary_id <= len(contract.boundaries):
        raise EnvelopeRefusedError(Refusal.SENDER, f"boundary {address.boundary_id} is not in the contract")


def _message_of(
    kind_type: Callable[..., Message], layout: _Layout, content: bytes, contract: Contract
) -> Message:
    values = layout.fields_of.unpack_from(content, COMMON_BYTES)
    message = kind_type(**dict(zip(_field_names(kind_type), values, strict=True)))
    for name, value in zip(_field_names(kind_type), values, strict=True):
        if isinstance(value, float) and not _is_plain(value, may_be_negative=name == "projection"):
            raise EnvelopeRefusedError(Refusal.FIELD, f"{layout.kind.name}: {name} is {value}")
    layout.check(message, contract)
    return kind_type(
        **{name: _ENUMS.get(name, _same)(getattr(message, name)) for name in _field_names(kind_type)}
    )


def _field_names(kind_type: Any) -> tuple[str, ...]:
    return tuple(kind_type.__dataclass_fields__)


def _same(value: Any) -> Any:
    return value


def _require(condition: bool, reason: Refusal, text: str) -> None:
    if not condition:
        raise EnvelopeRefusedError(reason, text)


def _check_payload_fields(message: BoundaryDelta | GlobalState, contract: Contract) -> None:
    _require(
        message.manifest_sha256 == contract.manifest_sha256, Refusal.MANIFEST, "tensors of another manifest"
    )
    _require(
        message.payload_bytes == contract.payload_bytes,
        Refusal.PAYLOAD,
        f"{message.payload_bytes:,} bytes announced, the contract has {contract.payload_bytes:,}",
    )


def _check_delta(message: BoundaryDelta, contract: Contract) -> None:
    _check_payload_fields(message, contract)
    _require(
        message.cohort_size >= contract.min_cohort,
        Refusal.COHORT,
        f"a cohort of {message.cohort_size}, at least {contract.min_cohort} are wanted",
    )
    _require(
        message.weight_sum > 0.0 and message.scale > 0.0, Refusal.FIELD, "weight_sum and scale are positive"
    )
    _require(any(message.roster_root), Refusal.FIELD, "the roster has a root")


def _check_status(message: BoundaryStatus, _: Contract) -> None:
    _require(
        message.window_state in tuple(WindowState), Refusal.FIELD, f"window state {message.window_state}"
    )
    _require(message.is_ready in (0, 1) and message.signals < 16, Refusal.FIELD, "a flag is out of range")
    measured = (message.squared_norm, message.projection, message.queue_s, message.step_s)
    for bit, value in zip(Signals, measured, strict=True):
        _require(value == 0.0 or bool(message.signals & bit), Refusal.FIELD, f"{bit.name} is unmarked")


def _check_directive(message: SyncDirective, contract: Contract) -> None:
    _require(message.num_steps > 0, Refusal.FIELD, "a sync interval has steps")
    _require(
        message.outer_rate_id < contract.num_outer_rates, Refusal.FIELD, "an outer rate outside the table"
    )


def _check_reason(message: Join | Leave | Ack | Abort, _: Contract) -> None:
    _require(message.reason in tuple(Reason), Refusal.FIELD, f"reason {message.reason} does not exist")
    if isinstance(message, Ack):
        _require(
            message.acked_kind in tuple(Kind), Refusal.FIELD, f"kind {message.acked_kind} does not exist"
        )


def _is_plain(value: float, *, may_be_negative: bool) -> bool:
    # -0.0 is refused everywhere: the sign of a zero would be a place to hide a bit.
    return math.isfinite(value) and (math.copysign(1.0, value) > 0.0 or (may_be_negative and value != 0.0))


def _all_finite(view: memoryview) -> bool:
    values = np.frombuffer(view, dtype="<f4")
    pieces = range(0, len(values), MAX_COORDINATE_PIECE)
    return all(bool(np.isfinite(values[i : i + MAX_COORDINATE_PIECE]).all()) for i in pieces)


_ENUMS: Mapping[str, Callable[[Any], Any]] = {
    "window_state": WindowState,
    "reason": Reason,
    "acked_kind": Kind,
}
_KINDS = frozenset(int(kind) for kind in Kind)
_LAYOUTS: Mapping[Callable[..., Any], _Layout] = {
    BoundaryDelta: _Layout(
        kind=Kind.BOUNDARY_DELTA, fields_of=struct.Struct(">QQIdQdd32s32sQ32s"), check=_check_delta
    ),
    BoundaryStatus: _Layout(
        kind=Kind.BOUNDARY_STATUS, fields_of=struct.Struct(">QQBBBdddd"), check=_check_status
    ),
    GlobalState: _Layout(
        kind=Kind.GLOBAL_STATE, fields_of=struct.Struct(">Q32sQ32s"), check=_check_payload_fields
    ),
    SyncDirective: _Layout(
        kind=Kind.SYNC_DIRECTIVE, fields_of=struct.Struct(">QIddH"), check=_check_directive
    ),
    Join: _Layout(kind=Kind.JOIN, fields_of=struct.Struct(">QB"), check=_check_reason),
    Leave: _Layout(kind=Kind.LEAVE, fields_of=struct.Struct(">QB"), check=_check_reason),
    Ack: _Layout(kind=Kind.ACK, fields_of=struct.Struct(">BQB"), check=_check_reason),
    Abort: _Layout(kind=Kind.ABORT, fields_of=struct.Struct(">QB"), check=_check_reason),
}
_TYPES: Mapping[Kind, Callable[..., Message]] = {layout.kind: kind for kind, layout in _LAYOUTS.items()}
for _layout in _LAYOUTS.values():
    _size = COMMON_BYTES + _layout.fields_of.size + keys.SIGNATURE_BYTES
    assert _size == KIND_RULES[_layout.kind].header_bytes, (_layout.kind.name, _size)
