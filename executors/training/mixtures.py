"""Experts of a mixture: one stacked tensor in the model, one matrix per expert in weights files.

Legend of tensor suffixes: E experts, G inner width, H model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_STACKED = (".experts.gate_up_proj", ".experts.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStorage:
    """What files call the mixture (`block`) and each expert's matrices."""

    block: str
    gate: str
    up: str
    down: str

    def stored_name(self, name: str) -> str:
        """The name in files of a tensor that isn't stacked."""
        return name.replace(".mlp.", f".{self.block}.")

    def parts(self, name: str, num_experts: int) -> list[tuple[str, ...]] | None:
        """For a stacked tensor, the names of what each expert contributes; None for any other."""
        if not name.endswith(_STACKED):
            return None
        matrices = (self.down,) if name.endswith(_STACKED[1]) else (self.gate, self.up)
        base = self.stored_name(name).rpartition(".")[0]
        return [tuple(f"{base}.{e}.{matrix}.weight" for matrix in matrices) for e in range(num_experts)]

    def split(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What is stored for a tensor of the model: (E, 2G, H) and (E, H, G) come apart, others stay."""
        parts = self.parts(name, len(tensor)) if tensor.ndim == 3 else None
        if parts is None:
            yield self.stored_name(name), tensor
            return
        for names, expert in zip(parts, tensor, strict=True):
            yield from zip(names, expert.chunk(len(names)), strict=True)
