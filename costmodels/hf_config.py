"""Reads a causal language model's `config.json` in the transformers format, without that library.

One function per family turns its keys into an `Architecture`. A key left out takes that family's documented
default (transformers, `configuration_<family>.py`, class attributes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from costmodels.architecture import Architecture, Attention, Block, FeedForward, Mixture, Norm, NormKind
from costmodels.config_keys import ConfigKeys
from policies.errors import Fault, InputError


class UnknownModelTypeError(InputError):
    """The configuration names a family that has no reader."""


def read_architecture(config: Mapping[str, object]) -> Architecture:
    """The architecture a transformers `config.json` describes.

    Raises:
        UnknownModelTypeError: `unknown-model-type`, listing the families that are known.
        InputError: `bad-model-config`, naming every key whose value is of the wrong kind or doesn't fit
        another.
    """
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(sorted(_FAMILIES))
        raise UnknownModelTypeError(
            "unknown-model-type",
            f"model_type {model_type!r} is not one of: {known}",
            faults=[Fault(place="model_type", value=repr(model_type), limit=f"one of {known}")],
            hint="describe the model as an explicit list of layers instead",
        )
    keys = ConfigKeys(config)
    architecture = family(keys)
    if keys.faults:
        raise InputError(
            "bad-model-config",
            f"the {model_type} configuration has {len(keys.faults)} faults",
            faults=keys.faults,
        )
    return architecture


def _llama(keys: ConfigKeys) -> Architecture:
    bias = keys.flag("attention_bias", False)
    return _rotary(keys, "llama", num_blocks=32, num_kv_heads=None, attention_bias=bias, out_bias=bias)


def _mistral(keys: ConfigKeys) -> Architecture:
    window = keys.optional_count("sliding_window", 4096)
    model = _rotary(keys, "mistral", inner_width=14336, num_kv_heads=8)
    return _with_windows(model, [window] * len(model.blocks))


def _qwen2(keys: ConfigKeys) -> Architecture:
    model = _rotary(keys, "qwen2", vocab_size=151936, inner_width=22016, num_kv_heads=32, attention_bias=True)
    return _with_windows(model, _qwen_windows(keys, len(model.blocks)))


def _qwen3(keys: ConfigKeys) -> Architecture:
    bias = keys.flag("attention_bias", False)
    model = _rotary(
        keys,
        "qwen3",
        vocab_size=151936,
        inner_width=22016,
        num_kv_heads=32,
        head_width=128,
        attention_bias=bias,
        out_bias=bias,
        head_norm=True,
    )
    return _with_windows(model, _qwen_windows(keys, len(model.blocks)))


def _mixtral(keys: ConfigKeys) -> Architecture:
    window = keys.optional_count("sliding_window", None)
    model = _rotary(keys, "mixtral", inner_width=14336, num_kv_heads=8)
    # transformers reads this count under either name.
    num_experts = keys.count(keys.first_present("num_local_experts", "num_experts"), 8)
    num_active = keys.count("num_experts_per_tok", 2)
    keys.require(
        num_active <= num_experts, "num_experts_per_tok", num_active, f"at most {num_experts} experts"
    )
    dense = model.blocks[0].feed_forward
    assert isinstance(dense, FeedForward)
    mixture = Mixture(experts=replace(dense, num_copies=num_experts, num_active=num_active))
    blocks = tuple(replace(block, feed_forward=mixture) for block in model.blocks)
    return _with_windows(replace(model, blocks=blocks), [window] * len(blocks))


def _qwen2_moe(keys: ConfigKeys) -> Architecture:
    model = _rotary(
        keys,
        "qwen2_moe",
        vocab_size=151936,
        width=2048,
        inner_width=5632,
        num_blocks=24,
        num_heads=16,
        num_kv_heads=16,
        attention_bias=keys.flag("qkv_bias", True),
    )
    shared_width = keys.count("shared_expert_intermediate_size", 5632)
    model = _with_mixtures(
        keys, model, num_experts=60, num_active=4, expert_width=1408, shared_width=shared_width
    )
    # Unlike its siblings, this family slides every other block of the first `max_window_layers`.
    first = keys.number("max_window_layers", 28)
    slides = [i % 2 == 0 and i < first for i in range(len(model.blocks))]
    return _with_windows(model, _chosen_windows(keys, slides))


def _qwen3_moe(keys: ConfigKeys) -> Architecture:
    bias = keys.flag("attention_bias", False)
    model = _rotary(
        keys,
        "qwen3_moe",
        vocab_size=151936,
        width=2048,
        inner_width=6144,
        num_blocks=24,
        num_kv_heads=4,
        attention_bias=bias,
        out_bias=bias,
        head_norm=True,
    )
    model = _with_mixtures(keys, model, num_experts=128, num_active=8, expert_width=768, shared_width=0)
    return _with_windows(model, _chosen_windows(keys, [True] * len(model.blocks)))


def _gpt2(keys: ConfigKeys) -> Architecture:
    width = keys.count(keys.first_present("n_embd", "hidden_size"), 768)
    num_heads = keys.count(keys.first_present("n_head", "num_attention_heads"), 12)
    num_positions = keys.count(keys.first_present("n_positions", "max_position_embeddings"), 1024)
    norm = Norm(kind="layer", width=width)
    block = Block(
        norm=norm,
        attention=Attention(
            width=width,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=keys.head_width(width, num_heads),
            qkv_bias=True,
            out_bias=True,
            fused_qkv=True,
            rotary=False,
        ),
        feed_forward=_plain_feed_forward(
            keys, width, keys.optional_count("n_inner", None) or 4 * width, "gelu_new"
        ),
        residual_dropout=keys.rate("resid_pdrop", 0.1) > 0,
    )
    return Architecture(
        model_type="gpt2",
        vocab_size=keys.count("vocab_size", 50257),
        width=width,
        embedding_width=width,
        num_positions=num_positions,
        max_sequence_tokens=num_positions,
        blocks=(block,) * keys.count(keys.first_present("n_layer", "num_hidden_layers"), 12),
        final_norm=norm,
        tied=keys.flag("tie_word_embeddings", True),
        embedding_dropout=keys.rate("embd_pdrop", 0.1) > 0,
    )


def _gpt_neox(keys: ConfigKeys) -> Architecture:
    width = keys.count("hidden_size", 6144)
    num_heads = keys.count("num_attention_heads", 64)
    bias = keys.flag("attention_bias", True)
    norm = Norm(kind="layer", width=width)
    block = Block(
        norm=norm,
        attention=Attention(
            width=width,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=keys.head_width(width, num_heads),
            qkv_bias=bias,
            out_bias=bias,
            fused_qkv=True,
        ),
        feed_forward=_plain_feed_forward(keys, width, keys.count("intermediate_size", 24576), "gelu"),
        residual_dropout=keys.rate("hidden_dropout", 0.0) > 0,
        parallel=keys.flag("use_parallel_residual", True),
    )
    return Architecture(
        model_type="gpt_neox",
        vocab_size=keys.count("vocab_size", 50432),
        width=width,
        embedding_width=width,
        num_positions=0,
        max_sequence_tokens=keys.count("max_position_embeddings", 2048),
        blocks=(block,) * keys.count("num_hidden_layers", 44),
        final_norm=norm,
        tied=keys.flag("tie_word_embeddings", False),
        embedding_dropout=block.residual_dropout,
    )


def _opt(keys: ConfigKeys) -> Architecture:
    width = keys.count(keys.first_present("hidden_size", "d_model"), 768)
    num_heads = keys.count("num_attention_heads", 12)
    bias = keys.flag("enable_bias", True)
    weights = keys.flag("layer_norm_elementwise_affine", True)
    norm = Norm(kind="layer" if weights else "layer-without-weights", width=width)
    norm_first = keys.flag("do_layer_norm_before", True) and not keys.flag("_remove_final_layer_norm", False)
    max_tokens = keys.count("max_position_embeddings", 2048)
    feed_forward = _plain_feed_forward(
        keys, width, keys.count("ffn_dim", 3072), "relu", key="activation_function"
    )
    block = Block(
        norm=norm,
        attention=Attention(
            width=width,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=keys.head_width(width, num_heads),
            qkv_bias=bias,
            out_bias=bias,
            rotary=False,
        ),
        feed_forward=replace(feed_forward, bias=bias),
        residual_dropout=keys.rate("dropout", 0.1) > 0,
    )
    return Architecture(
        model_type="opt",
        vocab_size=keys.count("vocab_size", 50272),
        width=width,
        embedding_width=keys.optional_count("word_embed_proj_dim", None) or width,
        # The table begins with two rows that no token of a sequence uses.
        num_positions=max_tokens + 2,
        max_sequence_tokens=max_tokens,
        blocks=(block,) * keys.count("num_hidden_layers", 12),
        final_norm=norm if norm_first else None,
        tied=keys.flag("tie_word_embeddings", True),
    )


def _plain_feed_forward(
    keys: ConfigKeys, width: int, inner_width: int, default: str, *, key: str = ""
) -> FeedForward:
    """Two matrices with biases; `default` is the family's activation function."""
    name = keys.text(key or keys.first_present("activation_function", "hidden_act"), default)
    return FeedForward(width=width, inner_width=inner_width, gated=False, bias=True, activation=name)


