"""Bytes of each layer, counted while it runs: what it keeps for backward, and what it needs beside that."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from executors.profiling.layers import LayerBytes
from executors.training.chain import token_loss


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that come and go while it is active, those of `ignore` left out."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, Any] = {}

    def ignore(self, tensors: Sequence[torch.Tensor]) -> None:
        """These were there before."""
        for tensor in tensors:
            self._known.setdefault(tensor.untyped_storage()._cdata, None)

    def restart_peak(self) -> None:
        """From now on `peak` is the highest since this call."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._drop, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size


def layer_bytes(
    layers: Mapping[int, torch.nn.Module], tokens_BT: torch.Tensor, *, last: int
) -> dict[int, LayerBytes]:
    """Sizes of these layers, run one after another with each one's output as the next one's input.

    `tokens_BT` are sequences of T + 1 tokens; the layer at position `last` ends in the loss. The second of
    two micro-batches counts, since the first one's gradients of weights stay.
    """
    order = sorted(layers)
    with LiveBytes() as live:
        for layer in layers.values():
            live.ignore([*layer.parameters(), *layer.buffers()])
        live.ignore([tokens_BT])
        _passed(live, layers, order, tokens_BT, last)
        found = _passed(live, layers, order, tokens_BT, last)
    for layer in layers.values():
        layer.zero_grad(set_to_none=True)
    return {i: _sizes(layers[i], figures, len(tokens_BT)) for i, figures in found.items()}


def _passed(
    live: LiveBytes,
    layers: Mapping[int, torch.nn.Module],
    order: Sequence[int],
    tokens_BT: torch.Tensor,
    last: int,
) -> dict[int, list[float]]:
    """Kept, input, output and working bytes of each layer for one micro-batch, forward and backward."""
    found: dict[int, list[float]] = {}
    held: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for i in order:
        labels_BT = tokens_BT[:, 1:] if i == last else None
        entering = (held[-1][2] if held else tokens_BT[:, :-1]).detach()
        output, found[i] = _forward(live, layers[i], entering, labels_BT)
        held.append((i, entering, output))
        del entering, output
    gradient: torch.Tensor | None = None
    while held:
        i, entering, output = held.pop()
        before = live.live
        live.restart_peak()
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        del output
        found[i][3] = max(found[i][3], float(live.peak - before))
        gradient = entering.grad
        del entering
    return found


def _forward(
    live: LiveBytes, layer: torch.nn.Module, entering: torch.Tensor, labels_BT: torch.Tensor | None
) -> tuple[torch.Tensor, list[float]]:
    """A layer's output and bytes; with labels the output is the loss, which is sent nowhere."""
    if entering.is_floating_point():
        entering.requires_grad_()
    before = live.live
    live.restart_peak()
    output = layer(entering)
    sent = float(output.nbytes)
    if labels_BT is not None:
        output, sent = token_loss(output, labels_BT), 0.0
    kept = live.live - before - sent + entering.nbytes
    return output, [kept, float(entering.nbytes), sent, float(live.peak - live.live)]


def _sizes(layer: torch.nn.Module, figures: Sequence[float], num_sequences: int) -> LayerBytes:
    parameters = list(layer.parameters())
    kept, entering, sent, working = (figure / num_sequences for figure in figures)
    return LayerBytes(
        params=sum(p.numel() for p in parameters),
        trainable_params=sum(p.numel() for p in parameters if p.requires_grad),
        weight_bytes=sum(p.nbytes for p in parameters),
        activation_bytes=kept,
        input_bytes=entering,
        output_bytes=sent,
        working_bytes=working,
    )
