"""Shows rank 0 of a running replica all its trained weights, and has every rank go on with others.

Legend of array suffixes: P trained weights of the whole model (`TrainedVector`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from executors.training.engine import Engine
from executors.training.trained_vector import TrainedVector, Vector

Change = Callable[[Vector], Vector | None]


class WeightExchange:
    """Between two optimiser steps of one replica; every method is collective over the default group."""

    def __init__(self, engine: Engine, vector: TrainedVector) -> None:
        self._engine, self._vector = engine, vector

    def visit(self, step: int, change: Change) -> None:
        """Call `change` on rank 0 with the weights after `step` steps; go on with what it returns.

        None keeps the weights. Optimiser moments stay as they are. If `change` raises, every rank raises.
        """
        own = dict(self._engine.layer_states())
        leads = dist.get_rank() == 0
        gathered: list[Any] | None = [None] * dist.get_world_size() if leads else None
        dist.gather_object(own, gathered, dst=0)
        outcome: list[Any] = [None, None]
        if gathered is not None:
            outcome = self._changed({i: state for part in gathered for i, state in part.items()}, change)
        dist.broadcast_object_list(outcome, src=0)
        states, error = outcome
        if error is not None:
            raise error
        if states is not None:
            self._engine.load_layer_states(states, step)

    def _changed(self, states: dict[int, Any], change: Change) -> list[Any]:
        """States to go on with, or the error that rank 0 met, for all ranks to see."""
        try:
            weights_P = change(self._vector.flattened(states))
        except Exception as error:
            return [None, error]
        return [None if weights_P is None else self._vector.replaced(states, weights_P), None]
