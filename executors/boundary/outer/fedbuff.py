"""FedBuff: buffers of K updates, weighted by staleness, are applied as they fill; nobody waits."""

from __future__ import annotations

from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.policy import Pull, SyncPolicy
from policies.staleness import StalenessRule


def fedbuff(
    *,
    num_local_steps: int,
    close_frac: float = 0.5,
    rate: float = 1.0,
    exponent: float = 0.5,
    num_boundaries: int = 1,
) -> SyncPolicy:
    """FedBuff with one secure buffer per boundary; the server steps, without momentum, at each arrival.

    Each boundary's buffer holds a share 1 / `num_boundaries` of the participants, so its mean is applied with
    that share of the rate. A participant starts afresh from its boundary's newest model once it has
    committed.
    """
    return SyncPolicy(
        name="fedbuff",
        num_local_steps=num_local_steps,
        close_frac=close_frac,
        pull=Pull.COMMIT,
        report_frac=1.0 / num_boundaries,
        optimiser=OuterOptimiser(rate=rate / num_boundaries),
        staleness=StalenessRule(exponent=exponent),
        global_staleness=StalenessRule(exponent=exponent),
    )
