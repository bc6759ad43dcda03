"""Mask streams: AES-256-CTR, added to or taken from a vector of ring elements in place.

Shapes: N coordinates. The counter of a block is its offset in the stream, so a piece anywhere can be masked
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from executors.boundary.secagg.descriptor import Descriptor

PIECE_BYTES = 1 << 18  # keystream, zeros and vector piece stay in the second-level cache
_BLOCK_BYTES = 16
_ZEROS = bytes(PIECE_BYTES)

Ring = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Stream:
    """One mask: its key, and whether it is added or taken away."""

    key: bytes
    is_added: bool


def ring_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Element type of a ring; the wire is little-endian, as is every machine that this runs on."""
    return np.dtype(np.uint32) if ring_bits == 32 else np.dtype(np.uint64)


def to_bytes_view(vector_N: Ring) -> memoryview:
    """The bytes of a vector, not copied."""
    return vector_N.view(np.uint8).data.toreadonly()


def from_bytes_view(data: memoryview, ring_bits: int) -> Ring:
    """The vector in some bytes, not copied."""
    vector_N: Ring = np.frombuffer(data, dtype=np.uint32 if ring_bits == 32 else np.uint64)
    return vector_N


def zeros(descriptor: Descriptor) -> Ring:
    """A masked vector's worth of zeros."""
    return np.zeros(descriptor.num_coordinates, dtype=ring_dtype(descriptor.ring_bits))


def apply_streams(vector_N: Ring, streams: Sequence[Stream], *, first_coordinate: int = 0) -> None:
    """Add or take away every stream, in place, modulo the ring.

    `first_coordinate` is where in the streams the vector begins, a multiple of 16 bytes' worth.
    """
    item_bytes = vector_N.itemsize
    offset_bytes = first_coordinate * item_bytes
    assert offset_bytes % _BLOCK_BYTES == 0
    contexts = [(_keystream(stream.key, offset_bytes // _BLOCK_BYTES), stream.is_added) for stream in streams]
    buffer = bytearray(PIECE_BYTES + _BLOCK_BYTES)
    words_N = from_bytes_view(memoryview(buffer)[:PIECE_BYTES], 8 * item_bytes)
    step = PIECE_BYTES // item_bytes
    zero_view = memoryview(_ZEROS)
    for start in range(0, len(vector_N), step):
        piece_N = vector_N[start : start + step]
        mask_N = words_N[: len(piece_N)]
        for context, is_added in contexts:
            context.update_into(zero_view[: len(piece_N) * item_bytes], buffer)
            if is_added:
                np.add(piece_N, mask_N, out=piece_N)
            else:
                np.subtract(piece_N, mask_N, out=piece_N)


def _keystream(key: bytes, first_block: int) -> CipherContext:
    return Cipher(AES(key), CTR(first_block.to_bytes(_BLOCK_BYTES, "big"))).encryptor()
