"""Where masked vectors wait while they arrive, and stay for the audit inside the boundary.

A vector that never becomes whole must not touch the sum, so it waits here. In memory for one sender at a
time and for tests; in files for services, where it also survives a broken link.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import IO, Protocol


class Spool(Protocol):
    """Bytes by key, written in order."""

    def append(self, key: str, data: bytes | memoryview) -> None:
        """Add bytes at the end."""

    def view(self, key: str) -> memoryview:
        """All bytes so far, not copied."""

    def drop(self, key: str) -> None:
        """Forget a key, known or not."""

    def close(self) -> None:
        """Let go of everything that is open; what is kept stays kept."""


class MemorySpool:
    """Vectors in memory, each let go as soon as it is in the sum unless `keep` is set."""

    def __init__(self, capacity_bytes: int, *, keep: bool = False) -> None:
        """Reserve nothing yet; each vector may have up to `capacity_bytes`."""
        self._capacity_bytes, self._keep = capacity_bytes, keep
        self._parts: dict[str, tuple[bytearray, int]] = {}
        self._free: list[bytearray] = []

    def append(self, key: str, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        buffer, used = self._parts.get(key, (None, 0))
        if buffer is None:
            buffer = self._free.pop() if self._free else bytearray(self._capacity_bytes)
        memoryview(buffer)[used : used + len(data)] = data
        self._parts[key] = (buffer, used + len(data))

    def view(self, key: str) -> memoryview:
        """All bytes so far."""
        buffer, used = self._parts[key]
        return memoryview(buffer)[:used].toreadonly()

    def drop(self, key: str) -> None:
        """Let the vector go, unless vectors are kept; its memory serves the next one."""
        if not self._keep and key in self._parts:
            self._free.append(self._parts.pop(key)[0])

    def close(self) -> None:
        """Nothing is open."""


class FileSpool:
    """One file for each vector in a folder; read through the page cache."""

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        """Use an existing folder that belongs to one window."""
        self._folder, self._keep = folder, keep
        self._open: dict[str, IO[bytes]] = {}

    def _file(self, key: str) -> IO[bytes]:
        if key not in self._open:
            self._open[key] = (self._folder / f"{key}.masked").open("a+b", buffering=0)
        return self._open[key]

    def append(self, key: str, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        file, rest = self._file(key), memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def view(self, key: str) -> memoryview:
        """All bytes so far."""
        file = self._file(key)
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def drop(self, key: str) -> None:
        """Close the file, and remove it unless vectors are kept."""
        file = self._open.pop(key, None)
        if file is not None:
            file.close()
        if not self._keep:
            (self._folder / f"{key}.masked").unlink(missing_ok=True)

    def close(self) -> None:
        """Close every file."""
        for file in self._open.values():
            file.close()
        self._open.clear()
