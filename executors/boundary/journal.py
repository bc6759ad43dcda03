"""What a service must not forget: an ordered, once-only record on disk that survives kill -9 at any point.

A fact has a kind and a key and is recorded once; the same again is no news, another value under the same key
is refused. Entries are numbered from 1 and chained: digest_n = SHA-256(digest_(n-1) | lengths | kind | key |
value). Numbers that only grow (epochs) and messages to be sent are kept beside, in the same transactions:
what a transaction records and what it queues is on the disk together before anything is sent, and after a
restart `unsent` gives out again what may not have gone. The receiver must therefore take a message twice for
once.

Beside the journal lies a mark: the number and digest of the last entry, written after each transaction. A
journal that lacks that entry, or has another in its place, was put back to an earlier state, and is refused.
What this can't tell: journal and mark put back together (keep the mark on another disk, or ask the peers),
and a journal put back by entries whose mark was not yet written, at most the last transaction.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from policies.errors import ExecutorFailedError

SCHEMA_NUMBER = 1
_MARK = struct.Struct(">8sQ32s")
_MARK_CHECK_BYTES = 16
_SLOT_BYTES = _MARK.size + _MARK_CHECK_BYTES
_FIRST_DIGEST = bytes(32)
_TABLES = """
CREATE TABLE entries (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
                      digest BLOB NOT NULL, UNIQUE (kind, key)) STRICT;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, address TEXT NOT NULL, message BLOB NOT NULL)
