"""A smallest set of demands that no plan satisfies together.

Every set of demands found possible names those left out as a correction: at least one of them belongs to
each conflict. A smallest set that meets all corrections is tried; if it is impossible it is a smallest
conflict, otherwise it is grown to a largest possible set, whose rest is a new correction. Source of the
scheme: A. Ignatiev et al., "Smallest MUS extraction with minimal hitting set dualization", CP 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

Possible = Callable[[frozenset[str]], bool | None]
TRIALS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """`members` can't be met together. `minimal`: without any one of them a plan exists.

    `smallest`: no conflict has fewer members. `trials` counts the questions asked.
    """

    members: tuple[str, ...]
    minimal: bool
    smallest: bool
    trials: int


def smallest_conflict(names: Sequence[str], possible: Possible) -> Conflict | None:
    """A smallest conflict among `names`; None when all of them together are not proven impossible.

    `possible(active)` says whether a plan exists when only those demands hold, None for "not decided". Of
    several smallest conflicts the one whose members come first in `names` is taken.
    """
    known: dict[frozenset[str], bool | None] = {}

    def ask(active: frozenset[str]) -> bool | None:
        """Whether these demands alone can be met, None when that stays open."""
        # More demands never make a plan possible, fewer never impossible.
        if any(answer is True and active <= other for other, answer in known.items()):
            return True
        if any(answer is False and active >= other for other, answer in known.items()):
            return False
        if active not in known:
            known[active] = possible(active)
        return known[active]

    everything = frozenset(names)
    if ask(everything) is not False:
        return None
    corrections: list[frozenset[str]] = []
    undecided = False
    while len(known) < TRIALS_MAX:
        candidate = _smallest_hitting(names, corrections)
        answer = ask(candidate)
        if answer is False:
            members = tuple(name for name in names if name in candidate)
            minimal = all(ask(candidate - {name}) is True for name in members)
            return Conflict(members=members, minimal=minimal, smallest=not undecided, trials=len(known))
        # An undecided set is taken for possible: what is found then is a conflict, maybe not a smallest one.
        undecided = undecided or answer is None
        grown = candidate
        for name in names:
            if name not in grown and ask(grown | {name}) is True:
                grown |= {name}
        corrections.append(everything - grown)
    return _thinned(names, ask, known)


def _thinned(names: Sequence[str], ask: Possible, known: dict[frozenset[str], bool | None]) -> Conflict:
    """A conflict by leaving demands out one after another, where the smallest one could not be settled."""
    kept = frozenset(names)
    for name in reversed(names):
        if ask(kept - {name}) is False:
            kept -= {name}
    minimal = all(ask(kept - {name}) is True for name in kept)
    members = tuple(name for name in names if name in kept)
    return Conflict(members=members, minimal=minimal, smallest=False, trials=len(known))


def _smallest_hitting(names: Sequence[str], corrections: Sequence[frozenset[str]]) -> frozenset[str]:
    """A smallest set of names that meets every correction; the first in the order of `names`."""
    for size in range(len(names) + 1):
        for chosen in combinations(names, size):
            if all(not correction.isdisjoint(chosen) for correction in corrections):
                return frozenset(chosen)
    return frozenset(names)
