"""Where large payloads come from and go to: buffers and files, in pieces, with constant memory.

An inbox keeps a payload that is on its way in a `.part` file whose name carries sender, tag and digest, so
that a broken transfer, or a killed process, goes on where it stopped. A whole one becomes `.payload`, once
and for all: the same sender and tag with another digest is refused from then on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from executors.boundary.pki.identities import Identity
from executors.boundary.transport.control import Offer, Tag
from executors.boundary.transport.reasons import Reason, RefusedError

HASH_BYTES = 1 << 20


class Source(Protocol):
    """A payload to send. Its bytes must not change while it is being sent."""

    @property
    def total_bytes(self) -> int:
        """How many bytes it has."""
        ...

    @property
    def sha256(self) -> bytes:
        """Their digest."""
        ...

    def piece(self, offset: int, num_bytes: int) -> bytes | memoryview:
        """So many of them from `offset` on; fewer only at the end."""
        ...


class BufferSource:
    """A payload in memory: anything with the buffer interface, not copied."""

    def __init__(self, buffer: bytes | bytearray | memoryview, *, sha256: bytes | None = None) -> None:
        self._view = memoryview(buffer).cast("B").toreadonly()
        self.sha256 = hashlib.sha256(self._view).digest() if sha256 is None else sha256

    @property
    def total_bytes(self) -> int:
        """How many bytes it has."""
        return len(self._view)

    def piece(self, offset: int, num_bytes: int) -> memoryview:
        """So many of them from `offset` on."""
        return self._view[offset : offset + num_bytes]


class FileSource:
    """A payload in a file; `close` it afterwards."""

    def __init__(self, path: Path, *, sha256: bytes | None = None) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.total_bytes = os.fstat(self._fd).st_size
        self.sha256 = _hash_file(self._fd, self.total_bytes).digest() if sha256 is None else sha256

    def piece(self, offset: int, num_bytes: int) -> bytes:
        """So many of them from `offset` on."""
        return os.pread(self._fd, num_bytes, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Sink(Protocol):
    """A payload on its way in."""

    @property
    def offset(self) -> int:
        """How many bytes there are."""
        ...

    def write(self, data: memoryview) -> None:
        """Append."""
        ...

    def finish(self) -> None:
        """Check the digest of the whole and keep it."""
        ...

    def release(self) -> None:
        """Let go of it; what came so far is kept for the next attempt."""
        ...


Expect = Callable[[Identity, Tag], int | None]
"""The exact size in bytes of a payload that may come from that sender with that tag; None refuses it."""


@dataclass(frozen=True, slots=True)
class _Key:
    """Which payload; `stem` is its file's name up to the digest. A boundary's or sender's name has no `~`."""

    sender: Identity
    tag: Tag

    @property
    def stem(self) -> str:
        sender = f"{self.sender.boundary}~{self.sender.role}~{self.sender.name}"
        return f"{sender}~{self.tag.epoch}~{self.tag.item}~"


