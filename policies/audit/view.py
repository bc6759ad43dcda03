"""A log for people and other programs: each record as JSON, and a proof that one record stands in the log."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policies.audit.checkpoint import Checkpoint, checkpoint_bytes
from policies.audit.key_statement import decode_statement
from policies.audit.ledger import iter_records
from policies.audit.record import RECORD_BYTES, RecordDamagedError, RecordType, decode_record, record_view
from policies.audit.tree import inclusion_proof, leaf_hash
from policies.errors import InputError

RECORD_SCHEMA = "echelon/audit-record/1"
PROOF_SCHEMA = "echelon/audit-proof/1"


def view_of(content: bytes, index: int) -> dict[str, Any]:
    """One record as JSON, with its position and leaf hash; `type` is `damaged` where it can't be read."""
    head: dict[str, Any] = {
        "schema": RECORD_SCHEMA,
        "index": index,
        "leaf": leaf_hash(content).hex(),
    }
    try:
        if len(content) == RECORD_BYTES and content[1] == RecordType.KEY_STATEMENT:
            return head | _statement_view(content)
        return head | record_view(decode_record(content))
    except RecordDamagedError as error:
        return head | {"type": "damaged", "found": error.message}


def iter_views(path: Path, *, first: int = 0, num_records: int | None = None) -> Iterator[dict[str, Any]]:
    """The records from `first` on, at most `num_records` of them.

    Raises:
        InputError: `log-not-readable`.
    """
    try:
        for index, content in enumerate(iter_records(path)):
            if num_records is not None and index >= first + num_records:
                return
            if index >= first:
                yield view_of(content, index)
    except OSError as error:
        raise InputError(
            "log-not-readable", f"can't read `{path}`: {error.strerror}", hint="name a .log file of a run"
        ) from error


def proof_of(path: Path, index: int, checkpoint: Checkpoint) -> dict[str, Any]:
    """What shows, without the rest of the log, that a record stands in it: record, proof, checkpoint.

    Raises:
        InputError: `no-such-record`, for a record behind the checkpoint.
    """
    contents = [content for _, content in zip(range(checkpoint.size), iter_records(path), strict=False)]
    if not 0 <= index < len(contents):
        raise InputError(
            "no-such-record",
            f"record {index} is not among the {len(contents):,} that the last checkpoint covers",
            hint="name an earlier record, or sign a checkpoint first",
        )
    hashes = [leaf_hash(content) for content in contents]
    return {
        "schema": PROOF_SCHEMA,
        "record": view_of(contents[index], index),
        "record_base64": base64.b64encode(contents[index]).decode("ascii"),
        "proof": [part.hex() for part in inclusion_proof(hashes, index)],
        "checkpoint": checkpoint_bytes(checkpoint).decode(),
    }


def _statement_view(content: bytes) -> dict[str, Any]:
    statement, signature = decode_statement(content)
    return {
        "type": "key_statement",
        "owner_id": statement.owner_id,
        "action": statement.action.name.lower(),
        "role": statement.role.name.lower(),
        "run": statement.run.hex(),
        "contract_sha256": statement.contract_sha256.hex(),
        "old_key": statement.old_key.hex(),
        "new_key": statement.new_key.hex(),
        "signature": signature.hex(),
    }
