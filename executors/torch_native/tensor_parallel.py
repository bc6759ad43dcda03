"""Cuts the matrices of a layer over tensor-parallel ranks, and sums what the ranks find.

Attention and feed-forward part of a block are *regions*: the first matrices are cut by columns (heads, inner
width), the last by rows, and only the region's output is summed over the ranks (Shoeybi et al. 2019,
arXiv:1909.08053, section 3). Embedding and output matrix are cut by words. Inside a region every rank
computes with its own part, so a parameter there that isn't cut gets a partial gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from executors.torch_native.collectives import join_shards, sum_over
from executors.torch_native.groups import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A parameter cut along `dim`. Fused matrices have `parts` blocks there, and each of them is cut."""

    dim: int
    parts: int = 1

    def split(self, whole: torch.Tensor, group: Group) -> torch.Tensor:
        """This rank's part of the whole parameter."""
        blocks = whole.unflatten(self.dim, (self.parts, -1))
        mine = blocks.chunk(group.size(), dim=self.dim + 1)[group.rank()]
        return mine.flatten(self.dim, self.dim + 1).contiguous()

    def join(self, mine: torch.Tensor, group: Group) -> torch.Tensor:
        """The whole parameter from the parts of all ranks."""
        joined = join_shards(mine.reshape(-1), group)
        pieces = joined.view(group.size(), *mine.shape)
        blocks = [piece.unflatten(self.dim, (self.parts, -1)) for piece in pieces]
        return torch.cat(blocks, dim=self.dim + 1).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of a block between two sums: where the input comes in, and what leaves it to be summed.

    `columns` maps matrices that are cut by output to the number of blocks fused in them; `rows` are cut by
    input. `per_head` are attributes that count heads or their width in all and must count a rank's own.
    """

    enter: str
    leave: str
    columns: Mapping[str, int]
    rows: tuple[str, ...]
    per_head: tuple[str, ...] = ()


@dataclass(slots=True)
class LayerCuts:
    """What became of a layer's parameters: how each one is cut, and whose gradients are partial sums."""

    cuts: dict[str, Cut] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)


def _attention(name: str, columns: Mapping[str, int], row: str, *per_head: str) -> Region:
    return Region(
        enter=name,
        leave=f"{name}.{row}",
        columns={f"{name}.{column}": parts for column, parts in columns.items()},
        rows=(f"{name}.{row}",),
        per_head=tuple(f"{name}.{attribute}" for attribute in per_head),
    )


_QKV = {"q_proj": 1, "k_proj": 1, "v_proj": 1}
_SELF_ATTENTION = _attention("self_attn", _QKV, "o_proj")
_GATED = _attention("mlp", {"gate_proj": 1, "up_proj": 1}, "down_proj")
_SHARED_EXPERT = {"mlp.shared_expert.gate_proj": 1, "mlp.shared_expert.up_proj": 1}
_EXPERTS = Region(
    enter="mlp",
    leave="mlp",
    columns={"mlp.experts.gate_up_proj": 2, **_SHARED_EXPERT},
    rows=("mlp.experts.down_proj", "mlp.shared_expert.down_proj"),
)
_REGIONS: Mapping[str, tuple[Region, ...]] = {
    "gpt2": (
        _attention("attn", {"c_attn": 3}, "c_proj", "split_size", "num_heads"),
        _attention("mlp", {"c_fc": 1}, "c_proj"),
    ),
    "gpt_neox": (
        # Heads are fused one by one: query, key and value of a head stand together.
        _attention("attention", {"query_key_value": 1}, "dense"),
        _attention("mlp", {"dense_h_to_4h": 1}, "dense_4h_to_h"),
    ),
    "opt": (
        _attention("self_attn", _QKV, "out_proj", "num_heads"),
        Region(enter="fc1", leave="fc2", columns={"fc1": 1}, rows=("fc2",)),
    ),
}


def cut_layer(layer: nn.Module, chain: Any, layer_i: int, group: Group) -> LayerCuts:
    """Cut a whole layer of the chain in place to this rank's part, which the group completes."""
    done = LayerCuts()
    if layer_i == 0:
        _cut_embedding(layer, group, done)
    elif layer_i == chain.num_layers - 1:
        _cut_holder("output", layer.output, group, done, outputs=True)
        layer.output.register_forward_pre_hook(partial(_enter, group), with_kwargs=True)
    else:
        for region in _regions(chain.family.module, layer.layer):
            _cut_region(layer, region, group, done)
    return done


def copy_in(given: torch.Tensor, group: Group) -> torch.Tensor:
    """The same tensor; its gradient is summed over the group."""
    copied: torch.Tensor = _CopyIn.apply(given, group)
    return copied


