"""What blocks need by position: rotary angles and, beyond a sliding window's length, a mask.

Legend of tensor suffixes: B sequences, T tokens, H model width.
"""

from __future__ import annotations

from typing import Any

import torch

NUM_REMEMBERED = 8


class Positions:
    """Arguments of a block's forward pass beside the hidden states, computed once per length and device.

    `rotary` is the family's rotary embedding (fp32 frequencies), or None where positions are learned.
    """

    def __init__(self, rotary: torch.nn.Module | None) -> None:
        self._rotary = rotary
        self._remembered: dict[object, Any] = {}

    def arguments(self, hidden_BTH: torch.Tensor, window: int | None) -> dict[str, Any]:
        """Keyword arguments for these hidden states.

        Without a mask, transformers' sdpa attention is causal.
        """
        num_tokens = hidden_BTH.shape[1]
        arguments: dict[str, Any] = {"attention_mask": None}
        if window is not None and num_tokens > window:
            arguments["attention_mask"] = self._once(
                ("mask", num_tokens, window, hidden_BTH.device),
                lambda: sliding_mask(num_tokens, window, hidden_BTH.device),
            )
        if self._rotary is not None:
            key = ("rotary", num_tokens, hidden_BTH.device, hidden_BTH.dtype)
            arguments["position_embeddings"] = self._once(key, lambda: self._angles(hidden_BTH))
        return arguments

    def _angles(self, hidden_BTH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._rotary is not None
        device = hidden_BTH.device
        position_1T = torch.arange(hidden_BTH.shape[1], device=device).unsqueeze(0)
        carrier = torch.empty(0, dtype=hidden_BTH.dtype, device=device)
        cos, sin = self._rotary.to(device)(carrier, position_ids=position_1T)
        return cos, sin

    def _once(self, key: object, make: Any) -> Any:
        if key not in self._remembered:
            while len(self._remembered) >= NUM_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            # What is made while evaluating must serve training too.
            with torch.inference_mode(False), torch.no_grad():
                self._remembered[key] = make()
        return self._remembered[key]


def sliding_mask(num_tokens: int, window: int, device: Any) -> torch.Tensor:
    """(1, 1, T, T), true where a token (row) sees another (column): itself and the `window - 1` before it."""
    position_T = torch.arange(num_tokens, device=device)
    back_TT = position_T[:, None] - position_T[None, :]
    return ((back_TT >= 0) & (back_TT < window))[None, None]
