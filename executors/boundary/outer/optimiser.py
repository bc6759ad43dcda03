"""Outer optimisers: what the coordinator does with the mean delta of one outer step.

Legend: P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from executors.boundary.outer.vectors import Vector
from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterOptimiser:
    """Mean (momentum 0) or Nesterov momentum.

    With the outer gradient G = -mean delta:  u <- beta u + G;  w <- w - eta (G + beta u), the form of
    DiLoCo's public implementations (eta 0.7, beta 0.9 there). With beta = 0 and eta = 1 the step adds the
    mean delta.

    Raises:
        InputError: `outer-optimiser` where rate or momentum is out of range.
    """

    rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0.0 and 0.0 <= self.momentum < 1.0):
            raise InputError(
                "outer-optimiser",
                f"outer optimiser: rate {self.rate}, momentum {self.momentum}",
                hint="a finite rate above 0, and a momentum from 0 to below 1",
            )

    def step(self, w_P: Vector, velocity_P: Vector, mean_delta_P: Vector) -> tuple[Vector, Vector]:
        """The next global vector and the next velocity."""
        if self.momentum == 0.0:
            return self.step_without_momentum(w_P, mean_delta_P), velocity_P
        velocity_P = (np.float32(self.momentum) * velocity_P - mean_delta_P).astype(np.float32)
        direction_P = np.float32(self.momentum) * velocity_P - mean_delta_P
        return (w_P - np.float32(self.rate) * direction_P).astype(np.float32), velocity_P

    def step_without_momentum(self, w_P: Vector, mean_delta_P: Vector) -> Vector:
        """The global vector moved by the rate times the delta."""
        if self.rate == 1.0:
            return (w_P + mean_delta_P).astype(np.float32)
        return (w_P + np.float32(self.rate) * mean_delta_P).astype(np.float32)


MEAN = OuterOptimiser()
