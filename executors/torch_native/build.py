"""The engine that runs a job's schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

from executors.torch_native.virtual import PIECES
from executors.training.engine import Engine
from planner.plan import ReplicaPlan
from planner.training import PipelineSchedule, TrainingJob


def build_engine(*, training: TrainingJob, replica: ReplicaPlan, **arguments: Any) -> Engine:
    """One rank's engine; arguments are those of `TorchEngine`. A single stage has one schedule only."""
    if len(replica.stages) == 1:
        training = dataclasses.replace(training, pipeline=PipelineSchedule.ONE_FORWARD_ONE_BACKWARD)
    if training.pipeline in PIECES:
        from executors.torch_native.torch_pipelining import PipeliningEngine

        return PipeliningEngine(training=training, replica=replica, **arguments)
    from executors.torch_native.engine import TorchEngine

    return TorchEngine(training=training, replica=replica, **arguments)
