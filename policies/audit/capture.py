"""The signed summary of a capture: what really left a boundary, counted beside its guard.

The process that counts is not under the guard's control. Only with such a capture can an audit speak of
everything that left (scope `egress`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import canonical, keys
from policies.errors import AuditFailedError

CAPTURE_SCHEMA = "echelon/capture/1"
DOMAIN = "echelon/capture/1"
CAPTURE_SUFFIX = ".capture.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What crossed one boundary's border in a whole run.

    Wire bytes are those of the transport connections to the coordinator (payload of TCP); message bytes are
    headers and payloads after decryption and without frames, a range that was sent again counted once. They
    are 0 unless `sees_messages` is 1. `other_up_bytes` left for anywhere but the coordinator. The capture
    covers the run from before its first to after its last message when `is_whole` is 1.
    """

    run: bytes
    contract_sha256: bytes
    boundary: str
    is_whole: int
    num_dropped_packets: int
    num_connections: int
    sees_messages: int
    up_message_bytes: int
    down_message_bytes: int
    up_wire_bytes: int
    down_wire_bytes: int
    other_up_bytes: int


class CaptureRefusedError(AuditFailedError):
    """A capture is malformed or not signed by its recorder."""


def signed_capture_bytes(capture: Capture, recorder_key: Ed25519PrivateKey) -> bytes:
    """The file an auditor reads."""
    document = _document(capture)
    signature = keys.sign(recorder_key, DOMAIN, canonical.canonical_bytes(document))
    return canonical.canonical_bytes({"capture": document, "signature": signature.hex()})


def read_capture(content: bytes, recorder_key: bytes) -> Capture:
    """The capture in a file, signed by the owner of `recorder_key`.

    Raises:
        NotCanonicalError: `not-canonical`.
        CaptureRefusedError: `bad-capture` or `bad-signature`.
    """
    name = "the capture"
    outer = canonical.require_keys(
        canonical.parse_canonical(content, name=name), ("capture", "signature"), name=name
    )
    names = [field.name for field in fields(Capture)]
    found = canonical.require_keys(outer["capture"], ["schema", *names], name=name)
    counts = {key: canonical.require_count(found, key, name=name) for key in names[3:]}
    capture = Capture(
        run=canonical.require_hex(found, "run", 16, name=name),
        contract_sha256=canonical.require_hex(found, "contract_sha256", 32, name=name),
        boundary=canonical.require_text(found, "boundary", name=name),
        **counts,
    )
    blind = not capture.sees_messages and (capture.up_message_bytes or capture.down_message_bytes)
    if _document(capture) != found or capture.is_whole > 1 or capture.sees_messages > 1 or blind:
        raise CaptureRefusedError("bad-capture", "the capture contradicts its schema")
    signature = canonical.require_hex(outer, "signature", keys.SIGNATURE_BYTES, name=name)
    message = keys.signed_bytes(DOMAIN, canonical.canonical_bytes(found))
    if not keys.holds(recorder_key, signature, message):
        raise CaptureRefusedError("bad-signature", "the recorder's key did not sign this capture")
    return capture


def _document(capture: Capture) -> dict[str, Any]:
    plain = {
        key: value.hex() if isinstance(value, bytes) else value for key, value in asdict(capture).items()
    }
    return {"schema": CAPTURE_SCHEMA, **plain}
