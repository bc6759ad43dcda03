"""What an authority says as signed JSON: who holds which key, and which certificates are revoked.

A statement is one JSON object with sorted keys, no spaces, integers and ASCII strings only, plus `signature`:
the hex Ed25519 signature of the authority's root key over `SCHEMA`, a line feed, and the object without
`signature`. `number` grows by one with each edition, so that a reader who has seen a later one refuses an
earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from policies.errors import InputError

KEYS_SCHEMA = "echelon/keys/1"
REVOKED_SCHEMA = "echelon/revoked/1"
MAX_STATEMENT_BYTES = 8 << 20


class KeyUse(StrEnum):
    """What a signing key signs."""

    IDENTITY = "identity"
    LOG = "log"
    POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A public Ed25519 key in hex, its holder (`ROLE/NAME`), and when it was good (Unix s; 0 = still is)."""

    use: str
    holder: str
    key: str
    since_s: int
    until_s: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedEntry:
    """A revoked certificate (`serial` in hex), or with the serial `*` everything of a holder."""

    serial: str
    holder: str
    reason: str
    at_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A checked statement. Exactly one of `keys` and `revoked` can be filled, by `schema`."""

    schema: str
    run: str
    authority: str
    number: int
    keys: tuple[KeyEntry, ...] = ()
    revoked: tuple[RevokedEntry, ...] = ()


_Entry = TypeVar("_Entry", KeyEntry, RevokedEntry)


def sign_statement(statement: Statement, root_key: Ed25519PrivateKey) -> bytes:
    """The statement as a signed file."""
    body = _body(statement)
    signature = root_key.sign(_signed_bytes(statement.schema, body)).hex()
    return _canonical({**body, "signature": signature}) + b"\n"


def parse_statement(text: bytes, root_key: Ed25519PublicKey, *, schema: str, place: str) -> Statement:
    """The statement in a file, after its signature, its schema and every field have been checked.

    Raises:
        InputError: `bad-statement`.
    """
    if len(text) > MAX_STATEMENT_BYTES:
        raise _fault(place, f"{len(text):,} bytes, the limit is {MAX_STATEMENT_BYTES:,}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _fault(place, f"no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("signature"), str):
        raise _fault(place, "no signed statement")
    body = {key: value for key, value in document.items() if key != "signature"}
    try:
        root_key.verify(bytes.fromhex(document["signature"]), _signed_bytes(schema, body))
    except (InvalidSignature, ValueError, RecursionError) as error:
        raise _fault(place, "its signature is not that of the authority's root key") from error
    # Capital digits or spaces would be a second form of the same signature.
    document["signature"] = bytes.fromhex(document["signature"]).hex()
    statement = _from_body(body, schema=schema, place=place)
    if _canonical({**_body(statement), "signature": document["signature"]}) + b"\n" != text:
        raise _fault(place, "not in canonical form")
    return statement


def _from_body(body: Mapping[str, Any], *, schema: str, place: str) -> Statement:
    name = "keys" if schema == KEYS_SCHEMA else "revoked"
    if set(body) != {"schema", "run", "authority", "number", name} or body["schema"] != schema:
        raise _fault(place, f"fields {sorted(body)}, schema {body.get('schema')!r}; `{schema}` is wanted")
    if not isinstance(body[name], list) or type(body["number"]) is not int:
        raise _fault(place, f"`{name}` is no list or `number` no integer")
    if not all(isinstance(body[field], str) for field in ("run", "authority")):
        raise _fault(place, "`run` or `authority` is no string")
    head = {"schema": schema, "run": body["run"], "authority": body["authority"], "number": body["number"]}
    if name == "keys":
        return Statement(**head, keys=_entries(body[name], KeyEntry, place))
    return Statement(**head, revoked=_entries(body[name], RevokedEntry, place))


def _entries(items: Sequence[Any], kind: type[_Entry], place: str) -> tuple[_Entry, ...]:
    wanted = {field.name: int if field.name.endswith("_s") else str for field in fields(kind)}
    for position, item in enumerate(items):
        if not isinstance(item, dict) or {key: type(value) for key, value in item.items()} != wanted:
            raise _fault(place, f"entry {position} is not one of {', '.join(wanted)}")
    return tuple(kind(**item) for item in items)


def _body(statement: Statement) -> dict[str, Any]:
    body = asdict(statement)
    del body["revoked" if statement.schema == KEYS_SCHEMA else "keys"]
    return body


def _signed_bytes(schema: str, body: Mapping[str, Any]) -> bytes:
    return schema.encode("ascii") + b"\n" + _canonical(body)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _fault(place: str, what: str) -> InputError:
    return InputError(
        "bad-statement", f"{place}: {what}", hint="fetch it again from the authority that signs it"
    )
