"""What was trained, in the formats of PEFT and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from executors.training.adapters import add_adapters, is_adapter, lora_config
from executors.training.chain import TORCH_DTYPES, Chain
from executors.training.configuration import parsed_configuration
from executors.training.engine import LayerState
from executors.training.model_spec import ModelSpec
from executors.training.whole_folder import whole_folder
from policies.errors import Fault, InputError

PROVENANCE = "echelon.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_WEIGHT = "weight:"

LayerTensors = Callable[[int], Mapping[str, torch.Tensor]]
"""Tensors of a layer by their names inside it."""


def write_adapter(
    folder: Path, spec: ModelSpec, states: Mapping[int, LayerState], provenance: Mapping[str, Any]
) -> None:
    """Write the adapters of all layers so that `PeftModel.from_pretrained(base, folder)` loads them.

    The weights stay in fp32, in which they were trained. `provenance` goes into `echelon.json`.

    Raises:
        InputError: `incomplete-states`, naming every adapter weight that is missing or of another shape;
            `folder-taken`.
        ExecutorFailedError: `disk-full`.
    """
    from safetensors.torch import save_file

    chain = Chain(spec)
    tensors: dict[str, torch.Tensor] = {}
    for i in range(1, chain.num_layers - 1):
        for own, tensor in _trained(chain, i, states).items():
            tensors[chain.checkpoint_name(i, own)] = tensor
    config = lora_config(spec, chain.family)
    config.base_model_name_or_path = spec.start
    config.inference_mode = True
    # A set's order differs from process to process.
    config.target_modules = sorted(config.target_modules)
    with whole_folder(folder, PROVENANCE) as partial:
        save_file(tensors, partial / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(partial)
        _write_json(partial / PROVENANCE, provenance)


def write_model(
    folder: Path, spec: ModelSpec, states: Mapping[int, LayerState], provenance: Mapping[str, Any]
) -> None:
    """Write the trained model in the format of transformers: every weight, adapters merged into theirs.

    One layer at a time is in memory, one file per layer is written, in the job's dtype. A tied weight is
    taken from the first layer. `states` may read each layer's state when asked for it.

    Raises:
        InputError: `incomplete-states`, `folder-taken`, and what `Chain.build` raises.
        ExecutorFailedError: `disk-full`.
    """
    chain = Chain(spec)

    def tensors(layer_i: int) -> Mapping[str, torch.Tensor]:
        trained = _trained(chain, layer_i, states)
        return trained if spec.full else _merged(chain, layer_i, trained)

    _write_layers(folder, chain, tensors, provenance)


def write_base(folder: Path, spec: ModelSpec, provenance: Mapping[str, Any]) -> None:
    """Write the model as it was before training, for an adapter that began on random weights.

    Raises:
        InputError: `folder-taken`, and what `Chain.build` raises.
        ExecutorFailedError: `disk-full`.
    """
    chain = Chain(replace(spec, adapter_rank=0, adapter_targets=()))
    _write_layers(folder, chain, lambda i: dict(chain.build(i).named_parameters()), provenance)


def _trained(chain: Chain, layer_i: int, states: Mapping[int, LayerState]) -> dict[str, torch.Tensor]:
    """Trained weights of a layer, checked against what the layer has; a tied weight only at its home."""
    layer = chain.without_weights(layer_i)
    if not chain.spec.full and 0 < layer_i < chain.num_layers - 1:
        add_adapters(layer, chain.spec, chain.family, without_weights=True)
    away = _tied_away(chain, layer_i)
    expected = {
        own: tuple(parameter.shape)
        for own, parameter in layer.named_parameters()
        if own != away and (chain.spec.full or is_adapter(own))
    }
    state = states.get(layer_i, {}) if expected else {}
    found = {own: state[_WEIGHT + own].detach().contiguous() for own in expected if _WEIGHT + own in state}
    faults = [
        Fault(
            place=chain.checkpoint_name(layer_i, own),
            value=f"shape {list(found[own].shape)}" if own in found else "missing",
            limit=f"shape {list(shape)}",
        )
        for own, shape in expected.items()
        if own not in found or tuple(found[own].shape) != shape
    ]
    if faults:
        raise InputError(
            "incomplete-states",
            f"layer {layer_i}: {faults[0].place} is {faults[0].value}, expected {faults[0].limit}",
            faults=faults,
            hint="export from a checkpoint of this plan",
        )
    return found


def _merged(chain: Chain, layer_i: int, adapters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layer's weights with its adapters added in, computed in fp32."""
    layer = chain.build(layer_i).float()
    layer.load_state_dict(dict(adapters), strict=False)
    for module in list(layer.modules()):
        if hasattr(module, "lora_A"):
            module.merge()
    return {own: p.detach() for own, p in layer.named_parameters() if not is_adapter(own)}


def _tied_away(chain: Chain, layer_i: int) -> str | None:
    """The name of a weight whose home is another layer."""
    return chain.tied_parameter(layer_i) if layer_i > 0 else None


def _write_layers(
    folder: Path, chain: Chain, tensors_of: LayerTensors, provenance: Mapping[str, Any]
) -> None:
    from safetensors.torch import save_file

    dtype = TORCH_DTYPES[chain.spec.dtype]
    with whole_folder(folder, PROVENANCE) as partial:
        file_of: dict[str, str] = {}
        num_bytes = 0
        for i in range(chain.num_layers):
            away = _tied_away(chain, i)
            stored = _stored(chain, i, {k: v for k, v in tensors_of(i).items() if k != away}, dtype)
            # The head of a tied model without a final norm has nothing of its own.
            if stored:
                file = f"model-{i + 1:05d}-of-{chain.num_layers:05d}.safetensors"
                save_file(stored, partial / file, metadata={"format": "pt"})
                file_of |= dict.fromkeys(stored, file)
                num_bytes += sum(tensor.nbytes for tensor in stored.values())
        _write_json(partial / _INDEX, {"metadata": {"total_size": num_bytes}, "weight_map": file_of})
        config = parsed_configuration(chain.spec.config)
        config.dtype = dtype
        config.architectures = [chain.family.classes + "ForCausalLM"]
        config.save_pretrained(partial)
        _write_json(partial / PROVENANCE, provenance)


def _stored(
    chain: Chain, layer_i: int, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Tensors as files hold them: names of the whole model, experts apart."""
    stored: dict[str, torch.Tensor] = {}
    for own, tensor in tensors.items():
        name, cast = chain.checkpoint_name(layer_i, own), tensor.detach().to(dtype)
        parts = [(name, cast)] if chain.family.experts is None else chain.family.experts.split(name, cast)
        stored |= {part: value.contiguous() for part, value in parts}
    return stored


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=2) + "\n", encoding="utf-8")
