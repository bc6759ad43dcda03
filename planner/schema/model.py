"""The shape of a model file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from costmodels import units
from planner.schema.shape import Bytes0, Name, Shape, Tokens

Dtype = Literal["bf16", "fp16", "fp32"]
Optimiser = Literal["adamw", "adamw-8bit", "sgd", "sgd-momentum"]
MicroBatchSize = Annotated[int, Field(ge=1, le=10**6)]
Count = Annotated[int, Field(ge=0, le=10**15)]


def _flops(value: Any) -> float:
    """Floating-point operations of an amount of work such as `3.2 GFLOP`."""
    limit = "an amount of work of 0 or more in FLOP with a prefix, such as '405 MFLOP'"
    reason = "the unit FLOP is missing"
    if isinstance(value, str) and value.rstrip().endswith("FLOP"):
        try:
            return units.parse_flop_per_s(f"{value.rstrip()}/s")
        except units.UnitError as error:
            reason = error.reason
    raise PydanticCustomError("quantity", "no work", {"limit": limit, "reason": reason})


Flops = Annotated[float, BeforeValidator(_flops, json_schema_input_type=str), Field(examples=["405 MFLOP"])]


class LayerShape(Shape):
    """One layer, or `repeat` equal ones in a row; bytes and work are per token.

    `params` counts every weight held, `trainable_params` those that get gradients (all of them when left out
    under full fine-tuning), `expert_params` those inside experts. `flops` is the forward work, `activation`
    what backward needs, `input` what is kept instead when the layer is recomputed, `output` what goes to the
    next layer, `transient` what is held only while the layer runs. `tied_to` names the layer that owns
    `shared_params` of these weights (left out: as many as the smaller of the two has).
    """

    kind: Name
    repeat: Annotated[int, Field(ge=1, le=10_000)] = 1
    params: Count
    trainable_params: Count | None = None
    expert_params: Count = 0
    flops: Flops
    activation: Bytes0
    input: Bytes0
    output: Bytes0
    transient: Bytes0 = 0.0
    collectives: Annotated[int, Field(ge=0, le=64)] = 2
    tensor_parallel_max: Annotated[int, Field(ge=1, le=1024)] = 64
    tied_to: Name | None = None
    shared_params: Count | None = None
    tier: Name | None = None


class JobShape(Shape):
    """How the model is trained. Give either `sequences_per_step` or `tokens_per_step`, per replica.

    Left out, `micro_batch_sizes` are those of 1, 2 and 4 that divide the sequences per step, and `targets`,
    the projections that get adapters, all there are. `sync_copies` counts the fp32 copies of trained weights
    that the boundary plane keeps (adapter copy, anchor, buffer): 3 when several boundaries take part, else 0.
    """

    method: Literal["full", "lora"]
    rank: Annotated[int, Field(ge=1, le=65_536)] | None = None
    targets: Annotated[list[Name], Field(min_length=1)] | None = None
    dtype: Dtype = "bf16"
    optimiser: Optimiser = "adamw"
    sequence: Tokens
    micro_batch_sizes: Annotated[list[MicroBatchSize], Field(min_length=1, max_length=64)] | None = None
    sequences_per_step: Annotated[int, Field(ge=1, le=10**9)] | None = None
    tokens_per_step: Tokens | None = None
    recompute: bool = True
    max_stages: Annotated[int, Field(ge=1, le=1024)] = 12
    sync_copies: Annotated[int, Field(ge=0, le=16)] | None = None


class ModelShape(Shape):
    """A model file: `architecture` (bundled), `config` (of transformers) or `layers`, and the job."""

    schema_version: Literal["echelon/model/1"] = Field(alias="schema")
    name: Name | None = None
    architecture: Name | None = None
    config: str | dict[str, Any] | None = None
    layers: Annotated[list[LayerShape], Field(min_length=1)] | None = None
    job: JobShape
