"""The layers one rank holds, as one module.

Legend of tensor suffixes: B rows of this rank, T tokens, H model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained parameter: its layer, its name in there, and whether it is the tied weight.

    `shape` is that of the whole parameter, however it is held. `first` is false for the copy of a tied weight
    that stands later in the chain: checkpoints and the gradient norm leave it out.
    """

    layer_i: int
    name: str
    module: nn.Module
    shape: tuple[int, ...]
    tied: bool
    first: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module holds it now."""
        return self.module.get_parameter(self.name)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.shape) >= 2


class StageModule(nn.Module):  # type: ignore[misc]
    """Layers [start, stop) of a chain, one after another. Tied layers in one stage share one parameter."""

    def __init__(self, chain: Any, layers: Sequence[int], device: torch.device, recompute: int = 0) -> None:
        super().__init__()
        self.layer_ids = tuple(layers)
        self.layers = nn.ModuleList(chain.build(i).to(device) for i in layers)
        for i in recomputed_layers(self.layer_ids, chain.num_layers, recompute):
            self.layers[self.layer_ids.index(i)].recompute = True
        self.tied_names = {i: name for i in layers if (name := chain.tied_parameter(i)) is not None}
        self.tie()
        self.trained = tuple(self._trained(chain.tied))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) or hidden states (B, T, H) in, hidden states or logits (B, T, V) out."""
        for layer in self.layers:
            given = layer(given)
        return given

    def layer(self, layer_i: int) -> nn.Module:
        """A layer by its position in the chain."""
        return self.layers[self.layer_ids.index(layer_i)]

    def tie(self) -> None:
        """Let tied layers share one parameter, where both are here."""
        if len(self.tied_names) < 2:
            return
        (first, first_name), (last, last_name) = sorted(self.tied_names.items())
        owner, _, leaf = last_name.rpartition(".")
        shared = self.layer(first).get_parameter(first_name)
        setattr(self.layer(last).get_submodule(owner), leaf, shared)

    def _trained(self, tied: tuple[int, int] | None) -> list[Trained]:
        found: list[Trained] = []
        for i in self.layer_ids:
            module = self.layer(i)
            for name, parameter in module.named_parameters():
                is_tied = self.tied_names.get(i) == name
                doubled = is_tied and len(self.tied_names) == 2 and tied is not None and i == tied[1]
                if not parameter.requires_grad or doubled:
                    continue
                found.append(
                    Trained(
                        layer_i=i,
                        name=name,
                        module=module,
                        shape=tuple(parameter.shape),
                        tied=is_tied and len(self.tied_names) == 1,
                        first=not is_tied or tied is None or i == tied[0],
                    )
                )
        return found


def recomputed_layers(layers: Sequence[int], num_layers: int, count: int) -> tuple[int, ...]:
    """Which `count` layers of a stage run again in backward: its first blocks, then its ends.

    Blocks come first since they save most per operation, as in the cost model.
    """
    blocks = [i for i in layers if 0 < i < num_layers - 1]
    ends = [i for i in layers if i not in blocks]
    return tuple((blocks + ends)[:count])
