"""AdamW with fp32 master weights, and the arithmetic of the global gradient norm.

Legend of tensor suffixes: N elements, all tensors are flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch

from planner.training import TrainingJob

CLIP_EPSILON = 1e-6
_CHUNK_ON_CPU = 1 << 16
_CHUNK_ELSEWHERE = 1 << 26


class Moments:
    """What AdamW keeps of a flat piece of weights: both moments and, for 16-bit weights, the master copy."""

    def __init__(self, weight_N: torch.Tensor) -> None:
        self.exp_avg_N = torch.zeros_like(weight_N, dtype=torch.float32)
        self.exp_avg_sq_N = torch.zeros_like(weight_N, dtype=torch.float32)
        self.master_N: torch.Tensor | None = None
        if weight_N.dtype != torch.float32:
            self.master_N = weight_N.detach().to(torch.float32, copy=True)


class AdamW:
    """The update rule of Loshchilov and Hutter (ICLR 2019, algorithm 2), piece by piece.

    Every operation on an element rounds once, so an element's result doesn't depend on where it stands in a
    piece or how weights are cut into pieces: copies of a weight stay equal bit for bit under any sharding.
    """

    def __init__(self, training: TrainingJob) -> None:
        self._beta1, self._beta2 = training.beta1, training.beta2
        self._epsilon = training.epsilon
        self._weight_decay = training.weight_decay
        self.num_steps = 0

    def update(
        self,
        weight_N: torch.Tensor,
        gradient_N: torch.Tensor,
        moments: Moments,
        *,
        learning_rate: float,
        gradient_scale: float,
        decays: bool,
    ) -> None:
        """Change the weight in place; `num_steps` has already counted this step."""
        target_N = weight_N if moments.master_N is None else moments.master_N
        chunk = _CHUNK_ON_CPU if weight_N.device.type == "cpu" else _CHUNK_ELSEWHERE
        for start in range(0, weight_N.numel(), chunk):
            part = slice(start, start + chunk)
            gradient = gradient_N[part].to(torch.float32) * gradient_scale
            decay = 1.0 - learning_rate * self._weight_decay if decays else 1.0
            self._update_part(
                target_N[part],
                gradient,
                moments.exp_avg_N[part],
                moments.exp_avg_sq_N[part],
                learning_rate,
                decay,
            )
            if moments.master_N is not None:
                weight_N[part].copy_(target_N[part])

    def _update_part(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        learning_rate: float,
        decay: float,
    ) -> None:
        if decay != 1.0:
            weight.mul_(decay)
        exp_avg.mul_(self._beta1).add_(gradient * (1.0 - self._beta1))
        gradient.mul_(gradient).mul_(1.0 - self._beta2)
        exp_avg_sq.mul_(self._beta2).add_(gradient)
        correction1 = 1.0 - self._beta1**self.num_steps
        correction2 = 1.0 - self._beta2**self.num_steps
        divisor = exp_avg_sq.sqrt().div_(sqrt(correction2)).add_(self._epsilon)
        weight.add_((exp_avg / divisor).mul_(-learning_rate / correction1))


def squared_norm(gradients: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of squares of all elements, as a float64 scalar on the device."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        total += torch.linalg.vector_norm(gradient, dtype=torch.float32).double().square()
    return total


def clip_scale(norm: float, clip_norm: float) -> float:
    """What gradients are multiplied by: 1 below the bound, no bound where it is 0."""
    if clip_norm <= 0.0:
        return 1.0
    return min(1.0, clip_norm / (norm + CLIP_EPSILON))
