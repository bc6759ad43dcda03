"""The analytic cost model: roofline, ring collectives and bytes by kind, from data sheets alone.

docs/costmodel.md has every formula in one place. `stage` and `stage_table` run the same code.
Legend of array suffixes: J layer kinds, K intervals, Q micro-batches in flight (position 0 stands for one),
D data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from costmodels import network
from costmodels.chain import LayerChain
from costmodels.fleet import Link
from costmodels.interface import Cluster, Interval, Origin, StageCost, StageTable, Strategy
from costmodels.members import Members, members_of
from costmodels.settings import checked_settings
from costmodels.stages import Priced, StagePricer
from costmodels.workload import JOINT, Workload
from policies.errors import InputError

# What was priced before is kept up to these limits; the oldest goes first.
TABLES_BYTES_MAX = 64 * 2**20
NUM_STAGES_MAX = 8192


class AnalyticCostModel:
    """Seconds and bytes of a workload's stages, computed from device rates, link rates and layer sizes.

    Args:
        workload: the layer chain and the job.
        memory_reserve_frac: part of each device's memory no plan may fill (0.06).
        fragmentation_frac: bytes lost in the allocator, as a part of all other bytes (0.03).
        hidden_frac: part of the computation under which ZeRO-2 and ZeRO-3 traffic disappears (0.5).
        replicated_inputs: layer inputs that each tensor-parallel device keeps whole (4).
        sync_layer: whether something crosses a boundary, so that the copies of the sync layer are held.

    Raises:
        InputError: `cost-model-settings`, with every setting outside its range; `cost-model-schedule` when
            the job sends whole micro-batches to single ranks, which this model doesn't describe.
    """

    name = "analytic"

    def __init__(
        self,
        workload: Workload,
        *,
        memory_reserve_frac: float | None = None,
        fragmentation_frac: float | None = None,
        hidden_frac: float | None = None,
        replicated_inputs: float | None = None,
        sync_layer: bool = False,
    ) -> None:
        if workload.job.schedule != JOINT:
            raise InputError(
                "cost-model-schedule",
                f"cost model `analytic` prices the schedule `{JOINT}`, the job has `{workload.job.schedule}`",
                hint=f"set the job's schedule to `{JOINT}`, or choose another cost model",
            )
        self.workload = workload
        self.settings, self._origins = checked_settings(
            memory_reserve_frac=memory_reserve_frac,
            fragmentation_frac=fragmentation_frac,
            hidden_frac=hidden_frac,
            replicated_inputs=replicated_inputs,
        )
        self.sync_layer = sync_layer
        self._chain = LayerChain(workload)
        self._pricer = StagePricer(self._chain.kinds, workload.job, self.settings, sync_layer)
        self._tables: dict[Hashable, StageTable] = {}
        self._stages: dict[Hashable, StageCost | None] = {}
        self._last_members: tuple[Cluster, Members] | None = None

    def origins(self) -> Mapping[str, Origin]:
        """Where each constant of this model comes from, by its name."""
        return self._origins

    def interval_key(self, interval: Interval) -> Hashable:
        """Counts of each kind of layer, and which of two tied layers are inside."""
        return self._chain.key(interval)

    def border_key(self, border: int) -> Hashable:
        """What crosses the border after layer `border - 1`: equal keys mean equal transfers on every link."""
        return self.workload.layers[border - 1].output_bytes_per_token

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Seconds for the activation after layer `border - 1` and, on the way back, its gradient."""
        sequence_bytes = (
            self.workload.layers[border - 1].output_bytes_per_token * self.workload.job.sequence_tokens
        )
        return network.round_trip_s(micro_batch_size * sequence_bytes, link.bytes_per_s, link.latency_s)

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """Cost of layers [a, b) with the fewest recomputed layers that fit; with all where nothing fits.

        None when the cluster can't run the strategy at any memory: another number of devices, fewer sequences
        than ranks, sharding over one rank, tensor parallelism over unequal devices or beyond a layer's limit,
        or a device or link that has no rate.
        """
        members = self._members(cluster)
        key = (interval, members, strategy, micro_batch_size, in_flight, _links(cluster))
        if key not in self._stages:
            while len(self._stages) >= NUM_STAGES_MAX:
                del self._stages[next(iter(self._stages))]
            self._stages[key] = self._stage(cluster, members, interval, strategy, micro_batch_size, in_flight)
        return self._stages[key]

    def stage_table(
        self,
        cluster: Cluster,
        intervals: Sequence[Interval],
        strategy: Strategy,
        micro_batch_size: int,
        in_flight_max: int,
    ) -> StageTable:
        """Busy and sync seconds of many intervals, equal to `stage` bit for bit; the arrays are read-only.

        Pass the same tuple of intervals again and again: what depends on it alone is then computed once, and
        clusters equal in every figure share one table.
        """
        contents = self._chain.contents(intervals)
        members = self._members(cluster)
        key = (contents, members, strategy, micro_batch_size, in_flight_max, _links(cluster))
        table = self._tables.get(key)
        if table is None:
            in_flight_Q = np.arange(1.0, in_flight_max + 1.0)
            priced = self._pricer.price(cluster, members, contents, strategy, micro_batch_size, in_flight_Q)
            table = _table(priced, (contents.num_intervals, in_flight_max))
            if isinstance(intervals, tuple):
                self._remember(key, table)
        return table

    def _stage(
        self,
        cluster: Cluster,
        members: Members,
        interval: Interval,
        strategy: Strategy,
        micro_batch_size: int,
        in_flight: int,
    ) -> StageCost | None:
        contents = self._chain.contents_of_one(interval)
        priced = self._pricer.price(
            cluster, members, contents, strategy, micro_batch_size, np.array([float(in_flight)])
        )
        if priced is None or not priced.possible_K[0]:
            return None
        recomputed_J = {j: float(taken_KQ[0, 0]) for j, taken_KQ in priced.recomputed_JKQ.items()}
        shares = tuple(int(share) for share in priced.share_KD[0])
        by_share = {
            share: self._pricer.memory(contents, strategy, share, in_flight, recomputed_J)
            for share in set(shares)
        }
        return StageCost(
            forward_s=float(priced.forward_s_K[0]),
            backward_s=float(priced.backward_s_KQ[0, 0]),
            exposed_s=float(priced.exposed_s_KQ[0, 0]),
            sync_s=float(priced.sync_s_K[0]),
            shares=shares,
            memory_bytes=tuple(by_share[shares[i // strategy.tp]] for i in range(len(cluster.devices))),
            limit_bytes=tuple(members.classes[i].limit_bytes for i in members.class_i_D),
            recompute_layers=int(sum(recomputed_J.values())),
        )

    def _remember(self, key: Hashable, table: StageTable) -> None:
        num_tables = max(1, TABLES_BYTES_MAX // max(1, 2 * table.busy_s_KQ.nbytes))
        while len(self._tables) >= num_tables:
            del self._tables[next(iter(self._tables))]
        self._tables[key] = table

    def _members(self, cluster: Cluster) -> Members:
        if self._last_members is None or self._last_members[0] is not cluster:
            settings = self.settings
            members = members_of(
                cluster, self.workload.job.dtype, settings.memory_reserve_frac, settings.fragmentation_frac
            )
            self._last_members = (cluster, members)
        return self._last_members[1]


def _links(cluster: Cluster) -> Hashable:
    """What prices depend on besides the members."""
    return (
        (cluster.inner_bytes_per_s, cluster.inner_latency_s),
        (cluster.tp_bytes_per_s, cluster.tp_latency_s),
        (cluster.site.fabric_bytes_per_s, cluster.site.fabric_latency_s),
    )


def _table(priced: Priced | None, shape: tuple[int, int]) -> StageTable:
    busy_KQ = np.full(shape, np.inf)
    sync_KQ = np.zeros(shape)
    if priced is not None:
        fits_KQ = priced.fits_KQ & priced.possible_K[:, None]
        spent_KQ = priced.forward_s_K[:, None] + priced.backward_s_KQ + priced.exposed_s_KQ
        np.copyto(busy_KQ, spent_KQ, where=fits_KQ)
        np.copyto(sync_KQ, priced.sync_s_K[:, None], where=fits_KQ)
    busy_KQ.setflags(write=False)
    sync_KQ.setflags(write=False)
    return StageTable(busy_s_KQ=busy_KQ, sync_s_KQ=sync_KQ)
