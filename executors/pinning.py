"""Which processors a rank may use: device k of a host is its core k."""

from __future__ import annotations

import os
from collections.abc import Sequence


def cores_of(slot: int, threads: int, available: Sequence[int]) -> frozenset[int]:
    """The processors of the device in a slot: `threads` of them in a row, around the end if need be.

    More devices than processors share them; then times are no longer those of a device of its own.
    """
    return frozenset(available[(slot * threads + i) % len(available)] for i in range(threads))


def pin(slot: int, threads: int) -> frozenset[int]:
    """Keep this process on the processors of its slot; returns them, none where the system can't pin."""
    if not hasattr(os, "sched_setaffinity"):
        return frozenset()
    cores = cores_of(slot, threads, sorted(os.sched_getaffinity(0)))
    os.sched_setaffinity(0, cores)
    return cores
