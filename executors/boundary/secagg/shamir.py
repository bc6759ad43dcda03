"""Shares of a 32-byte secret: points of a random polynomial over the integers modulo 2^521 - 1.

Any `threshold` shares give the secret, fewer give nothing (Shamir, How to share a secret, 1979). The whole
secret is one field element, so one polynomial serves it. Share x belongs to the member in seat x - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

PRIME = (1 << 521) - 1
SECRET_BYTES = 32
SHARE_BYTES = 66
_COEFFICIENT_BYTES = 82  # 135 bits more than the field: the bias of the reduction is below 2^-135


def split_secret(
    secret: bytes, *, points: Sequence[int], threshold: int, random_bytes: Callable[[int], bytes]
) -> list[bytes]:
    """One 66-byte share for each point, in their order."""
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= len(points)
    assert len(set(points)) == len(points)
    assert 0 not in points
    drawn = random_bytes(_COEFFICIENT_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[i : i + _COEFFICIENT_BYTES], "little") % PRIME
        for i in range(0, len(drawn), _COEFFICIENT_BYTES)
    ]
    constant = int.from_bytes(secret, "little")
    return [_evaluate(coefficients, constant, x).to_bytes(SHARE_BYTES, "little") for x in points]


def _evaluate(coefficients: Sequence[int], constant: int, x: int) -> int:
    value = 0
    for coefficient in coefficients:
        # x is small, so reducing once per step keeps every number below 534 bits
        value = (value + coefficient) * x
        value = (value & PRIME) + (value >> 521)
    return (value + constant) % PRIME


def lagrange_at_zero(points: Sequence[int]) -> list[int]:
    """Weights w with sum of w_x f(x) = f(0) for every polynomial of lower degree than there are points."""
    weights = []
    for x in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights


def combine_shares(shares: Mapping[int, bytes], weights: Sequence[int]) -> bytes | None:
    """The secret behind the shares, or None where they do not belong to one 32-byte secret.

    Args:
        shares: point -> share, as many as the threshold, in the order of `weights`.
        weights: `lagrange_at_zero` of the same points.
    """
    total = sum(
        weight * int.from_bytes(share, "little")
        for weight, share in zip(weights, shares.values(), strict=True)
    )
    secret = total % PRIME
    return secret.to_bytes(SECRET_BYTES, "little") if secret >> 256 == 0 else None
