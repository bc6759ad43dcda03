"""Follows files that other processes append to. Standard library only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from executors.events import Event, Kind, note, parse_event, rank_file, shortened

_MAX_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 16


def size_of(path: Path) -> int:
    """Bytes in a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def text_since(path: Path, offset: int, limit_bytes: int = 1 << 18) -> str:
    """What was appended to a file after `offset`: its first half and its last where it is over the limit."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(offset)
            if end - offset <= limit_bytes:
                return file.read().decode("utf-8", errors="replace")
            head = file.read(limit_bytes // 2)
            file.seek(end - limit_bytes // 2)
            return (head + b"\n" + file.read()).decode("utf-8", errors="replace")
    except OSError:
        return ""


class RankTail:
    """The events that one rank appends from now on; those of earlier starts are left out."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = rank_file(folder, rank)
        self._rank = rank
        self._offset = size_of(self._path)
        self._rest = b""

    def take(self) -> list[Event]:
        """New events in order; a line that is none comes as a note. Half-written lines wait."""
        found: list[Event] = []
        while data := self._read():
            *lines, self._rest = (self._rest + data).split(b"\n")
            found += [self._event(line) for line in lines if line.strip()]
            if len(self._rest) > _MAX_LINE_BYTES:
                self._rest = b""
                found.append(note(f"the start of a line of over {_MAX_LINE_BYTES:,} bytes is left out"))
        return found

    def _read(self) -> bytes:
        if size_of(self._path) <= self._offset:
            return b""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(_MAX_READ_BYTES)
        self._offset += len(data)
        return data

    def _event(self, line: bytes) -> Event:
        try:
            event = parse_event(line)
        except ValueError:
            return note(shortened(line.decode("utf-8", errors="replace"), 400), self._rank)
        allowed = event.kind in RANK_KINDS
        return replace(event, rank=self._rank) if allowed else note(f"{event.kind} is no rank's", self._rank)


RANK_KINDS = frozenset(
    {
        Kind.HELLO,
        Kind.READY,
        Kind.STEP,
        Kind.EVALUATION,
        Kind.CHECKPOINT,
        Kind.EXPORTED,
        Kind.FAILED,
        Kind.FINISHED,
        Kind.NOTE,
    }
)
"""What a rank may say; the rest is for agents and the launcher to say."""
