"""The model families that can be built: their modules in transformers and the names of their weights.

Modules are imported when a family is first used. Families that `costmodels.hf_config` reads are all here.

Mixtures of experts are trained without a router's auxiliary loss, which is also what transformers does unless
`output_router_logits` is set; a configuration that sets it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from torch import nn

from executors.training.layers import EmbeddingLayer, HeadLayer
from executors.training.mixtures import ExpertStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family's chain is made.

    `classes` is the prefix of its class names in `transformers.models.<module>.modeling_<module>`, `block`
    the rest of its block's. `names` maps the parts of our layers (`words`, `positions`, `layer`, `norm`,
    `projection.in`, `projection.out`, `output`) to module names in the whole model, `{}` standing for the
    block's number; weights files may leave `prefix` out. `old_names` maps names to those in older files.
    `modules` maps adapter targets to module names inside a block, whose matrices are stored as (in, out)
    where `transposed`. `first_position` is the row of a learned position table that belongs to the first
    token, None with rotary positions. `padded` says that the padding token's embedding stays zero. Settings
    in `unset` can't be trained here and must be off. `experts` says how a mixture's experts are stored.
    """

    module: str
    classes: str
    block: str = "DecoderLayer"
    prefix: str = "model."
    first_position: int | None = None
    padded: bool = True
    embedding_dropout: str | None = None
    transposed: bool = False
    names: Mapping[str, str]
    old_names: Mapping[str, str]
    modules: Mapping[str, str]
    norm: Callable[[Any, Family], nn.Module | None]
    window: Callable[[Any, int], int | None]
    unset: tuple[str, ...] = ()
    experts: ExpertStorage | None = None

    def get(self, suffix: str) -> Any:
        """The class of this family whose name ends so."""
        modeling = import_module(f"transformers.models.{self.module}.modeling_{self.module}")
        return getattr(modeling, self.classes + suffix)

    def embedding(self, config: Any) -> EmbeddingLayer:
        """Layer 0."""
        width, narrow = config.hidden_size, _embedding_width(config)
        first = self.first_position
        return EmbeddingLayer(
            nn.Embedding(config.vocab_size, narrow, config.pad_token_id if self.padded else None),
            positions=None if first is None else nn.Embedding(config.max_position_embeddings + first, width),
            first_position=first or 0,
            projection=nn.Linear(narrow, width, bias=False) if narrow != width else None,
            dropout=getattr(config, self.embedding_dropout) if self.embedding_dropout else 0.0,
        )

    def head(self, config: Any) -> HeadLayer:
        """The last layer."""
        width, narrow = config.hidden_size, _embedding_width(config)
        return HeadLayer(
            norm=self.norm(config, self),
            projection=nn.Linear(width, narrow, bias=False) if narrow != width else None,
            output=nn.Linear(narrow, config.vocab_size, bias=False),
        )

    def has_experts(self, config: Any) -> bool:
        """Whether any block is a mixture of experts."""
        if self.experts is None or self.module == "mixtral":
            return self.experts is not None
        step, dense = config.decoder_sparse_step, config.mlp_only_layers
        return config.num_experts > 0 and any(
            i not in dense and (i + 1) % step == 0 for i in range(config.num_hidden_layers)
        )


def _embedding_width(config: Any) -> int:
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def _no_window(config: Any, block: int) -> int | None:
    return None


def _same_window(config: Any, block: int) -> int | None:
    return config.sliding_window or None


def _window_by_type(config: Any, block: int) -> int | None:
    return config.sliding_window or None if config.layer_types[block] == "sliding_attention" else None


def _rms_norm(config: Any, family: Family) -> nn.Module:
    return family.get("RMSNorm")(config.hidden_size, eps=config.rms_norm_eps)


def _gpt2_norm(config: Any, family: Family) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)


def _gpt_neox_norm(config: Any, family: Family) -> nn.Module:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _opt_norm(config: Any, family: Family) -> nn.Module | None:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return None
    return nn.LayerNorm(config.hidden_size, elementwise_affine=config.layer_norm_elementwise_affine)


# Rotary positions, RMS norms, gated feed-forward part.
_LLAMA = Family(
    module="llama",
    classes="Llama",
    names={
        "words": "model.embed_tokens",
        "layer": "model.layers.{}",
        "norm": "model.norm",
        "output": "lm_head",
    },
    old_names={},
    modules={
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    norm=_rms_norm,
    window=_no_window,
)

_GPT2 = Family(
    module="gpt2",
    classes="GPT2",
    block="Block",
    prefix="transformer.",
    first_position=0,
    padded=False,
    embedding_dropout="embd_pdrop",
    transposed=True,
    names={
        "words": "transformer.wte",
        "positions": "transformer.wpe",
        "layer": "transformer.h.{}",
        "norm": "transformer.ln_f",
        "output": "lm_head",
    },
    old_names={},
    modules={
        **dict.fromkeys("qkv", "attn.c_attn"),
        "o": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    norm=_gpt2_norm,
    window=_no_window,
    unset=("add_cross_attention",),
)

_GPT_NEOX = Family(
    module="gpt_neox",
    classes="GPTNeoX",
    block="Layer",
    prefix="gpt_neox.",
    padded=False,
    embedding_dropout="hidden_dropout",
    names={
        "words": "gpt_neox.embed_in",
        "layer": "gpt_neox.layers.{}",
        "norm": "gpt_neox.final_layer_norm",
        "output": "lm_head",
    },
    old_names={"lm_head.weight": "embed_out.weight"},
    modules={
        **dict.fromkeys("qkv", "attention.query_key_value"),
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    norm=_gpt_neox_norm,
    window=_no_window,
)

_OPT = Family(
    module="opt",
    classes="OPT",
    # Two rows come before the first token's.
    first_position=2,
    names={
        "words": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "projection.in": "model.decoder.project_in",
        "layer": "model.decoder.layers.{}",
        "norm": "model.decoder.final_layer_norm",
        "projection.out": "model.decoder.project_out",
        "output": "lm_head",
    },
    old_names={},
    modules={
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
    },
    norm=_opt_norm,
    window=_no_window,
    unset=("layerdrop",),
)

_MIXTURE = ("output_router_logits",)
_QWEN_EXPERTS = ExpertStorage(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")

FAMILIES: Mapping[str, Family] = {
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, module="mistral", classes="Mistral", window=_same_window),
    "mixtral": replace(
        _LLAMA,
        module="mixtral",
        classes="Mixtral",
        window=_same_window,
        unset=_MIXTURE,
        experts=ExpertStorage(block="block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    "opt": _OPT,
    "qwen2": replace(_LLAMA, module="qwen2", classes="Qwen2", window=_window_by_type),
    "qwen2_moe": replace(
        _LLAMA,
        module="qwen2_moe",
        classes="Qwen2Moe",
        window=_window_by_type,
        unset=_MIXTURE,
        experts=_QWEN_EXPERTS,
    ),
    "qwen3": replace(_LLAMA, module="qwen3", classes="Qwen3", window=_window_by_type),
    "qwen3_moe": replace(
        _LLAMA,
        module="qwen3_moe",
        classes="Qwen3Moe",
        window=_same_window,
        unset=_MIXTURE,
        experts=_QWEN_EXPERTS,
    ),
}
