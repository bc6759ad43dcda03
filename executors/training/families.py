"""The model families that can be built: their modules in transformers and the names of their weights.

Modules are imported when a family is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from executors.training.layers import EmbeddingLayer, HeadLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family's chain is made.

    `classes` is the prefix of its class names in `transformers.models.<module>.modeling_<module>`. `names`
    maps the parts of our layers (`words`, `positions`, `layer`, `norm`, `projection.in`, `projection.out`,
    `output`) to module names in the whole model, `{}` standing for the block's number. `modules` maps adapter
    targets to module names inside a block.
    """

    module: str
    classes: str
    block_suffix: str = "DecoderLayer"
    rotary: bool = True
    names: Mapping[str, str]
    modules: Mapping[str, str]
    embedding: Callable[[Any], EmbeddingLayer]
    head: Callable[[Any, Family], HeadLayer]
    window: Callable[[Any, int], int | None] = lambda config, block: None
    faults: Callable[[Any], list[tuple[str, str]]] = lambda config: []
    transposed: bool = False
    old_names: Mapping[str, str] = field(default_factory=dict)

    def get(self, suffix: str) -> Any:
        """The class of this family whose name ends so."""
        modeling = import_module(f"transformers.models.{self.module}.modeling_{self.module}")
        return getattr(modeling, self.classes + suffix)


def _rotary_embedding(config: Any) -> EmbeddingLayer:
    return EmbeddingLayer(nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id))


def _rms_head(config: Any, family: Family) -> HeadLayer:
    return HeadLayer(
        norm=family.get("RMSNorm")(config.hidden_size, eps=config.rms_norm_eps),
        output=nn.Linear(config.hidden_size, config.vocab_size, bias=False),
    )


_ROTARY_NAMES = {
    "words": "model.embed_tokens",
    "layer": "model.layers.{}",
    "norm": "model.norm",
    "output": "lm_head",
}
_ROTARY_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def _gated(module: str, classes: str, window: Callable[[Any, int], int | None]) -> Family:
    """Rotary positions, RMS norms, gated feed-forward part."""
    return Family(
        module=module,
        classes=classes,
        names=_ROTARY_NAMES,
        modules=_ROTARY_MODULES,
        embedding=_rotary_embedding,
        head=_rms_head,
        window=window,
    )


def _no_window(config: Any, block: int) -> int | None:
    return None


def _same_window(config: Any, block: int) -> int | None:
    window: int | None = config.sliding_window
    return window


def _window_by_type(config: Any, block: int) -> int | None:
    window: int | None = config.sliding_window
    return window if config.layer_types[block] == "sliding_attention" else None


FAMILIES: Mapping[str, Family] = {
    "llama": _gated("llama", "Llama", _no_window),
    "mistral": _gated("mistral", "Mistral", _same_window),
    "qwen2": _gated("qwen2", "Qwen2", _window_by_type),
    "qwen3": _gated("qwen3", "Qwen3", _window_by_type),
}
