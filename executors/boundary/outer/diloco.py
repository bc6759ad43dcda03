"""DiLoCo: all participants take H steps, wait for the outer Nesterov step over the mean delta, go on."""

from __future__ import annotations

from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.policy import SyncPolicy
from policies.staleness import StalenessRule


def diloco(*, num_local_steps: int, rate: float = 0.7, momentum: float = 0.9) -> SyncPolicy:
    """DiLoCo; with secure aggregation inside each boundary, what crosses is the boundary's mean alone.

    A participant that fell out of a round loses that round's work, as in the original: no staleness is
    allowed.
    """
    return SyncPolicy(
        name="diloco",
        num_local_steps=num_local_steps,
        optimiser=OuterOptimiser(rate=rate, momentum=momentum),
        staleness=StalenessRule(staleness_max=0),
    )
