"""A pipeline whose stages wait for every transfer, event by event, in the order of DeepSpeed's schedule.

Each stage runs a fixed list of passes and exchanges. An exchange starts when both stages have come to it and
holds both until it is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Event = tuple[str, int, str, int]
"""Kind (`f`, `b` or `x`), border of an exchange, what is exchanged (`a`, `g`), micro-batch."""


def events_of(stage: int, num_stages: int, count: int) -> Iterator[Event]:
    """What one stage does in a step of `count` micro-batches.

    Forward and backward passes alternate, neighbours in opposite phase. Before a forward pass a stage gives
    its last gradient to the stage before and takes the next activation from it; before a backward pass it
    takes a gradient from the stage behind and gives its last activation to it.
    """
    before: int | None = None
    for slot in range(2 * (count + num_stages - 1)):
        forward = slot % 2 == stage % 2
        k = (slot - stage) // 2 if forward else (slot + stage + 1) // 2 - num_stages
        now = k if 0 <= k < count else None
        if forward and stage > 0:
            if before is not None:
                yield "x", stage - 1, "g", before
            if now is not None:
                yield "x", stage - 1, "a", now
        if not forward and stage < num_stages - 1:
            if now is not None:
                yield "x", stage, "g", now
            if before is not None:
                yield "x", stage, "a", before
        if now is not None:
            yield "f" if forward else "b", stage, "", now
        before = now


def blocking_step_s(
    forward_s: Sequence[float], backward_s: Sequence[float], one_way_s: Sequence[float], count: int
) -> float:
    """Seconds until the last stage is done; `one_way_s[i]` carries a tensor over the border after stage i."""
    num_stages = len(forward_s)
    events = [list(events_of(s, num_stages, count)) for s in range(num_stages)]
    at, clock = [0] * num_stages, [0.0] * num_stages
    while any(at[s] < len(events[s]) for s in range(num_stages)):
        moved = False
        for s in range(num_stages):
            if at[s] == len(events[s]):
                continue
            event = events[s][at[s]]
            if event[0] != "x":
                clock[s] += (forward_s if event[0] == "f" else backward_s)[s]
                at[s] += 1
                moved = True
                continue
            other = s + 1 if event[1] == s else s - 1
            if at[other] < len(events[other]) and events[other][at[other]] == event:
                clock[s] = clock[other] = max(clock[s], clock[other]) + one_way_s[event[1]]
                at[s] += 1
                at[other] += 1
                moved = True
        assert moved, "the stages wait for each other"
    return max(clock)
