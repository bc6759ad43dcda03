"""Writing that may meet a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from policies.errors import ExecutorFailedError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn a full disk, met inside, into a named error.

    Raises:
        ExecutorFailedError: `disk-full`.
    """
    try:
        yield
    except Exception as error:
        # safetensors reports the system's error number in its text only.
        told = getattr(error, "errno", None)
        if told in _FULL or any(f"os error {number}" in str(error) for number in _FULL):
            raise ExecutorFailedError(
                "disk-full",
                f"no space left for {path}",
                hint="free some space or name another run folder; finished checkpoints are kept",
            ) from error
        raise
