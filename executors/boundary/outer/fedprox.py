"""FedProx: synchronous averaging of participants who are held to the model they pulled."""

from __future__ import annotations

from executors.boundary.outer.local import Proximal
from executors.boundary.outer.optimiser import OuterOptimiser
from executors.boundary.outer.policy import SyncPolicy
from policies.staleness import StalenessRule


def fedprox(*, num_local_steps: int, mu: float, rate: float = 1.0) -> SyncPolicy:
    """FedProx with the proximal step decoupled from the inner optimiser; mu = 0 is FedAvg bit for bit."""
    return SyncPolicy(
        name="fedprox",
        num_local_steps=num_local_steps,
        optimiser=OuterOptimiser(rate=rate),
        proximal=Proximal(mu=mu),
        staleness=StalenessRule(staleness_max=0),
    )


def fedavg(*, num_local_steps: int) -> SyncPolicy:
    """Plain averaging after H steps."""
    return SyncPolicy(
        name="fedavg", num_local_steps=num_local_steps, staleness=StalenessRule(staleness_max=0)
    )
