"""The loss where each tensor-parallel rank holds the logits of its own words only.

Legend of tensor suffixes: N tokens, W words of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from executors.torch_native.collectives import sum_over
from executors.torch_native.groups import Group


def cut_token_loss(logits: torch.Tensor, labels: torch.Tensor, group: Group) -> torch.Tensor:
    """Mean cross-entropy over all tokens, in fp32, the same on all ranks of the group.

    Logits (B, T, W) are those of the rank's words, of which all ranks have equally many; labels (B, T).
    """
    loss: torch.Tensor = _CutCrossEntropy.apply(logits.flatten(0, -2), labels.flatten(), group)
    return loss


class _CutCrossEntropy(torch.autograd.Function):
    """log Σ exp(z) - z[label] with the largest z taken out first; its gradient is softmax(z) - [label]."""

    @staticmethod
    def forward(ctx: Any, logits_NW: torch.Tensor, label_N: torch.Tensor, group: Group) -> torch.Tensor:
        """Loss of each row; logits are cut by words over the group, labels are whole."""
        exact_NW = logits_NW.float()
        largest_N = exact_NW.amax(dim=1)
        dist.all_reduce(largest_N, op=dist.ReduceOp.MAX, group=group)
        exact_NW = exact_NW - largest_N[:, None]
        num_words = logits_NW.shape[1]
        own_N = label_N - group.rank() * num_words
        elsewhere_N = (own_N < 0) | (own_N >= num_words)
        own_N = own_N.masked_fill(elsewhere_N, 0)
        of_label_N = exact_NW.gather(1, own_N[:, None])[:, 0].masked_fill(elsewhere_N, 0.0)
        sums_2N = torch.stack((exact_NW.exp_().sum(dim=1), of_label_N))
        sum_over(sums_2N, group)
        ctx.save_for_backward(exact_NW.div_(sums_2N[0][:, None]), own_N, elsewhere_N)
        ctx.dtype = logits_NW.dtype
        return (sums_2N[0].log() - sums_2N[1]).mean()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        softmax_NW, own_N, elsewhere_N = ctx.saved_tensors
        gradient_NW = softmax_NW.clone()
        hit_N1 = (~elsewhere_N).to(gradient_NW.dtype)[:, None]
        gradient_NW.scatter_add_(1, own_N[:, None], -hit_N1)
        return (gradient_NW * (gradient / len(own_N))).to(ctx.dtype), None, None
