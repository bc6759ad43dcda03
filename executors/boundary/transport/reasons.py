"""Why a peer is refused: a closed list, since on the wire a refusal is a number and no text."""

from __future__ import annotations

import ssl
from enum import IntEnum

from policies.errors import ExecutorFailedError


class Reason(IntEnum):
    """Reasons, with the numbers they have on the wire."""

    NO_CERTIFICATE = 1
    UNTRUSTED_CERTIFICATE = 2
    EXPIRED_CERTIFICATE = 3
    REVOKED = 4
    BAD_IDENTITY = 5
    WRONG_RUN = 6
    WRONG_BOUNDARY = 7
    WRONG_ROLE = 8
    NO_REVOCATION_LIST = 9
    TOO_MANY_CONNECTIONS = 10
    WRONG_VERSION = 11
    BAD_FRAME = 12
    UNEXPECTED_FRAME = 13
    TOO_LARGE = 14
    NOT_EXPECTED = 15
    NOT_READY = 16
    CONTENT_CHANGED = 17
    WRONG_DIGEST = 18
    SUPERSEDED = 19
    DEADLINE_PASSED = 20
    SHUTTING_DOWN = 21
    TLS_FAILED = 22
    INTERNAL = 23
    BURNT_EPOCH = 24

    @property
    def word(self) -> str:
        """The reason as an error code spells it."""
        return self.name.lower().replace("_", "-")


class RefusedError(ExecutorFailedError):
    """A peer was refused: by us, or (`by_peer`) we by it. The code is the reason's word."""

    def __init__(self, reason: Reason, message: str, *, by_peer: bool = False) -> None:
        super().__init__(f"refused-{reason.word}", message, hint=_HINTS.get(reason, ""))
        self.reason = reason
        self.by_peer = by_peer


_HINTS = {
    Reason.NO_CERTIFICATE: "present the certificate that `echelon pki` made for this process",
    Reason.UNTRUSTED_CERTIFICATE: "both sides need the trust/ folder of the same PKI",
    Reason.EXPIRED_CERTIFICATE: "`echelon pki rotate` renews it; check the clock too",
    Reason.NOT_READY: "ask again later",
}

# Alerts of RFC 8446 section 6.2 by the words OpenSSL has for them.
_ALERTS = (
    ("CERTIFICATE_REQUIRED", Reason.NO_CERTIFICATE),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", Reason.NO_CERTIFICATE),
    ("CERTIFICATE_EXPIRED", Reason.EXPIRED_CERTIFICATE),
    ("CERTIFICATE_REVOKED", Reason.REVOKED),
    ("UNKNOWN_CA", Reason.UNTRUSTED_CERTIFICATE),
    ("BAD_CERTIFICATE", Reason.UNTRUSTED_CERTIFICATE),
    ("CERTIFICATE_UNKNOWN", Reason.UNTRUSTED_CERTIFICATE),
    ("DECRYPT_ERROR", Reason.UNTRUSTED_CERTIFICATE),
    ("UNSUPPORTED_CERTIFICATE", Reason.WRONG_ROLE),
)
# X509_V_ERR_... of OpenSSL: not yet valid, expired; unsuitable purpose.
_VERIFY_CODES = {9: Reason.EXPIRED_CERTIFICATE, 10: Reason.EXPIRED_CERTIFICATE, 26: Reason.WRONG_ROLE}


def reason_of_tls(error: ssl.SSLError) -> tuple[Reason, bool]:
    """The reason behind a failure of TLS, and whether the peer gave it (an alert) or we did (a check)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CODES.get(error.verify_code, Reason.UNTRUSTED_CERTIFICATE), False
    words = (error.reason or str(error)).upper().replace(" ", "_")
    for word, reason in _ALERTS:
        if word in words:
            return reason, "ALERT" in words
    return Reason.TLS_FAILED, "ALERT" in words
