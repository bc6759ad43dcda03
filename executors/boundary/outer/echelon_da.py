"""Echelon-DA: Echelon whose local steps between commits follow boundary drift and link time."""

from __future__ import annotations

from dataclasses import replace

from executors.boundary.outer.echelon import echelon_fixed
from executors.boundary.outer.policy import SyncPolicy
from policies.drift import DriftRule


def echelon_da(
    *,
    drift: DriftRule,
    close_frac: float = 0.75,
    num_releases: int = 1,
    rate: float = 0.9,
    momentum: float = 0.5,
) -> SyncPolicy:
    """Echelon that starts with, and falls back to, `drift.h_fixed` local steps."""
    fixed = echelon_fixed(
        num_local_steps=drift.h_fixed,
        close_frac=close_frac,
        num_releases=num_releases,
        rate=rate,
        momentum=momentum,
    )
    return replace(fixed, name="echelon-da", drift=drift)
