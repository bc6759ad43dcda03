"""What an organisation allows: who may see what, how many must take part, what is held back, what it costs.

Tiers are written by name; a higher position in the fleet's tier list is a higher clearance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class SpareKind(StrEnum):
    """How devices are held back for failures."""

    NONE = "none"
    POOLED = "pooled"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTier:
    """Layers [start, stop) may only be placed on devices cleared for `tier`."""

    start: int
    stop: int
    tier: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareRule:
    """Devices held back.

    `pooled`: in every pool (devices of one type and tier inside one boundary) that has at least
    `pool_min_devices` devices, `per_pool` devices stay unused. `dedicated`: every stage holds back one more
    device of its own (of the class in the cluster with the highest
    clearance, then the most memory).
    """

    kind: SpareKind = SpareKind.NONE
    per_pool: int = 1
    pool_min_devices: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillOver:
    """Devices of `owners` are used only where no plan without them exists or reaches `tokens_per_s_below`."""

    owners: tuple[str, ...]
    tokens_per_s_below: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules for placement (tiers) and for communication (boundaries, cohorts).

    `tokens_tier`, `labels_tier`: lowest tier that may see raw tokens (first stage) and labels (last stage).
    `activations_tier`, `weights_tier`: lowest tier that may see activations or hold weights at all.
    `None` stands for the fleet's lowest tier. `boundaries`: who takes part, `None` for all. `min_cohort` and
    `drop_tolerance`: a boundary that exports anything plans at least their sum of replicas.
    `speed_ratio_max`: fastest replica over slowest inside a boundary. `replicas_max`: per boundary.
    """

    name: str = "default"
    tokens_tier: str | None = None
    labels_tier: str | None = None
    activations_tier: str | None = None
    weights_tier: str | None = None
    layer_tiers: tuple[LayerTier, ...] = ()
    min_cohort: int = 3
    drop_tolerance: int = 1
    boundaries: tuple[str, ...] | None = None
    accept_two_boundaries: bool = False
    spares: SpareRule = field(default_factory=SpareRule)
    spill_over: SpillOver | None = None
    usd_per_hour_max: float | None = None
    speed_ratio_max: float | None = None
    replicas_max: int | None = None
    sync: tuple[tuple[str, str], ...] = ()
    audit_keys: tuple[tuple[str, str], ...] = ()

    def replicas_min(self, *, num_boundaries: int) -> int:
        """Replicas each boundary must plan: the cohort rule once anything crosses a boundary, else one."""
        return self.min_cohort + self.drop_tolerance if num_boundaries > 1 else 1
