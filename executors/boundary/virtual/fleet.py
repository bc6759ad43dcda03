"""What is simulated: boundaries, participants with speeds, links, dropouts and churn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from policies.errors import InputError
from policies.window_state import COHORT_FLOOR


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualParticipant:
    """`step_s`: seconds per local step; `num_examples`: its weight in its boundary's sum."""

    step_s: float
    num_examples: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualLink:
    """Between a boundary and the coordinator, each direction alike."""

    round_trip_s: float = 0.0
    bytes_per_s: float = math.inf

    def one_way_s(self, num_bytes: int) -> float:
        """Seconds until all of a message has arrived."""
        return self.round_trip_s / 2.0 + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualBoundary:
    """Participants behind one link."""

    participants: tuple[VirtualParticipant, ...]
    link: VirtualLink


class ChurnKind(StrEnum):
    """A participant leaves, or returns under the same identity."""

    LEAVE = "leave"
    RETURN = "return"


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """One planned departure or return."""

    at_s: float
    boundary: int
    participant: int
    kind: ChurnKind


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualFleet:
    """Everything outside the sync policy.

    `secure_sum_s`: from a closed roster to the released sum. `dropout_frac`: chance that a participant of a
    closed roster fails before the sum; it is away for `down_s` and keeps its work. `window_deadline_s`,
    `extend_s`, `min_cohort`: of every window. `global_deadline_s`: an outer step waits this long after its
    first delta.

    Raises:
        InputError: `virtual-fleet` where a boundary is too small or a number is out of range.
    """

    boundaries: tuple[VirtualBoundary, ...]
    secure_sum_s: float = 0.0
    dropout_frac: float = 0.0
    down_s: float = 1.0
    window_deadline_s: float = 1e6
    extend_s: float = 1.0
    global_deadline_s: float = 1e9
    min_cohort: int = COHORT_FLOOR
    churn: tuple[Churn, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for m, boundary in enumerate(self.boundaries):
            if len(boundary.participants) < self.min_cohort:
                raise InputError(
                    "virtual-fleet",
                    f"boundary {m} has {len(boundary.participants)} participants, "
                    f"its cohort needs {self.min_cohort}",
                    hint="add participants, or lower min_cohort to no less than 3",
                )
            if any(not (math.isfinite(p.step_s) and p.step_s > 0.0) for p in boundary.participants):
                raise InputError(
                    "virtual-fleet", f"boundary {m} has a step time that is not above 0", hint="set it"
                )
        is_fine = 0.0 <= self.dropout_frac < 1.0 and self.secure_sum_s >= 0.0 and self.down_s > 0.0
        if not self.boundaries or not is_fine:
            raise InputError(
                "virtual-fleet",
                f"{len(self.boundaries)} boundaries, dropout_frac {self.dropout_frac}, "
                f"secure_sum_s {self.secure_sum_s}, down_s {self.down_s}",
                hint="at least one boundary, dropout_frac from 0 to below 1, times of at least 0",
            )


def even_boundaries(
    *, num_boundaries: int, num_participants: int, step_s: float, speed_spread: float = 1.0, link: VirtualLink
) -> tuple[VirtualBoundary, ...]:
    """Equal boundaries; step times rise geometrically from `step_s` to `step_s` times `speed_spread`."""
    last = max(1, num_participants - 1)
    members = tuple(
        VirtualParticipant(step_s=step_s * speed_spread ** (i / last)) for i in range(num_participants)
    )
    return tuple(VirtualBoundary(participants=members, link=link) for _ in range(num_boundaries))
