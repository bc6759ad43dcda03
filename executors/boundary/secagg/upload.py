"""A masked update on its way out: made once in memory, cut into frames as often as the link needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256

from executors.boundary.secagg.frames import encode_chunk
from executors.boundary.secagg.masks import Ring, to_bytes_view
from executors.boundary.secagg.messages import Upload, pack_upload

CHUNK_BYTES = 1 << 19


class MaskedUpload:
    """The bytes of one masked vector, never computed again: a resumed link can't show two maskings."""

    def __init__(
        self,
        vector_N: Ring,
        *,
        seat: int,
        scope: bytes,
        roster: bytes,
        dealers: bytes,
        sign: Callable[[bytes], bytes],
    ) -> None:
        """Take over the vector; `sign` makes the UPLOAD frame of a body."""
        self._bytes = to_bytes_view(vector_N)
        self._seat, self._scope, self._roster = seat, scope, roster
        self._dealers, self._sign = dealers, sign
        self._digest: bytes | None = None

    @property
    def num_bytes(self) -> int:
        """Masked bytes, frames not counted."""
        return len(self._bytes)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the masked bytes."""
        if self._digest is None:
            self._digest = sha256(self._bytes).digest()
        return self._digest

    def chunks(self, start_byte: int = 0) -> Iterator[bytes]:
        """CHUNK frames from `start_byte` on."""
        for start in range(start_byte, len(self._bytes), CHUNK_BYTES):
            yield encode_chunk(
                sender=self._seat,
                scope=self._scope,
                roster=self._roster,
                offset_bytes=start,
                data=self._bytes[start : start + CHUNK_BYTES],
            )

    def trailer(self) -> bytes:
        """The signed UPLOAD frame that ends the upload."""
        return self._sign(pack_upload(Upload(len(self._bytes), self._dealers, self.digest)))
