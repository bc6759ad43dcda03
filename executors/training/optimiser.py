"""AdamW as the training job wants it: decay on matrices only, the learning rate set anew before each step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from planner.training import TrainingJob


def parameter_groups(
    named: Iterable[tuple[str, torch.nn.Parameter]], training: TrainingJob
) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices, which decay, and all others, which don't."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = ((matrices, training.weight_decay), (others, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def build_optimiser(
    named: Iterable[tuple[str, torch.nn.Parameter]], training: TrainingJob
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) with a learning rate of 0 until `set_learning_rate`."""
    return torch.optim.AdamW(
        parameter_groups(named, training),
        lr=0.0,
        betas=(training.beta1, training.beta2),
        eps=training.epsilon,
    )


def set_learning_rate(optimiser: Any, learning_rate: float) -> None:
    """Use this rate from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