class Inbox:
    """A folder of incoming payloads. One process uses it at a time; any thread of that may.

    With `durable` a payload is on the disk, not just in the kernel, before its receipt is confirmed.
    """

    def __init__(self, folder: Path, expect: Expect, *, durable: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.durable = durable
        self._expect = expect
        self._lock = threading.Lock()
        self._holders: dict[_Key, FileSink] = {}

    def open(self, sender: Identity, offer: Offer) -> FileSink | None:
        """The place for an offered payload, at the offset reached before; None if it is all here.

        An attempt that is still open for the same payload is superseded: its connection is likely dead.

        Raises:
            RefusedError: not-expected, too-large, content-changed.
        """
        expected_bytes = self._expect(sender, offer.tag)
        if expected_bytes is None:
            raise RefusedError(Reason.NOT_EXPECTED, f"{offer.tag} from {sender} is not expected now")
        if offer.total_bytes != expected_bytes:
            raise RefusedError(
                Reason.TOO_LARGE if offer.total_bytes > expected_bytes else Reason.NOT_EXPECTED,
                f"{offer.tag} from {sender}: {offer.total_bytes:,} bytes, {expected_bytes:,} are expected",
            )
        key = _Key(sender, offer.tag)
        with self._lock:
            held = self._holders.pop(key, None)
            if held is not None:
                held.supersede()
            whole = self._whole(key)
            if whole is not None:
                if whole != self._path(key, offer.sha256, "payload"):
                    raise RefusedError(
                        Reason.CONTENT_CHANGED, f"{offer.tag} from {sender} came before with another digest"
                    )
                return None
            part = self._path(key, offer.sha256, "part")
            for other in self.folder.glob(f"{key.stem}*.part"):
                if other != part:
                    other.unlink()
            sink = FileSink(self, key, part, offer)
            self._holders[key] = sink
            return sink

    def payload(self, sender: Identity, tag: Tag) -> Path | None:
        """The file of a whole payload, or None."""
        return self._whole(_Key(sender, tag))

    def discard(self, sender: Identity, tag: Tag) -> None:
        """Remove a payload, whole or not."""
        key = _Key(sender, tag)
        with self._lock:
            held = self._holders.pop(key, None)
            if held is not None:
                held.supersede()
            for path in self.folder.glob(f"{key.stem}*"):
                path.unlink()

    def let_go(self, sink: FileSink) -> None:
        """Forget that a sink holds its payload."""
        with self._lock:
            if self._holders.get(sink.key) is sink:
                del self._holders[sink.key]

    def keep(self, sink: FileSink) -> None:
        """Turn a whole part into the payload."""
        sink.part.replace(sink.part.with_suffix(".payload"))
        if self.durable:
            _sync_folder(self.folder)

    def _whole(self, key: _Key) -> Path | None:
        return next(iter(self.folder.glob(f"{key.stem}*.payload")), None)

    def _path(self, key: _Key, sha256: bytes, suffix: str) -> Path:
        return self.folder / f"{key.stem}{sha256.hex()}.{suffix}"


class FileSink:
    """A payload on its way into a file. The digest runs along; of an older part it is computed first."""

    def __init__(self, inbox: Inbox, key: _Key, part: Path, offer: Offer) -> None:
        self.key = key
        self.part = part
        self.offset = 0
        self._inbox = inbox
        self._offer = offer
        self._lock = threading.Lock()
        self._is_superseded = False
        self._fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset = min(os.fstat(self._fd).st_size, offer.total_bytes)
        self._digest = _hash_file(self._fd, self.offset)

    def write(self, data: memoryview) -> None:
        """Append.

        Raises:
            RefusedError: too-large, or superseded by another attempt.
        """
        if self.offset + len(data) > self._offer.total_bytes:
            raise RefusedError(Reason.TOO_LARGE, f"more than the {self._offer.total_bytes:,} bytes offered")
        with self._lock:
            self._require_held()
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self.offset + done)
        self._digest.update(data)
        self.offset += len(data)

    def finish(self) -> None:
        """Check the digest of the whole, and keep it.

        Raises:
            RefusedError: wrong-digest; the part is thrown away, so that the next attempt begins anew.
        """
        with self._lock:
            self._require_held()
            if self.offset != self._offer.total_bytes or self._digest.digest() != self._offer.sha256:
                self.part.unlink(missing_ok=True)
                raise RefusedError(
                    Reason.WRONG_DIGEST,
                    f"{self._offer.tag} from {self.key.sender} has not the digest offered",
                )
            os.ftruncate(self._fd, self.offset)
            if self._inbox.durable:
                os.fsync(self._fd)
            self._inbox.keep(self)

    def supersede(self) -> None:
        """Another attempt has taken over."""
        with self._lock:
            self._is_superseded = True

    def release(self) -> None:
        """Let go of the file; what came so far is kept."""
        self._inbox.let_go(self)
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _require_held(self) -> None:
        if self._is_superseded:
            raise RefusedError(Reason.SUPERSEDED, f"{self._offer.tag}: a newer connection has taken over")


class BufferSink:
    """A payload into memory of the caller, of exactly its size; survives connections, not processes."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._view = memoryview(buffer).cast("B")
        self._offer: Offer | None = None
        self._digest = hashlib.sha256()
        self.offset = 0

    def begin(self, offer: Offer) -> None:
        """Go on, if it is the payload begun before, else begin.

        Raises:
            RefusedError: too-large or not-expected, for another size than the buffer's.
        """
        if offer.total_bytes != len(self._view):
            reason = Reason.TOO_LARGE if offer.total_bytes > len(self._view) else Reason.NOT_EXPECTED
            raise RefusedError(reason, f"{offer.tag}: {offer.total_bytes:,} bytes, not {len(self._view):,}")
        if offer != self._offer:
            self._offer, self._digest, self.offset = offer, hashlib.sha256(), 0

    def write(self, data: memoryview) -> None:
        """Append.

        Raises:
            RefusedError: too-large.
        """
        end = self.offset + len(data)
        if end > len(self._view):
            raise RefusedError(Reason.TOO_LARGE, f"more than the {len(self._view):,} bytes offered")
        self._view[self.offset : end] = data
        self._digest.update(data)
        self.offset = end

    def finish(self) -> None:
        """Check the digest of the whole.

        Raises:
            RefusedError: wrong-digest; the next attempt begins anew.
        """
        offer = self._offer
        if offer is None or self.offset != offer.total_bytes or self._digest.digest() != offer.sha256:
            self._offer = None
            raise RefusedError(Reason.WRONG_DIGEST, "the payload has not the digest offered")

    def release(self) -> None:
        """Nothing to let go of."""


def _hash_file(fd: int, total_bytes: int) -> hashlib._Hash:
    digest = hashlib.sha256()
    for offset in range(0, total_bytes, HASH_BYTES):
        digest.update(os.pread(fd, min(HASH_BYTES, total_bytes - offset), offset))
    return digest


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
