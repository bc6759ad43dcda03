"""From an architecture or an explicit list of layers, and a job, to the layer chain that cost models read.

Layer 0 is the embedding (with learned positions), then come the blocks, then final norm and loss head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

from costmodels.activations import (
    Trained,
    block_activation_bytes_per_token,
    block_flops_per_token,
    norm_activation_bytes,
)
from costmodels.architecture import ALL_TARGETS, Architecture, Block, Target
from costmodels.hf_config import read_architecture
from costmodels.workload import DTYPE_BYTES, Job, LayerSpec, Workload
from policies.errors import Fault, InputError

__all__ = ["ALL_TARGETS", "build_workload", "read_architecture", "workload_from_layers"]

_TOKEN_ID_BYTES = 8
_FP32_BYTES = 4
_TENSOR_PARALLEL_MAX = 64


def build_workload(
    architecture: Architecture,
    job: Job,
    model_name: str,
    *,
    targets: Sequence[Target] = ALL_TARGETS,
    fused_kernels: bool = False,
) -> Workload:
    """The layer chain of a model under a job.

    `targets` names the projections that get adapters when `job.adapter_rank` is above 0: any of q, k, v, o,
    gate, up and down. A family that fuses q, k and v adapts the fused matrix when any of them is named; names
    a family lacks (gate in GPT-2) are passed over.
    `fused_kernels` says that norms and activation functions run as single kernels that keep their input
    alone, not step by step as transformers' own modules do.

    Raises:
        InputError: `bad-job` (dtype, rank, sequence length or targets that the model can't be trained with).
    """
    _require_job(architecture, job, targets)
    trained = Trained(
        dtype_bytes=job.weight_bytes_per_param,
        adapter_rank=job.adapter_rank,
        targets=tuple(targets),
        fused_kernels=fused_kernels,
    )
    blocks = _block_layers(architecture.blocks, trained, job)
    return Workload(
        model_name=model_name,
        layers=(
            _embedding_layer(architecture, trained),
            *blocks,
            _head_layer(architecture, trained),
        ),
        job=job,
    )


def workload_from_layers(name: str, layers: Sequence[LayerSpec], job: Job) -> Workload:
    """The chain of explicitly given layers, checked.

    Raises:
        InputError: `bad-layers`, with one fault for each figure out of range, each `tied_to` that is no
        earlier
            layer, and each pair of layers that share a kind but differ.
    """
    faults = [] if layers else [Fault(place="layers", value="none", limit="at least one layer")]
    first_of_kind: dict[str, int] = {}
    for i, layer in enumerate(layers):
        faults += _layer_faults(i, layer)
        first = first_of_kind.setdefault(layer.kind, i)
        if layers[first] != layer:
            faults.append(
                Fault(
                    place=f"layers[{i}].kind",
                    value=layer.kind,
                    limit=f"layers of one kind are identical, but layers[{first}] differs",
                    hint="give the two layers different kinds",
                )
            )
    faults += _job_faults(job)
    if faults:
        raise InputError("bad-layers", f"the layers of {name!r} have {len(faults)} faults", faults=faults)
    return Workload(model_name=name, layers=tuple(layers), job=job)


def _embedding_layer(architecture: Architecture, trained: Trained) -> LayerSpec:
    """A look-up: no work but the projection's; keeps token ids and, if trained, the projection's input."""
    b = trained.dtype_bytes
    projection = architecture.projection()
    kept = architecture.embedding_width * b if projection and trained.adapter_rank == 0 else 0
    # A learned position table is looked up by position numbers of the same size as token numbers.
    ids_bytes = _TOKEN_ID_BYTES * (2 if architecture.num_positions else 1)
    dropout = architecture.width if architecture.embedding_dropout else 0
    return LayerSpec(
        kind="embedding",
        params=architecture.embedding_params,
        trainable_params=0 if trained.adapter_rank else architecture.embedding_params,
        forward_flops_per_token=float(sum(linear.flops_per_token for linear in projection)),
        activation_bytes_per_token=float(ids_bytes + kept + dropout),
        input_bytes_per_token=float(_TOKEN_ID_BYTES),
        output_bytes_per_token=float(architecture.width * b),
        num_collectives=1,
        tensor_parallel_max=_power_of_two_divisor(architecture.vocab_size),
    )


def _block_layers(blocks: Sequence[Block], trained: Trained, job: Job) -> list[LayerSpec]:
    """One layer per block, named so that kinds are equal exactly where all figures are.

    Figures are compared, not shapes: an attention window longer than the sequence changes nothing.
    """
    layer_by_block = {block: _block_layer(block, trained, job) for block in dict.fromkeys(blocks)}
    kinds: dict[LayerSpec, str] = {}
    for layer in dict.fromkeys(layer_by_block.values()):
        alike = sum(kind.startswith(layer.kind) for kind in kinds.values())
        kinds[layer] = f"{layer.kind}-{alike + 1}" if alike else layer.kind
    return [replace(layer_by_block[block], kind=kinds[layer_by_block[block]]) for block in blocks]


def _block_layer(block: Block, trained: Trained, job: Job) -> LayerSpec:
    linears = block.linears()
    experts = block.expert_linears()
    adapters = trained.adapter_params(linears)
    width_bytes = float(block.attention.width * trained.dtype_bytes)
    return LayerSpec(
        kind="mixture-block" if experts else "dense-block",
        params=block.params + adapters,
        trainable_params=adapters if trained.adapter_rank else block.params,
        forward_flops_per_token=block_flops_per_token(block, trained, job.sequence_tokens),
        activation_bytes_per_token=float(block_activation_bytes_per_token(block, trained)),
        input_bytes_per_token=width_bytes,
        output_bytes_per_token=width_bytes,
        # Row-parallel attention output and feed-forward output each end in one all-reduce of the hidden
        # state; parallel branches are summed first and share one.
        num_collectives=1 if block.parallel else 2,
        expert_params=sum(linear.params for linear in experts) + trained.adapter_params(experts),
        tensor_parallel_max=_power_of_two_divisor(*_tensor_parallel_widths(block)),
    )


def _tensor_parallel_widths(block: Block) -> tuple[int, ...]:
    """Counts that a tensor-parallel degree must divide: heads, key-value heads, inner widths."""
    inner = {linear.out_width for linear in block.linears() if not {"gate", "up"}.isdisjoint(linear.targets)}
    return (block.attention.num_heads, block.attention.num_kv_heads, *sorted(inner))


def _head_layer(architecture: Architecture, trained: Trained) -> LayerSpec:
    """Final norm, projection, output matrix and loss; nothing is sent on.

    While it runs it holds, for each number of the vocabulary, the logit in the job's dtype, an fp32 copy for
    the loss, and the copy's fp32 gradient.
    """
    b = trained.dtype_bytes
    full = trained.adapter_rank == 0
    norm, projection = architecture.final_norm, architecture.projection()
    kept = norm_activation_bytes(norm, trained) if norm is not None else architecture.width * b
    # The matrices keep their own inputs when trained; without a norm the first of them reads the layer's
    # input.
    kept += (
        b * full * (architecture.width * (norm is not None) + architecture.embedding_width * bool(projection))
    )
    matrix_flops = 2 * architecture.matrix_params + sum(linear.flops_per_token for linear in projection)
    return LayerSpec(
        kind="head",
        params=architecture.head_params,
        trainable_params=architecture.head_params if full else 0,
        forward_flops_per_token=float(matrix_flops),
        activation_bytes_per_token=float(kept),
        input_bytes_per_token=float(architecture.width * b),
        output_bytes_per_token=0.0,
        transient_bytes_per_token=float(architecture.vocab_size * (b + 2 * _FP32_BYTES)),
        num_collectives=1,
        tensor_parallel_max=_power_of_two_divisor(architecture.vocab_size),
        tied_to=0 if architecture.tied else None,
        shared_params=architecture.matrix_params if architecture.tied else 0,
    )


def _power_of_two_divisor(*counts: int) -> int:
    """Largest power of two, at most 64, that divides every count."""
    return math.gcd(_TENSOR_PARALLEL_MAX, *counts)


def _require_job(architecture: Architecture, job: Job, targets: Sequence[Target]) -> None:
    """Refuse a job that this model can't be trained with, naming every fault."""
    faults = _job_faults(job)
    limit = architecture.max_sequence_tokens
    # Rotary positions reach beyond the length a model was trained with; a learned table has no further rows.
    if architecture.num_positions and limit is not None and job.sequence_tokens > limit:
        faults.append(
            Fault(
                place="job.sequence_tokens",
                value=str(job.sequence_tokens),
                limit=f"at most {limit}, the rows of the learned position table",
                hint="shorten the sequence",
            )
        )
    unknown = [target for target in targets if target not in ALL_TARGETS]
    if unknown:
        faults.append(
            Fault(
                place="job.targets",
                value=", ".join(map(str, unknown)),
                limit=f"any of {', '.join(ALL_TARGETS)}",
            )
        )
    elif job.adapter_rank > 0:
        present = {
            name for block in architecture.blocks for linear in block.linears() for name in linear.targets
        }
        if present.isdisjoint(targets):
            value = ", ".join(targets) or "none"
            known = ", ".join(name for name in ALL_TARGETS if name in present)
            faults.append(Fault(place="job.targets", value=value, limit=f"at least one of {known}"))
    if faults:
        raise InputError(
            "bad-job", f"{architecture.model_type} can't be trained with this job", faults=faults
        )


def _job_faults(job: Job) -> list[Fault]:
    faults = []
    if job.dtype not in DTYPE_BYTES:
        faults.append(Fault(place="job.dtype", value=job.dtype, limit=f"one of {', '.join(DTYPE_BYTES)}"))
    if job.adapter_rank < 0:
        faults.append(
            Fault(
                place="job.adapter_rank", value=str(job.adapter_rank), limit="0 (train every weight) or more"
            )
        )
    if job.sequence_tokens < 1:
        faults.append(Fault(place="job.sequence_tokens", value=str(job.sequence_tokens), limit="1 or more"))
    return faults


def _layer_faults(i: int, layer: LayerSpec) -> list[Fault]:
    """Faults of one explicit layer, `i` its position."""
    faults = []
    for item in fields(LayerSpec):
        value = getattr(layer, item.name)
        least = 1 if item.name == "tensor_parallel_max" else 0
        if item.name not in ("kind", "tied_to") and not (math.isfinite(value) and value >= least):
            faults.append(
                Fault(
                    place=f"layers[{i}].{item.name}",
                    value=str(value),
                    limit=f"a finite number, {least} or more",
                )
            )
    for name, part in (("trainable_params", layer.trainable_params), ("expert_params", layer.expert_params)):
        if part > layer.params >= 0:
            faults.append(
                Fault(place=f"layers[{i}].{name}", value=str(part), limit=f"at most params = {layer.params}")
            )
    if layer.input_bytes_per_token > layer.activation_bytes_per_token:
        faults.append(
            Fault(
                place=f"layers[{i}].input_bytes_per_token",
                value=str(layer.input_bytes_per_token),
                limit=f"at most activation_bytes_per_token = {layer.activation_bytes_per_token}",
                hint="what is kept without recomputation includes the layer's input",
            )
        )
    if layer.tied_to is not None and not 0 <= layer.tied_to < i:
        limit = f"an earlier layer, 0 to {i - 1}" if i else "no layer, since the first one has none before it"
        faults.append(Fault(place=f"layers[{i}].tied_to", value=str(layer.tied_to), limit=limit))
    elif layer.shared_params > layer.params >= 0 or (layer.tied_to is None and layer.shared_params):
        limit = f"at most params = {layer.params}" if layer.tied_to is not None else "0 without `tied_to`"
        faults.append(Fault(place=f"layers[{i}].shared_params", value=str(layer.shared_params), limit=limit))
    return faults
