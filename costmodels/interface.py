"""What the planner asks of a cost model. Another package may implement it without touching ours.

The planner assumes neither additivity nor monotony over layers, widths or micro-batch sizes.
Legend of array suffixes: K intervals, Q micro-batches in flight (position 0 stands for one).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from costmodels.fleet import Device, Link, Site

FloatArray = NDArray[np.float64]
Interval = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a cluster shares one stage: `dp` data-parallel ranks of `tp` tensor-parallel devices each.

    `zero` is the sharding level of DeepSpeed ZeRO (0 plain data parallel, 3 equals fully sharded).
    """

    dp: int = 1
    tp: int = 1
    zero: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices planned together as one stage, ordered so that neighbours share a host.

    `inner_bytes_per_s` is the slowest link between two members, `tp_bytes_per_s` the slowest link inside a
    host.
    """

    site: Site
    devices: tuple[Device, ...]
    inner_bytes_per_s: float
    inner_latency_s: float
    tp_bytes_per_s: float
    tp_latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage costs.

    Seconds are per micro-batch, except `sync_s`: gradient synchronisation plus optimiser, once per step.
    `shares` are the sequences of each micro-batch per data-parallel rank. `memory_bytes` holds one mapping
    per device (order of the cluster) from kind to bytes; `limit_bytes` the usable memory of each.
    """

    forward_s: float
    backward_s: float
    exposed_s: float
    sync_s: float
    shares: tuple[int, ...]
    memory_bytes: tuple[Mapping[str, float], ...]
    limit_bytes: tuple[float, ...]
    recompute_layers: int = 0

    @property
    def busy_s(self) -> float:
        """Seconds the stage is occupied by one micro-batch, forward and backward."""
        return self.forward_s + self.backward_s + self.exposed_s

    @property
    def fits(self) -> bool:
        """Whether every device holds its part."""
        used = (sum(kinds.values()) for kinds in self.memory_bytes)
        return all(need <= limit for need, limit in zip(used, self.limit_bytes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Costs of many intervals on one cluster; infinite busy time where the stage doesn't fit."""

    busy_s_KQ: FloatArray
    sync_s_KQ: FloatArray


@runtime_checkable
class CostModel(Protocol):
    """Seconds and bytes of stages and transfers. `name` is its registry name."""

    name: str

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Cost of layers [a, b) on a cluster with `in_flight` micro-batches held.

        None when impossible at any memory. The model may choose within the stage, for instance which
        layers to recompute.
        """
        ...

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds to carry one micro-batch over a link after layer `border - 1`, there and back together."""
        ...

    def interval_key(self, interval: Interval) -> Hashable:
        """Equal keys promise equal costs on every cluster; `interval` itself is always right."""
        ...


@runtime_checkable
class TabulatedCostModel(CostModel, Protocol):
    """A cost model that can also price many intervals at once."""

    def stage_table(
        self,
        cluster: Cluster,
        intervals: Sequence[Interval],
        strategy: Strategy,
        micro_batch_size: int,
        in_flight_max: int,
    ) -> StageTable:
        """Same figures as `stage`, for in-flight counts 1..in_flight_max."""
        ...


def priced_for(model: CostModel, executor: str) -> CostModel:
    """The model as it prices plans of an executor.

    A model that tells executors apart has a method `for_executor(executor)` which returns a cost model; any
    other prices all plans alike.
    """
    choose: Callable[[str], CostModel] | None = getattr(model, "for_executor", None)
    return model if choose is None else choose(executor)


def without_waiting(model: CostModel) -> CostModel:
    """The model with transfers as the borders' own time, for those who replay what waits for what.

    A model that charges stages for transfers they wait for has a method `without_waiting()` which returns a
    cost model; any other charges none.
    """
    bare: Callable[[], CostModel] | None = getattr(model, "without_waiting", None)
    return model if bare is None else bare()


def tabulate(
    model: CostModel,
    cluster: Cluster,
    intervals: Sequence[Interval],
    strategy: Strategy,
    micro_batch_size: int,
    in_flight_max: int,
) -> StageTable:
    """The model's own table, or one built from `stage` call by call."""
    if isinstance(model, TabulatedCostModel):
        return model.stage_table(cluster, intervals, strategy, micro_batch_size, in_flight_max)
    busy_s_KQ = np.full((len(intervals), in_flight_max), np.inf)
    sync_s_KQ = np.zeros((len(intervals), in_flight_max))
    for k, interval in enumerate(intervals):
        for q in range(in_flight_max):
            cost = model.stage(cluster, interval, strategy, micro_batch_size, q + 1)
            if cost is not None and cost.fits:
                busy_s_KQ[k, q] = cost.busy_s
                sync_s_KQ[k, q] = cost.sync_s
    return StageTable(busy_s_KQ=busy_s_KQ, sync_s_KQ=sync_s_KQ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a figure comes from: `measured`, `declared` or `assumed`, with a note."""

    kind: str
    note: str = field(default="")
