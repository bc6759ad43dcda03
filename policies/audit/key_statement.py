"""A key of a party is replaced or revoked: a statement by its policy key, kept as a record of its own log.

It holds from the next record on. There is none for policy keys: who loses one needs a new contract.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.audit import keys
from policies.audit.record import BODY_BYTES, RECORD_VERSION, RecordDamagedError, RecordType, is_whole, seal

DOMAIN = "echelon/key-statement/1"
_STATEMENT = struct.Struct(">BBHBB16s32s32s32s")
_ZEROS = bytes(BODY_BYTES - _STATEMENT.size - keys.SIGNATURE_BYTES)


class KeyAction(IntEnum):
    """`ROTATE` retires a key in good order, `REVOKE` one that may be in other hands."""

    ROTATE = 1
    REVOKE = 2


class KeyRole(IntEnum):
    """Which of a party's keys: that of its checkpoints, or that of its messages."""

    LOG = 1
    MESSAGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatement:
    """`new_key` takes the place of `old_key` in `role`."""

    owner_id: int
    action: KeyAction
    role: KeyRole
    run: bytes
    contract_sha256: bytes
    old_key: bytes
    new_key: bytes


def encode_statement(statement: KeyStatement, policy_key: Ed25519PrivateKey) -> bytes:
    """The statement as a signed record."""
    content = _content(statement)
    return seal(content + keys.sign(policy_key, DOMAIN, content) + _ZEROS)


def decode_statement(record: bytes) -> tuple[KeyStatement, bytes]:
    """The statement in a record, and its signature, which is still to be verified with `is_signed`.

    Raises:
        RecordDamagedError: `record-damaged`.
    """
    content, end = record[: _STATEMENT.size], _STATEMENT.size + keys.SIGNATURE_BYTES
    if not is_whole(record) or record[end:BODY_BYTES] != _ZEROS:
        raise RecordDamagedError("record-damaged", "no whole key statement")
    version, kind, owner_id, action, role, run, contract, old, new = _STATEMENT.unpack(content)
    known = (
        (version, kind) == (RECORD_VERSION, RecordType.KEY_STATEMENT)
        and action in tuple(KeyAction)
        and role in tuple(KeyRole)
    )
    if not known or old == new or not any(new):
        raise RecordDamagedError("record-damaged", "a key statement without an action, a role or a new key")
    statement = KeyStatement(
        owner_id=owner_id,
        action=KeyAction(action),
        role=KeyRole(role),
        run=run,
        contract_sha256=contract,
        old_key=old,
        new_key=new,
    )
    return statement, record[_STATEMENT.size : end]


def is_signed(statement: KeyStatement, signature: bytes, policy_key: bytes) -> bool:
    """Whether the owner of the policy key signed the statement."""
    return keys.holds(policy_key, signature, keys.signed_bytes(DOMAIN, _content(statement)))


def _content(statement: KeyStatement) -> bytes:
    return _STATEMENT.pack(
        RECORD_VERSION,
        RecordType.KEY_STATEMENT,
        statement.owner_id,
        statement.action,
        statement.role,
        statement.run,
        statement.contract_sha256,
        statement.old_key,
        statement.new_key,
    )
