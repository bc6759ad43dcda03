"""The journal on disk as the memory that a window's state machines ask for."""

from __future__ import annotations

from executors.boundary.journal import Journal, JournalError
from executors.boundary.secagg.reasons import Reason, RefusedError

PREFIX = "window"


class WindowJournal:
    """`executors.boundary.secagg.protocol.Journal` over a journal file, beside whatever else it records."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def record(self, kind: str, key: str, value: bytes) -> None:
        """Keep a value for good.

        Raises:
            JournalError: `already-recorded`, with another value.
        """
        self._journal.record(f"{PREFIX}:{kind}", key.encode("utf-8"), value)

    def seen(self, kind: str, key: str) -> bytes | None:
        """The value kept, or None."""
        return self._journal.seen(f"{PREFIX}:{kind}", key.encode("utf-8"))

    def highest_epoch(self, name: str) -> int:
        """The greatest epoch begun under `name`, -1 where there was none."""
        epoch = self._journal.current(f"{PREFIX}:{name}")
        return -1 if epoch is None else epoch

    def begin_epoch(self, name: str, epoch: int) -> None:
        """Burn every epoch up to this one under `name`.

        Raises:
            RefusedError: EPOCH_OLD, where it is burnt already.
        """
        try:
            self._journal.advance(f"{PREFIX}:{name}", epoch)
        except JournalError as error:
            if error.code != "not-monotonic":
                raise
            raise RefusedError(Reason.EPOCH_OLD, error.message) from error
