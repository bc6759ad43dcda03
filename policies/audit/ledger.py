"""The append-only file of one party's records: on disk before the bytes leave, whole after any crash.

`append` only remembers; `commit` writes and syncs everything remembered so far, so many messages share one
sync. The rule for a sender is: append, commit, then send. Checkpoints stand in a second file beside it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from policies.audit.checkpoint import Checkpoint, checkpoint_bytes, parse_checkpoints
from policies.audit.record import RECORD_BYTES, is_whole
from policies.audit.tree import TreeAppender
from policies.errors import AuditFailedError

MAX_BATCH_RECORDS = 4096
READ_RECORDS = 4096
LOG_SUFFIX = ".log"
CHECKPOINTS_SUFFIX = ".checkpoints"


class LedgerDamagedError(AuditFailedError):
    """A log can't be continued: what stands in it contradicts what was signed, or someone else writes it."""


class Ledger:
    """The log of `party` in `folder`; opening it again after a crash cuts a torn end.

    Only what was never acknowledged by `commit` can be torn: at most the last batch. A damaged record further
    back, or one that a checkpoint covers, is refused instead of cut.

    Attributes:
        num_cut_records: whole or partial records cut when it was opened.
        last_checkpoint: the last one written, None when there is none.

    Raises:
        LedgerDamagedError: `log-in-use`, `log-damaged`, `log-truncated` or `log-not-signed-one`.
    """

    def __init__(self, folder: Path, party: str) -> None:
        self.party = party
        self._lock = threading.RLock()
        self._pending: list[bytes] = []
        self._log = _open_locked(folder / f"{party}{LOG_SUFFIX}")
        try:
            self._notes = _open_locked(folder / f"{party}{CHECKPOINTS_SUFFIX}")
        except LedgerDamagedError:
            self._log.close()
            raise
        try:
            self.last_checkpoint = _last_checkpoint(self._notes)
            self._tree, self.num_cut_records = _recover(self._log, self.last_checkpoint)
        except BaseException:
            self.close()
            raise
        _sync_folder(folder)

    @property
    def num_durable(self) -> int:
        """Records that are on disk."""
        return self._tree.size

    def append(self, record: bytes) -> int:
        """Remember one record for the next commit; what comes back is its index in the log.

        Raises:
            LedgerDamagedError: `log-closed`, `bad-record` for bytes that are no whole record, or as `commit`.
        """
        if not is_whole(record):
            raise LedgerDamagedError("bad-record", f"{len(record)} bytes that are no whole record")
        with self._lock:
            if self.last_checkpoint is not None and self.last_checkpoint.is_closed:
                raise LedgerDamagedError("log-closed", f"the log of `{self.party}` is closed")
            if len(self._pending) >= MAX_BATCH_RECORDS:
                self.commit()
            self._pending.append(record)
            return self._tree.size + len(self._pending) - 1

    def commit(self) -> int:
        """Put everything appended on disk; what comes back is the number of records there.

        Threads that wait here while another one syncs find their records synced along with it.

        Raises:
            LedgerDamagedError: `log-not-written`; nothing may be sent, and the log has to be opened again.
        """
        with self._lock:
            if self._pending:
                self._write(self._log, b"".join(self._pending))
                self._tree.extend(self._pending)
                self._pending.clear()
            return self._tree.size

    def root(self) -> bytes:
        """The Merkle root over all records on disk."""
        with self._lock:
            return self._tree.root()

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a signed checkpoint of what is on disk now; one for the same size adds cosignatures.

        Raises:
            LedgerDamagedError: `log-not-signed-one`, for a checkpoint of other content.
        """
        with self._lock:
            last = self.last_checkpoint
            again = last is not None and (last.size, last.root) == (checkpoint.size, checkpoint.root)
            here = (checkpoint.size, checkpoint.root) == (self._tree.size, self._tree.root())
            if not (here or again) or checkpoint.party != self.party or not checkpoint.signatures:
                raise LedgerDamagedError(
                    "log-not-signed-one", f"the checkpoint at {checkpoint.size} is not one of this log"
                )
            self._write(self._notes, checkpoint_bytes(checkpoint))
            self.last_checkpoint = checkpoint

    def close(self) -> None:
        """Let go of the files; what was not committed is lost."""
        self._log.close()
        self._notes.close()

    def _write(self, file: BinaryIO, content: bytes) -> None:
        try:
            _write_all(file, content)
        except (OSError, ValueError) as error:
            # What is on disk now is unknown; only opening the log again finds out.
            self.close()
            raise LedgerDamagedError(
                "log-not-written",
                f"the log of `{self.party}` could not be written: {error}",
                hint="make room or mend the disk, then open the log again",
            ) from error


def iter_records(path: Path) -> Iterator[bytes]:
    """Every 244 bytes of a log file in turn; a shorter rest comes last."""
    with path.open("rb") as file:
        while chunk := file.read(RECORD_BYTES * READ_RECORDS):
            for start in range(0, len(chunk), RECORD_BYTES):
                yield chunk[start : start + RECORD_BYTES]


def _open_locked(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise LedgerDamagedError("log-in-use", f"another process writes `{path.name}`") from error
    return file


def _last_checkpoint(notes: BinaryIO) -> Checkpoint | None:
    content = notes.read()
    # A note ends in an empty line; what follows the last of them was being written when the power went.
    whole = content[: content.rfind(b"\n\n") + 2] if b"\n\n" in content else b""
    if whole.count(b"\n\n") % 2:
        whole = whole[: whole[:-2].rfind(b"\n\n") + 2] if whole.count(b"\n\n") > 1 else b""
    checkpoints = parse_checkpoints(whole)
    notes.truncate(len(whole))
    notes.seek(len(whole))
    return checkpoints[-1] if checkpoints else None


def _recover(log: BinaryIO, signed: Checkpoint | None) -> tuple[TreeAppender, int]:
    size_bytes = os.fstat(log.fileno()).st_size
    num_whole = size_bytes // RECORD_BYTES
    num_signed = signed.size if signed else 0
    if num_whole < num_signed:
        raise LedgerDamagedError(
            "log-truncated", f"the log has {num_whole:,} records, {num_signed:,} were signed"
        )
    tree = TreeAppender()
    while tree.size < num_whole:
        stop = min(num_whole, tree.size + READ_RECORDS)
        if tree.size < num_signed:
            stop = min(stop, num_signed)
        chunk = log.read(RECORD_BYTES * (stop - tree.size))
        records = [chunk[i : i + RECORD_BYTES] for i in range(0, len(chunk), RECORD_BYTES)]
        good = next((i for i, record in enumerate(records) if not is_whole(record)), len(records))
        tree.extend(records[:good])
        if signed is not None and tree.size == num_signed and tree.root() != signed.root:
            raise LedgerDamagedError(
                "log-not-signed-one", f"the first {num_signed:,} records are not the signed ones"
            )
        if good < len(records):
            break
    if tree.size < num_signed or num_whole - tree.size > MAX_BATCH_RECORDS:
        raise LedgerDamagedError("log-damaged", f"record {tree.size} is damaged, and it is not the torn end")
    end = tree.size * RECORD_BYTES
    if end < size_bytes:
        log.truncate(end)
        os.fsync(log.fileno())
    log.seek(end)
    return tree, -(-(size_bytes - end) // RECORD_BYTES)


def _write_all(file: BinaryIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
