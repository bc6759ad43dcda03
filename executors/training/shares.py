"""Whose share each piece of the text is: held out for everybody, or one participant's."""

from __future__ import annotations

import heapq

HELD_OUT = -1


class Shares:
    """Deals pieces out in the order of the text; equal texts are dealt out equally.

    A piece is held out when its middle falls under the line `evaluation_frac * text so far`, so held-out
    pieces stand evenly over the whole text and don't depend on the number of participants. Any other piece
    goes to the participant with the least text so far.
    """

    def __init__(self, *, num_participants: int, evaluation_frac: float) -> None:
        self._frac = evaluation_frac
        self._total = 0
        self._held_out = 0
        self._dealt = [(0, participant) for participant in range(num_participants)]

    def owner(self, size: int) -> int:
        """`HELD_OUT` or the participant that gets the next piece, which has `size` characters."""
        self._total += size
        if self._frac > 0 and self._held_out + size / 2 <= self._frac * self._total:
            self._held_out += size
            return HELD_OUT
        dealt, participant = self._dealt[0]
        heapq.heapreplace(self._dealt, (dealt + size, participant))
        return participant
