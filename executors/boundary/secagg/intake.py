"""Masked vectors coming in: in order, hashed as they come, added to the sum once whole and signed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from executors.boundary.secagg.descriptor import Descriptor
from executors.boundary.secagg.frames import Frame
from executors.boundary.secagg.masks import Ring, from_bytes_view, zeros
from executors.boundary.secagg.messages import unpack_upload
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.spool import Spool

if TYPE_CHECKING:
    from hashlib import _Hash

_OFFSET = struct.Struct("<Q")


@dataclass(slots=True)
class _Arriving:
    received_bytes: int = 0
    digest: _Hash = field(default_factory=sha256)


class Intake:
    """The accumulator and what is still on its way to it."""

    def __init__(self, descriptor: Descriptor, spool: Spool) -> None:
        """Start at zero; the accumulator is made when the first vector is whole."""
        self._descriptor, self._spool = descriptor, spool
        self._arriving: dict[int, _Arriving] = {}
        self._total_N: Ring | None = None
        self.done: dict[int, tuple[bytes, bytes]] = {}  # seat -> digest, signature

    @property
    def total_N(self) -> Ring:
        """Sum of the whole vectors."""
        if self._total_N is None:
            self._total_N = zeros(self._descriptor)
        return self._total_N

    def received_bytes(self, seat: int) -> int:
        """Bytes of this seat's vector so far."""
        if seat in self.done:
            return self._descriptor.num_bytes
        return self._arriving[seat].received_bytes if seat in self._arriving else 0

    def take_chunk(self, seat: int, body: memoryview) -> None:
        """Keep the next bytes of a vector.

        Raises:
            RefusedError: MESSAGE_REPEATED, OUT_OF_ORDER for a gap or overlap, LIMIT_EXCEEDED beyond the end.
        """
        if seat in self.done:
            raise RefusedError(Reason.MESSAGE_REPEATED, "this member's vector is whole already")
        (offset,) = _OFFSET.unpack_from(body)
        data = body[_OFFSET.size :]
        arriving = self._arriving.setdefault(seat, _Arriving())
        if offset != arriving.received_bytes:
            raise RefusedError(
                Reason.OUT_OF_ORDER, f"a chunk at byte {offset}; byte {arriving.received_bytes} is the next"
            )
        if offset + len(data) > self._descriptor.num_bytes:
            raise RefusedError(
                Reason.LIMIT_EXCEEDED,
                f"{offset + len(data)} bytes of a vector of {self._descriptor.num_bytes}",
            )
        self._spool.append(self._key(seat), data)
        arriving.digest.update(data)
        arriving.received_bytes += len(data)

    def finish(self, seat: int, opened: Frame, *, dealers: bytes) -> None:
        """Add a vector to the sum, where it is whole and what its owner signed.

        Raises:
            RefusedError: MESSAGE_REPEATED, OUT_OF_ORDER (bytes missing), SURVIVORS_CONTRADICT,
                DIGEST_MISMATCH.
        """
        if seat in self.done:
            raise RefusedError(Reason.MESSAGE_REPEATED, "this member's vector is in the sum already")
        upload = unpack_upload(opened.body)
        arriving = self._arriving.get(seat, _Arriving())
        whole = self._descriptor.num_bytes
        if upload.num_bytes != whole or arriving.received_bytes != whole:
            raise RefusedError(
                Reason.OUT_OF_ORDER, f"the upload ends after {arriving.received_bytes} of {whole} bytes"
            )
        if upload.dealers != dealers:
            raise RefusedError(Reason.SURVIVORS_CONTRADICT, "the vector is masked for another set of dealers")
        if upload.digest != arriving.digest.digest():
            self._forget(seat)
            raise RefusedError(Reason.DIGEST_MISMATCH, "the bytes that came are not those that were signed")
        self._add(seat)
        self.done[seat] = (upload.digest, opened.signature)
        self._forget(seat)

    def _add(self, seat: int) -> None:
        total_N = self.total_N
        vector_N = from_bytes_view(self._spool.view(self._key(seat)), self._descriptor.ring_bits)
        np.add(total_N, vector_N, out=total_N)

    def drop_partial(self) -> None:
        """Forget vectors that did not become whole in time."""
        for seat in list(self._arriving):
            self._forget(seat)

    def drop_all(self) -> None:
        """Forget everything: the window has ended without a result."""
        self.drop_partial()
        self._total_N = None

    def _forget(self, seat: int) -> None:
        self._arriving.pop(seat, None)
        self._spool.drop(self._key(seat))

    def _key(self, seat: int) -> str:
        return f"{self._descriptor.epoch}-{seat}"
