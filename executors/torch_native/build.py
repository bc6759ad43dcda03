"""The engine that runs a job's schedule."""

from __future__ import annotations

from typing import Any

from executors.torch_native.virtual import PIECES
from executors.training.engine import Engine
from planner.training import TrainingJob


def build_engine(*, training: TrainingJob, **arguments: Any) -> Engine:
    """One rank's engine; arguments are those of `TorchEngine`."""
    if training.pipeline in PIECES:
        from executors.torch_native.torch_pipelining import PipeliningEngine

        return PipeliningEngine(training=training, **arguments)
    from executors.torch_native.engine import TorchEngine

    return TorchEngine(training=training, **arguments)
