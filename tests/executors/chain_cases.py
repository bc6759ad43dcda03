"""Tiny models of every family, as specification, as the planner's workload, and whole from transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from costmodels.model import build_workload, read_architecture
from costmodels.workload import Job, Recipe, Workload
from executors.training.model_spec import ModelSpec

VOCAB = 64
TOKENS = 12

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
_GATED = _SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
_MIXTURE = _GATED | {"num_experts_per_tok": 2}
_QWEN_MIXTURE = _MIXTURE | {"num_experts": 4, "moe_intermediate_size": 24}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": _GATED | {"model_type": "llama"},
    "llama-tied-biased": _GATED
    | {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
        "pad_token_id": 3,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": _GATED | {"model_type": "mistral", "sliding_window": 5},
    "qwen2": _GATED
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": _GATED | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gpt2": _NO_DROPOUT
    | {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 16,
        "initializer_range": 0.3,
    },
    "gpt_neox": _SHAPE
    | {"model_type": "gpt_neox", "intermediate_size": 48, "rotary_pct": 0.5, "max_position_embeddings": 64},
    "gpt_neox-serial": _SHAPE
    | {
        "model_type": "gpt_neox",
        "intermediate_size": 48,
        "use_parallel_residual": False,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "opt": {k: v for k, v in _SHAPE.items() if k != "initializer_range"}
    | {
        "model_type": "opt",
        "init_std": 0.3,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 16,
        "dropout": 0.0,
    },
    "opt-projected": {k: v for k, v in _SHAPE.items() if k != "initializer_range"}
    | {
        "model_type": "opt",
        "init_std": 0.3,
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 16,
        "dropout": 0.0,
        "do_layer_norm_before": False,
        "enable_bias": False,
    },
    "mixtral": _MIXTURE | {"model_type": "mixtral", "num_local_experts": 4},
    "qwen2_moe": _QWEN_MIXTURE
    | {
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 40,
        "use_sliding_window": True,
        "sliding_window": 4,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": _QWEN_MIXTURE
    | {"model_type": "qwen3_moe", "head_dim": 16, "use_sliding_window": True, "sliding_window": 6},
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
DENSE = tuple(name for name in CONFIGS if name not in MIXTURES)


def targets_of(name: str) -> tuple[str, ...]:
    """Targets that this family's blocks can adapt, one left out."""
    return ("q", "v", "o") if name in MIXTURES else ("q", "o", "gate", "up", "down")


def spec_of(name: str, *, rank: int = 0, targets: Sequence[str] = (), **changes: Any) -> ModelSpec:
    """The specification of a tiny model; rank 0 trains every weight."""
    spec = ModelSpec(
        config=CONFIGS[name],
        num_layers=4,
        dtype="fp32",
        sequence_tokens=TOKENS,
        adapter_rank=rank,
        adapter_targets=tuple(targets or targets_of(name)) if rank else (),
        adapter_alpha=8.0,
        adapter_dropout=0.0,
        seed=7,
        start=None,
    )
    return replace(spec, **changes)


def workload_of(spec: ModelSpec, **job: Any) -> Workload:
    """What the planner makes of the same model and adapters."""
    architecture = read_architecture(spec.config)
    full_job = Job(
        dtype=spec.dtype,
        adapter_rank=spec.adapter_rank,
        sequence_tokens=spec.sequence_tokens,
        sequences_per_step=4,
        micro_batch_sizes=(1,),
        **job,
    )
    targets: Any = spec.adapter_targets or ("q",)
    workload = build_workload(architecture, full_job, "tiny", targets=targets)
    recipe = Recipe(config_json=json.dumps(dict(spec.config)), adapter_targets=spec.adapter_targets)
    return replace(workload, recipe=recipe)


def built(chain: Any) -> list[Any]:
    """All layers."""
    return [chain.build(i) for i in range(chain.num_layers)]


def run(layers: Sequence[Any], tokens: Any) -> Any:
    """Logits of the chain."""
    given = tokens
    for layer in layers:
        given = layer(given)
    return given


def whole_model(chain: Any, layers: Sequence[Any]) -> Any:
    """The family's model in transformers, with adapters where the job has them, and the chain's weights."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[chain.spec.config["model_type"]].from_dict(dict(chain.spec.config))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    named = {
        chain.checkpoint_name(i, own): parameter.detach().clone()
        for i, layer in enumerate(layers)
        for own, parameter in layer.named_parameters()
    }
    base = {name: tensor for name, tensor in named.items() if ".lora_" not in name}
    missing, unexpected = model.load_state_dict(base, strict=False)
    assert not missing
    assert not unexpected
    if chain.spec.full:
        return model.train()
    return with_peft(model, chain, named).train()


def with_peft(model: Any, chain: Any, named: Mapping[str, Any]) -> Any:
    """The model with adapters of these weights."""
    from peft import get_peft_model, set_peft_model_state_dict

    from executors.training.adapters import lora_config

    with warnings.catch_warnings():
        # peft asks transformers for a property under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, lora_config(chain.spec, chain.family))
    adapters = {name: tensor for name, tensor in named.items() if ".lora_" in name}
    assert not set_peft_model_state_dict(model, adapters).unexpected_keys
    return model


def gradients_by_name(model: Any) -> dict[str, Any]:
    """Gradients of a whole model by the names that `checkpoint_name` gives."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bare = name.replace(".base_layer.", ".").replace(".default.", ".")
            found[bare if ".lora_" in bare else bare.removeprefix("base_model.model.")] = parameter.grad
    return found
