"""Ed25519 keys: how they are read, named and used, always over domain-separated bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from policies.errors import InputError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
KEY_ID_BYTES = 8
MAX_KEY_FILE_BYTES = 16_384


def public_bytes(key: Ed25519PrivateKey | Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key, or of the public half of a private one."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def key_id(public: bytes) -> bytes:
    """The first 8 bytes of the SHA-256 of a public key: what a record names its signer by."""
    return hashlib.sha256(public).digest()[:KEY_ID_BYTES]


def signed_bytes(domain: str, content: bytes) -> bytes:
    """What is really signed: the domain, a zero byte, the content. No two domains can be mixed up."""
    return domain.encode("ascii") + b"\0" + content


def sign(key: Ed25519PrivateKey, domain: str, content: bytes) -> bytes:
    """The 64-byte signature of `content` in `domain`."""
    return key.sign(signed_bytes(domain, content))


def holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over exactly `message` is by the owner of `public`; never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_public_key(text: str) -> bytes:
    """The public key written as 64 hexadecimal digits, or in the file `text` names (PEM or such digits).

    Raises:
        InputError: `bad-key`.
    """
    direct = _from_hex(text)
    if direct is not None:
        return direct
    try:
        with Path(text).open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise _bad_key(text, str(error)) from error
    listed = _from_hex(content.decode("latin-1").strip())
    if listed is not None:
        return listed
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_key(text, "the file is neither PEM nor hexadecimal") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_key(text, "the key is not an Ed25519 one")
    return public_bytes(key)


def _from_hex(text: str) -> bytes | None:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if len(value) == KEY_BYTES and len(text) == 2 * KEY_BYTES else None


def _bad_key(text: str, reason: str) -> InputError:
    return InputError(
        "bad-key",
        f"`{text}` gives no public key: {reason}",
        hint="name a PEM file with an Ed25519 public key, or write its 64 hexadecimal digits",
    )
