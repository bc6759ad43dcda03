"""What is to be trained, as a chain of layers with their sizes, plus the job's settings.

A cost model sees nothing else of the model: every figure is per token and already reflects the job's sequence
length, dtype and adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
JOINT = "joint"
ROUND_ROBIN = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer. Layers with equal `kind` are identical in every other field.

    `params` counts every weight held (all experts of a mixture); `trainable_params` those that get gradients
    (the adapter under LoRA, included in `params`). `forward_flops_per_token` counts active weights and
    attention at the job's sequence length. `activation_bytes_per_token` is what backward needs without
    recomputation, `input_bytes_per_token` what is kept instead when the layer is recomputed,
    `output_bytes_per_token` what is sent to the next layer. `transient_bytes_per_token` is held only while
    the layer runs (logits of the loss head). `tensor_parallel_max` limits the tensor-parallel degree
    (attention heads and vocabulary must divide). `tied_to` is the position of the layer that owns
    `shared_params` of these weights, or None; the others (a head's norm) are the layer's own.
    """

    kind: str
    params: int
    trainable_params: int
    forward_flops_per_token: float
    activation_bytes_per_token: float
    input_bytes_per_token: float
    output_bytes_per_token: float
    transient_bytes_per_token: float = 0.0
    num_collectives: int = 2
    expert_params: int = 0
    tensor_parallel_max: int = 64
    tied_to: int | None = None
    shared_params: int = 0

    @property
    def shared_trainable_params(self) -> int:
        """Shared weights that get gradients; where some weights are frozen, those shared are taken first."""
        return max(0, self.trainable_params + self.shared_params - self.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How the model is trained.

    `adapter_rank` 0 means full fine-tuning. `recompute` allows activation recomputation. `micro_batch_sizes`
    are the sequences per micro-batch the planner may choose from; each must divide `sequences_per_step`.
    `optimiser_state_bytes_per_param` counts the moments and, for 16-bit dtypes, the fp32 master copy.
    `sync_copies_bytes_per_param` covers the boundary plane's adapter copy, anchor and buffer.

    `schedule` says how micro-batches meet the data-parallel ranks of a stage. `joint`: each is split over all
    of them, so any width up to its size will do. `round-robin`: each goes to one rank, whole, so the width
    has to divide the number of micro-batches.
    """

    name: str = "job"
    dtype: str = "bf16"
    adapter_rank: int = 0
    sequence_tokens: int = 4096
    sequences_per_step: int = 64
    micro_batch_sizes: tuple[int, ...] = (1, 2, 4)
    recompute: bool = True
    gradient_bytes_per_param: float = 2.0
    optimiser_state_bytes_per_param: float = 12.0
    sync_copies_bytes_per_param: float = 12.0
    max_stages: int = 12
    schedule: str = JOINT

    @property
    def weight_bytes_per_param(self) -> int:
        """Bytes of one weight in the job's dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def tokens_per_step(self) -> int:
        """Tokens one replica consumes in one step."""
        return self.sequence_tokens * self.sequences_per_step

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.adapter_rank == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an executor needs to build the model beyond its sizes; cost models don't look at it.

    `config_json` is the transformers configuration as JSON text. `adapter_targets` names the projections that
    get adapters (q, k, v, o, gate, up, down); empty under full fine-tuning.
    """

    config_json: str
    optimiser: str = "adamw"
    adapter_targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A layer chain and its job. Layer 0 is the embedding, the last one the final norm and loss head.

    `recipe` is None for a chain of explicit layers, which can be planned but not built.
    """

    model_name: str
    layers: tuple[LayerSpec, ...]
    job: Job
    recipe: Recipe | None = None

    @property
    def num_layers(self) -> int:
        """Length of the chain, both ends included."""
        return len(self.layers)

    @cached_property
    def num_params(self) -> int:
        """All weights, shared ones counted once."""
        return sum(layer.params - layer.shared_params for layer in self.layers)
