"""Who keeps which part of a stage's gradients and optimiser state: ZeRO-0 and ZeRO-1.

The trained weights of a stage are cut into *parts*, and each rank updates those it holds: under ZeRO-0 whole
buckets of parameters, under ZeRO-1 an equal share of each bucket.

Legend of tensor suffixes: N elements, all such tensors are flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from executors.torch_native.collectives import join_shards, sum_over, sum_shard
from executors.torch_native.groups import Group
from executors.torch_native.stage import Trained

BUCKET_BYTES_MAX = 32 * 2**20
WholeTensors = Mapping[tuple[int, str], torch.Tensor]


class Part(Protocol):
    """A flat piece of trained weights that this rank updates.

    `decays`: weight decay applies. `counted`: its gradient enters the global norm on this rank. All methods
    but `share` and `weight` are collective in the stage.
    """

    decays: bool
    counted: bool
    gradient_N: torch.Tensor

    def reduce(self) -> None:
        """Sum the step's gradients over all ranks that hold a copy, into `gradient_N`."""
        ...

    def weight(self) -> torch.Tensor:
        """The weights in the job's dtype, to be changed in place and published."""
        ...

    def publish(self, weight_N: torch.Tensor) -> None:
        """Bring the changed weights to every rank that computes with them, and drop the gradient."""
        ...

    def whole(self, mine_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        """Each parameter's tensor in full, from every rank's share of it."""
        ...

    def share(self, whole: WholeTensors) -> torch.Tensor:
        """This rank's share of tensors given in full, in their dtype."""
        ...


class BucketPart:
    """A bucket of parameters, held in full (`sharded` false) or in equal shares by the ranks of `group`."""

    def __init__(self, members: Sequence[Trained], group: Group, *, sharded: bool, counted: bool) -> None:
        self._members = tuple(members)
        self._group = group
        self._num_shards = group.size() if sharded and group is not None else 1
        self._shard_i = group.rank() if self._num_shards > 1 else 0
        self._lengths = [local(one.parameter).numel() for one in members]
        self._padding = -sum(self._lengths) % self._num_shards
        self.decays = members[0].decays
        self.counted = counted
        self.gradient_N = torch.empty(0)

    def reduce(self) -> None:
        """All-reduce (ZeRO-0) or reduce-scatter (ZeRO-1) of the bucket."""
        flat_N = self._flat(self._take_gradients())
        if self._num_shards > 1:
            self.gradient_N = sum_shard(flat_N, self._group)
        else:
            sum_over(flat_N, self._group)
            self.gradient_N = flat_N

    def weight(self) -> torch.Tensor:
        """A copy of this rank's share of the bucket."""
        return self._own(self._flat([local(one.parameter.detach()) for one in self._members])).clone()

    def publish(self, weight_N: torch.Tensor) -> None:
        """All-gather under ZeRO-1, then copy into the parameters."""
        flat_N = join_shards(weight_N, self._group) if self._num_shards > 1 else weight_N
        with torch.no_grad():
            for one, values in self._split(flat_N):
                local(one.parameter.detach()).copy_(values)
        self.gradient_N = torch.empty(0)

    def whole(self, mine_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        """All-gather under ZeRO-1, and over tensor-parallel ranks where a parameter is cut."""
        flat_N = join_shards(mine_N, self._group) if self._num_shards > 1 else mine_N
        for one, values in self._split(flat_N):
            yield one, full(values, one.parameter)

    def share(self, whole: WholeTensors) -> torch.Tensor:
        """Flattened, padded and cut like the bucket."""
        tensors = [cut(whole[one.layer_i, one.name], one.parameter) for one in self._members]
        return self._own(self._flat(tensors)).clone()

    def _take_gradients(self) -> list[torch.Tensor]:
        taken: list[torch.Tensor] = []
        for one in self._members:
            gradient = one.parameter.grad
            taken.append(torch.zeros_like(local(one.parameter)) if gradient is None else local(gradient))
            one.parameter.grad = None
        return taken

    def _flat(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        pieces = [tensor.reshape(-1) for tensor in tensors]
        if self._padding:
            pieces.append(pieces[0].new_zeros(self._padding))
        return torch.cat(pieces)

    def _own(self, flat_N: torch.Tensor) -> torch.Tensor:
        return flat_N.chunk(self._num_shards)[self._shard_i]

    def _split(self, flat_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        start = 0
        for one, length in zip(self._members, self._lengths, strict=True):
            yield one, flat_N[start : start + length].view(local(one.parameter).shape)
            start += length


def build_parts(
    trained: Sequence[Trained], group: Group, *, zero: int, dp_i: int, tp_i: int
) -> list[BucketPart]:
    """The parts of a stage under ZeRO-0 or ZeRO-1, but for a weight shared with another stage."""
    parts: list[BucketPart] = []
    for members in buckets([one for one in trained if not one.tied]):
        cut_over_tp = is_cut(members[0].parameter)
        counted = (zero > 0 or dp_i == 0) and (cut_over_tp or tp_i == 0)
        parts.append(BucketPart(members, group, sharded=zero > 0, counted=counted))
    return parts


def buckets(trained: Sequence[Trained]) -> list[list[Trained]]:
    """Parameters of one kind (decay, dtype, cut over tensor-parallel ranks or not) together, in chain order."""
    filled: dict[object, list[Trained]] = {}
    bytes_in: dict[object, int] = {}
    closed: list[list[Trained]] = []
    for one in trained:
        parameter = one.parameter
        key = (one.decays, parameter.dtype, is_cut(parameter))
        size = local(parameter).nbytes
        if key in filled and bytes_in[key] + size > BUCKET_BYTES_MAX:
            closed.append(filled.pop(key))
            bytes_in[key] = 0
        filled.setdefault(key, []).append(one)
        bytes_in[key] = bytes_in.get(key, 0) + size
    return closed + list(filled.values())


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor: itself, or its shard of a distributed one."""
    held: Any = getattr(tensor, "_local_tensor", tensor)
    return held


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether ranks of a mesh hold different shards of it."""
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def full(mine: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is distributed like another one, from this rank's shard."""
    if not is_cut(like):
        return mine
    from torch.distributed.tensor import DTensor

    shard = DTensor.from_local(
        mine, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    whole: torch.Tensor = shard.full_tensor()
    return whole


def cut(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a whole tensor, distributed like another one."""
    if not is_cut(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # No source rank: every rank has the whole tensor, and cuts out its own shard without communication.
    return local(distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None))
