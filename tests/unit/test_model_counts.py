"""Exact weight counts against published ones, and against an independent count of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.architecture import Architecture
from costmodels.model import build_workload, read_architecture
from costmodels.workload import Job

MODELS = Path(__file__).resolve().parents[2] / "planner" / "examples" / "models"


def llama(
    width: int, inner: int, blocks: int, heads: int, kv: int, vocab: int = 32000, **more: object
) -> dict[str, object]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    } | more


def gpt2(width: int, blocks: int, heads: int) -> dict[str, object]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": blocks, "n_head": heads}


def pythia(width: int, blocks: int, heads: int, vocab: int = 50304) -> dict[str, object]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "vocab_size": vocab,
    }


def opt(width: int, blocks: int, heads: int, **more: object) -> dict[str, object]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
    } | more


def qwen(
    family: str, width: int, inner: int, blocks: int, heads: int, kv: int, **more: object
) -> dict[str, object]:
    vocab = {"vocab_size": 151936}
    return llama(width, inner, blocks, heads, kv) | vocab | {"model_type": family} | more


# Totals as the model hub shows for the published weights, tied matrices once.
PUBLISHED: dict[str, tuple[dict[str, object], int]] = {
    "Llama-2-7b": (llama(4096, 11008, 32, 32, 32), 6_738_415_616),
    "Llama-2-13b": (llama(5120, 13824, 40, 40, 40), 13_015_864_320),
    "Llama-2-70b": (llama(8192, 28672, 80, 64, 8), 68_976_648_192),
    "Llama-3-8B": (llama(4096, 14336, 32, 32, 8, 128256), 8_030_261_248),
    "Llama-3-70B": (llama(8192, 28672, 80, 64, 8, 128256), 70_553_706_496),
    "Llama-3.1-405B": (llama(16384, 53248, 126, 128, 8, 128256), 405_853_388_800),
    "Llama-3.2-1B": (
        llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True),
        1_235_814_400,
    ),
    "Llama-3.2-3B": (
        llama(3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True),
        3_212_749_824,
    ),
    "TinyLlama-1.1B": (llama(2048, 5632, 22, 32, 4), 1_100_048_384),
    "Yi-6B": (llama(4096, 11008, 32, 32, 4, 64000), 6_061_035_520),
    "Yi-34B": (llama(7168, 20480, 60, 56, 8, 64000), 34_388_917_248),
    "Mistral-7B-v0.1": ({"model_type": "mistral"}, 7_241_732_096),
    "Mistral-7B-v0.3": (
        {"model_type": "mistral", "vocab_size": 32768, "sliding_window": None},
        7_248_023_552,
    ),
    "Mixtral-8x7B": ({"model_type": "mixtral"}, 46_702_792_704),
    "Qwen2-0.5B": (qwen("qwen2", 896, 4864, 24, 14, 2, tie_word_embeddings=True), 494_032_768),
    "Qwen2-1.5B": (qwen("qwen2", 1536, 8960, 28, 12, 2, tie_word_embeddings=True), 1_543_714_304),
    "Qwen2-7B": (qwen("qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064), 7_615_616_512),
    "Qwen2-72B": (qwen("qwen2", 8192, 29568, 80, 64, 8, vocab_size=152064), 72_706_203_648),
    "Qwen3-4B": (qwen("qwen3", 2560, 9728, 36, 32, 8, tie_word_embeddings=True), 4_022_468_096),
    "Qwen3-8B": (qwen("qwen3", 4096, 12288, 36, 32, 8), 8_190_735_360),
    "Qwen3-32B": (qwen("qwen3", 5120, 25600, 64, 64, 8), 32_762_123_264),
    "Qwen1.5-MoE-A2.7B": ({"model_type": "qwen2_moe"}, 14_315_784_192),
    "Qwen3-30B-A3B": (
        qwen("qwen3_moe", 2048, 6144, 48, 32, 4, head_dim=128, moe_intermediate_size=768),
        30_532_122_624,
    ),
    "Qwen3-235B-A22B": (
        qwen("qwen3_moe", 4096, 12288, 94, 64, 4, head_dim=128, moe_intermediate_size=1536),
        235_093_634_560,
    ),
    "gpt2": (gpt2(768, 12, 12), 124_439_808),
    "gpt2-medium": (gpt2(1024, 24, 16), 354_823_168),
    "gpt2-large": (gpt2(1280, 36, 20), 774_030_080),
    "gpt2-xl": (gpt2(1600, 48, 25), 1_557_611_200),
    "pythia-70m": (pythia(512, 6, 8), 70_426_624),
    "pythia-160m": (pythia(768, 12, 12), 162_322_944),
    "pythia-410m": (pythia(1024, 24, 16), 405_334_016),
    "pythia-1.4b": (pythia(2048, 24, 16), 1_414_647_808),
    "pythia-6.9b": (pythia(4096, 32, 32, 50432), 6_857_302_016),
    "pythia-12b": (pythia(5120, 36, 40, 50688), 11_846_072_320),
    "gpt-neox-20b": ({"model_type": "gpt_neox"}, 20_554_567_680),
    "opt-125m": (opt(768, 12, 12), 125_239_296),
    "opt-350m": (opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False), 331_196_416),
    "opt-1.3b": (opt(2048, 24, 32), 1_315_758_080),
    "opt-2.7b": (opt(2560, 32, 32), 2_651_596_800),
    "opt-6.7b": (opt(4096, 32, 32), 6_658_473_984),
    "opt-13b": (opt(5120, 40, 40), 12_853_473_280),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_counted_exactly(name: str) -> None:
    config, published = PUBLISHED[name]
    assert read_architecture(config).num_params == published


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda path: str(path.stem))
def test_bundled_models_are_the_published_ones(path: Path) -> None:
    published = {name.lower(): count for name, (_, count) in PUBLISHED.items()}
    assert read_architecture(json.loads(path.read_text())).num_params == published[path.stem]


def test_eight_models_are_bundled() -> None:
    assert len(list(MODELS.glob("*.json"))) == 8


def rotary_tensors(c: Mapping[str, int], *, bias: tuple[int, int, int], head_norm: bool) -> int:
    """Numbers in every tensor of a rotary model, by the names of the published checkpoints."""
    h, d, q, kv = c["h"], c["d"], c["heads"] * c["d"], c["kv"] * c["d"]
    qkv_bias, o_bias, mlp_bias = bias
    tensors = {
        "embed_tokens.weight": c["vocab"] * h,
        "norm.weight": h,
        "lm_head.weight": 0 if c["tied"] else c["vocab"] * h,
    }
    for i in range(c["blocks"]):
        tensors |= {
            f"{i}.input_layernorm.weight": h,
            f"{i}.post_attention_layernorm.weight": h,
            f"{i}.q_proj.weight": q * h,
            f"{i}.k_proj.weight": kv * h,
            f"{i}.v_proj.weight": kv * h,
            f"{i}.qkv.bias": (q + 2 * kv) * qkv_bias,
            f"{i}.o_proj.weight": h * q,
            f"{i}.o_proj.bias": h * o_bias,
            f"{i}.qk_norm.weight": 2 * d * head_norm,
        }
        sparse = c["experts"] and i not in range(c["dense_below"]) and (i + 1) % c["step"] == 0
        if sparse:
            e = c["expert_inner"]
            tensors[f"{i}.gate.weight"] = c["experts"] * h
            tensors |= {f"{i}.experts.{j}": 3 * h * e for j in range(c["experts"])}
            if c["shared_inner"]:
                tensors[f"{i}.shared_expert"] = 3 * h * c["shared_inner"]
                tensors[f"{i}.shared_expert_gate.weight"] = h
        else:
            tensors[f"{i}.mlp"] = 3 * h * c["inner"] + mlp_bias * (2 * c["inner"] + h)
    return sum(tensors.values())


SIZES = st.fixed_dictionaries(
    {
        "kv": st.integers(1, 4),
        "groups": st.integers(1, 3),
        "d": st.integers(1, 9),
        "h": st.integers(1, 40),
        "inner": st.integers(1, 50),
        "blocks": st.integers(1, 6),
        "vocab": st.integers(1, 99),
        "tied": st.booleans(),
        "experts": st.integers(1, 5),
        "expert_inner": st.integers(1, 20),
        "shared_inner": st.integers(1, 20),
        "step": st.integers(1, 3),
        "dense_below": st.integers(0, 3),
        "bias": st.booleans(),
    }
)


def rotary_config(family: str, c: dict[str, int]) -> dict[str, object]:
    return {
        "model_type": family,
        "hidden_size": c["h"],
        "intermediate_size": c["inner"],
        "num_hidden_layers": c["blocks"],
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv"],
        "head_dim": c["d"],
        "vocab_size": c["vocab"],
        "tie_word_embeddings": bool(c["tied"]),
    }


@given(drawn=SIZES, family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
def test_dense_rotary_counts_equal_the_sum_of_all_tensors(drawn: dict[str, int], family: str) -> None:
    c = drawn | {"heads": drawn["kv"] * drawn["groups"], "experts": 0}
    config = rotary_config(family, c)
    bias = (0, 0, 0)
    if family in ("llama", "qwen3"):
        config["attention_bias"] = bool(c["bias"])
        bias = (c["bias"], c["bias"], 0)
    if family == "llama":
        config["mlp_bias"] = bool(c["bias"])
        bias = (c["bias"], c["bias"], c["bias"])
    if family == "qwen2":
        bias = (1, 0, 0)
    assert read_architecture(config).num_params == rotary_tensors(c, bias=bias, head_norm=family == "qwen3")


@given(drawn=SIZES, family=st.sampled_from(["mixtral", "qwen2_moe", "qwen3_moe"]))
def test_mixture_counts_equal_the_sum_of_all_tensors(drawn: dict[str, int], family: str) -> None:
    c = drawn | {"heads": drawn["kv"] * drawn["groups"]}
    config = rotary_config(family, c) | {"num_experts_per_tok": 1}
    if family == "mixtral":
        config["num_local_experts"] = c["experts"]
        c |= {"expert_inner": c["inner"], "shared_inner": 0, "step": 1, "dense_below": 0}
    else:
        c["dense_below"] = min(c["dense_below"], c["blocks"])
        config |= {
            "num_experts": c["experts"],
            "moe_intermediate_size": c["expert_inner"],
            "decoder_sparse_step": c["step"],
            "mlp_only_layers": list(range(c["dense_below"])),
        }
    if family == "qwen2_moe":
        config |= {"shared_expert_intermediate_size": c["shared_inner"], "qkv_bias": bool(c["bias"])}
    elif family == "qwen3_moe":
        c["shared_inner"] = 0
    bias = (c["bias"] if family == "qwen2_moe" else 0, 0, 0)
    architecture = read_architecture(config)
    assert architecture.num_params == rotary_tensors(c, bias=bias, head_norm=family == "qwen3_moe")
    expected = 3 * c["h"] * c["expert_inner"] * c["experts"]
    counted = {layer.expert_params for layer in build_workload(architecture, Job(), "m").layers[1:-1]}
    assert counted <= {0, expected}


def adapters(architecture: Architecture, rank: int, *targets: str) -> int:
    job = Job(adapter_rank=rank, sequence_tokens=512)
    if targets:
        workload = build_workload(architecture, job, "m", targets=targets)  # type: ignore[arg-type]
    else:
        workload = build_workload(architecture, job, "m")
    return sum(layer.trainable_params for layer in workload.layers)


@pytest.mark.parametrize(
    ("name", "rank", "targets", "expected"),
    [
        ("Llama-2-7b", 8, ("q", "v"), 4_194_304),
        ("Llama-2-7b", 16, (), 39_976_960),
        ("Llama-2-7b", 64, (), 159_907_840),
        ("Llama-3-8B", 16, (), 41_943_040),
        ("Mistral-7B-v0.1", 16, (), 41_943_040),
        ("gpt2", 8, ("q", "k", "v"), 294_912),
        ("gpt2", 8, ("v",), 294_912),
        ("opt-6.7b", 8, ("q", "v"), 4_194_304),
        ("Mixtral-8x7B", 8, ("q", "v"), 8 * 32 * (4096 + 4096 + 4096 + 1024)),
        ("Mixtral-8x7B", 1, ("up",), 32 * 8 * (4096 + 14336)),
    ],
)
def test_adapters_have_the_size_that_peft_reports(
    name: str, rank: int, targets: tuple[str, ...], expected: int
) -> None:
    assert adapters(read_architecture(PUBLISHED[name][0]), rank, *targets) == expected
