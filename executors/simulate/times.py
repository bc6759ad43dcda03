"""What the simulator is given: seconds of stages and of transfers, and how a step is run.

All seconds are of one micro-batch unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import isfinite

from policies.errors import Fault, InputError


class Schedule(StrEnum):
    """Order of forward and backward passes in a stage.

    `1f1b`: a stage with q stages left, itself included, runs q forward passes ahead, then one backward and
    one forward in turn. `gpipe`: all forward passes, then all backward passes.
    """

    ONE_FORWARD_ONE_BACKWARD = "1f1b"
    GPIPE = "gpipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """One stage. Forward and backward include the communication inside the stage that isn't hidden.

    `sync_s` follows the stage's own last backward pass, once per step. `update_s` comes after every stage of
    the replica has synchronised, since the gradient norm takes all of them; the step ends with the last
    update.
    """

    forward_s: float
    backward_s: float
    sync_s: float = 0.0
    update_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds one micro-batch occupies the stage, forward and backward."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferTimes:
    """One direction of a border: the link is held for `occupied_s`, the data is there `latency_s` later.

    Transfers with equal `link` queue for it, first come, first served. An empty name means a link of its own.
    """

    occupied_s: float
    latency_s: float = 0.0
    link: str = ""

    @property
    def total_s(self) -> float:
        """Seconds over an idle link."""
        return self.occupied_s + self.latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderTimes:
    """Between a stage and the next: activations go forward, gradients come back."""

    forward: TransferTimes
    backward: TransferTimes

    @property
    def round_trip_s(self) -> float:
        """Seconds over idle links, there and back."""
        return self.forward.total_s + self.backward.total_s


def even_border(one_way_s: float, latency_s: float = 0.0) -> BorderTimes:
    """A border that is alike in both directions, over links of its own: `one_way_s` includes the latency."""
    way = TransferTimes(occupied_s=one_way_s - latency_s, latency_s=latency_s)
    return BorderTimes(forward=way, backward=way)


def in_flight_limits(num_stages: int, num_micro_batches: int, schedule: Schedule) -> tuple[int, ...]:
    """Micro-batches each stage holds at most."""
    if schedule is Schedule.GPIPE:
        return (num_micro_batches,) * num_stages
    return tuple(min(num_micro_batches, num_stages - s) for s in range(num_stages))


def require_sound(
    stages: Sequence[StageTimes],
    borders: Sequence[BorderTimes],
    num_micro_batches: int,
    *,
    in_flight: Sequence[int] | None = None,
    receives_ahead: int | None = None,
    blocking: bool = False,
) -> None:
    """Refuse what can't be run.

    Raises:
        InputError: `simulation-times` with every fault: no stage, a number of borders that isn't one less, no
            micro-batch, negative or infinite seconds, fewer than 0 receives ahead, in-flight limits that grow
            downstream or that blocking transfers don't know.
    """
    faults: list[Fault] = []
    if not stages or len(borders) != len(stages) - 1:
        found, limit = f"{len(stages)} stages, {len(borders)} borders", "a border between every two stages"
        faults.append(Fault(place="borders", value=found, limit=limit))
    for place, value, least in (
        ("num_micro_batches", num_micro_batches, 1),
        ("receives_ahead", receives_ahead or 0, 0),
    ):
        if value < least:
            faults.append(Fault(place=place, value=str(value), limit=f"{least} or more"))
    for i, stage in enumerate(stages):
        for name in ("forward_s", "backward_s", "sync_s", "update_s"):
            faults += _bad_seconds(f"stages[{i}].{name}", getattr(stage, name))
    for i, border in enumerate(borders):
        for way, times in (("forward", border.forward), ("backward", border.backward)):
            faults += _bad_seconds(f"borders[{i}].{way}.occupied_s", times.occupied_s)
            faults += _bad_seconds(f"borders[{i}].{way}.latency_s", times.latency_s)
    if in_flight is not None:
        faults += _bad_limits(list(in_flight), len(stages), blocking=blocking)
    if faults:
        raise InputError("simulation-times", "these times can't be simulated", faults=faults)


def _bad_seconds(place: str, seconds: float) -> list[Fault]:
    if isfinite(seconds) and seconds >= 0.0:
        return []
    return [Fault(place=place, value=repr(seconds), limit="finite seconds of 0 or more")]


def _bad_limits(limits: list[int], num_stages: int, *, blocking: bool) -> list[Fault]:
    found = str(limits)[:60]
    if blocking:
        limit = "none: blocking transfers follow the schedule's own numbers"
        return [Fault(place="in_flight", value=found, limit=limit)]
    falling = all(a >= b for a, b in pairwise(limits))
    if len(limits) == num_stages and min(limits, default=0) >= 1 and falling:
        return []
    limit = "one number of 1 or more per stage, none larger than the one before"
    return [Fault(place="in_flight", value=found, limit=limit)]
