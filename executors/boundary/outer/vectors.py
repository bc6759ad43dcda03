"""Flat fp32 vectors of trainable parameters, and their canonical bytes.

Legend: P parameters, B boundaries.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policies.errors import InputError

Vector = NDArray[np.float32]

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"ECHvec1\n"
HEADER_BYTES = _HEADER.size


def to_vector(values: Sequence[float] | NDArray[np.floating]) -> Vector:
    """A flat fp32 copy."""
    return np.array(values, dtype=np.float32).reshape(-1)


def to_bytes(vector_P: Vector) -> bytes:
    """Header (magic, length) and little-endian fp32 values: 16 + 4 P bytes, whatever the values are."""
    return _HEADER.pack(_MAGIC, vector_P.size) + vector_P.astype("<f4", copy=False).tobytes()


def from_bytes(data: bytes) -> Vector:
    """The vector written by `to_bytes`.

    Raises:
        InputError: `vector-bytes` where header or length do not fit.
    """
    if len(data) >= HEADER_BYTES:
        magic, num_values = _HEADER.unpack_from(data)
        if magic == _MAGIC and len(data) == HEADER_BYTES + 4 * num_values:
            return np.frombuffer(data, dtype="<f4", offset=HEADER_BYTES).astype(np.float32)
    raise InputError(
        "vector-bytes", f"{len(data)} bytes are not one serialised vector", hint="send what to_bytes returns"
    )


def weighted_mean(vectors_BP: Sequence[Vector], weights_B: Sequence[float]) -> Vector:
    """sum_b w_b v_b / sum_b w_b, summed in fp64 in the given order.

    Raises:
        InputError: `weights-zero` where the weights do not sum to more than 0.
    """
    total = float(sum(weights_B))
    if not total > 0.0 or len(vectors_BP) != len(weights_B):
        raise InputError(
            "weights-zero",
            f"{len(vectors_BP)} vectors with {len(weights_B)} weights that sum to {total}",
            hint="one weight per vector, at least one above 0",
        )
    sum_P = np.zeros(vectors_BP[0].size, dtype=np.float64)
    for vector_P, weight in zip(vectors_BP, weights_B, strict=True):
        sum_P += np.float64(weight) * vector_P
    return (sum_P / total).astype(np.float32)


def squared_norm(vector_P: Vector) -> float:
    """||v||^2 in fp64."""
    wide_P = vector_P.astype(np.float64)
    return float(wide_P @ wide_P)