def _rotary(
    keys: ConfigKeys,
    model_type: str,
    *,
    num_kv_heads: int | None,
    vocab_size: int = 32000,
    width: int = 4096,
    inner_width: int = 11008,
    num_blocks: int = 32,
    num_heads: int = 32,
    head_width: int | None = None,
    attention_bias: bool = False,
    out_bias: bool = False,
    head_norm: bool = False,
) -> Architecture:
    """A model with rotary positions, RMS norms and gated feed-forward; arguments are the defaults."""
    width = keys.count("hidden_size", width)
    num_heads = keys.count("num_attention_heads", num_heads)
    kv_heads = keys.optional_count("num_key_value_heads", num_kv_heads) or num_heads
    keys.require(
        num_heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {num_heads} heads"
    )
    head_width = keys.optional_count("head_dim", head_width) or keys.head_width(width, num_heads)
    norm_kind: NormKind = "rms"
    block = Block(
        norm=Norm(kind=norm_kind, width=width),
        attention=Attention(
            width=width,
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            head_width=head_width,
            qkv_bias=attention_bias,
            out_bias=out_bias,
            head_norm=Norm(kind=norm_kind, width=head_width) if head_norm else None,
        ),
        feed_forward=FeedForward(
            width=width,
            inner_width=keys.count("intermediate_size", inner_width),
            bias=keys.flag("mlp_bias", False) if model_type == "llama" else False,
            activation=keys.text("hidden_act", "silu"),
        ),
    )
    return Architecture(
        model_type=model_type,
        vocab_size=keys.count("vocab_size", vocab_size),
        width=width,
        embedding_width=width,
        num_positions=0,
        max_sequence_tokens=keys.optional_count("max_position_embeddings", None),
        blocks=(block,) * keys.count("num_hidden_layers", num_blocks),
        final_norm=block.norm,
        tied=keys.flag("tie_word_embeddings", False),
    )


