"""The layers one rank holds, as one module, and what of them is trained.

Legend of tensor suffixes: B rows of this rank, T tokens, H model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from executors.torch_native.groups import Group
from executors.torch_native.tensor_parallel import Cut, LayerCuts, cut_layer

WEIGHTS_SHARDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained parameter: its layer, its name in there and its whole shape.

    `cut` says how tensor-parallel ranks share it; where it is None they all hold it, and `partial` says that
    each has only a part of its gradient's sum. `tied` is set where another stage holds a copy. `first` is
    false for the copy that stands later in the chain: checkpoints and the gradient norm leave it out.
    """

    layer_i: int
    name: str
    module: nn.Module
    shape: tuple[int, ...]
    cut: Cut | None = None
    partial: bool = False
    tied: bool = False
    first: bool = True

    @property
    def decays(self) -> bool:
        """Whether weight decay applies: to matrices only."""
        return len(self.shape) >= 2

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module holds it now."""
        return self.module.get_parameter(self.name)


class StageModule(nn.Module):
    """Some layers of a chain, one after another. Tied layers in one stage share one parameter."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) or hidden states (B, T, H) in, hidden states or logits (B, T, V) out."""
        for layer in self.layers:
            given = layer(given)
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage's module and its trained parameters. `head_is_cut`: its logits are of some words only."""

    module: StageModule
    trained: tuple[Trained, ...]
    head_is_cut: bool


def build_stage(
    chain: Any,
    layers: range,
    *,
    zero: int,
    recomputed: Collection[int],
    data: Group,
    tensor: Group,
    device: torch.device,
) -> Stage:
    """This rank's part of the layers; under ZeRO-3 each one is sharded before the next one is built."""
    built: dict[int, nn.Module] = {}
    trained: list[Trained] = []
    tied_here = [i for i in layers if chain.tied_parameter(i) is not None]
    shares_inside = len(tied_here) == 2
    for i in layers:
        layer = chain.build(i).to(device)
        layer.recompute = i in recomputed
        shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
        cuts = LayerCuts() if tensor is None else cut_layer(layer, chain, i, tensor)
        trained += _trained(chain, i, layer, cuts, shapes, shares_inside=shares_inside)
        built[i] = layer
        if zero == WEIGHTS_SHARDED and data is not None and not (shares_inside and i in tied_here):
            _shard(layer, data, device)
    if shares_inside:
        first, last = tied_here
        _tie(built[first], chain.tied_parameter(first), built[last], chain.tied_parameter(last))
    module = StageModule(list(built.values()))
    if zero == WEIGHTS_SHARDED and data is not None:
        _shard(module, data, device)
    head_is_cut = tensor is not None and layers.stop == chain.num_layers
    return Stage(module=module, trained=tuple(trained), head_is_cut=head_is_cut)


def first_blocks(layers: Sequence[int], num_layers: int, count: int) -> frozenset[int]:
    """The layers recomputed where nobody named them: the first blocks, then the ends of the chain."""
    blocks = [i for i in layers if 0 < i < num_layers - 1]
    ends = [i for i in layers if i not in blocks]
    return frozenset((blocks + ends)[:count])


def seed_dropout(*place: int) -> None:
    """Draw dropout from the place alone: the same on tensor-parallel ranks, and again after a resume."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:7], "big"))


def _trained(
    chain: Any,
    layer_i: int,
    layer: nn.Module,
    cuts: LayerCuts,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    shares_inside: bool,
) -> list[Trained]:
    found: list[Trained] = []
    for name, parameter in layer.named_parameters():
        tied = chain.tied_parameter(layer_i) == name
        later = tied and layer_i == chain.tied[1]
        if not parameter.requires_grad or (later and shares_inside):
            continue
        found.append(
            Trained(
                layer_i=layer_i,
                name=name,
                module=layer,
                shape=shapes[name],
                cut=cuts.cuts.get(name),
                partial=name in cuts.partial,
                tied=tied and not shares_inside,
                first=not later,
            )
        )
    return found


def _tie(first: nn.Module, first_name: str, last: nn.Module, last_name: str) -> None:
    owner, _, leaf = last_name.rpartition(".")
    setattr(last.get_submodule(owner), leaf, first.get_parameter(first_name))


def _shard(module: nn.Module, data: Group, device: torch.device) -> None:
    """FSDP2: gather weights for each pass, scatter the sum of the gradients.

    Each rank's loss is already weighted by its rows, so gradients are summed, not averaged.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=DeviceMesh.from_group(data, device.type), reshard_after_forward=True)
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
