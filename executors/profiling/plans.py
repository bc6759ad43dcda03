"""Small replicas made up for measuring: one process alone, or a pipeline over all ranks. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodels.workload import Workload
from executors.layout import Layout, Rank
from executors.profiling.layer_clock import LayerClock
from planner.plan import ReplicaPlan, StagePlan
from planner.training import PipelineSchedule, TrainingJob

BLOCKS_PER_KIND = 2


def chosen_layers(workload: Workload, *, blocks_per_kind: int | None = None) -> tuple[int, ...]:
    """Positions of the layers to run: all, or both ends and the first few blocks of each kind."""
    if blocks_per_kind is None:
        return tuple(range(workload.num_layers))
    seen: dict[str, int] = {}
    chosen = []
    for i, layer in enumerate(workload.layers):
        seen[layer.kind] = seen.get(layer.kind, 0) + 1
        if i in (0, workload.num_layers - 1) or seen[layer.kind] <= blocks_per_kind:
            chosen.append(i)
    return tuple(chosen)


def training_bytes(workload: Workload, layers: Sequence[int], micro_batch_size: int) -> float:
    """What one process roughly needs to train these layers: states, and activations of one micro-batch."""
    job = workload.job
    per_trained = job.gradient_bytes_per_param + job.optimiser_state_bytes_per_param
    total = 0.0
    for i in layers:
        layer = workload.layers[i]
        kept = layer.activation_bytes_per_token + layer.transient_bytes_per_token
        total += layer.params * job.weight_bytes_per_param + layer.trainable_params * per_trained
        total += kept * job.sequence_tokens * micro_batch_size
    return total


class ClockedChain:
    """A chain whose layers a clock watches, each as it is built; some of its layers, or all.

    Whatever else is asked of it, the chain itself answers.
    """

    def __init__(self, chain: Any, clock: LayerClock, chosen: Sequence[int] | None = None) -> None:
        self._chain, self._clock = chain, clock
        self._chosen = tuple(range(chain.num_layers)) if chosen is None else tuple(chosen)
        self.num_layers = len(self._chosen)
        self.tied = None if chain.tied is None else (0, self.num_layers - 1)

    def build(self, layer_i: int) -> Any:
        """A layer, watched."""
        return self._clock.attach(layer_i, self._chain.build(self._chosen[layer_i]))

    def tied_parameter(self, layer_i: int) -> str | None:
        """As the whole chain's."""
        name: str | None = self._chain.tied_parameter(self._chosen[layer_i])
        return name

    def checkpoint_name(self, layer_i: int, parameter_name: str) -> str:
        """As the whole chain's."""
        name: str = self._chain.checkpoint_name(self._chosen[layer_i], parameter_name)
        return name

    def without_weights(self, layer_i: int) -> Any:
        """As the whole chain's."""
        return self._chain.without_weights(self._chosen[layer_i])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)


def layers_can_be_told(replica: ReplicaPlan, training: TrainingJob) -> bool:
    """Whether a launch of this replica times each layer as a profile counts it.

    A sharded layer's seconds hold its communication, a recomputed one's backward pass another forward pass,
    and a virtual pipeline runs a stage's layers in more than one pass.
    """
    one_pass = training.pipeline is PipelineSchedule.ONE_FORWARD_ONE_BACKWARD
    return one_pass and all(s.tp == 1 and s.zero < 3 and s.recompute == 0 for s in replica.stages)


def even_cuts(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Ends of contiguous stages with as equal numbers of layers as may be: 0, ..., num_layers."""
    return tuple(round(i * num_layers / num_stages) for i in range(num_stages + 1))


def made_up_replica(
    cuts: Sequence[int], *, executor: str, micro_batches: int, micro_batch_size: int
) -> tuple[ReplicaPlan, Layout]:
    """A pipeline of single devices on one host, with the cuts given, and who runs which stage."""
    num_stages = len(cuts) - 1
    stages = tuple(
        StagePlan(
            index=i,
            layers=(cuts[i], cuts[i + 1]),
            devices=(f"here/{i}",),
            dp=1,
            tp=1,
            zero=0,
            micro_batch_shares=(micro_batch_size,),
            ranks=((f"here/{i}",),),
            recompute=0,
            in_flight=min(micro_batches, num_stages - i),
            head=f"here/{i}",
            spares=(),
            memory_bytes={},
            compute_s=0.0,
            comm_s=0.0,
            sync_s=0.0,
            transfer_s=0.0,
        )
        for i in range(num_stages)
    )
    replica = ReplicaPlan(
        id="profile",
        executor=executor,
        tokens_per_s=0.0,
        step_time_s=0.0,
        micro_batches=micro_batches,
        micro_batch_size=micro_batch_size,
        stages=stages,
        tied_layers=(),
    )
    ranks = tuple(
        Rank(rank=i, host="here", slot=i, local_rank=i, device=f"here/{i}", stage=i, dp_i=0, tp_i=0)
        for i in range(num_stages)
    )
    return replica, Layout(ranks=ranks)
