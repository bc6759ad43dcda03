"""The model and its adapters as a worker builds them, read from the plan's workload. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.workload import Workload
from planner.training import TrainingJob
from policies.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A transformers configuration and what of it is trained.

    Layer 0 is the embedding, layers 1 to `num_layers - 2` are the blocks, the last one is norm and loss head.
    `adapter_rank` 0 means that every weight is trained. `start` is a folder with weights, or None.
    """

    config: Mapping[str, Any]
    num_layers: int
    dtype: str
    sequence_tokens: int
    adapter_rank: int
    adapter_targets: tuple[str, ...]
    adapter_alpha: float
    adapter_dropout: float
    seed: int
    start: str | None

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.adapter_rank == 0

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.config["vocab_size"])


def model_spec(workload: Workload, training: TrainingJob) -> ModelSpec:
    """What a worker builds.

    Raises:
        InputError: `no-recipe` for a chain of explicit layers.
    """
    recipe = workload.recipe
    if recipe is None:
        raise InputError(
            "no-recipe",
            f"model {workload.model_name} is a list of layers: it can be planned, but not built",
            hint="name a transformers configuration in the model file (`config` or `architecture`)",
        )
    job = workload.job
    return ModelSpec(
        config=json.loads(recipe.config_json),
        num_layers=workload.num_layers,
        dtype=job.dtype,
        sequence_tokens=job.sequence_tokens,
        adapter_rank=job.adapter_rank,
        adapter_targets=recipe.adapter_targets,
        adapter_alpha=training.adapter_alpha or 2.0 * job.adapter_rank,
        adapter_dropout=training.adapter_dropout,
        seed=training.seed,
        start=training.start,
    )
