"""Cost of pipeline x data x tensor parallel stages with recomputation, as the `stage3d` instances define it.

Inside a stage every node has its option (plain or recomputed). Nodes whose memory rows agree are exchangeable
but for time, so the choices that matter are, per kind of row, the c nodes whose recomputation costs the
least, for every c.

Legend of array suffixes: V nodes in order, A first node of an interval, B node after the last, K intervals,
Q micro-batches in flight (position 0 stands for one), G choices of how many nodes of each kind to recompute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from costmodels.fleet import Link
from costmodels.interface import Cluster, FloatArray, Interval, StageCost, StageTable, Strategy

PLAIN, RECOMPUTED = "vanilla", "activation recomp"


@dataclass(frozen=True, kw_only=True)
class Stage3dInstance:
    """A model graph and a case, as the files hold them."""

    name: str
    nodes: Mapping[str, Any]
    edges: tuple[tuple[str, str, float], ...]
    num_devices: int
    memory_bytes: float
    num_micro_batches: int
    bytes_per_s: float

    @cached_property
    def tensor_degrees(self) -> tuple[int, ...]:
        """Degrees at which every node has figures."""
        common = set.intersection(*(set(by_degree) for by_degree in self.nodes.values()))
        return tuple(sorted(int(degree) for degree in common))


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Choices inside one stage by increasing seconds; up to `upto_G` in flight, one so far will hold them."""

    seconds_G: FloatArray
    upto_G: FloatArray
    slope_bytes_G: FloatArray
    fixed_bytes_G: FloatArray
    counts_G: tuple[tuple[int, ...], ...]


class NodeFigures:
    """Seconds, weights, memory and cut bytes of a node order at one tensor-parallel degree."""

    def __init__(self, instance: Stage3dInstance, order: Sequence[str], degree: int) -> None:
        self.instance = instance
        by_option = [instance.nodes[v][str(degree)] for v in order]
        self.seconds_V = [(o[PLAIN]["time"], o[RECOMPUTED]["time"]) for o in by_option]
        self.rows_V = [
            tuple((o[name]["mem_a"], o[name]["mem_b"]) for name in (PLAIN, RECOMPUTED)) for o in by_option
        ]
        for options in by_option:
            ends = [(o["weight"], o["sync_in"], o["sync_out"]) for o in options.values()]
            assert len(options) == 2
            assert ends[0] == ends[1], "an option must not change what is exchanged"
        weight_V = np.array([o[PLAIN]["weight"] for o in by_option])
        before_V = np.concatenate([[0.0], np.cumsum(weight_V)])
        self.weight_AB: FloatArray = before_V[None, :] - before_V[:, None]
        self.cut_bytes_AB = self._cut_bytes(order, dict(zip(order, by_option, strict=True)))

    def _cut_bytes(self, order: Sequence[str], options: Mapping[str, Any]) -> FloatArray:
        """Both directions of every edge an interval cuts, with the synchronisation of the end inside."""
        place = {v: i for i, v in enumerate(order)}
        a, b = np.indices((len(order) + 1, len(order) + 1))
        cut_bytes_AB = np.zeros(a.shape)
        for u, v, size_bytes in self.instance.edges:
            u_inside, v_inside = ((a <= place[w]) & (place[w] < b) for w in (u, v))
            leaving_bytes = 2.0 * (size_bytes + options[u][PLAIN]["sync_out"].get(v, 0.0))
            entering_bytes = 2.0 * (size_bytes + options[v][PLAIN]["sync_in"].get(u, 0.0))
            cut_bytes_AB += leaving_bytes * (u_inside & ~v_inside) + entering_bytes * (v_inside & ~u_inside)
        return cut_bytes_AB

    def kinds(self, interval: Interval) -> list[tuple[tuple[tuple[float, float], ...], list[int]]]:
        """Nodes of an interval by memory rows, cheapest recomputation first."""
        members: dict[tuple[tuple[float, float], ...], list[int]] = defaultdict(list)
        for i in range(*interval):
            members[self.rows_V[i]].append(i)
        return [(rows, sorted(nodes, key=self._penalty_s)) for rows, nodes in members.items()]

    def _penalty_s(self, node: int) -> tuple[float, int]:
        plain_s, recomputed_s = self.seconds_V[node]
        return recomputed_s - plain_s, node

    def recomputed(self, interval: Interval, counts: Sequence[int]) -> frozenset[int]:
        """The nodes that `counts` of each kind stand for."""
        chosen = (nodes[:count] for (_, nodes), count in zip(self.kinds(interval), counts, strict=True))
        return frozenset(node for nodes in chosen for node in nodes)

    def frontier(self, interval: Interval) -> Frontier:
        """All choices of counts, the fastest first."""
        kinds = self.kinds(interval)
        seconds_G, slope_G, fixed_G = (np.zeros(1) for _ in range(3))
        for rows, nodes in kinds:
            penalty_s = [self._penalty_s(node)[0] for node in nodes]
            plain_s = sum(self.seconds_V[node][0] for node in nodes)
            count = np.arange(len(nodes) + 1)
            (plain_a, plain_b), (again_a, again_b) = rows
            added_s = plain_s + np.concatenate([[0.0], np.cumsum(penalty_s)])
            seconds_G = np.add.outer(seconds_G, added_s).reshape(-1)
            slope_G = np.add.outer(slope_G, plain_a * (len(nodes) - count) + again_a * count).reshape(-1)
            fixed_G = np.add.outer(fixed_G, plain_b * (len(nodes) - count) + again_b * count).reshape(-1)
        room_G = self.instance.memory_bytes - fixed_G
        upto_G = np.floor(room_G / np.maximum(slope_G, 1.0))
        order = np.lexsort((-upto_G, seconds_G))
        counts = list(product(*(range(len(nodes) + 1) for _, nodes in kinds)))
        return Frontier(
            seconds_G=seconds_G[order],
            upto_G=np.maximum.accumulate(upto_G[order]),
            slope_bytes_G=slope_G[order],
            fixed_bytes_G=fixed_G[order],
            counts_G=tuple(counts[g] for g in order),
        )


