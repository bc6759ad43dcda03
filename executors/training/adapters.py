"""Low-rank adapters inside a layer, made by PEFT."""

from __future__ import annotations

from typing import Any

from executors.training.families import Family
from executors.training.layers import ChainLayer
from executors.training.model_spec import ModelSpec

PEFT_PREFIX = "base_model.model."
_ADAPTER = "default"


def lora_config(spec: ModelSpec, family: Family) -> Any:
    """PEFT's description of the job's adapters."""
    from peft import LoraConfig

    alpha = spec.adapter_alpha
    modules = dict.fromkeys(
        family.modules[target] for target in spec.adapter_targets if target in family.modules
    )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.adapter_rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=spec.adapter_dropout,
        target_modules=sorted(modules),
        fan_in_fan_out=family.transposed,
        bias="none",
    )


def add_adapters(
    layer: ChainLayer, spec: ModelSpec, family: Family, *, without_weights: bool = False
) -> None:
    """Put adapters on the layer's targets; they alone are trained. `without_weights`: shapes alone."""
    from peft import inject_adapter_in_model

    config = lora_config(spec, family)
    inject_adapter_in_model(config, layer, adapter_name=_ADAPTER, low_cpu_mem_usage=without_weights)


def is_adapter(parameter_name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in parameter_name


def peft_name(parameter_name: str) -> str:
    """A parameter's name as if its layer had no adapters, or as PEFT's files call the adapter's own."""
    return parameter_name.replace(".base_layer.", ".").replace(f".{_ADAPTER}.", ".")
