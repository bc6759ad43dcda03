"""The key schedule: every key is good for one purpose, one pair, one direction, one window, one roster.

    key = HKDF-SHA256(secret, salt = context, info = "echelon/secagg/1/" purpose | i | j)
    context = SHA-256(scope | roster root | what else was agreed by then)

The scope is the digest of the window descriptor and so holds run, boundary and epoch.
"""

from __future__ import annotations

import struct
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from executors.boundary.secagg.reasons import Reason, RefusedError

_PAIR = struct.Struct("<HH")
_BOX_NONCE = bytes(12)  # each box key seals one message


def derive_key(secret: bytes, *, context: bytes, purpose: str, first: int, second: int) -> bytes:
    """32 bytes for one purpose."""
    info = b"echelon/secagg/1/" + purpose.encode() + b"\0" + _PAIR.pack(first, second)
    return HKDF(algorithm=SHA256(), length=32, salt=context, info=info).derive(secret)


def share_context(scope: bytes, roster: bytes) -> bytes:
    """Context of the keys under which shares travel."""
    return sha256(b"echelon/secagg/1/shares\0" + scope + roster).digest()


def mask_context(scope: bytes, roster: bytes, dealers: bytes) -> bytes:
    """Context of mask keys; `dealers` is the digest of the set of members that dealt shares.

    Members that were told different sets draw different masks: their sum is noise, never a smaller cohort's.
    """
    return sha256(b"echelon/secagg/1/masks\0" + scope + roster + dealers).digest()


def commit_seed(seed: bytes, scope: bytes) -> bytes:
    """What a member publishes about its self-mask seed."""
    return sha256(b"echelon/secagg/1/seed\0" + scope + seed).digest()


def commit_share(share: bytes, *, context: bytes, dealer: int, holder: int, is_seed: bool) -> bytes:
    """What a dealer publishes about one share, so that a wrong one is known at once."""
    place = _PAIR.pack(dealer, holder) + bytes([is_seed])
    return sha256(b"echelon/secagg/1/share\0" + context + place + share).digest()


def public_bytes(secret: X25519PrivateKey) -> bytes:
    """The public key as 32 bytes."""
    return secret.public_key().public_bytes_raw()


def agree(secret: X25519PrivateKey, public: bytes, *, who: str) -> bytes:
    """The X25519 secret of two members.

    Raises:
        RefusedError: RULES_VIOLATED for a key of small order, which would make the secret known to all.
    """
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise RefusedError(
            Reason.RULES_VIOLATED, f"{who} enrolled a key of small order, which hides nothing", blamed=[who]
        ) from None


def pair_key(
    secret: X25519PrivateKey, public: bytes, *, context: bytes, own: int, other: int, who: str
) -> bytes:
    """The mask key of two seats, the same from either side."""
    low, high = min(own, other), max(own, other)
    return derive_key(agree(secret, public, who=who), context=context, purpose="pair", first=low, second=high)


def self_key(seed: bytes, *, context: bytes, seat: int) -> bytes:
    """The self-mask key of a seat."""
    return derive_key(seed, context=context, purpose="self", first=seat, second=seat)


def seal(shares: bytes, agreed: bytes, *, context: bytes, dealer: int, holder: int, digests: bytes) -> bytes:
    """Both shares for one holder, sealed together with the digests published about them."""
    key = derive_key(agreed, context=context, purpose="box", first=dealer, second=holder)
    return AESGCM(key).encrypt(_BOX_NONCE, shares, context + _PAIR.pack(dealer, holder) + digests)


def unseal(
    box: bytes, agreed: bytes, *, context: bytes, dealer: int, holder: int, digests: bytes
) -> bytes | None:
    """The shares in a box, or None where it was not sealed by this dealer for this holder in this window."""
    key = derive_key(agreed, context=context, purpose="box", first=dealer, second=holder)
    try:
        return AESGCM(key).decrypt(_BOX_NONCE, box, context + _PAIR.pack(dealer, holder) + digests)
    except InvalidTag:
        return None