def _with_mixtures(
    keys: ConfigKeys,
    model: Architecture,
    *,
    num_experts: int,
    num_active: int,
    expert_width: int,
    shared_width: int,
) -> Architecture:
    """Mixtures of experts in every `decoder_sparse_step`-th block that `mlp_only_layers` doesn't name."""
    num_experts = keys.number(keys.first_present("num_experts", "num_local_experts"), num_experts)
    num_active = keys.count("num_experts_per_tok", num_active)
    keys.require(
        num_active <= num_experts or num_experts == 0,
        "num_experts_per_tok",
        num_active,
        f"at most {num_experts} experts",
    )
    activation = keys.text("hidden_act", "silu")
    experts = FeedForward(
        width=model.width,
        inner_width=keys.count("moe_intermediate_size", expert_width),
        activation=activation,
        num_copies=num_experts,
        num_active=num_active,
    )
    shared = FeedForward(width=model.width, inner_width=shared_width, activation=activation)
    mixture = Mixture(experts=experts, shared=shared if shared_width else None)
    step = keys.count("decoder_sparse_step", 1)
    dense_only = keys.positions("mlp_only_layers", len(model.blocks))
    blocks = tuple(
        replace(block, feed_forward=mixture)
        if num_experts > 0 and i not in dense_only and (i + 1) % step == 0
        else block
        for i, block in enumerate(model.blocks)
    )
    return replace(model, blocks=blocks)


def _qwen_windows(keys: ConfigKeys, num_blocks: int) -> list[int | None]:
    """Blocks from `max_window_layers` on slide."""
    first = keys.number("max_window_layers", 28)
    return _chosen_windows(keys, [i >= first for i in range(num_blocks)])


def _chosen_windows(keys: ConfigKeys, slides: list[bool]) -> list[int | None]:
    """The window of each block: `layer_types` if given, else `slides`; none unless `use_sliding_window`."""
    window = keys.optional_count("sliding_window", 4096) if keys.flag("use_sliding_window", False) else None
    chosen = keys.layer_types(len(slides)) or slides
    return [window if slide else None for slide in chosen]


def _with_windows(model: Architecture, windows: list[int | None]) -> Architecture:
    blocks = tuple(
        replace(block, attention=replace(block.attention, window=window))
        for block, window in zip(model.blocks, windows, strict=True)
    )
    return replace(model, blocks=blocks)


_FAMILIES: Mapping[str, Callable[[ConfigKeys], Architecture]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "opt": _opt,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}
