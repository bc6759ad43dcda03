"""Canonical JSON: one byte string per document, so that it can be hashed and signed.

Sorted keys, no white space, integers, ASCII strings, lists and objects only. On this subset the result equals
RFC 8785. Reading refuses everything that is not byte for byte what writing gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from policies.errors import AuditFailedError

MAX_DOCUMENT_BYTES = 1 << 20
MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 8


class NotCanonicalError(AuditFailedError):
    """A document is not in its one canonical form."""


def canonical_bytes(document: Any) -> bytes:
    """The document's only encoding.

    Raises:
        NotCanonicalError: `not-canonical`, for floats, null, booleans, other than printable ASCII, or
            integers beyond ±(2^53 - 1).
    """
    _require_plain(document, 0)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse_canonical(content: bytes, *, name: str) -> Any:
    """The document that `content` is the encoding of.

    Raises:
        NotCanonicalError: `not-canonical`, naming the document.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise _refusal(f"{name} has {len(content):,} bytes, the limit is {MAX_DOCUMENT_BYTES:,}")
    try:
        document = json.loads(content.decode("ascii"), object_pairs_hook=_object)
        again = canonical_bytes(document)
    except NotCanonicalError as error:
        raise _refusal(f"{name}: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise _refusal(f"{name} is no JSON: {error}") from error
    if again != content:
        raise _refusal(f"{name} is not in canonical form")
    return document


def require_keys(document: Any, keys: Iterable[str], *, name: str) -> dict[str, Any]:
    """The document, which is an object with exactly these keys.

    Raises:
        NotCanonicalError: `not-canonical`, with the keys that are missing or unknown.
    """
    wanted = set(keys)
    if not isinstance(document, dict) or set(document) != wanted:
        unlike = sorted(wanted ^ set(document)) if isinstance(document, dict) else sorted(wanted)
        raise _refusal(f"{name} lacks or has beyond its schema: {', '.join(unlike)}")
    return document


def require_text(document: dict[str, Any], key: str, *, name: str) -> str:
    """The string at `key`.

    Raises:
        NotCanonicalError: `not-canonical`.
    """
    value = document[key]
    if not isinstance(value, str):
        raise _refusal(f"{name}: `{key}` is {value!r}, a string is wanted")
    return value


def require_count(document: dict[str, Any], key: str, *, name: str, at_least: int = 0) -> int:
    """The integer at `key`, which is not below `at_least`.

    Raises:
        NotCanonicalError: `not-canonical`.
    """
    value = document[key]
    if not isinstance(value, int) or value < at_least:
        raise _refusal(f"{name}: `{key}` is {value!r}, an integer of at least {at_least} is wanted")
    return value


def require_hex(document: dict[str, Any], key: str, num_bytes: int, *, name: str) -> bytes:
    """The bytes that stand at `key` in lower-case hexadecimal.

    Raises:
        NotCanonicalError: `not-canonical`.
    """
    text = require_text(document, key, name=name)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != num_bytes or value.hex() != text:
        raise _refusal(f"{name}: `{key}` is not {num_bytes} bytes in lower-case hexadecimal")
    return value


def plain_copy(value: Any) -> Any:
    """A copy that has a canonical form, and another one for every other value.

    Fractions are written in hexadecimal, truth values as words, None as an empty list, letters beyond ASCII
    and control characters with backslashes.
    """
    if isinstance(value, Mapping):
        return {plain_copy(str(key)): plain_copy(item) for key, item in value.items()}
    if isinstance(value, str):
        return value.encode("unicode_escape").decode("ascii")
    if isinstance(value, Sequence):
        return [plain_copy(item) for item in value]
    if value is None or isinstance(value, bool):
        return [] if value is None else str(value).lower()
    return value.hex() if isinstance(value, float) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _refusal("a key stands twice")
    return document


def _require_plain(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refusal(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(str(key) if isinstance(key, str) else None, depth)
            _require_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_plain(item, depth + 1)
    elif isinstance(value, str):
        if not (value.isascii() and (value == "" or value.isprintable())):
            raise _refusal(f"{value[:40]!r} is not printable ASCII")
    elif isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_INTEGER:
        raise _refusal(f"{value!r} is no string, integer, list or object")


def _refusal(message: str) -> NotCanonicalError:
    return NotCanonicalError("not-canonical", message, hint="take the file from its maker again, unchanged")
