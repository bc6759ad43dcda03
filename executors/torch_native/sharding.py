"""Who keeps which part of a stage's gradients and optimiser state.

The trained weights of a stage are cut into *parts*, and each rank updates those it holds. Up to ZeRO-2 a part
is a bucket of parameters, whole or an equal share of it; under ZeRO-3 it is the rank's shard of a parameter.

Legend of tensor suffixes: N elements, all such tensors are flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from executors.torch_native.collectives import join_shards, sum_over, sum_shard
from executors.torch_native.groups import Groups
from executors.torch_native.stage import WEIGHTS_SHARDED, Trained
from executors.torch_native.tied import sum_tied

BUCKET_BYTES_MAX = 32 * 2**20
WholeTensors = Mapping[tuple[int, str], torch.Tensor]


class Part(Protocol):
    """A flat piece of trained weights that this rank updates: all or a share of what `members` hold.

    `decays`: weight decay applies. `counted`: its gradient enters the global norm on this rank. All methods
    but `weight` and `share` are collective.
    """

    members: tuple[Trained, ...]
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
        """This rank's share of tensors given in full."""
        ...


class BucketPart:
    """A bucket of parameters: held in full under ZeRO-0, in equal shares from ZeRO-1 on.

    Under ZeRO-2 the gradients of each micro-batch are scattered as soon as backward has them, so only the
    rank's share stays.
    """

    def __init__(self, members: Sequence[Trained], groups: Groups, *, zero: int) -> None:
        self.members = tuple(members)
        self._groups = groups
        sharded = zero > 0 and groups.data is not None
        self._num_shards = groups.data.size() if sharded else 1
        self._shard_i = groups.data.rank() if sharded else 0
        self._lengths = [one.parameter.numel() for one in members]
        self._padding = -sum(self._lengths) % self._num_shards
        self.decays = members[0].decays
        self.counted = counts(members[0], groups, sharded=sharded)
        self.gradient_N = torch.empty(0)
        self._share_N: torch.Tensor | None = None
        self._num_waiting = len(members)
        if sharded and zero > 1:
            for one in members:
                one.parameter.register_post_accumulate_grad_hook(self._arrived)

    def reduce(self) -> None:
        """All-reduce (ZeRO-0), reduce-scatter (ZeRO-1), or what each micro-batch has left (ZeRO-2)."""
        if self._num_waiting < len(self.members):
            names = ", ".join(one.name for one in self.members if one.parameter.grad is None)
            raise RuntimeError(f"backward gave no gradient for {names}")
        if self._share_N is None and not self.members[0].tied:
            self._scatter()
        elif self._share_N is None:
            self._take_own()
        assert self._share_N is not None
        self.gradient_N, self._share_N = self._share_N, None
        if self.members[0].partial:
            sum_over(self.gradient_N, self._groups.tensor)
        if self.members[0].tied:
            self._sum_over_stages()

    def weight(self) -> torch.Tensor:
        """This rank's share of the bucket: of a single whole parameter itself, else a copy."""
        flat_N = self._flat(one.parameter.detach() for one in self.members)
        return flat_N if self._num_shards == 1 else self._own(flat_N).clone()

    def publish(self, weight_N: torch.Tensor) -> None:
        """All-gather from ZeRO-1 on, then copy into the parameters."""
        flat_N = join_shards(weight_N, self._groups.data) if self._num_shards > 1 else weight_N
        with torch.no_grad():
            for one, values in self._split(flat_N):
                if one.parameter.data_ptr() != values.data_ptr():
                    one.parameter.copy_(values)
        self.gradient_N = torch.empty(0)

    def whole(self, mine_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        """All-gather from ZeRO-1 on, and over tensor-parallel ranks where a parameter is cut."""
        flat_N = join_shards(mine_N, self._groups.data) if self._num_shards > 1 else mine_N
        for one, values in self._split(flat_N):
            yield one, values if one.cut is None else one.cut.join(values, self._groups.tensor)

    def share(self, whole: WholeTensors) -> torch.Tensor:
        """Cut, flattened and padded like the bucket."""
        return self._own(self._flat(own_cut(one, whole, self._groups) for one in self.members)).clone()

    def _arrived(self, parameter: torch.Tensor) -> None:
        self._num_waiting -= 1
        if self._num_waiting == 0:
            self._scatter()
            self._num_waiting = len(self.members)

    def _scatter(self) -> None:
        """Sum the gradients held so far over the stage, keep the own share and drop the rest."""
        flat_N = self._flat(self._take_gradients())
        if self._num_shards == 1:
            sum_over(flat_N, self._groups.data)
            share_N = flat_N
        else:
            share_N = sum_shard(flat_N, self._groups.data)
        self._share_N = share_N if self._share_N is None else self._share_N.add_(share_N)

    def _take_own(self) -> None:
        """Keep the own gradients whole; what is shared with another stage is summed over both at once."""
        self._share_N = self._flat(self._take_gradients())

    def _sum_over_stages(self) -> None:
        length = sum(self._lengths)
        one = self.members[0]
        first = 0 if one.cut is None else length * self._groups.tensor.rank()
        num_tensor = 1 if one.cut is None else self._groups.tensor.size()
        if len(self.gradient_N) < length:
            shard_start = self._shard_i * len(self.gradient_N)
            mine_N = self.gradient_N[: max(0, length - shard_start)]
            sum_tied(mine_N, first + shard_start, length * num_tensor, self._groups.tied)
            return
        sum_tied(self.gradient_N[:length], first, length * num_tensor, self._groups.tied)
        self.gradient_N = self._own(self.gradient_N).clone()

    def _take_gradients(self) -> list[torch.Tensor]:
        taken: list[torch.Tensor] = []
        for one in self.members:
            gradient = one.parameter.grad
            taken.append(torch.zeros_like(one.parameter) if gradient is None else gradient)
            one.parameter.grad = None
        return taken

    def _flat(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        pieces = [tensor.reshape(-1) for tensor in tensors]
        if self._padding:
            pieces.append(pieces[0].new_zeros(self._padding))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _own(self, flat_N: torch.Tensor) -> torch.Tensor:
        return flat_N.chunk(self._num_shards)[self._shard_i]

    def _split(self, flat_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        start = 0
        for one, length in zip(self.members, self._lengths, strict=True):
            yield one, flat_N[start : start + length].view(one.parameter.shape)
            start += length


class ShardPart:
    """ZeRO-3: this rank's rows of one parameter, which FSDP2 gathers and whose gradients it scatters."""

    def __init__(self, trained: Trained, groups: Groups) -> None:
        self.members: tuple[Trained, ...] = (trained,)
        self._one = trained
        self._groups = groups
        self.decays = trained.decays
        self.counted = counts(trained, groups, sharded=True)
        self.gradient_N = torch.empty(0)

    def reduce(self) -> None:
        """Take what FSDP2 has summed over the stage's ranks."""
        gradient = self._parameter.grad
        self._parameter.grad = None
        held_N = self.weight()
        self.gradient_N = torch.zeros_like(held_N) if gradient is None else gradient.to_local().reshape(-1)
        if self._one.partial:
            sum_over(self.gradient_N, self._groups.tensor)
        if self._one.tied:
            sum_tied(self.gradient_N, *self._place(), self._groups.tied)

    def weight(self) -> torch.Tensor:
        """The rank's rows themselves."""
        mine_N: torch.Tensor = self._parameter.detach().to_local().view(-1)
        return mine_N

    def publish(self, weight_N: torch.Tensor) -> None:
        """The next pass gathers the rows as they are now."""
        mine_N = self.weight()
        if mine_N.data_ptr() != weight_N.data_ptr():
            mine_N.copy_(weight_N)
        self.gradient_N = torch.empty(0)

    def whole(self, mine_N: torch.Tensor) -> Iterator[tuple[Trained, torch.Tensor]]:
        """All-gather of the rows, and over tensor-parallel ranks where the parameter is cut."""
        from torch.distributed.tensor import DTensor

        like = self._parameter
        mine = mine_N.view(like.to_local().shape)
        rows = DTensor.from_local(
            mine, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        ).full_tensor()
        yield self._one, rows if self._one.cut is None else self._one.cut.join(rows, self._groups.tensor)

    def share(self, whole: WholeTensors) -> torch.Tensor:
        """The rows of the rank's part."""
        first, num_rows = self._rows()
        return own_cut(self._one, whole, self._groups)[first : first + num_rows].reshape(-1)

    @property
    def _parameter(self) -> Any:
        return self._one.parameter

    def _rows(self) -> tuple[int, int]:
        """First row and number of rows; FSDP2 gives each rank but the last ones the same number."""
        at_most = -(-self._parameter.shape[0] // self._groups.data.size())
        first = min(self._groups.data.rank() * at_most, self._parameter.shape[0])
        return first, self._parameter.to_local().shape[0]

    def _place(self) -> tuple[int, int]:
        """First element among those of the whole weight, and how many these are."""
        length, width = self._parameter.numel(), self._parameter[0].numel()
        cut = self._one.cut is not None
        tensor_i, num_tensor = (self._groups.tensor.rank(), self._groups.tensor.size()) if cut else (0, 1)
        return tensor_i * length + self._rows()[0] * width, num_tensor * length


def build_parts(trained: Sequence[Trained], groups: Groups, *, zero: int) -> list[Part]:
    """The parts of a stage on this rank."""
    if zero == WEIGHTS_SHARDED and groups.data is not None:
        return [ShardPart(one, groups) for one in trained]
    return [BucketPart(members, groups, zero=zero) for members in buckets(trained)]


def buckets(trained: Sequence[Trained]) -> list[list[Trained]]:
    """Parameters that are treated alike together, in chain order; one shared with another stage alone."""
    filled: dict[object, list[Trained]] = {}
    bytes_in: dict[object, int] = {}
    closed: list[list[Trained]] = []
    for one in trained:
        parameter = one.parameter
        key = (one.decays, one.cut is None, one.partial, one.tied, parameter.dtype)
        if key in filled and bytes_in[key] + parameter.nbytes > BUCKET_BYTES_MAX:
            closed.append(filled.pop(key))
            bytes_in[key] = 0
        filled.setdefault(key, []).append(one)
        bytes_in[key] = bytes_in.get(key, 0) + parameter.nbytes
    return closed + list(filled.values())


def counts(trained: Trained, groups: Groups, *, sharded: bool) -> bool:
    """Whether this rank's share of a gradient enters the norm: each element does on one rank alone."""
    data_i = 0 if groups.data is None else groups.data.rank()
    tensor_i = 0 if groups.tensor is None else groups.tensor.rank()
    return trained.first and (sharded or data_i == 0) and (trained.cut is not None or tensor_i == 0)


def own_cut(trained: Trained, whole: WholeTensors, groups: Groups) -> torch.Tensor:
    """This tensor-parallel rank's part of a parameter given in full."""
    tensor = whole[trained.layer_i, trained.name]
    return tensor if trained.cut is None else trained.cut.split(tensor, groups.tensor)
