"""Local training as the outer loop sees it, and FedProx's local objective in decoupled form.

Legend: P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from executors.boundary.outer.vectors import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Proximal:
    """Strength of the pull towards the anchor; 0 switches it off, and changes no bit then."""

    mu: float = 0.0

    def apply(self, w_P: Vector, anchor_P: Vector, *, rate: float) -> Vector:
        """W - rate mu (w - anchor), after the optimiser's own step.

        This is the gradient step on (mu/2)||w - anchor||^2 taken apart from the loss, as decoupled weight
        decay is: an adaptive optimiser does not rescale it, so mu means the same for every optimiser. Putting
        the term into the loss under AdamW would be another method with another meaning of mu.
        """
        if self.mu == 0.0:
            return w_P
        return (w_P - np.float32(rate * self.mu) * (w_P - anchor_P)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTask:
    """Take `num_steps` steps from `start_P`; `anchor_P` is the model last pulled, for the proximal term."""

    boundary: int
    participant: int
    start_P: Vector
    anchor_P: Vector
    num_steps: int
    proximal: Proximal


class LocalTraining(Protocol):
    """Local training handed in; it keeps optimiser states and data order per participant itself."""

    def __call__(self, task: LocalTask) -> Vector:
        """The vector after the task's steps; a new array."""
        ...


def take_steps(task: LocalTask, step: Callable[[Vector], Vector], *, rate: float) -> Vector:
    """The vector after `num_steps` of `step`, each followed by the decoupled proximal step."""
    w_P = task.start_P.copy()
    for _ in range(task.num_steps):
        w_P = task.proximal.apply(step(w_P), task.anchor_P, rate=rate)
    return w_P
