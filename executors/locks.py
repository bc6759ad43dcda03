"""A run folder belongs to one launch at a time. Standard library only."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from policies.errors import ExecutorFailedError

LAUNCH_LOCK = "launch.lock"


class FolderLock:
    """Held from construction until `release`, or until every process that shares it has ended.

    The kernel lets go of it with the last of them, so nothing stale is ever left behind.
    """

    def __init__(self, folder: Path, name: str = LAUNCH_LOCK) -> None:
        """Take the lock `name` in the folder, which is made where it is missing.

        Raises:
            ExecutorFailedError: `folder-in-use`, naming the process that holds it.
            OSError: the folder can't be made or written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._fd, 400).decode("utf-8", errors="replace").strip()
            os.close(self._fd)
            raise ExecutorFailedError(
                "folder-in-use",
                f"another launch works in {folder} ({holder or 'its process is unknown'})",
                hint="wait for it to end, end it, or give this launch another folder",
            ) from error
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, json.dumps({"pid": os.getpid(), "machine": socket.gethostname()}).encode())
        except OSError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Let go; the file stays, since removing it would let two launches in at once."""
        os.close(self._fd)
