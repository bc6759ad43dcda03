"""What the training loop asks of an engine: the part that differs between frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

LayerState = Mapping[str, Any]
"""CPU fp32 tensors of one layer by `weight:<parameter>`, `exp_avg:<parameter>` and `exp_avg_sq:<parameter>`.

Only trained parameters are listed; `<parameter>` is its name inside the layer's module.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Mean loss over all tokens of the step and global gradient norm before clipping, known on every rank."""

    loss: float
    gradient_norm: float


class Engine(Protocol):
    """One rank of a replica in training. Every method is collective: all ranks call it in the same order."""

    def train_step(self, step: int, learning_rate: float) -> StepResult:
        """Run one optimiser step on the text of this step (from 0)."""
        ...

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences, known on every rank."""
        ...

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights with optimiser state of this rank's layers, on one rank of each stage.

        The other ranks take part and get an empty mapping. A tied weight stands at its first layer alone.
        """
        ...

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` optimiser steps. Holds at least the rank's own layers."""
        ...

    def close(self) -> None:
        """Leave the process group."""
        ...
