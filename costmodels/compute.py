"""Seconds of arithmetic: the roofline of one layer, the backward pass, integer shares, the optimiser.

Every function takes numbers or arrays alike and works element by element, so one interval and a thousand give
the same bits. Legend of array suffixes: K intervals, D data-parallel ranks, S share sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Number = float | FloatArray


def weights_read_bytes(params: int, flops: Number, bytes_per_param: float) -> Number:
    """Bytes of weights one forward pass has to read: bytes_per_param × min(params, flops / 2).

    A multiply-add is two operations and uses one weight, so work of `flops` touches at most half as many
    weights. The limit matters for an embedding (a look-up reads only the rows of its tokens) and for a
    mixture of experts fed with few tokens.
    """
    read: Number = bytes_per_param * np.minimum(float(params), flops / 2.0)
    return read


def roofline_s(flops: Number, moved_bytes: Number, flop_per_s: float, bytes_per_s: float) -> Number:
    """Seconds of one kernel sequence: max(flops / flop_per_s, moved_bytes / bytes_per_s).

    Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
    multicore architectures", Communications of the ACM 52(4), 2009.
    """
    seconds: Number = np.maximum(flops / flop_per_s, moved_bytes / bytes_per_s)
    return seconds


def backward_per_forward(params: int, trainable_params: int) -> float:
    """Backward seconds per forward second of one layer: 1 + trainable_params / params.

    One forward's worth of work gives the gradient of the input, another one the gradient of the weights, of
    which frozen weights need none. So 2 for full fine-tuning and little more than 1 for an adapter.
    Source: the 2 : 1 ratio of D. Narayanan et al., "Efficient large-scale language model training on GPU
    clusters using Megatron-LM", SC 2021, appendix.
    """
    return 1.0 + trainable_params / params if params else 1.0


def optimiser_s(
    trainable_params: Number, touched_bytes_per_param: float, memory_bytes_per_s: float
) -> Number:
    """Seconds of one optimiser step on one device, bound by memory traffic: params × bytes / bandwidth."""
    return trainable_params * touched_bytes_per_param / memory_bytes_per_s


def even_shares(num_sequences: int, num_ranks: int) -> tuple[int, ...]:
    """Sequences per rank on equal devices: the first `num_sequences mod num_ranks` ranks take one more."""
    low, more = divmod(num_sequences, num_ranks)
    return (low + 1,) * more + (low,) * (num_ranks - more)


def uneven_shares_KD(seconds_SDK: Sequence[Sequence[FloatArray]], num_sequences: int) -> FloatArray:
    """Sequences per interval and rank that minimise the slowest rank's seconds, each rank at least one.

    `seconds_SDK[s - 1][d]` holds what `s` sequences take on rank `d`, for s = 1 .. num_sequences - D + 1; it
    must not fall with s. Handing each further sequence to the rank that would finish it first is exact for
    the smallest maximum: the result takes the `num_sequences - D` smallest finishing times over all ranks.
    Ties go to the smaller share, then to the earlier rank, so equal devices get the shares of `even_shares`.
    """
    num_ranks = len(seconds_SDK[0])
    more = num_sequences - num_ranks
    num_intervals = len(seconds_SDK[0][0])
    if more == 0:
        return np.ones((num_intervals, num_ranks))
    finish_KE = np.stack([column_K for ranks in seconds_SDK[1:] for column_K in ranks], axis=1)
    last_K1 = np.partition(finish_KE, more - 1, axis=1)[:, more - 1 : more]
    sooner_KE = finish_KE < last_K1
    level_KE = finish_KE == last_K1
    open_K1 = more - sooner_KE.sum(axis=1, keepdims=True)
    taken_KE = sooner_KE | (level_KE & (np.cumsum(level_KE, axis=1) <= open_K1))
    taken_KSD = taken_KE.reshape(num_intervals, len(seconds_SDK) - 1, num_ranks)
    share_KD: FloatArray = 1.0 + taken_KSD.sum(axis=1)
    return share_KD
