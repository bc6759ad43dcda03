"""Small chains and clusters, and the manual of the analytic cost model said again in plain Python."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, floor, inf

from costmodels.analytic import AnalyticCostModel
from costmodels.fleet import Device, Site
from costmodels.interface import (
    Cluster,
    Interval,
    StageCost,
    Strategy,
)
from costmodels.workload import Job, LayerSpec, Workload

BLOCK = LayerSpec(
    kind="block",
    params=1000,
    trainable_params=1000,
    forward_flops_per_token=2400.0,
    activation_bytes_per_token=340.0,
    input_bytes_per_token=20.0,
    output_bytes_per_token=20.0,
)
EMBEDDING = replace(
    BLOCK,
    kind="embedding",
    params=5000,
    trainable_params=5000,
    forward_flops_per_token=0.0,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=8.0,
    num_collectives=1,
)
HEAD = replace(
    BLOCK,
    kind="head",
    params=5010,
    trainable_params=5010,
    forward_flops_per_token=10000.0,
    activation_bytes_per_token=40.0,
    output_bytes_per_token=0.0,
    transient_bytes_per_token=600.0,
    num_collectives=1,
)
JOB = Job(sequence_tokens=8, micro_batch_sizes=(1, 2, 4))
CHAIN = Workload(model_name="chain", layers=(EMBEDDING, *(BLOCK,) * 6, HEAD), job=JOB)
TIED = replace(CHAIN, layers=(EMBEDDING, *(BLOCK,) * 6, replace(HEAD, tied_to=0, shared_params=5000)))

PLAIN = Device(
    device_id="d",
    host_id="h",
    type_name="t",
    memory_bytes=1e6,
    flop_per_s=(("bf16", 1e6),),
    memory_bytes_per_s=1e6,
    tier_i=0,
)
SITE = Site(site_id="s", boundary_id="b", fabric_bytes_per_s=5e4, fabric_latency_s=1e-3)


def cluster_of(*devices: Device, site: Site = SITE) -> Cluster:
    return Cluster(
        site=site,
        devices=devices,
        inner_bytes_per_s=1e5,
        inner_latency_s=2e-4,
        tp_bytes_per_s=1e6,
        tp_latency_s=1e-5,
    )


ONE = cluster_of(PLAIN)
PAIR = cluster_of(PLAIN, PLAIN)
FOUR = cluster_of(*(PLAIN,) * 4)


def all_intervals(workload: Workload) -> tuple[Interval, ...]:
    stops = range(1, workload.num_layers + 1)
    return tuple((a, b) for b in stops for a in range(b))


class Untabulated:
    """The same cost model without its table."""

    name = "untabulated"

    def __init__(self, model: AnalyticCostModel) -> None:
        self.stage = model.stage
        self.transfer_s = model.transfer_s
        self.interval_key = model.interval_key


class PlainPricing:
    """What the manual says of one stage, without arrays, kinds of layers or closed forms."""

    def __init__(
        self, model: AnalyticCostModel, cluster: Cluster, interval: Interval, strategy: Strategy, size: int
    ) -> None:
        self.workload, self.job, self.settings = model.workload, model.workload.job, model.settings
        self.sync_layer = model.sync_layer
        self.cluster, self.interval, self.strategy, self.size = cluster, interval, strategy, size
        self.layers = self.workload.layers[interval[0] : interval[1]]
        self.tokens, self.width = self.job.sequence_tokens, self.job.weight_bytes_per_param
        twice = [
            layer
            for layer in self.layers
            if layer.tied_to is not None and interval[0] <= layer.tied_to < interval[1]
        ]
        self.params = sum(layer.params for layer in self.layers) - sum(layer.shared_params for layer in twice)
        self.trained = sum(layer.trainable_params for layer in self.layers) - sum(map(shared_trained, twice))

    def possible(self) -> bool:
        dp, tp, zero = self.strategy.dp, self.strategy.tp, self.strategy.zero
        devices = self.cluster.devices
        figures = {(d.rate_flop_per_s(self.job.dtype), d.memory_bytes_per_s, d.memory_bytes) for d in devices}
        return (
            dp * tp == len(devices)
            and self.size >= dp
            and not (dp == 1 and zero)
            and not (tp > 1 and len(figures) > 1)
            and all(layer.tensor_parallel_max >= tp for layer in self.layers)
        )

    def forward_s(self, layer: LayerSpec, rank: int, share: int) -> float:
        device, tp = self.cluster.devices[rank * self.strategy.tp], self.strategy.tp
        flops = layer.forward_flops_per_token * self.tokens * share
        read = self.width * min(layer.params, flops / 2) / tp
        moved = read + layer.output_bytes_per_token * self.tokens * share
        return max(flops / tp / device.rate_flop_per_s(self.job.dtype), moved / device.memory_bytes_per_s)

    def shares(self) -> list[int]:
        def rank_s(rank: int, share: int) -> float:
            return sum(self.forward_s(layer, rank, share) * (1 + ratio(layer)) for layer in self.layers)

        shares = [1] * self.strategy.dp
        for _ in range(self.size - self.strategy.dp):
            first = min(range(len(shares)), key=lambda r: (rank_s(r, shares[r] + 1), shares[r], r))
            shares[first] += 1
        return shares

    def compute_s(self, shares: list[int], again: list[int]) -> tuple[float, float]:
        forwards, backwards = [], []
        for rank, share in enumerate(shares):
            each = [self.forward_s(layer, rank, share) for layer in self.layers]
            forwards.append(sum(each))
            gradients = sum(one * ratio(layer) for one, layer in zip(each, self.layers, strict=True))
            backwards.append(gradients + sum(each[i] for i in again))
        return max(forwards), max(backwards)

    def kept(self, layer: LayerSpec) -> int:
        full, own = layer.activation_bytes_per_token, layer.input_bytes_per_token
        whole = min(full, self.settings.replicated_inputs * own)
        return ceil((whole + (full - whole) / self.strategy.tp) * self.tokens)

    def saved(self, layer: LayerSpec) -> int:
        return self.kept(layer) - ceil(layer.input_bytes_per_token * self.tokens)

    def recompute_order(self) -> list[int]:
        def worth(i: int) -> float:
            layer = self.layers[i]
            gain = layer.activation_bytes_per_token - layer.input_bytes_per_token
            return gain / layer.forward_flops_per_token if layer.forward_flops_per_token else inf

        plain = [replace(layer, kind="") for layer in self.workload.layers]
        return sorted(
            (i for i, layer in enumerate(self.layers) if self.job.recompute and self.saved(layer) > 0),
            key=lambda i: (-worth(i), plain.index(replace(self.layers[i], kind="")), i),
        )

    def memory(self, share: int, in_flight: int, again: list[int]) -> dict[str, float]:
        dp, tp, zero, job = self.strategy.dp, self.strategy.tp, self.strategy.zero, self.job
        copies = job.sync_copies_bytes_per_param if self.sync_layer else 0
        passing = []
        for i, layer in enumerate(self.layers):
            gathered = ceil(layer.params * self.width / tp * ((dp - 1) / dp)) if zero == 3 else 0
            held = ceil(layer.transient_bytes_per_token * self.tokens / tp)
            passing.append(share * (held + (self.saved(layer) if i in again else 0)) + gathered)
        kept = sum(self.kept(layer) for layer in self.layers)
        kinds: dict[str, float] = {
            "weights": ceil(self.params * self.width / (tp * (dp if zero >= 3 else 1))),
            "gradients": ceil(self.trained * job.gradient_bytes_per_param / (tp * (dp if zero >= 2 else 1))),
            "optimiser": ceil(
                self.trained * job.optimiser_state_bytes_per_param / (tp * (dp if zero >= 1 else 1))
            ),
            "sync": ceil(self.trained * copies / (tp * (dp if zero >= 1 else 1))),
            "activations": in_flight * share * (kept - sum(self.saved(self.layers[i]) for i in again)),
            "transient": max(passing),
        }
        return kinds | {"fragmentation": ceil(self.settings.fragmentation_frac * sum(kinds.values()))}

    def ring_s(self, payload: float) -> float:
        dp, cluster = self.strategy.dp, self.cluster
        return (dp - 1) / dp * payload / cluster.inner_bytes_per_s + (dp - 1) * cluster.inner_latency_s

    def exposed_s(self, share: int, again: list[int], compute_s: float) -> float:
        dp, tp, zero, cluster = self.strategy.dp, self.strategy.tp, self.strategy.zero, self.cluster
        exposed = 0.0
        for i, layer in enumerate(self.layers):
            payload = (layer.output_bytes_per_token or layer.input_bytes_per_token) * self.tokens * share
            one = 2 * ((tp - 1) / tp * payload / cluster.tp_bytes_per_s + (tp - 1) * cluster.tp_latency_s)
            exposed += (2 + (i in again)) * layer.num_collectives * one
        if zero >= 2:
            gathered = 2 * self.params * self.width if zero == 3 else 0
            waits = (3 if zero == 3 else 1) * len(self.layers) - 1
            traffic = self.ring_s(self.trained * self.job.gradient_bytes_per_param + gathered)
            traffic += waits * (dp - 1) * cluster.inner_latency_s
            exposed += max(0.0, traffic - self.settings.hidden_frac * compute_s)
        return exposed

    def sync_s(self) -> float:
        dp, tp, zero, job = self.strategy.dp, self.strategy.tp, self.strategy.zero, self.job
        if not self.trained:
            return 0.0
        seconds = 0.0
        if dp > 1:
            gradient_s = self.ring_s(self.trained * job.gradient_bytes_per_param)
            seconds += {0: 2 * gradient_s, 1: gradient_s}.get(zero, 0.0)
            seconds += self.ring_s(self.trained * self.width) if zero in (1, 2) else 0.0
        for i, layer in enumerate(self.workload.layers):
            if layer.tied_to is not None and shared_trained(layer):
                ends = [self.interval[0] <= at < self.interval[1] for at in (i, layer.tied_to)]
                if any(ends) and not all(ends):
                    sent = shared_trained(layer) * job.gradient_bytes_per_param
                    site = self.cluster.site
                    seconds += sent / site.fabric_bytes_per_s + 2 * site.fabric_latency_s
        touched = job.gradient_bytes_per_param + 2 * job.optimiser_state_bytes_per_param + self.width
        own = self.trained / (tp * (dp if zero else 1))
        return seconds + own * touched / min(d.memory_bytes_per_s for d in self.cluster.devices)


def shared_trained(layer: LayerSpec) -> int:
    """Trained weights held in common with another layer: those left when all frozen ones are shared."""
    frozen = layer.params - layer.trainable_params
    return max(layer.shared_params - frozen, 0)


def ratio(layer: LayerSpec) -> float:
    """Backward over forward seconds."""
    return 1 + (layer.trainable_params / layer.params if layer.params else 0)


def plain_cost(
    model: AnalyticCostModel,
    cluster: Cluster,
    interval: Interval,
    strategy: Strategy,
    size: int,
    in_flight: int,
) -> StageCost | None:
    """What `model.stage` should answer, found by trying every number of recomputed layers in turn."""
    plain = PlainPricing(model, cluster, interval, strategy, size)
    if not plain.possible():
        return None
    shares, order = plain.shares(), plain.recompute_order()
    limits = [floor(d.memory_bytes * (1 - model.settings.memory_reserve_frac)) for d in cluster.devices]
    again = order
    for count in range(len(order) + 1):
        needs = [
            sum(plain.memory(shares[i // strategy.tp], in_flight, order[:count]).values())
            for i in range(len(limits))
        ]
        if all(need <= limit for need, limit in zip(needs, limits, strict=True)):
            again = order[:count]
            break
    forward_s, backward_s = plain.compute_s(shares, again)
    return StageCost(
        forward_s=forward_s,
        backward_s=backward_s,
        exposed_s=plain.exposed_s(max(shares), again, forward_s + backward_s),
        sync_s=plain.sync_s(),
        shares=tuple(shares),
        memory_bytes=tuple(
            plain.memory(shares[i // strategy.tp], in_flight, again) for i in range(len(limits))
        ),
        limit_bytes=tuple(float(limit) for limit in limits),
        recompute_layers=len(again),
    )
