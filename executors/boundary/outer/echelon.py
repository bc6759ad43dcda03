"""Echelon: buffered semi-asynchronous windows in each boundary, overlapped exchange of aggregates between.

Inside a boundary a window closes at K of N; its release moves the boundary's model at once, and its members
pull that. After every `num_releases` releases the boundary sends its model's delta since the last global
model and keeps releasing; the answer is applied underneath. The outer step waits for all live boundaries or
for its deadline: it never applies one boundary's delta alone with momentum.
"""

from __future__ import annotations

from executors.boundary.outer.local import Proximal
from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.policy import Pull, SyncPolicy
from policies.staleness import StalenessRule


def echelon_fixed(
    *,
    num_local_steps: int,
    close_frac: float = 0.75,
    num_releases: int = 1,
    rate: float = 0.9,
    momentum: float = 0.5,
    mu: float = 0.0,
    exponent: float = 0.5,
) -> SyncPolicy:
    """Echelon with a fixed number of local steps between commits."""
    return SyncPolicy(
        name="echelon-fixed",
        num_local_steps=num_local_steps,
        close_frac=close_frac,
        pull=Pull.RELEASE,
        num_releases=num_releases,
        optimiser=OuterOptimiser(rate=rate, momentum=momentum),
        proximal=Proximal(mu=mu),
        staleness=StalenessRule(exponent=exponent),
        global_staleness=StalenessRule(exponent=exponent),
    )
