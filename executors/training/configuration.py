"""The model's configuration as transformers reads it, and what is refused in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from executors.training.families import FAMILIES, Family
from executors.training.model_spec import ModelSpec
from policies.errors import Fault, InputError

_DENSE_TARGETS = frozenset("qkvo")
# Settings that change what a model computes from given weights, whatever the family calls them.
_FUNCTION_SETTINGS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "word_embed_proj_dim",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_parameters",
    "tie_word_embeddings",
    "sliding_window",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "use_parallel_residual",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "do_layer_norm_before",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
)


def family_of(spec: ModelSpec) -> Family:
    """How the model's family is built.

    Raises:
        InputError: `model-not-built`, listing the families that are.
    """
    model_type = spec.config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise _refused([Fault(place="model_type", value=repr(model_type), limit=f"one of {known}")])
    return family


def read_configuration(spec: ModelSpec, family: Family) -> Any:
    """The transformers configuration, with causal sdpa attention and no cache.

    Raises:
        InputError: `model-not-built` with every setting that can't be trained here;
            `start-of-another-model` with every setting in which the start folder's config.json differs.
    """
    config = parsed_configuration(spec.config)
    faults = [
        Fault(place=name, value=repr(getattr(config, name)), limit="not set")
        for name in (*family.unset, "quantization_config")
        if getattr(config, name, None)
    ]
    if not spec.full:
        faults += _target_faults(spec, family, config)
    if faults:
        raise _refused(faults)
    if spec.start is not None:
        _require_same_model(config, Path(spec.start))
    config._attn_implementation = "sdpa"
    config.use_cache = False
    return config


def _target_faults(spec: ModelSpec, family: Family, config: Any) -> list[Fault]:
    targets = ", ".join(spec.adapter_targets)
    if family.has_experts(config) and not _DENSE_TARGETS.issuperset(spec.adapter_targets):
        return [
            Fault(
                place="adapter.targets",
                value=targets,
                limit="any of q, k, v, o: the experts' matrices are stacked and take no adapters",
            )
        ]
    if family.modules.keys().isdisjoint(spec.adapter_targets):
        known = ", ".join(family.modules)
        return [Fault(place="adapter.targets", value=targets or "none", limit=f"any of {known}")]
    return []


def _require_same_model(config: Any, start: Path) -> None:
    """Refuse weights that were made for another model than the planned one."""
    path = start / "config.json"
    if not path.exists():
        return
    try:
        other = parsed_configuration(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "start-of-another-model",
            f"{path} can't be read: {error}",
            hint="start from a folder that transformers wrote",
        ) from error
    faults = [
        Fault(place=f"{path}: {name}", value=repr(found), limit=f"{planned!r}, as planned")
        for name in _FUNCTION_SETTINGS
        if (found := getattr(other, name, None)) != (planned := getattr(config, name, None))
    ]
    if faults:
        raise InputError(
            "start-of-another-model",
            f"{path} describes another model than the plan: "
            + ", ".join(f"{fault.place.rpartition(' ')[2]} is {fault.value}" for fault in faults),
            faults=faults,
            hint="plan with this config.json, or start from the checkpoint that was planned",
        )


def parsed_configuration(config: Mapping[str, Any]) -> Any:
    """The configuration as an object of its family's class, unchecked."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))


def _refused(faults: list[Fault]) -> InputError:
    listed = "; ".join(f"{fault.place} is {fault.value}, must be {fault.limit}" for fault in faults)
    return InputError(
        "model-not-built",
        f"this model can be planned, but not built: {listed}",
        faults=faults,
        hint="change the model file and plan again, or launch a script of your own",
    )
