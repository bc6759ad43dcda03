"""Who masks with whom: everyone, or the nearest seats on a ring that all members shuffled together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256

from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster
from executors.boundary.secagg.thresholds import Thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The neighbourhood of every seat.

    Attributes:
        ring: seats in ring order; in a complete graph the order means nothing.
        neighbours: ascending seats by seat.
    """

    ring: tuple[int, ...]
    neighbours: tuple[tuple[int, ...], ...]
    thresholds: Thresholds

    def holders(self, seat: int) -> tuple[int, ...]:
        """Seats that hold a share of this seat's secrets: its neighbours and itself."""
        return tuple(sorted((*self.neighbours[seat], seat)))


def is_sparse(limits: Thresholds) -> bool:
    """Whether the graph is a shuffled ring rather than complete."""
    return limits.window > 0


def commit_contribution(contribution: bytes, scope: bytes) -> bytes:
    """What a member publishes before it knows anyone else's randomness."""
    return sha256(b"echelon/secagg/1/contribution\0" + scope + contribution).digest()


def build_graph(roster: Roster, contributions: Sequence[bytes]) -> Graph:
    """The graph of a roster, given every member's randomness in seat order (none where it is complete).

    One honest contribution, committed to before the others were opened, makes the permutation uniform.
    """
    num_members = len(roster.members)
    limits = roster.thresholds
    if not is_sparse(limits):
        everyone = range(num_members)
        neighbours = tuple(tuple(other for other in everyone if other != seat) for seat in everyone)
        return Graph(ring=tuple(everyone), neighbours=neighbours, thresholds=limits)
    seed = sha256(b"echelon/secagg/1/graph\0" + roster.root + b"".join(contributions)).digest()
    ring = permutation(num_members, seed)
    return Graph(ring=ring, neighbours=_ring_neighbours(ring, limits.degree // 2), thresholds=limits)


def permutation(num_members: int, seed: bytes) -> tuple[int, ...]:
    """A uniform permutation of the seats drawn from `seed` (Fisher and Yates, without modulo bias)."""
    seats = list(range(num_members))
    numbers = _numbers(seed)
    for last in range(num_members - 1, 0, -1):
        count = last + 1
        limit = (1 << 64) - (1 << 64) % count
        number = next(n for n in numbers if n < limit)
        seats[last], seats[number % count] = seats[number % count], seats[last]
    return tuple(seats)


def _numbers(seed: bytes) -> Iterator[int]:
    block = 0
    while True:
        digest = sha256(seed + block.to_bytes(8, "little")).digest()
        for at in range(0, 32, 8):
            yield int.from_bytes(digest[at : at + 8], "little")
        block += 1


def _ring_neighbours(ring: Sequence[int], reach: int) -> tuple[tuple[int, ...], ...]:
    num_members = len(ring)
    found: list[tuple[int, ...]] = [()] * num_members
    for place, seat in enumerate(ring):
        steps = [*range(-reach, 0), *range(1, reach + 1)]
        found[seat] = tuple(sorted(ring[(place + step) % num_members] for step in steps))
    return tuple(found)


def check_connected(graph: Graph, present: Set[int]) -> None:
    """Nothing, where every window of ring seats keeps enough of those present.

    Raises:
        RefusedError: GRAPH_TOO_THIN.
    """
    limits = graph.thresholds
    if not is_sparse(limits):
        return
    size = len(graph.ring)
    here = [seat in present for seat in graph.ring]
    inside = sum(here[: limits.window])
    for start in range(size):
        if inside < limits.window_survivors:
            raise RefusedError(
                Reason.GRAPH_TOO_THIN,
                f"{inside} of {limits.window} seats in a row are left; {limits.window_survivors} are needed",
            )
        inside += here[(start + limits.window) % size] - here[start]
