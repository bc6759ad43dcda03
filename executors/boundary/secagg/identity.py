"""Who a participant is: an Ed25519 key certified by the boundary's authority.

A certificate says name, trust slot, boundary, key and the epochs it is good for. The slot is what makes
cohorts honest: one roster holds each slot once, so one owner can't fill a cohort with copies of itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from executors.boundary.secagg.frames import CERTIFICATE_BYTES, NAME_BYTES, SIGNATURE_BYTES
from executors.boundary.secagg.reasons import Reason, RefusedError

CERTIFICATE = struct.Struct("<32s32s32s32sQQ")
CERTIFICATE_DOMAIN = b"echelon/secagg/1/certificate\0"


def encode_name(name: str) -> bytes:
    """A name as 32 bytes: printable ASCII without spaces, zero-padded.

    Raises:
        RefusedError: FRAME_MALFORMED.
    """
    raw = name.encode("ascii", errors="replace")
    if not 0 < len(raw) <= NAME_BYTES or any(not 33 <= byte <= 126 for byte in raw) or raw.decode() != name:
        raise RefusedError(
            Reason.FRAME_MALFORMED, f"name {name!r}: 1 to {NAME_BYTES} printable ASCII characters are allowed"
        )
    return raw.ljust(NAME_BYTES, b"\0")


def decode_name(raw: bytes) -> str:
    """The name in 32 bytes; only what `encode_name` makes is accepted."""
    name = raw.rstrip(b"\0").decode("ascii", errors="replace")
    if encode_name(name) != raw:
        raise RefusedError(Reason.FRAME_MALFORMED, "a name is not zero-padded printable ASCII")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the authority of `boundary` says about the holder of `public_key`, for the epochs given."""

    name: str
    slot: str
    boundary: str
    public_key: bytes
    first_epoch: int
    last_epoch: int
    signature: bytes = b""

    def unsigned(self) -> bytes:
        """The bytes that the authority signs."""
        return CERTIFICATE.pack(
            encode_name(self.name),
            encode_name(self.slot),
            encode_name(self.boundary),
            self.public_key,
            self.first_epoch,
            self.last_epoch,
        )

    def to_bytes(self) -> bytes:
        """The wire form."""
        return self.unsigned() + self.signature


def certify(authority: Ed25519PrivateKey, certificate: Certificate) -> Certificate:
    """The same certificate, signed by the authority."""
    return Certificate(
        name=certificate.name,
        slot=certificate.slot,
        boundary=certificate.boundary,
        public_key=certificate.public_key,
        first_epoch=certificate.first_epoch,
        last_epoch=certificate.last_epoch,
        signature=authority.sign(CERTIFICATE_DOMAIN + certificate.unsigned()),
    )


def parse_certificate(raw: bytes) -> Certificate:
    """The certificate in `raw`, its signature not yet checked."""
    if len(raw) != CERTIFICATE_BYTES:
        raise RefusedError(
            Reason.FRAME_LENGTH, f"a certificate of {len(raw)} bytes; it has {CERTIFICATE_BYTES}"
        )
    name, slot, boundary, public_key, first_epoch, last_epoch = CERTIFICATE.unpack_from(raw)
    return Certificate(
        name=decode_name(name),
        slot=decode_name(slot),
        boundary=decode_name(boundary),
        public_key=public_key,
        first_epoch=first_epoch,
        last_epoch=last_epoch,
        signature=raw[-SIGNATURE_BYTES:],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A participant's own key and its certificate."""

    key: Ed25519PrivateKey
    certificate: Certificate


@dataclass(slots=True, kw_only=True)
class Trust:
    """Whom a member of this boundary believes. Certificates found good are remembered across windows.

    Attributes:
        authority: certifies participants.
        aggregator: signs what the aggregator sends.
        revoked: public keys that no longer count.
    """

    boundary: str
    authority: Ed25519PublicKey
    aggregator: Ed25519PublicKey
    revoked: frozenset[bytes] = frozenset()
    _good: set[bytes] = field(default_factory=set)

    def check(self, certificate: Certificate, *, epoch: int) -> None:
        """Nothing, where the certificate counts in this epoch.

        Raises:
            RefusedError: CERTIFICATE_INVALID or SENDER_REVOKED.
        """
        who = certificate.name
        if certificate.public_key in self.revoked:
            raise RefusedError(Reason.SENDER_REVOKED, f"the key of {who} was revoked", blamed=[who])
        if certificate.boundary != self.boundary:
            raise RefusedError(
                Reason.CERTIFICATE_INVALID,
                f"{who} is certified for boundary {certificate.boundary}, not {self.boundary}",
                blamed=[who],
            )
        if not certificate.first_epoch <= epoch <= certificate.last_epoch:
            raise RefusedError(
                Reason.CERTIFICATE_INVALID,
                f"{who} is certified from {certificate.first_epoch} to {certificate.last_epoch}, not {epoch}",
                blamed=[who],
            )
        self._check_signature(certificate)

    def _check_signature(self, certificate: Certificate) -> None:
        raw = certificate.to_bytes()
        if raw in self._good:
            return
        try:
            self.authority.verify(certificate.signature, CERTIFICATE_DOMAIN + certificate.unsigned())
        except InvalidSignature:
            raise RefusedError(
                Reason.CERTIFICATE_INVALID,
                f"the authority of {self.boundary} did not certify {certificate.name}",
                blamed=[certificate.name],
            ) from None
        self._good.add(raw)
