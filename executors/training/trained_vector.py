"""All trained weights of a model as one flat vector, alike for every cut, width and executor.

Legend of array suffixes: P trained weights of the whole model, in order of layer and name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from executors.training.chain import Chain
from executors.training.engine import LayerState

Vector = NDArray[np.float32]
WEIGHT = "weight:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one trained tensor stands in the vector; `name` is that inside its layer's module."""

    layer_i: int
    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past its last weight."""
        return self.start + int(np.prod(self.shape, dtype=np.int64))


class TrainedVector:
    """The order of a model's trained weights, by which participants of different layouts agree.

    A tied weight stands at its first layer alone.
    """

    def __init__(self, chain: Chain) -> None:
        self.slots = tuple(_slots(chain))
        self.num_weights = self.slots[-1].stop if self.slots else 0

    @property
    def manifest_sha256(self) -> str:
        """Hash of names, shapes and order: equal where vectors mean the same."""
        listed = [[slot.layer_i, slot.name, list(slot.shape)] for slot in self.slots]
        return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode("ascii")).hexdigest()

    def flattened(self, states: Mapping[int, LayerState]) -> Vector:
        """The weights of all layers. Every layer with trained weights must be there."""
        weights_P = np.empty(self.num_weights, dtype=np.float32)
        for slot in self.slots:
            tensor = states[slot.layer_i][WEIGHT + slot.name]
            weights_P[slot.start : slot.stop] = tensor.detach().float().cpu().numpy().ravel()
        return weights_P

    def replaced(
        self, states: Mapping[int, LayerState], weights_P: Vector
    ) -> dict[int, dict[str, torch.Tensor]]:
        """The same states with these weights, for the layers that are in them; moments stay."""
        found = {layer_i: dict(state) for layer_i, state in states.items()}
        for slot in self.slots:
            if slot.layer_i in found:
                part = weights_P[slot.start : slot.stop].reshape(slot.shape)
                found[slot.layer_i][WEIGHT + slot.name] = torch.from_numpy(part.copy())
        return found


def _slots(chain: Chain) -> list[Slot]:
    found: list[Slot] = []
    start = 0
    for layer_i in range(chain.num_layers):
        layer = chain.build(layer_i)
        second = chain.tied is not None and layer_i == chain.tied[1]
        skipped = chain.tied_parameter(layer_i) if second else None
        for name, parameter in sorted(layer.named_parameters()):
            if parameter.requires_grad and name != skipped:
                slot = Slot(layer_i=layer_i, name=name, shape=tuple(parameter.shape), start=start)
                found.append(slot)
                start = slot.stop
    return found
