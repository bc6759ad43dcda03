"""Clipping of one participant's delta before it is masked: L2, then L-infinity.

Done by the participant: an aggregator that sees masked vectors alone can't clip. L2 bounds what one
participant can move the sum by; L-infinity keeps each coordinate inside the fixed-point range of the masking
ring. Legend: P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRule:
    """Limits on one delta; None switches that limit off.

    Raises:
        InputError: `clip-rule` where a limit is not a positive finite number.
    """

    l2_max: float | None = None
    linf_max: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("l2_max", self.l2_max), ("linf_max", self.linf_max)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise InputError(
                    "clip-rule",
                    f"clip rule: {name} is {value}, allowed is a finite number above 0",
                    hint="leave it out to switch this limit off",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """A delta within its limits, and how much was taken from it.

    `l2_norm` is the norm before clipping; `scale` the factor of the L2 step (1 where it did nothing);
    `num_clipped` the coordinates cut by the L-infinity step.
    """

    delta_P: NDArray[np.float32]
    l2_norm: float
    scale: float
    num_clipped: int

    @property
    def is_clipped(self) -> bool:
        """Whether either limit changed the delta: this is what the masked clip counter counts."""
        return self.scale < 1.0 or self.num_clipped > 0

    @property
    def clipped_frac(self) -> float:
        """Share of the coordinates cut by the L-infinity step."""
        return self.num_clipped / self.delta_P.size if self.delta_P.size else 0.0


def clip(delta_P: NDArray[np.float32], rule: ClipRule) -> Clipped:
    """The delta times min(1, l2_max / ||delta||_2), then cut to [-linf_max, linf_max]; the input is kept.

    Raises:
        InputError: `delta-not-finite` where the delta holds NaN or infinity, which no clipping can mend.
    """
    l2_norm = float(np.sqrt(np.dot(delta_P.astype(np.float64), delta_P.astype(np.float64))))
    if not math.isfinite(l2_norm):
        num_bad = int(np.count_nonzero(~np.isfinite(delta_P)))
        raise InputError(
            "delta-not-finite",
            f"{num_bad} of {delta_P.size} coordinates of the delta are not finite",
            hint="lower the learning rate, or leave this window out",
        )
    scale = 1.0 if rule.l2_max is None or l2_norm <= rule.l2_max else rule.l2_max / l2_norm
    out_P = delta_P.astype(np.float32, copy=True) if scale == 1.0 else (delta_P * np.float32(scale))
    num_clipped = 0
    if rule.linf_max is not None:
        num_clipped = int(np.count_nonzero(np.abs(out_P) > rule.linf_max))
        out_P = np.clip(out_P, -rule.linf_max, rule.linf_max).astype(np.float32)
    return Clipped(delta_P=out_P, l2_norm=l2_norm, scale=scale, num_clipped=num_clipped)
