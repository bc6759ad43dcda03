"""Prices stages of a workload: puts compute, memory and network together for many intervals at once.

Legend of array suffixes: J layer kinds, K intervals, Q micro-batches in flight, D data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels import network
from costmodels.chain import Contents
from costmodels.compute import optimiser_s
from costmodels.interface import Cluster, FloatArray, Strategy
from costmodels.loads import Load, loads_of
from costmodels.members import Members
from costmodels.memory import BoolArray, RecomputableKind, fewest_recomputed_KQ, fragmentation_bytes
from costmodels.settings import AnalyticSettings
from costmodels.sizes import KindSizes, State, kind_sizes, recompute_order, state_of
from costmodels.workload import Job, LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What K intervals cost. An axis may have length one where all its entries are equal."""

    share_KD: FloatArray
    forward_s_K: FloatArray
    backward_s_KQ: FloatArray
    exposed_s_KQ: FloatArray
    sync_s_K: FloatArray
    recomputed_JKQ: Mapping[int, FloatArray]
    fits_KQ: BoolArray
    possible_K: BoolArray


class StagePricer:
    """Prices the stages of one job over given kinds of layers."""

    def __init__(
        self, kinds: tuple[LayerSpec, ...], job: Job, settings: AnalyticSettings, sync_layer: bool
    ) -> None:
        self._kinds = kinds
        self._job = job
        self._settings = settings
        self._sync_layer = sync_layer
        self._order = recompute_order(kinds, job)
        self._sizes_by_tp: dict[int, tuple[KindSizes, ...]] = {}

    def price(
        self,
        cluster: Cluster,
        members: Members,
        contents: Contents,
        strategy: Strategy,
        micro_batch_size: int,
        in_flight_Q: FloatArray,
    ) -> Priced | None:
        """Costs of the intervals behind `contents`; None when the cluster can't run the strategy at all."""
        if not _can_run(cluster, members, strategy, micro_batch_size):
            return None
        sizes_J = self._sizes(strategy.tp)
        weight_bytes = self._job.weight_bytes_per_param
        share_KD, loads = loads_of(members, contents, sizes_J, strategy, micro_batch_size, weight_bytes)
        recomputed_JKQ, fits_KQ = self._recomputed(contents, strategy, loads, in_flight_Q)
        forward_K, backward_KQ = self._compute_s(contents, sizes_J, loads, recomputed_JKQ)
        possible_K = contents.tensor_parallel_max_K >= strategy.tp
        if _tie_bytes_per_s(cluster) <= 0.0:
            possible_K &= contents.tied_away_K == 0.0
        return Priced(
            share_KD=share_KD,
            forward_s_K=forward_K,
            backward_s_KQ=backward_KQ,
            exposed_s_KQ=self._tensor_parallel_s(cluster, contents, strategy, loads[0], recomputed_JKQ)
            + self._zero_s(cluster, contents, strategy, forward_K[:, None] + backward_KQ),
            sync_s_K=self._sync_s(cluster, members, contents, strategy),
            recomputed_JKQ=recomputed_JKQ,
            fits_KQ=fits_KQ,
            possible_K=possible_K,
        )

    def _recomputed(
        self, contents: Contents, strategy: Strategy, loads: Sequence[Load], in_flight_Q: FloatArray
    ) -> tuple[dict[int, FloatArray], BoolArray]:
        """Layers recomputed, by kind, so that the tightest device fits, and whether it does."""
        sizes_J = self._sizes(strategy.tp)
        state = self._state(contents, strategy)
        order = [j for j in self._order if sizes_J[j].saved_bytes > 0.0]
        kept_K = self._kept_bytes_K(contents, strategy.tp)
        recomputed: dict[int, FloatArray] = {}
        fits_KQ: BoolArray | None = None
        for load in loads:
            share = load.share_K
            transient_K = np.zeros(contents.num_intervals)
            for j, sizes in enumerate(sizes_J):
                held = share * sizes.transient_bytes + state.gathered_bytes_J[j]
                transient_K = np.maximum(transient_K, np.where(contents.present_JK[j], held, 0.0))
            kinds = [
                RecomputableKind(
                    count_K=contents.count_JK[j],
                    saved_bytes=share * sizes_J[j].saved_bytes,
                    working_bytes=np.where(
                        contents.present_JK[j],
                        share * (sizes_J[j].transient_bytes + sizes_J[j].saved_bytes)
                        + state.gathered_bytes_J[j],
                        0.0,
                    ),
                )
                for j in order
            ]
            counts, own_fits_KQ = fewest_recomputed_KQ(
                state.total_K,
                transient_K,
                share * kept_K,
                in_flight_Q,
                kinds,
                load.member_class.need_max_bytes,
            )
            # Sets of recomputed layers are nested, so the tightest device's is the largest for every kind.
            for j, count_KQ in zip(order, counts, strict=False):
                recomputed[j] = np.maximum(recomputed[j], count_KQ) if j in recomputed else count_KQ
            fits_KQ = own_fits_KQ if fits_KQ is None else fits_KQ & own_fits_KQ
        assert fits_KQ is not None
        return recomputed, fits_KQ

    def _compute_s(
        self,
        contents: Contents,
        sizes_J: Sequence[KindSizes],
        loads: Sequence[Load],
        recomputed_JKQ: Mapping[int, FloatArray],
    ) -> tuple[FloatArray, FloatArray]:
        """Forward seconds, and backward seconds with what is recomputed, of the slowest rank."""
        forward_K: FloatArray | None = None
        backward_KQ: FloatArray | None = None
        for load in loads:
            own_forward_K = np.zeros(contents.num_intervals)
            gradients_K = np.zeros(contents.num_intervals)
            for j, sizes in enumerate(sizes_J):
                own_forward_K += contents.count_JK[j] * load.forward_s_J[j]
                gradients_K += contents.count_JK[j] * (load.forward_s_J[j] * sizes.backward_ratio)
            own_backward_KQ = gradients_K[:, None]
            for j, taken_KQ in recomputed_JKQ.items():
                own_backward_KQ = own_backward_KQ + taken_KQ * np.reshape(load.forward_s_J[j], (-1, 1))
            forward_K = own_forward_K if forward_K is None else np.maximum(forward_K, own_forward_K)
            backward_KQ = own_backward_KQ if backward_KQ is None else np.maximum(backward_KQ, own_backward_KQ)
        assert forward_K is not None
        assert backward_KQ is not None
        return forward_K, backward_KQ

    def _tensor_parallel_s(
        self,
        cluster: Cluster,
        contents: Contents,
        strategy: Strategy,
        load: Load,
        recomputed_JKQ: Mapping[int, FloatArray],
    ) -> FloatArray:
        """Seconds of all-reduces per micro-batch: forward, as many in backward, and those recomputed."""
        if strategy.tp == 1:
            return np.zeros((1, 1))
        seconds_KQ: FloatArray = np.zeros((contents.num_intervals, 1))
        for j, sizes in enumerate(self._sizes(strategy.tp)):
            one_s = sizes.layer.num_collectives * network.all_reduce_s(
                load.share_K * sizes.reduced_bytes, strategy.tp, cluster.tp_bytes_per_s, cluster.tp_latency_s
            )
            seconds_KQ = seconds_KQ + contents.count_JK[j][:, None] * (2.0 * one_s)
            if j in recomputed_JKQ:
                seconds_KQ = seconds_KQ + recomputed_JKQ[j] * one_s
        return seconds_KQ

    def _zero_s(
        self, cluster: Cluster, contents: Contents, strategy: Strategy, compute_KQ: FloatArray
    ) -> FloatArray:
        """Exposed seconds of ZeRO-2 and ZeRO-3 traffic per micro-batch."""
        if strategy.zero < 2:
            return np.zeros((1, 1))
        job = self._job
        gradient_bytes_K = contents.trainable_K * job.gradient_bytes_per_param
        weight_bytes_K = contents.params_K * job.weight_bytes_per_param
        traffic_K = network.micro_batch_zero_s(
            strategy.zero,
            weight_bytes_K,
            gradient_bytes_K,
            contents.num_layers_K,
            strategy.dp,
            cluster.inner_bytes_per_s,
            cluster.inner_latency_s,
        )
        return np.asarray(
            network.exposed_s(np.asarray(traffic_K)[:, None], compute_KQ, self._settings.hidden_frac)
        )

    def _sync_s(
        self, cluster: Cluster, members: Members, contents: Contents, strategy: Strategy
    ) -> FloatArray:
        """Seconds once per step: gradients, updated weights, tied weights, optimiser."""
        job, dp = self._job, strategy.dp
        inner = (dp, cluster.inner_bytes_per_s, cluster.inner_latency_s)
        gradient_bytes_K = contents.trainable_K * job.gradient_bytes_per_param
        updated_bytes_K = contents.trainable_K * job.weight_bytes_per_param
        seconds_K = np.zeros(contents.num_intervals)
        if dp > 1:
            if strategy.zero == 0:
                seconds_K = seconds_K + network.all_reduce_s(gradient_bytes_K, *inner)
            if strategy.zero == 1:
                seconds_K = seconds_K + network.gather_s(gradient_bytes_K, *inner)
            if strategy.zero in (1, 2):
                seconds_K = seconds_K + network.gather_s(updated_bytes_K, *inner)
        if contents.tied_away_K.any():
            tied_bytes_K = contents.tied_away_K * job.gradient_bytes_per_param
            tied_s_K = network.all_reduce_s(
                tied_bytes_K, 2, max(_tie_bytes_per_s(cluster), 1.0), cluster.site.fabric_latency_s
            )
            seconds_K = seconds_K + np.where(contents.tied_away_K > 0.0, tied_s_K, 0.0)
        touched = (
            job.gradient_bytes_per_param
            + 2.0 * job.optimiser_state_bytes_per_param
            + job.weight_bytes_per_param
        )
        parts = strategy.tp * (dp if strategy.zero >= 1 else 1)
        slowest = min(each.memory_bytes_per_s for each in members.classes)
        seconds_K = np.where(contents.trainable_K > 0.0, seconds_K, 0.0)
        return np.asarray(seconds_K + optimiser_s(contents.trainable_K / parts, touched, slowest))

    def memory(
        self,
        contents: Contents,
        strategy: Strategy,
        share: int,
        in_flight: int,
        recomputed_J: Mapping[int, float],
    ) -> Mapping[str, float]:
        """Bytes by kind on one device with `share` sequences of each micro-batch."""
        sizes_J = self._sizes(strategy.tp)
        state = self._state(contents, strategy)
        transient = 0.0
        kept = float(self._kept_bytes_K(contents, strategy.tp)[0])
        for j, sizes in enumerate(sizes_J):
            taken = recomputed_J.get(j, 0.0)
            kept -= taken * sizes.saved_bytes
            working = sizes.transient_bytes + (sizes.saved_bytes if taken else 0.0)
            if contents.present_JK[j, 0]:
                transient = max(transient, share * working + state.gathered_bytes_J[j])
        kinds = {
            "weights": float(state.weights_K[0]),
            "gradients": float(state.gradients_K[0]),
            "optimiser": float(state.optimiser_K[0]),
            "activations": in_flight * share * kept,
            "transient": transient,
            "sync": float(state.sync_K[0]),
        }
        lost = fragmentation_bytes(sum(kinds.values()), self._settings.fragmentation_frac)
        return kinds | {"fragmentation": float(lost)}

    def _sizes(self, tp: int) -> tuple[KindSizes, ...]:
        known = self._sizes_by_tp.get(tp)
        if known is None:
            known = self._sizes_by_tp[tp] = tuple(
                kind_sizes(kind, self._job, tp, self._settings.replicated_inputs) for kind in self._kinds
            )
        return known

    def _state(self, contents: Contents, strategy: Strategy) -> State:
        known = contents.derived.get(strategy)
        if not isinstance(known, State):
            known = state_of(contents, self._kinds, self._job, strategy, self._sync_layer)
            contents.derived[strategy] = known
        return known

    def _kept_bytes_K(self, contents: Contents, tp: int) -> FloatArray:
        """Activation bytes of one sequence in flight, nothing recomputed."""
        known = contents.derived.get(tp)
        if not isinstance(known, np.ndarray):
            known = np.zeros(contents.num_intervals)
            for count_K, sizes in zip(contents.count_JK, self._sizes(tp), strict=True):
                known += count_K * sizes.kept_bytes
            contents.derived[tp] = known
        return known


def _can_run(cluster: Cluster, members: Members, strategy: Strategy, micro_batch_size: int) -> bool:
    dp, tp, zero = strategy.dp, strategy.tp, strategy.zero
    return (
        min(dp, tp) >= 1
        and dp * tp == len(cluster.devices)
        and micro_batch_size >= dp
        and zero in (range(4) if dp > 1 else (0,))
        and (tp == 1 or len(members.classes) == 1)
        and (tp == 1 or cluster.tp_bytes_per_s > 0.0)
        and (dp == 1 or cluster.inner_bytes_per_s > 0.0)
        and members.able
    )


def _tie_bytes_per_s(cluster: Cluster) -> float:
    """Rate towards the stage with the other copy of tied weights: the site's fabric, else the inner link."""
    return cluster.site.fabric_bytes_per_s or cluster.inner_bytes_per_s
