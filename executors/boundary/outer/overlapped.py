"""Overlapped DiLoCo: the exchange of one round runs under the steps of the next one."""

from __future__ import annotations

from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.policy import SyncPolicy
from policies.staleness import StalenessRule


def overlapped_diloco(*, num_local_steps: int, rate: float = 0.7, momentum: float = 0.9) -> SyncPolicy:
    """DiLoCo whose participants train up to one round ahead while their delta is away, and keep that."""
    return SyncPolicy(
        name="overlapped-diloco",
        num_local_steps=num_local_steps,
        num_ahead_steps=num_local_steps,
        optimiser=OuterOptimiser(rate=rate, momentum=momentum),
        staleness=StalenessRule(staleness_max=0),
    )
