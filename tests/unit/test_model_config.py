"""Reading transformers configurations: families, defaults, aliases, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.architecture import Architecture, FeedForward, Mixture
from costmodels.model import read_architecture
from policies.errors import InputError

FAMILIES = [
    "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "opt", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
]  # fmt: skip


def read(model_type: str, **keys: object) -> Architecture:
    return read_architecture({"model_type": model_type} | keys)


def refusal(model_type: object, **keys: object) -> InputError:
    with pytest.raises(InputError) as caught:
        read_architecture({"model_type": model_type} | keys)
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_is_enough(family: str) -> None:
    assert read(family).model_type == family


@pytest.mark.parametrize("model_type", ["bert", None, 7, ["llama"], ""])
def test_an_unknown_family_is_refused_with_the_known_ones(model_type: object) -> None:
    error = refusal(model_type)
    assert error.code == "unknown-model-type"
    assert ", ".join(FAMILIES) in error.message
    assert error.hint


def test_every_fault_is_named_at_once() -> None:
    error = refusal(
        "llama", hidden_size=0, vocab_size="many", num_hidden_layers=True, tie_word_embeddings=1, head_dim=2.5
    )
    assert error.code == "bad-model-config"
    assert {fault.place for fault in error.faults} == {
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "tie_word_embeddings",
        "head_dim",
    }
    assert all(fault.value and fault.limit for fault in error.faults)


@pytest.mark.parametrize(
    ("family", "keys", "place"),
    [
        (
            "llama",
            {"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 6},
            "num_key_value_heads",
        ),
        ("gpt2", {"n_embd": 10, "n_head": 3}, "num_attention_heads"),
        ("gpt_neox", {"hidden_size": 10, "num_attention_heads": 3}, "num_attention_heads"),
        ("opt", {"hidden_size": 10, "num_attention_heads": 3}, "num_attention_heads"),
        ("mixtral", {"num_local_experts": 1}, "num_experts_per_tok"),
        ("qwen2_moe", {"num_experts": 3}, "num_experts_per_tok"),
        ("qwen2_moe", {"mlp_only_layers": [24]}, "mlp_only_layers"),
        ("qwen2_moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["linear"] * 32}, "layer_types"),
        ("qwen2", {"layer_types": [{}] * 32}, "layer_types"),
        ("mistral", {"sliding_window": -1}, "sliding_window"),
        ("gpt2", {"resid_pdrop": 1.5}, "resid_pdrop"),
        ("opt", {"activation_function": 3}, "activation_function"),
        ("llama", {"hidden_size": 10**12}, "hidden_size"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_key(family: str, keys: dict[str, object], place: str) -> None:
    assert place in {fault.place for fault in refusal(family, **keys).faults}


def test_both_spellings_of_gpt2_mean_the_same() -> None:
    own = read("gpt2", n_embd=96, n_head=4, n_layer=3, n_positions=50)
    common = read(
        "gpt2", hidden_size=96, num_attention_heads=4, num_hidden_layers=3, max_position_embeddings=50
    )
    assert own == common
    assert own.num_positions == 50
    assert own.tied


def test_a_key_value_count_of_null_means_one_per_head() -> None:
    assert read("mistral").blocks[0].attention.num_kv_heads == 8
    assert read("mistral", num_key_value_heads=None).blocks[0].attention.num_kv_heads == 32
    assert read("llama", num_attention_heads=16).blocks[0].attention.num_kv_heads == 16


def test_opt_keeps_two_unused_rows_of_positions() -> None:
    assert read("opt", max_position_embeddings=100).num_positions == 102
    assert read("opt", max_position_embeddings=100).max_sequence_tokens == 100


def test_opt_350m_projects_and_ends_without_a_norm() -> None:
    architecture = read("opt", word_embed_proj_dim=512, do_layer_norm_before=False)
    assert [(x.in_width, x.out_width) for x in architecture.projection()] == [(512, 768)]
    assert architecture.final_norm is None
    assert read("opt").final_norm is not None


def windows(architecture: Architecture) -> list[int | None]:
    return [block.attention.window for block in architecture.blocks]


def test_attention_windows_follow_each_family() -> None:
    assert windows(read("mistral", num_hidden_layers=2)) == [4096, 4096]
    assert windows(read("mistral", num_hidden_layers=2, sliding_window=None)) == [None, None]
    assert windows(read("mixtral", num_hidden_layers=1)) == [None]
    assert windows(read("qwen2", num_hidden_layers=2)) == [None, None]
    on: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 7, "num_hidden_layers": 3}
    assert windows(read("qwen2", max_window_layers=1, **on)) == [None, 7, 7]
    assert windows(read("qwen3", max_window_layers=3, **on)) == [None, None, None]
    assert windows(read("qwen2_moe", max_window_layers=9, **on)) == [7, None, 7]
    assert windows(read("qwen3_moe", **on)) == [7, 7, 7]
    types = ["sliding_attention", "full_attention", "full_attention"]
    assert windows(read("qwen3", layer_types=types, **on)) == [7, None, None]


def test_sparse_blocks_stand_where_the_configuration_puts_them() -> None:
    architecture = read("qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    kinds = [isinstance(block.feed_forward, Mixture) for block in architecture.blocks]
    assert kinds == [False, True, False, False, False, True]
    without = read("qwen2_moe", num_experts=0)
    assert all(isinstance(block.feed_forward, FeedForward) for block in without.blocks)


def test_the_number_of_experts_is_read_under_both_names() -> None:
    assert read("mixtral", num_experts=4) == read("mixtral", num_local_experts=4)
    assert read("qwen3_moe", num_local_experts=16) == read("qwen3_moe", num_experts=16)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "n_embd", "n_inner", "ffn_dim",
    "num_experts", "num_experts_per_tok", "mlp_only_layers", "layer_types", "sliding_window", "vocab_size",
    "use_sliding_window", "tie_word_embeddings", "hidden_act", "dropout", "word_embed_proj_dim",
]  # fmt: skip


@given(family=st.sampled_from(FAMILIES), keys=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_any_values_are_read_or_refused_and_never_crash(family: str, keys: dict[str, object]) -> None:
    try:
        found = read(family, num_hidden_layers=2, n_layer=2, **keys).num_params
    except InputError as error:
        found = len(error.faults)
    assert found > 0
