"""How many members must stay, and how dense the graph must be.

Up to 64 members everyone is everyone's neighbour and t = floor(2n/3) + 1, so with at most n/3 dishonest
members no two sets of t share only dishonest ones (Bonawitz et al., 2017, section 6). Above, neighbours are
the k/2 next seats on either side of a jointly random ring, and (k, t, s) is the sparsest choice for which,
over the random permutation, by a union bound over members or windows of k/2 seats,

    privacy     n P[corrupt neighbours >= 2t - k - 1]   <= 2^-41   nobody's two secrets can both be gathered
    connection  n P[corrupt seats in a window >= s]     <= 2^-41   one of s survivors in a window is honest
    delivery    n P[lost neighbours > k - t]            <= 2^-20   t holders of every secret remain
    passage     n P[lost seats in a window > k/2 - s]   <= 2^-20   every window keeps s survivors

with hypergeometric tails, computed in whole numbers. One honest survivor in every window of k/2 seats makes
the honest survivors one connected graph, since neighbours on the ring are then at most k/2 seats apart (the
Harary graph argument of Bell et al., 2020). Where nothing sparser than the complete graph will do, the
complete graph is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

COMPLETE_MEMBERS = 64
PRIVACY_BITS = 41
DELIVERY_BITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What one roster must keep.

    Attributes:
        degree: neighbours of each member.
        recover: shares that give a secret.
        quorum: consents on one survivor set before anything is revealed.
        window: length of the seat windows that are checked; 0 where the graph is complete.
        window_survivors: survivors needed in every such window.
    """

    degree: int
    recover: int
    quorum: int
    window: int
    window_survivors: int


@lru_cache(maxsize=64)
def thresholds(num_members: int, corrupt_permille: int, drop_permille: int) -> Thresholds:
    """The thresholds of a roster, the same wherever they are computed.

    Args:
        num_members: members of the frozen roster.
        corrupt_permille: dishonest members reckoned with in a sparse graph, per thousand.
        drop_permille: members that may be lost in a sparse graph, per thousand.
    """
    quorum = 2 * num_members // 3 + 1
    if num_members > COMPLETE_MEMBERS:
        corrupt = num_members * corrupt_permille // 1000
        lost = num_members * drop_permille // 1000
        for degree in range(8, num_members - 1, 2):
            found = _sparse(num_members, degree, corrupt, lost)
            if found is not None:
                return Thresholds(
                    degree=degree,
                    recover=found[0],
                    quorum=quorum,
                    window=degree // 2,
                    window_survivors=found[1],
                )
    return Thresholds(degree=num_members - 1, recover=quorum, quorum=quorum, window=0, window_survivors=0)


def _sparse(num_members: int, degree: int, corrupt: int, lost: int) -> tuple[int, int] | None:
    most_corrupt = _reach(num_members - 1, corrupt, degree, num_members, PRIVACY_BITS)
    recover = (degree + 1 + most_corrupt) // 2 + 1  # 2t > k + 1 + c
    if degree - _reach(num_members - 1, lost, degree, num_members, DELIVERY_BITS) < recover:
        return None
    window = degree // 2
    survivors = _reach(num_members, corrupt, window, num_members, PRIVACY_BITS) + 1
    if window - _reach(num_members, lost, window, num_members, DELIVERY_BITS) < survivors:
        return None
    return recover, survivors


def _reach(population: int, marked: int, drawn: int, times: int, bits: int) -> int:
    """The least r with times x P[more than r of the `drawn` seats are marked] <= 2^-bits."""
    total = comb(population, drawn)
    above = 0
    for hit in range(min(marked, drawn), -1, -1):
        above += comb(marked, hit) * comb(population - marked, drawn - hit)
        if (times * above) << bits > total:
            return hit
    return 0
