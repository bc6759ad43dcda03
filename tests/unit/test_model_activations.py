"""Work and activation bytes per token, against published formulas and against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.activations import (
    Trained,
    attention_flops_per_token,
    block_activation_bytes_per_token,
    block_flops_per_token,
    mean_context_tokens,
)
from costmodels.architecture import ALL_TARGETS, Block, Target
from costmodels.model import read_architecture

FULL = Trained(dtype_bytes=2, adapter_rank=0, targets=ALL_TARGETS)
FUSED = replace(FULL, fused_kernels=True)


def block_of(model_type: str, **keys: object) -> Block:
    return read_architecture({"model_type": model_type} | keys).blocks[0]


def lora(rank: int, *targets: Target) -> Trained:
    return Trained(dtype_bytes=2, adapter_rank=rank, targets=targets, fused_kernels=True)


@given(sequence=st.integers(1, 300), window=st.none() | st.integers(1, 400))
def test_mean_context_is_the_mean_of_what_each_token_sees(sequence: int, window: int | None) -> None:
    seen = [t if window is None else min(t, window) for t in range(1, sequence + 1)]
    assert mean_context_tokens(sequence, window) == pytest.approx(sum(seen) / sequence)


def test_causal_attention_is_half_of_what_the_mask_less_formula_counts() -> None:
    # Narayanan et al. 2021 count 4 s h operations per token and block for scores and weighted sum.
    attention = block_of("llama").attention
    sequence = 8191
    unmasked = 4 * 4096 * sequence
    assert attention_flops_per_token(attention, sequence) == unmasked / 2 * (sequence + 1) / sequence


def test_work_of_a_block_is_twice_its_active_weights_and_attention() -> None:
    block = block_of("llama")
    weights = 4 * 4096 * 4096 + 3 * 4096 * 11008
    assert block_flops_per_token(block, FULL, 1) == 2 * weights + 4 * 4096


def test_a_mixture_counts_only_the_experts_a_token_passes() -> None:
    block = block_of("mixtral")
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    active = attention + 4096 * 8 + 2 * 3 * 4096 * 14336
    assert block_flops_per_token(block, FULL, 1) == 2 * active + 4 * 4096


@pytest.mark.parametrize(
    ("config", "published"),
    [
        # Published counts of active weights, embedding and output matrix included.
        ({"model_type": "mixtral"}, 12.9e9),
        (
            {
                "model_type": "qwen3_moe",
                "hidden_size": 2048,
                "num_hidden_layers": 48,
                "num_key_value_heads": 4,
                "head_dim": 128,
            },
            3.3e9,
        ),
        ({"model_type": "qwen2_moe"}, 2.7e9),
    ],
)
def test_active_weights_agree_with_the_published_ones(config: dict[str, object], published: float) -> None:
    architecture = read_architecture(config)
    blocks = sum(sum(x.flops_per_token for x in block.linears()) / 2 for block in architecture.blocks)
    assert blocks + 2 * architecture.matrix_params == pytest.approx(published, rel=0.03)


def test_a_gpt_block_keeps_34_bytes_per_unit_of_width() -> None:
    # Korthikanti et al., section 4.1: 34 s b h without the attention matrix; flash attention keeps one fp32
    # number per head, and each of two layer norms two of them per token.
    block = block_of("gpt2", n_embd=1024, n_head=16)
    assert block_activation_bytes_per_token(block, FUSED) == 34 * 1024 + 4 * 16 + 2 * 8


def test_gelu_new_step_by_step_keeps_three_more_inner_tensors() -> None:
    block = block_of("gpt2", n_embd=1024, n_head=16)
    more = block_activation_bytes_per_token(block, FULL) - block_activation_bytes_per_token(block, FUSED)
    assert more == 2 * 3 * 4096


def test_without_dropout_both_masks_go() -> None:
    block = block_of("gpt2", n_embd=1024, n_head=16, resid_pdrop=0.0)
    assert block_activation_bytes_per_token(block, FUSED) == 32 * 1024 + 4 * 16 + 2 * 8


def test_a_llama_block_keeps_what_counting_by_hand_gives() -> None:
    # Norm inputs and outputs 4 h; query and attention output 2 h; key and value 2 x h/4; inner 4 x 14336.
    block = block_of("llama", intermediate_size=14336, num_key_value_heads=8)
    numbers = 4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336
    assert block_activation_bytes_per_token(block, FUSED) == 2 * numbers + 4 * 32 + 2 * 4
    # Step by step each of two norms keeps its input in four bytes and its normalised input in two.
    assert block_activation_bytes_per_token(block, FULL) == 2 * numbers + 4 * 32 + 2 * 4 + 2 * 4 * 4096


@pytest.mark.parametrize(
    ("family", "keys", "fused", "measured"),
    [
        # Bytes per token and block that autograd keeps, by torch 2.15.0 and transformers 5.23.0, as the
        # difference between four and two blocks (storages, parameters left out). Layer norm statistics are
        # corrected from the processor's 2 bytes to the 4 of a GPU; no dropout, since masks differ likewise.
        ("llama", {"num_attention_heads": 4}, False, 12_312),
        ("llama", {"num_attention_heads": 4}, True, 10_264),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}, True, 9_752),
        ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}, True, 11_320),
        (
            "gpt2",
            {"n_embd": 256, "n_head": 4, "activation_function": "gelu", "resid_pdrop": 0.0},
            False,
            8_224,
        ),
    ],
)
def test_kept_bytes_are_what_autograd_keeps(
    family: str, keys: dict[str, object], fused: bool, measured: int
) -> None:
    sizes = {} if family == "gpt2" else {"hidden_size": 256, "intermediate_size": 768}
    block = block_of(family, **sizes, **keys)
    assert block_activation_bytes_per_token(block, FUSED if fused else FULL) == measured


def test_kept_bytes_of_adapters_are_what_autograd_keeps() -> None:
    # As above, with peft 0.21.2 and adapters of rank 8.
    block = block_of("llama", num_attention_heads=4, hidden_size=256, intermediate_size=768)
    assert block_activation_bytes_per_token(block, lora(8, *ALL_TARGETS)) == 10_376
    assert block_activation_bytes_per_token(block, lora(8, "q", "v")) == 8_248


def test_a_relu_block_keeps_no_input_of_the_activation_function() -> None:
    relu, gelu = block_of("opt"), block_of("opt", activation_function="gelu")
    saved = block_activation_bytes_per_token(gelu, FULL) - block_activation_bytes_per_token(relu, FULL)
    assert saved == 2 * 3072


def test_parallel_branches_share_the_input_of_their_norms() -> None:
    parallel = block_of("gpt_neox")
    saved = block_activation_bytes_per_token(replace(parallel, parallel=False), FULL)
    assert saved - block_activation_bytes_per_token(parallel, FULL) == 2 * 6144


def test_a_rotary_fused_matrix_is_held_whole_beside_the_turned_queries_and_keys() -> None:
    block = block_of("gpt_neox")
    plain = replace(block, attention=replace(block.attention, rotary=False))
    more = block_activation_bytes_per_token(block, FULL) - block_activation_bytes_per_token(plain, FULL)
    assert more == 2 * 2 * 6144


def test_head_norms_keep_their_inputs_and_statistics() -> None:
    block = block_of("qwen3")
    plain = replace(block, attention=replace(block.attention, head_norm=None))
    more = block_activation_bytes_per_token(block, FUSED) - block_activation_bytes_per_token(plain, FUSED)
    assert more == 2 * (32 * 128 + 32 * 128) + 4 * 64
    more = block_activation_bytes_per_token(block, FULL) - block_activation_bytes_per_token(plain, FULL)
    assert more == (4 + 2) * (32 * 128 + 32 * 128) + 4 * 64


def test_frozen_norms_do_not_keep_their_normalised_input() -> None:
    block = block_of("llama")
    stepwise = replace(lora(8, *ALL_TARGETS), fused_kernels=False)
    fused = block_activation_bytes_per_token(block, lora(8, *ALL_TARGETS))
    assert block_activation_bytes_per_token(block, stepwise) - fused == 2 * (4 - 2) * 4096


def test_a_mixture_keeps_inner_tensors_once_per_expert_passed() -> None:
    block = block_of("mixtral", num_local_experts=8, num_experts_per_tok=2)
    attention_side = 4 * 4096 + 2 * 4096 + 2 * 1024
    experts = 2 * (2 * 4096 + 4 * 14336)
    statistics = 4 * 32 + 2 * 4 + 4 * (8 + 2)
    assert block_activation_bytes_per_token(block, FUSED) == 2 * (attention_side + experts) + statistics


def test_a_shared_expert_keeps_its_own_tensors() -> None:
    block = block_of("qwen2_moe")
    attention_side = 4 * 2048 + 4 * 2048
    experts = 4 * (2 * 2048 + 4 * 1408)
    shared = 4 * 5632 + 2048 + 1
    statistics = 4 * 16 + 2 * 4 + 4 * (60 + 4)
    assert (
        block_activation_bytes_per_token(block, FUSED) == 2 * (attention_side + experts + shared) + statistics
    )


def test_frozen_matrices_keep_no_inputs_but_what_adapters_need() -> None:
    block = block_of("llama")
    full = block_activation_bytes_per_token(block, FUSED)
    # Adapters on query and value need the first norm's output; the second norm's and the product are free.
    freed = 2 * (4096 + 11008) - 2 * (8 + 8)
    assert block_activation_bytes_per_token(block, lora(8, "q", "v")) == full - freed
    everywhere = block_activation_bytes_per_token(block, lora(8, *ALL_TARGETS))
    assert everywhere == full + 2 * 8 * 7
    only_output = block_activation_bytes_per_token(block, lora(8, "o"))
    assert only_output == full - 2 * (2 * 4096 + 11008) + 2 * 8


THREE_BLOCKS = (block_of("llama"), block_of("gpt2"), block_of("qwen2_moe"))


@given(rank=st.integers(1, 64), targets=st.sets(st.sampled_from(ALL_TARGETS), min_size=1))
def test_every_adapter_adds_to_the_bytes_kept_and_the_work(rank: int, targets: set[Target]) -> None:
    for block in THREE_BLOCKS:
        fewer = lora(rank, *sorted(targets))
        all_of_them = lora(rank, *ALL_TARGETS)
        assert block_activation_bytes_per_token(block, fewer) <= block_activation_bytes_per_token(
            block, all_of_them
        )
        assert block_flops_per_token(block, fewer, 64) <= block_flops_per_token(block, all_of_them, 64)
        # Whatever is frozen, the gradient still passes through: the block's own input is always kept.
        assert block_activation_bytes_per_token(block, fewer) > 2 * block.attention.width
