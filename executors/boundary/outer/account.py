"""Bytes per message kind, counted from the serialised buffers themselves and never from a formula."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Traffic(StrEnum):
    """What a buffer carries. Masked updates stay inside a boundary; the others cross it."""

    MASKED_UPDATE = "masked-update"
    BOUNDARY_DELTA = "boundary-delta"
    GLOBAL_STATE = "global-state"


CROSSING = frozenset({Traffic.BOUNDARY_DELTA, Traffic.GLOBAL_STATE})


@dataclass(slots=True)
class ByteAccount:
    """Running totals; `peak_bytes` is the largest single buffer that crossed a boundary."""

    num_bytes: Counter[Traffic] = field(default_factory=Counter)
    num_messages: Counter[Traffic] = field(default_factory=Counter)
    peak_bytes: int = 0

    def add(self, traffic: Traffic, buffer: bytes) -> int:
        """The size of the buffer, which is now in the account."""
        size_bytes = len(buffer)
        self.num_bytes[traffic] += size_bytes
        self.num_messages[traffic] += 1
        if traffic in CROSSING:
            self.peak_bytes = max(self.peak_bytes, size_bytes)
        return size_bytes

    @property
    def crossing_bytes(self) -> int:
        """Bytes that left or entered a boundary."""
        return sum(self.num_bytes[traffic] for traffic in CROSSING)

    @property
    def inside_bytes(self) -> int:
        """Bytes that stayed inside boundaries."""
        return self.num_bytes[Traffic.MASKED_UPDATE]
