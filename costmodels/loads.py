"""How a micro-batch is shared among the ranks of a cluster, and how long each kind of layer then takes.

Legend of array suffixes: J layer kinds, K intervals, D data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.chain import Contents
from costmodels.compute import Number, even_shares, roofline_s, uneven_shares_KD, weights_read_bytes
from costmodels.interface import FloatArray, Strategy
from costmodels.members import MemberClass, Members
from costmodels.sizes import KindSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the busiest rank of one device class carries.

    `share_K` are its sequences (a plain number when all devices are equal), `forward_s_J` the forward seconds
    of one layer of each kind with that share.
    """

    member_class: MemberClass
    share_K: Number
    forward_s_J: tuple[Number, ...]


def layer_forward_s(
    sizes: KindSizes, share: Number, tp: int, member_class: MemberClass, weight_bytes_per_param: float
) -> Number:
    """Forward seconds of one layer on one rank with `share` sequences.

    Roofline of flops / tp against weights read / tp plus the output written.
    """
    flops = share * sizes.flops
    read = weights_read_bytes(sizes.layer.params, flops, weight_bytes_per_param) / tp
    moved = read + share * sizes.output_bytes
    return roofline_s(flops / tp, moved, member_class.flop_per_s, member_class.memory_bytes_per_s)


def loads_of(
    members: Members,
    contents: Contents,
    sizes_J: Sequence[KindSizes],
    strategy: Strategy,
    micro_batch_size: int,
    weight_bytes_per_param: float,
) -> tuple[FloatArray, tuple[Load, ...]]:
    """Sequences per interval and rank (one row for all when devices are equal), and the load of each class.

    Unequal devices get the shares that minimise the slowest rank's forward plus backward seconds without
    recomputation; memory has no say in it.
    """

    def forward_s_J(member_class: MemberClass, share: Number) -> tuple[Number, ...]:
        return tuple(
            layer_forward_s(sizes, share, strategy.tp, member_class, weight_bytes_per_param)
            for sizes in sizes_J
        )

    if len(members.classes) == 1:
        shares = even_shares(micro_batch_size, strategy.dp)
        share = float(shares[0])
        only = members.classes[0]
        load = Load(member_class=only, share_K=share, forward_s_J=forward_s_J(only, share))
        return np.array([shares], dtype=np.float64), (load,)

    seconds = []
    for share_given in range(1, micro_batch_size - strategy.dp + 2):
        by_class = [
            _both_ways_s(contents, sizes_J, forward_s_J(each, float(share_given))) for each in members.classes
        ]
        seconds.append([by_class[i] for i in members.class_i_D])
    share_KD = uneven_shares_KD(seconds, micro_batch_size)
    loads = []
    for each in members.classes:
        share_K = share_KD[:, each.positions].max(axis=1)
        loads.append(Load(member_class=each, share_K=share_K, forward_s_J=forward_s_J(each, share_K)))
    return share_KD, tuple(loads)


def _both_ways_s(
    contents: Contents, sizes_J: Sequence[KindSizes], forward_s_J: Sequence[Number]
) -> FloatArray:
    seconds_K = np.zeros(contents.num_intervals)
    for count_K, sizes, forward_s in zip(contents.count_JK, sizes_J, forward_s_J, strict=True):
        seconds_K += count_K * (forward_s * (1.0 + sizes.backward_ratio))
    return seconds_K