class Stage3dCostModel:
    """Seconds per micro-batch of an interval of the node order, its share of all transfers included."""

    name = "stage3d-instances"

    def __init__(self, instance: Stage3dInstance, order: Sequence[str]) -> None:
        self.instance = instance
        self.order = tuple(order)
        self.figures = {t: NodeFigures(instance, order, t) for t in instance.tensor_degrees}
        self._frontiers: dict[tuple[int, Interval], Frontier] = {}
        self._compute_s: dict[tuple[int, tuple[Interval, ...]], FloatArray] = {}

    def frontier(self, degree: int, interval: Interval) -> Frontier:
        """The choices inside a stage."""
        if (degree, interval) not in self._frontiers:
            self._frontiers[degree, interval] = self.figures[degree].frontier(interval)
        return self._frontiers[degree, interval]

    def _exchange_s(self, interval: Interval, strategy: Strategy) -> float:
        figures, dp = self.figures[strategy.tp], strategy.dp
        resync_bytes = 4.0 * (dp - 1) / (dp * self.instance.num_micro_batches) * figures.weight_AB[interval]
        return float(figures.cut_bytes_AB[interval] / dp + resync_bytes) / self.instance.bytes_per_s

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        """The fastest choice that fits, or the one that needs the least memory."""
        frontier = self.frontier(strategy.tp, interval)
        g = int(np.searchsorted(frontier.upto_G, in_flight))
        if g == len(frontier.upto_G):
            g = int((frontier.slope_bytes_G * in_flight + frontier.fixed_bytes_G).argmin())
        held_bytes = float(frontier.slope_bytes_G[g] * in_flight)
        kinds = {"activations": held_bytes, "weights": float(frontier.fixed_bytes_G[g])}
        return StageCost(
            forward_s=float(frontier.seconds_G[g]) / strategy.dp,
            backward_s=0.0,
            exposed_s=self._exchange_s(interval, strategy),
            sync_s=0.0,
            shares=(micro_batch_size,) * strategy.dp,
            memory_bytes=(kinds,) * len(cluster.devices),
            limit_bytes=(self.instance.memory_bytes,) * len(cluster.devices),
            recompute_layers=sum(frontier.counts_G[g]),
        )

    def stage_table(
        self,
        cluster: Cluster,
        intervals: Sequence[Interval],
        strategy: Strategy,
        micro_batch_size: int,
        in_flight_max: int,
    ) -> StageTable:
        """The figures of `stage`."""
        exchange_s_K = np.array([self._exchange_s(interval, strategy) for interval in intervals])
        compute_s_KQ = self._compute_seconds(strategy.tp, tuple(intervals), in_flight_max)
        busy_s_KQ = compute_s_KQ / strategy.dp + exchange_s_K[:, None]
        return StageTable(busy_s_KQ=busy_s_KQ, sync_s_KQ=np.zeros_like(busy_s_KQ))

    def _compute_seconds(
        self, degree: int, intervals: tuple[Interval, ...], in_flight_max: int
    ) -> FloatArray:
        """Least seconds on one rank that fit, by in-flight count; the longest table asked for is kept."""
        known_s_KQ = self._compute_s.get((degree, intervals))
        if known_s_KQ is None or known_s_KQ.shape[1] < in_flight_max:
            known_s_KQ = np.full((len(intervals), in_flight_max), np.inf)
            for k, interval in enumerate(intervals):
                frontier = self.frontier(degree, interval)
                choice_Q = np.searchsorted(frontier.upto_G, np.arange(1, in_flight_max + 1))
                choice_Q = choice_Q[choice_Q < len(frontier.upto_G)]
                known_s_KQ[k, : len(choice_Q)] = frontier.seconds_G[choice_Q]
            self._compute_s[degree, intervals] = known_s_KQ
        return known_s_KQ[:, :in_flight_max]

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        """Nothing: cut edges count in the stages at both ends."""
        return 0.0

    def interval_key(self, interval: Interval) -> Hashable:
        """Every node has its own measured times."""
        return interval
