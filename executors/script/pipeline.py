"""DeepSpeed's pipeline for a script's own layers, as the plan wants it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from executors.ds_pipeline.cut import CutModule


class ScriptModule(CutModule):
    """A script's chain of layers, cut as planned.

    The layers in `recomputed` run again in backward instead of keeping activations. A layer's first weights
    depend on `seed` and its position alone, so they are the same under every cut.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        borders: Sequence[int],
        topology: Any,
        *,
        recomputed: Set[int],
        seed: int,
        **options: Any,
    ) -> None:
        seeding = {"seed_layers": True, "seed_fn": torch.manual_seed, "base_seed": seed}
        with torch.random.fork_rng():
            super().__init__(layers, borders, topology, **{**seeding, **options})
        if "seed_layers" not in options:
            # It would also seed before every layer of every forward pass, whoever draws numbers besides.
            self.seed_layers = False
        first = self.parts[self.stage_id]
        for layer_i in recomputed:
            self._recompute(layer_i - first)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            self._anchor()

    def _recompute(self, position: int) -> None:
        """Keep only the input of a layer. Modules stay in their place: checkpoints look for them there."""
        layer = self.forward_funcs[position]
        if isinstance(layer, nn.Module):
            layer.forward = partial(_again, layer.forward)
        else:
            self.forward_funcs[position] = partial(_again, layer)

    def _anchor(self) -> None:
        """DeepSpeed wants a trained weight in every stage: one that changes nothing will do."""
        self.anchor = nn.Parameter(torch.zeros(1))
        self.register_forward_hook(_touch)


def _again(forward: Any, *given: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **options)
    return checkpoint(forward, *given, use_reentrant=False, **options)


def _touch(module: Any, _: Any, out: Any) -> Any:
    """Add nothing, but let a gradient reach the anchor."""
    zero = 0.0 * module.anchor
    if isinstance(out, torch.Tensor):
        return out + zero.to(out.dtype)
    return (out[0] + zero.to(out[0].dtype), *out[1:])