def sum_out(found: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum over the group; every rank gets its gradient as it is."""
    summed: torch.Tensor = _SumOut.apply(found, group)
    return summed


class _CopyIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return given.view_as(given)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        sum_over(summed, ctx.group)
        return summed, None


class _SumOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: torch.Tensor, group: Group) -> torch.Tensor:
        summed = found.clone(memory_format=torch.contiguous_format)
        sum_over(summed, group)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _regions(family: str, block: nn.Module) -> tuple[Region, ...]:
    if family in _REGIONS:
        return _REGIONS[family]
    return _SELF_ATTENTION, _EXPERTS if hasattr(block.mlp, "experts") else _GATED


def _cut_region(layer: nn.Module, region: Region, group: Group, done: LayerCuts) -> None:
    block = layer.layer
    inside = {f"layer.{name}.{rest}" for name in (region.enter, region.leave) for rest in _names(block, name)}
    for name, parts in region.columns.items():
        for path, holder in _matrices(block, name):
            _cut_holder(f"layer.{path}", holder, group, done, outputs=True, parts=parts)
    for name in region.rows:
        for path, holder in _matrices(block, name):
            _cut_holder(f"layer.{path}", holder, group, done, outputs=False)
    for path in region.per_head:
        owner, _, attribute = path.rpartition(".")
        module = block.get_submodule(owner)
        setattr(module, attribute, getattr(module, attribute) // group.size())
    block.get_submodule(region.enter).register_forward_pre_hook(partial(_enter, group), with_kwargs=True)
    last = block.get_submodule(region.leave)
    bias_of = _without_bias(last) if region.leave in region.rows else None
    last.register_forward_hook(partial(_leave, group, bias_of))
    if bias_of is not None:
        inside -= {f"layer.{name}" for name in _bias_names(block, bias_of)}
    done.partial |= inside - done.cuts.keys()


def _matrices(block: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """The matrix of this name and the adapters on it, each by its path; nothing where the block has none."""
    owner, _, leaf = name.rpartition(".")
    try:
        parent = block.get_submodule(owner)
    except AttributeError:
        return
    found = getattr(parent, leaf, None)
    if isinstance(found, nn.Parameter):
        yield name, found
    elif isinstance(found, nn.Module):
        inner = [path for path, module in found.named_modules() if not list(module.children())]
        for path in inner:
            module = found.get_submodule(path)
            if list(module.parameters(recurse=False)):
                yield f"{name}.{path}" if path else name, module


def _cut_holder(
    path: str, holder: Any, group: Group, done: LayerCuts, *, outputs: bool, parts: int = 1
) -> None:
    """Cut a matrix by outputs or inputs; a bias is cut with the outputs.

    The inner width of an adapter stays whole: by outputs only its second matrix is cut, by inputs its first.
    """
    if (".lora_A." if outputs else ".lora_B.") in path:
        return
    if isinstance(holder, nn.Parameter):
        # Experts are stacked: (expert, output, input).
        found = [(path, holder, Cut(dim=1 if outputs else 2, parts=parts))]
    else:
        matrix = Cut(dim=int(outputs == _is_transposed(holder)), parts=parts)
        found = [
            (f"{path}.{name}", parameter, matrix if parameter.ndim > 1 else Cut(dim=0, parts=parts))
            for name, parameter in holder.named_parameters(recurse=False)
            if parameter.ndim > 1 or outputs
        ]
    for name, parameter, cut in found:
        parameter.data = cut.split(parameter.data, group)
        done.cuts[name] = cut
    if _is_transposed(holder):
        holder.nf = holder.weight.shape[1]


def _is_transposed(holder: Any) -> bool:
    """Whether the matrix is stored as (in, out), as in transformers' Conv1D."""
    return hasattr(holder, "nf")


def _names(block: nn.Module, path: str) -> list[str]:
    return [name for name, _ in block.get_submodule(path).named_parameters()]


def _without_bias(module: nn.Module) -> nn.Module:
    """Let the module leave its bias out, to be added once, after the sum; returns who holds the bias."""
    holder: nn.Module = getattr(module, "base_layer", module)
    if _is_transposed(holder):
        holder.forward = lambda given: given @ holder.weight
    else:
        holder.forward = lambda given: nn.functional.linear(given, holder.weight)
    return holder


def _bias_names(block: nn.Module, holder: nn.Module) -> set[str]:
    return {f"{path}.bias" for path, module in block.named_modules() if module is holder}


def _enter(group: Group, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (copy_in(args[0], group), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": copy_in(kwargs["hidden_states"], group)}


def _leave(group: Group, holder: Any, module: nn.Module, args: Any, found: torch.Tensor) -> torch.Tensor:
    summed = sum_out(found, group)
    bias = getattr(holder, "bias", None)
    return summed if bias is None else summed + bias


def _cut_embedding(layer: nn.Module, group: Group, done: LayerCuts) -> None:
    words = layer.words
    num_words = words.weight.shape[0] // group.size()
    first = group.rank() * num_words
    _cut_holder("words", words, group, done, outputs=True)
    padding = words.padding_idx
    own_padding = padding - first if padding is not None and first <= padding < first + num_words else None

    def look_up(tokens: torch.Tensor) -> torch.Tensor:
        own = tokens - first
        elsewhere = (own < 0) | (own >= num_words)
        rows = nn.functional.embedding(own.masked_fill(elsewhere, 0), words.weight, own_padding)
        return sum_out(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0), group)

    words.forward = look_up
