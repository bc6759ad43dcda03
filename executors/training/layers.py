"""The three kinds of layer in a chain, around the modules of transformers.

Legend of tensor suffixes: B sequences, T tokens, H model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from executors.training.positions import Positions


class ChainLayer(nn.Module):
    """A layer with one tensor in and one out; `recompute` runs it again in backward instead of keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Tokens or hidden states in, hidden states or logits out."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, given, use_reentrant=False)
        return self.compute(given)

    def compute(self, given: torch.Tensor) -> torch.Tensor:
        """The layer's own work."""
        raise TypeError(f"{type(self).__name__} doesn't say how it is computed")


class EmbeddingLayer(ChainLayer):
    """Tokens (B, T) to hidden states (B, T, H).

    `positions` is a learned table whose row `first_position` belongs to the first token, `projection` a
    matrix from embedding to model width.
    """

    def __init__(
        self,
        words: nn.Embedding,
        *,
        positions: nn.Embedding | None = None,
        first_position: int = 0,
        projection: nn.Linear | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.words = words
        self.positions = positions
        self.projection = projection
        self.dropout = nn.Dropout(dropout)
        self._first_position = first_position

    def compute(self, given: torch.Tensor) -> torch.Tensor:
        """Word embedding, its projection, plus learned positions."""
        hidden_BTH = self.words(given)
        if self.projection is not None:
            hidden_BTH = self.projection(hidden_BTH)
        if self.positions is not None:
            first = self._first_position
            rows_T = torch.arange(first, first + given.shape[1], device=given.device)
            hidden_BTH = hidden_BTH + nn.functional.embedding(rows_T, self.positions.weight)
        return self.dropout(hidden_BTH)


class BlockLayer(ChainLayer):
    """Hidden states (B, T, H) to hidden states: one block of transformers with what it needs by position."""

    def __init__(self, layer: nn.Module, positions: Positions, window: int | None) -> None:
        super().__init__()
        self.layer = layer
        # One object for all blocks of a process, and no module: no cast of the model may round its angles.
        self._shared = (positions,)
        self.window = window

    def compute(self, given: torch.Tensor) -> torch.Tensor:
        """Causal attention and feed-forward part."""
        arguments: Mapping[str, Any] = self._shared[0].arguments(given, self.window)
        return self.layer(given, **arguments)


class HeadLayer(ChainLayer):
    """Hidden states (B, T, H) to logits (B, T, V)."""

    def __init__(
        self, *, norm: nn.Module | None, output: nn.Linear, projection: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.projection = projection
        self.output = output

    def compute(self, given: torch.Tensor) -> torch.Tensor:
        """Final norm, projection to the embedding's width, one logit per word."""
        hidden = given if self.norm is None else self.norm(given)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return self.output(hidden)


def with_recompute(layer: ChainLayer) -> ChainLayer:
    """The same layer, which from now on keeps only its input and runs again in backward."""
    layer.recompute = True
    return layer


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all tokens, in fp32. Logits (B, T, V), labels (B, T)."""
    return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
