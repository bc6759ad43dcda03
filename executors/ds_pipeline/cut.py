"""A DeepSpeed pipeline that is cut where a plan cuts it, over the ranks that the plan names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.pipe.module import PipelineModule
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipeModelDataParallelTopology
from torch import nn

from executors.layout import Layout


class CutModule(PipelineModule):
    """DeepSpeed's module with stage s made of the layers [`borders[s]`, `borders[s + 1]`).

    `layers` is the whole chain; what DeepSpeed takes beyond it goes into `options`.
    """

    def __init__(self, layers: Sequence[Any], borders: Sequence[int], topology: Any, **options: Any) -> None:
        self._borders = list(borders)
        super().__init__(layers=layers, topology=topology, partition_method="uniform", **options)

    def _partition_layers(self, method: str = "uniform") -> None:
        self.parts = self._borders
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


class Anchored(nn.Module):
    """A layer of a stage that trains nothing. DeepSpeed wants a trained weight and a gradient in every stage.

    The weight is one zero that is multiplied by zero: it changes neither the output nor the gradient norm.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.anchor = nn.Parameter(torch.zeros(1, dtype=next(inner.parameters()).dtype))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """The inner layer's output."""
        return self.inner(given) + 0.0 * self.anchor


def planned_topology(layout: Layout, num_stages: int, width: int, tp: int = 1) -> Any:
    """DeepSpeed's grid with the ranks of the plan: coordinate (stage, its replica, part of it) -> rank."""
    if tp == 1:
        topology = PipeDataParallelTopology(num_pp=num_stages, num_dp=width)
    else:
        topology = PipeModelDataParallelTopology(num_pp=num_stages, num_mp=tp, num_dp=width)
    for at in topology.mapping:
        topology.mapping[at] = layout.rank_at(at.pipe, at.data, getattr(at, "model", 0))
    return topology
