"""Sizes that depend on the workload and the strategy, but on no device.

Legend of array suffixes: J layer kinds, K intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.chain import Contents
from costmodels.compute import backward_per_forward
from costmodels.interface import FloatArray, Strategy
from costmodels.memory import activation_bytes, state_bytes
from costmodels.workload import Job, LayerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSizes:
    """Figures of one layer kind for one tensor-parallel degree, per sequence, bytes per device and whole.

    `kept_bytes` is held until backward, `saved_bytes` what recomputation frees of it (0 or less: not worth
    it).
    `flops`, `output_bytes` and `reduced_bytes` (the payload of one all-reduce) are those of the whole layer,
    before it is cut.
    """

    layer: LayerSpec
    kept_bytes: float
    saved_bytes: float
    transient_bytes: float
    output_bytes: float
    reduced_bytes: float
    flops: float
    backward_ratio: float


def kind_sizes(layer: LayerSpec, job: Job, tp: int, replicated_inputs: float) -> KindSizes:
    """Sizes of one layer kind, cut over `tp` devices."""
    tokens = job.sequence_tokens
    kept = activation_bytes(
        layer.activation_bytes_per_token, layer.input_bytes_per_token, tp, replicated_inputs
    )
    kept_bytes = float(np.ceil(kept * tokens))
    return KindSizes(
        layer=layer,
        kept_bytes=kept_bytes,
        saved_bytes=kept_bytes - float(np.ceil(layer.input_bytes_per_token * tokens)),
        transient_bytes=float(np.ceil(layer.transient_bytes_per_token * tokens / tp)),
        output_bytes=layer.output_bytes_per_token * tokens,
        # The loss head sends nothing on, but the gradient of its input is reduced like any other.
        reduced_bytes=(layer.output_bytes_per_token or layer.input_bytes_per_token) * tokens,
        flops=layer.forward_flops_per_token * tokens,
        backward_ratio=backward_per_forward(layer.params, layer.trainable_params),
    )


def recompute_order(kinds: tuple[LayerSpec, ...], job: Job) -> tuple[int, ...]:
    """Positions of the kinds worth recomputing: most bytes saved per recomputed flop first, ties by position.

    Empty when the job doesn't allow recomputation.
    """
    if not job.recompute:
        return ()

    def bytes_per_flop(j: int) -> float:
        saved = kinds[j].activation_bytes_per_token - kinds[j].input_bytes_per_token
        work = kinds[j].forward_flops_per_token
        return saved / work if work > 0.0 else float("inf")

    worth = (
        j for j, kind in enumerate(kinds) if kind.activation_bytes_per_token > kind.input_bytes_per_token
    )
    return tuple(sorted(worth, key=lambda j: (-bytes_per_flop(j), j)))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Bytes per device that don't depend on the micro-batch.

    `sync_K` are the copies of the boundary's sync layer, `gathered_bytes_J` what one layer of each kind
    occupies while its weights are put together (ZeRO-3).
    """

    weights_K: FloatArray
    gradients_K: FloatArray
    optimiser_K: FloatArray
    sync_K: FloatArray
    total_K: FloatArray
    gathered_bytes_J: tuple[float, ...]


def state_of(
    contents: Contents, kinds: tuple[LayerSpec, ...], job: Job, strategy: Strategy, sync_layer: bool
) -> State:
    """Bytes of weights, gradients, optimiser and sync layer of each interval, per device.

    Tensor parallelism cuts all of them; ZeRO-1 cuts the optimiser state over the ranks, ZeRO-2 also the
    gradients, ZeRO-3 also the weights. A rank keeps sync copies of the weights whose optimiser state it owns.
    """
    dp, tp, zero = strategy.dp, strategy.tp, strategy.zero
    parts = [tp * dp if zero >= level else tp for level in (1, 2, 3)]
    trainable_K = contents.trainable_K
    weights_K = np.asarray(state_bytes(contents.params_K, job.weight_bytes_per_param, parts[2]))
    gradients_K = np.asarray(state_bytes(trainable_K, job.gradient_bytes_per_param, parts[1]))
    optimiser_K = np.asarray(state_bytes(trainable_K, job.optimiser_state_bytes_per_param, parts[0]))
    copied = job.sync_copies_bytes_per_param if sync_layer else 0.0
    sync_K = np.asarray(state_bytes(trainable_K, copied, parts[0]))
    missing = (dp - 1) / dp if zero == 3 else 0.0
    return State(
        weights_K=weights_K,
        gradients_K=gradients_K,
        optimiser_K=optimiser_K,
        sync_K=sync_K,
        total_K=weights_K + gradients_K + optimiser_K + sync_K,
        gathered_bytes_J=tuple(
            float(np.ceil(kind.params * job.weight_bytes_per_param / tp * missing)) for kind in kinds
        ),
    )
