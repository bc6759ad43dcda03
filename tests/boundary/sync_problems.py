"""Small problems with known answers for the outer loop: one quadratic per participant.

Legend: P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from executors.boundary.outer.local import LocalTask, take_steps
from executors.boundary.outer.policy import SyncPolicy
from executors.boundary.outer.vectors import Vector
from executors.boundary.virtual.fleet import VirtualFleet, VirtualLink, even_boundaries
from executors.boundary.virtual.records import Limits, RunResult
from executors.boundary.virtual.simulation import Simulation


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratics:
    """Loss of participant i of boundary m: 0.5 ||w - t_mi||^2; the best common w is the mean target."""

    targets: NDArray[np.float32]
    rate: float = 0.05

    def gradient(self, boundary: int, participant: int, w_P: Vector) -> Vector:
        target_P: Vector = self.targets[boundary, participant]
        return w_P - target_P

    def train(self, task: LocalTask) -> Vector:
        def step(w_P: Vector) -> Vector:
            slope_P = self.gradient(task.boundary, task.participant, w_P)
            return (w_P - np.float32(self.rate) * slope_P).astype(np.float32)

        return take_steps(task, step, rate=self.rate)

    def distance(self, w_P: Vector) -> float:
        """||w - mean target||."""
        return float(np.linalg.norm(w_P - self.targets.mean(axis=(0, 1))))


def quadratics(
    *,
    num_boundaries: int = 2,
    num_participants: int = 4,
    num_parameters: int = 12,
    seed: int = 0,
    rate: float = 0.05,
) -> Quadratics:
    rng = np.random.default_rng(seed)
    shape = (num_boundaries, num_participants, num_parameters)
    return Quadratics(targets=rng.normal(size=shape).astype(np.float32), rate=rate)


def even_fleet(
    *,
    num_boundaries: int = 2,
    num_participants: int = 4,
    round_trip_s: float = 0.0,
    speed_spread: float = 1.0,
    secure_sum_s: float = 0.0,
    dropout_frac: float = 0.0,
    seed: int = 0,
) -> VirtualFleet:
    return VirtualFleet(
        boundaries=even_boundaries(
            num_boundaries=num_boundaries,
            num_participants=num_participants,
            step_s=0.25,
            speed_spread=speed_spread,
            link=VirtualLink(round_trip_s=round_trip_s),
        ),
        secure_sum_s=secure_sum_s,
        dropout_frac=dropout_frac,
        down_s=3.0,
        window_deadline_s=50.0,
        seed=seed,
    )


def start(problem: Quadratics, value: float = 3.0) -> Vector:
    return np.full(problem.targets.shape[-1], value, dtype=np.float32)


def run(
    problem: Quadratics, fleet: VirtualFleet, policy: SyncPolicy, *, num_syncs: int, at_s: float = 1e5
) -> RunResult:
    simulation = Simulation(
        fleet, policy, start_P=start(problem), train=problem.train, evaluate=problem.distance
    )
    return simulation.run(Limits(num_syncs=num_syncs, at_s=at_s))
