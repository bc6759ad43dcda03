"""Signed checkpoints of a log, in the text form of a C2SP signed note.

    echelon/log/1/<run>/<party>
    <number of records>
    <root, base64>
    closed                           only on the last one of a log

    — <party> <base64 of key hash and signature>
    — <counterpart> <base64 of key hash and signature>

The signature covers the lines above the empty one. A file holds one note after the other, each followed by an
empty line; reading refuses whatever is not byte for byte what writing gives.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import keys
from policies.audit.tree import HASH_BYTES, is_consistent
from policies.errors import AuditFailedError

ORIGIN = "echelon/log/1"
CLOSED = "closed"
KEY_HASH_BYTES = 4
_ED25519 = b"\x01"


class CheckpointRefusedError(AuditFailedError):
    """A checkpoint is malformed, or does not continue what was seen before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line: who says to have signed, the hash of name and key, the signature."""

    name: str
    key_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A log's size and root at one moment; after a closed one nothing follows."""

    run: bytes
    party: str
    size: int
    root: bytes
    is_closed: bool = False
    signatures: tuple[NoteSignature, ...] = ()


def note_bytes(checkpoint: Checkpoint) -> bytes:
    """The lines that are signed."""
    root = base64.b64encode(checkpoint.root).decode("ascii")
    lines = [f"{ORIGIN}/{checkpoint.run.hex()}/{checkpoint.party}", str(checkpoint.size), root]
    if checkpoint.is_closed:
        lines.append(CLOSED)
    return ("\n".join(lines) + "\n").encode("ascii")


def sign_checkpoint(checkpoint: Checkpoint, name: str, key: Ed25519PrivateKey) -> Checkpoint:
    """The checkpoint with one signature more, by the log key of `name`."""
    public = keys.public_bytes(key)
    line = NoteSignature(
        name=name, key_hash=note_key_hash(name, public), signature=key.sign(note_bytes(checkpoint))
    )
    return replace(checkpoint, signatures=(*checkpoint.signatures, line))


def cosign_checkpoint(
    checkpoint: Checkpoint,
    *,
    seen: Checkpoint | None,
    proof: Sequence[bytes],
    owner_log_key: bytes,
    name: str,
    key: Ed25519PrivateKey,
) -> Checkpoint:
    """The counterpart's signature on a checkpoint that continues the last one it has seen.

    Args:
        checkpoint: signed by the log's owner.
        seen: the last checkpoint of this log that was signed here, None for the first.
        proof: consistency proof from `seen` to `checkpoint`.
        owner_log_key: public key that must have signed the checkpoint.
        name: who signs now.
        key: the log key of who signs now.

    Raises:
        CheckpointRefusedError: `bad-signature`, or `log-forked` when this log does not continue the one seen.
    """
    if not is_signed_by(checkpoint, checkpoint.party, owner_log_key):
        raise CheckpointRefusedError("bad-signature", f"`{checkpoint.party}` did not sign its checkpoint")
    if seen is not None:
        goes_on = (seen.run, seen.party) == (checkpoint.run, checkpoint.party) and not seen.is_closed
        same = (seen.size, seen.root, seen.is_closed) == (
            checkpoint.size, checkpoint.root, checkpoint.is_closed,
        )  # fmt: skip
        if not same and not (
            goes_on
            and is_consistent(
                old_size=seen.size,
                old_root=seen.root,
                new_size=checkpoint.size,
                new_root=checkpoint.root,
                proof=proof,
            )
        ):
            raise CheckpointRefusedError(
                "log-forked",
                f"the log of `{checkpoint.party}` at {checkpoint.size} does not continue that at {seen.size}",
                hint="keep both checkpoints: together they prove the fork",
            )
    return sign_checkpoint(checkpoint, name, key)


def is_signed_by(checkpoint: Checkpoint, name: str, public: bytes) -> bool:
    """Whether `name` signed the checkpoint with this key."""
    key_hash = note_key_hash(name, public)
    return any(
        line.name == name
        and line.key_hash == key_hash
        and keys.holds(public, line.signature, note_bytes(checkpoint))
        for line in checkpoint.signatures
    )


def note_key_hash(name: str, public: bytes) -> bytes:
    """The first 4 bytes of SHA-256(name, newline, 0x01, key), as signed notes have it."""
    return hashlib.sha256(name.encode("ascii") + b"\n" + _ED25519 + public).digest()[:KEY_HASH_BYTES]


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """The note with its signature lines and the empty line that ends it."""
    lines = [
        f"\u2014 {line.name} {base64.b64encode(line.key_hash + line.signature).decode('ascii')}\n"
        for line in checkpoint.signatures
    ]
    return note_bytes(checkpoint) + b"\n" + "".join(lines).encode() + b"\n"


def parse_checkpoints(content: bytes) -> list[Checkpoint]:
    """The checkpoints of a file in their order.

    Raises:
        CheckpointRefusedError: `bad-checkpoint`, with the number of the first that is malformed.
    """
    checkpoints: list[Checkpoint] = []
    position = 0
    while position < len(content):
        body_end = content.find(b"\n\n", position)
        end = content.find(b"\n\n", body_end + 2) + 2
        if body_end < 0 or end < 2:
            raise _malformed(len(checkpoints))
        note = content[position:end]
        checkpoint = _parse_note(note)
        if checkpoint is None or checkpoint_bytes(checkpoint) != note:
            raise _malformed(len(checkpoints))
        checkpoints.append(checkpoint)
        position = end
    return checkpoints


def _parse_note(note: bytes) -> Checkpoint | None:
    try:
        body, _, signed = note.decode().partition("\n\n")
        origin, size, root, *closing = body.split("\n")
        run, party = origin.removeprefix(ORIGIN + "/").split("/")
        lines = [line.split(" ") for line in signed.strip("\n").split("\n")]
        signatures = tuple(_signature(*line) for line in lines)
        checkpoint = Checkpoint(
            run=bytes.fromhex(run),
            party=party,
            size=int(size),
            root=base64.b64decode(root, validate=True),
            is_closed=closing == [CLOSED],
            signatures=signatures,
        )
    except (ValueError, TypeError, binascii.Error):
        return None
    return (
        checkpoint
        if len(checkpoint.root) == HASH_BYTES and checkpoint.size >= 0 and party.isascii()
        else None
    )


def _signature(_dash: str, name: str, encoded: str) -> NoteSignature:
    value = base64.b64decode(encoded, validate=True)
    if len(value) != KEY_HASH_BYTES + keys.SIGNATURE_BYTES or not name.isascii():
        raise ValueError("no Ed25519 signature line")
    return NoteSignature(name=name, key_hash=value[:KEY_HASH_BYTES], signature=value[KEY_HASH_BYTES:])


def _malformed(number: int) -> CheckpointRefusedError:
    return CheckpointRefusedError("bad-checkpoint", f"checkpoint {number} is not in its one form")