STRICT; CREATE TABLE about (id BLOB NOT NULL) STRICT;
"""


class JournalError(ExecutorFailedError):
    """A journal that can't be used, or a record it refuses."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded fact; `number` counts from 1 without gaps."""

    number: int
    kind: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that may not have been sent."""

    number: int
    address: str
    message: bytes


class Journal:
    """One journal file with its mark, held by one process; threads take turns."""

    def __init__(self, path: Path, *, mark_path: Path | None = None) -> None:
        """Open it, or begin one.

        Raises:
            JournalError: journal-in-use, journal-rolled-back, journal-damaged, mark-missing, mark-of-another.
        """
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mark = _Mark(mark_path or path.with_name(path.name + ".mark"))
        self._db = _open_database(path)
        try:
            (self._id,) = self._db.execute("SELECT id FROM about").fetchone()
            last = self._db.execute(
                "SELECT number, digest FROM entries ORDER BY number DESC LIMIT 1"
            ).fetchone()
            self._number: int = last[0] if last else 0
            self._digest: bytes = last[1] if last else _FIRST_DIGEST
            self._require_marked_state()
            self._write_mark()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise _damaged(path, error) from error
        except BaseException:
            self._db.close()
            raise

    @property
    def num_entries(self) -> int:
        """How many facts are recorded: the number of the last."""
        return self._number

    def record(self, kind: str, key: bytes, value: bytes) -> bool:
        """Record a fact; False if it stands there already. Outside a transaction it is on the disk on return.

        Raises:
            JournalError: `already-recorded`, with another value.
        """
        with self.transaction():
            present = self.seen(kind, key)
            if present == value:
                return False
            if present is not None:
                raise JournalError(
                    "already-recorded",
                    f"{self.path}: {kind} {key.hex()} was recorded with another value "
                    f"({len(present):,} bytes then, {len(value):,} now)",
                )
            number, digest = self._number + 1, _chain(self._digest, kind, key, value)
            row = (number, kind, key, value, digest)
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
            self._number, self._digest = number, digest
            return True

    def seen(self, kind: str, key: bytes) -> bytes | None:
        """The value recorded under kind and key, or None."""
        with self._lock:
            query = "SELECT value FROM entries WHERE kind = ? AND key = ?"
            row = self._db.execute(query, (kind, key)).fetchone()
            return None if row is None else bytes(row[0])

    def replay(self, kind: str | None = None) -> Iterator[Entry]:
        """All facts, or those of a kind, in the order in which they were recorded.

        Raises:
            JournalError: journal-damaged, where an entry's digest does not follow from the one before.
        """
        digest, after = _FIRST_DIGEST, 0
        query = (
            "SELECT number, kind, key, value, digest FROM entries WHERE number > ? ORDER BY number LIMIT 256"
        )
        while True:
            with self._lock:
                rows = self._db.execute(query, (after,)).fetchall()
            if not rows:
                return
            for number, name, key, value, stored in rows:
                digest = _chain(digest, name, key, value)
                if number != after + 1 or digest != stored:
                    raise _damaged(self.path, f"entry {number} does not follow from entry {after}")
                after = number
                if kind is None or name == kind:
                    yield Entry(number, name, bytes(key), bytes(value))

    def current(self, name: str) -> int | None:
        """The last value of a number that only grows, or None."""
        with self._lock:
            row = self._db.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
            return None if row is None else int(row[0])

    def advance(self, name: str, value: int) -> None:
        """Set a number that only grows, such as an epoch.

        Raises:
            JournalError: `not-monotonic`, where it would not grow.
        """
        with self.transaction():
            present = self.current(name)
            if present is not None and value <= present:
                raise JournalError(
                    "not-monotonic", f"{self.path}: {name} is {present}, {value} is not beyond it"
                )
            # An entry of the chain as well, so that a rolled-back number is a rolled-back journal.
            self.record(f"number:{name}", value.to_bytes(8, "big"), b"")
            self._db.execute("INSERT OR REPLACE INTO numbers VALUES (?, ?)", (name, value))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is recorded and queued in here gets to the disk at once, or none of it.

        Nested ones are part of the outermost. On leaving that, everything is durable: only then send.
        """
        with self._lock:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            before = (self._number, self._digest)
            self._db.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._number, self._digest = before
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0
            if self._number != before[0]:
                self._write_mark()

    def queue(self, address: str, message: bytes) -> Queued:
        """Note a message to be sent, as part of the present transaction."""
        with self.transaction():
            query = "INSERT INTO outbox (address, message) VALUES (?, ?)"
            number = self._db.execute(query, (address, message)).lastrowid
            assert number is not None
            return Queued(number, address, message)

    def unsent(self) -> list[Queued]:
        """Messages queued and not yet noted as sent, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT number, address, message FROM outbox ORDER BY number").fetchall()
            return [Queued(number, address, bytes(message)) for number, address, message in rows]

    def note_sent(self, queued: Queued) -> None:
        """Forget a message: it has arrived."""
        with self.transaction():
            self._db.execute("DELETE FROM outbox WHERE number = ?", (queued.number,))

    def flush(self, send: Callable[[str, bytes], None]) -> int:
        """Send what is queued, in order, and note each as sent; how many. What `send` raises ends it."""
        queued = self.unsent()
        for message in queued:
            send(message.address, message.message)
            self.note_sent(message)
        return len(queued)

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._db.close()
            self._mark.close()

    def _write_mark(self) -> None:
        self._mark.write(self._id, self._number, self._digest)

    def _require_marked_state(self) -> None:
        """Compare with the mark.

        Raises:
            JournalError: the journal is not at or beyond the state the mark tells of.
        """
        marked = self._mark.read()
        if marked is None:
            if self._number:
                raise JournalError(
                    "mark-missing",
                    f"{self.path} has {self._number:,} entries and no mark {self._mark.path}",
                    hint="put the mark back; without it nobody can tell whether the journal is the latest",
                )
            return
        journal_id, number, digest = marked
        if journal_id != self._id and number:
            raise JournalError(
                "mark-of-another", f"{self._mark.path} belongs to another journal than {self.path}"
            )
        if number > self._number:
            raise _rolled_back(self.path, f"it ends at entry {self._number:,}, the mark at {number:,}")
        row = self._db.execute("SELECT digest FROM entries WHERE number = ?", (number,)).fetchone()
        if number and (row is None or row[0] != digest):
            raise _rolled_back(self.path, f"its entry {number:,} is another than the marked one")


class _Mark:
    """Two slots written in turn, so that a torn write spoils one at most; the further sound one counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._next_slot = 0

    def read(self) -> tuple[bytes, int, bytes] | None:
        """Journal, number and digest of the last entry marked, or None."""
        best: tuple[bytes, int, bytes] | None = None
        for slot in (0, 1):
            data = os.pread(self._fd, _SLOT_BYTES, slot * _SLOT_BYTES)
            if len(data) == _SLOT_BYTES and data[_MARK.size :] == _check(data[: _MARK.size]):
                found = _MARK.unpack(data[: _MARK.size])
                if best is None or found[1] >= best[1]:
                    best, self._next_slot = found, 1 - slot
        return best

    def write(self, journal_id: bytes, number: int, digest: bytes) -> None:
        """Mark an entry as the last one."""
        body = _MARK.pack(journal_id, number, digest)
        os.pwrite(self._fd, body + _check(body), self._next_slot * _SLOT_BYTES)
        os.fdatasync(self._fd)
        self._next_slot = 1 - self._next_slot

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _open_database(path: Path) -> sqlite3.Connection:
    # SQLite gives the files beside it the mode of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if schema == 0:
            for statement in _TABLES.split(";")[:-1]:
                db.execute(statement)
            db.execute("INSERT INTO about VALUES (?)", (os.urandom(8),))
            db.execute(f"PRAGMA user_version = {SCHEMA_NUMBER}")
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        db.close()
        if "locked" in str(error):
            raise JournalError(
                "journal-in-use", f"{path} is held by another process", hint="end that one first"
            ) from error
        raise _damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise _damaged(path, error) from error
    if schema not in {0, SCHEMA_NUMBER}:
        db.close()
        raise JournalError("journal-version", f"{path} has version {schema}, {SCHEMA_NUMBER} is known here")
    return db


def _chain(digest: bytes, kind: str, key: bytes, value: bytes) -> bytes:
    name = kind.encode("utf-8")
    lengths = struct.pack(">IIQ", len(name), len(key), len(value))
    return hashlib.sha256(b"".join((digest, lengths, name, key, value))).digest()


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_MARK_CHECK_BYTES]


def _damaged(path: Path, what: object) -> JournalError:
    return JournalError("journal-damaged", f"{path}: {what}", hint="the run can't go on from it")


def _rolled_back(path: Path, what: str) -> JournalError:
    return JournalError(
        "journal-rolled-back",
        f"{path} was put back to an earlier state: {what}",
        hint="its epochs are burnt: enrol anew with a fresh journal",
    )
