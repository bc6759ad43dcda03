"""Sequences of a micro-batch on each data-parallel rank, where the ranks' speeds were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from costmodels.compute import even_shares


def quickest_shares(
    num_sequences: int, most: Sequence[int], seconds: Callable[[int, int], float]
) -> tuple[int, ...] | None:
    """Shares that minimise the slowest rank's seconds, at least one and at most `most[rank]` each.

    `seconds(rank, share)` must not fall with the share. Each further sequence goes to the rank that would
    finish it first, ties to the smaller share and then to the earlier rank: exact for the smallest maximum.
    None where the ranks can't take that many, or so few.
    """
    num_ranks = len(most)
    if not num_ranks <= num_sequences <= sum(most) or min(most) < 1:
        return None
    shares = [1] * num_ranks
    for _ in range(num_sequences - num_ranks):
        able = [i for i in range(num_ranks) if shares[i] < most[i]]
        chosen = min(able, key=lambda i: (seconds(i, shares[i] + 1), shares[i], i))
        shares[chosen] += 1
    return tuple(shares)


def equal_device_shares(num_sequences: int, num_ranks: int, *, unequal: bool) -> tuple[int, ...] | None:
    """Shares on equal devices; None where they can't be equal and must be."""
    if num_sequences < num_ranks or (num_sequences % num_ranks and not unequal):
        return None
    return even_shares(num_sequences, num_ranks)
