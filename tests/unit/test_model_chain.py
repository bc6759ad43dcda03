"""The layer chain: both ends, kinds, ties, limits, and chains given layer by layer."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.model import build_workload, read_architecture, workload_from_layers
from costmodels.workload import Job, LayerSpec, Workload
from policies.errors import InputError


def chain(job: Job | None = None, **config: object) -> Workload:
    return build_workload(read_architecture(config), job or Job(sequence_tokens=1024), "model")


def test_a_chain_runs_from_embedding_over_blocks_to_the_loss() -> None:
    workload = chain(model_type="llama")
    assert [layer.kind for layer in workload.layers] == ["embedding", *["dense-block"] * 32, "head"]
    assert workload.num_params == 6_738_415_616
    assert workload.model_name == "model"
    assert all(layer.trainable_params == layer.params for layer in workload.layers)


def test_what_a_layer_sends_is_what_the_next_one_takes() -> None:
    for family in ("llama", "gpt2", "opt", "qwen2_moe"):
        layers = chain(model_type=family).layers
        for before, after in pairwise(layers):
            assert before.output_bytes_per_token == after.input_bytes_per_token
        assert layers[-1].output_bytes_per_token == 0.0


def test_the_head_holds_logits_in_three_copies_while_it_runs() -> None:
    for dtype, width in (("bf16", 2), ("fp32", 4)):
        head = chain(Job(dtype=dtype, sequence_tokens=8), model_type="llama").layers[-1]
        assert head.transient_bytes_per_token == 32000 * (width + 4 + 4)
        assert head.forward_flops_per_token == 2 * 32000 * 4096


def test_the_head_keeps_its_norm_output_only_when_its_matrix_is_trained() -> None:
    full = chain(model_type="llama").layers[-1]
    frozen = chain(Job(adapter_rank=4, sequence_tokens=8), model_type="llama").layers[-1]
    # The norm keeps its input in fp32 and, trained, its normalised input; the matrix its own input.
    assert full.activation_bytes_per_token == (4 + 2) * 4096 + 4 + 2 * 4096
    assert frozen.activation_bytes_per_token == 4 * 4096 + 4
    assert frozen.trainable_params == 0


def test_a_tied_head_points_at_the_embedding_and_holds_the_shared_matrix() -> None:
    architecture = read_architecture({"model_type": "gpt2"})
    layers = build_workload(architecture, Job(sequence_tokens=1024), "gpt2").layers
    assert layers[-1].tied_to == 0
    assert layers[0].params == 50257 * 768 + 1024 * 768
    assert layers[-1].params == 50257 * 768 + 2 * 768
    once = sum(layer.params for layer in layers) - 50257 * 768
    assert once == architecture.num_params == 124_439_808


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "opt"])
def test_a_chain_counts_every_weight_once(family: str, tied: bool) -> None:
    config = {"model_type": family, "num_hidden_layers": 2, "n_layer": 2, "tie_word_embeddings": tied}
    architecture = read_architecture(config)
    workload = build_workload(architecture, Job(sequence_tokens=64), family)
    assert workload.num_params == architecture.num_params
    assert workload.layers[-1].shared_trainable_params == (architecture.matrix_params if tied else 0)
    frozen = build_workload(architecture, Job(sequence_tokens=64, adapter_rank=4), family)
    assert frozen.layers[-1].shared_trainable_params == 0


def test_opt_350m_projects_at_both_ends() -> None:
    layers = chain(
        model_type="opt",
        hidden_size=1024,
        num_attention_heads=16,
        num_hidden_layers=1,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    ).layers
    assert layers[0].params == 50272 * 512 + 2050 * 1024 + 512 * 1024
    assert layers[0].forward_flops_per_token == 2 * 512 * 1024
    assert layers[-1].forward_flops_per_token == 2 * 512 * 1024 + 2 * 50272 * 512
    # Token and position numbers, looked-up vectors; the head keeps its input and its matrix's input.
    assert layers[0].activation_bytes_per_token == 8 + 8 + 2 * 512
    assert layers[-1].activation_bytes_per_token == 2 * 1024 + 2 * 512


SMALL = st.fixed_dictionaries(
    {
        "hidden_size": st.just(64),
        "num_attention_heads": st.sampled_from([2, 4, 8]),
        "num_hidden_layers": st.integers(1, 8),
        "use_sliding_window": st.booleans(),
        "sliding_window": st.integers(1, 64),
        "max_window_layers": st.integers(0, 8),
        "decoder_sparse_step": st.integers(1, 3),
    }
)


@given(
    config=SMALL,
    family=st.sampled_from(["qwen2", "qwen2_moe"]),
    tokens=st.integers(1, 64),
    rank=st.sampled_from([0, 4]),
)
def test_kinds_are_equal_exactly_where_layers_are(
    config: dict[str, object], family: str, tokens: int, rank: int
) -> None:
    job = Job(sequence_tokens=tokens, adapter_rank=rank)
    layers = chain(job, model_type=family, num_key_value_heads=2, **config).layers
    for a in layers:
        assert a.input_bytes_per_token <= a.activation_bytes_per_token
        assert 0 <= a.trainable_params <= a.params
        for b in layers:
            assert (a.kind == b.kind) == (astuple(replace(a, kind="")) == astuple(replace(b, kind="")))


def test_a_window_that_no_sequence_fills_makes_no_kind_of_its_own() -> None:
    config = {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 512,
        "max_window_layers": 16,
    }
    assert {layer.kind for layer in chain(Job(sequence_tokens=512), **config).layers[1:-1]} == {"dense-block"}
    kinds = [layer.kind for layer in chain(Job(sequence_tokens=513), **config).layers[1:-1]]
    assert kinds == ["dense-block"] * 16 + ["dense-block-2"] * 16


def test_mixtures_count_experts_apart() -> None:
    layer = chain(model_type="mixtral").layers[1]
    assert layer.kind == "mixture-block"
    assert layer.expert_params == 8 * 3 * 4096 * 14336
    assert layer.params - layer.expert_params == 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 4096 + 2 * 4096
    adapted = chain(Job(adapter_rank=2, sequence_tokens=8), model_type="mixtral").layers[1]
    assert adapted.expert_params - layer.expert_params == 8 * 2 * 3 * (4096 + 14336)


def test_tensor_parallel_degrees_divide_heads_and_vocabulary() -> None:
    llama = chain(model_type="llama", num_key_value_heads=8).layers
    assert [layer.tensor_parallel_max for layer in (llama[0], llama[1], llama[-1])] == [64, 8, 64]
    gpt2 = chain(model_type="gpt2").layers
    assert [layer.tensor_parallel_max for layer in (gpt2[0], gpt2[1], gpt2[-1])] == [1, 4, 1]
    assert chain(model_type="gpt_neox").layers[1].num_collectives == 1


def faults_of(**changes: object) -> dict[str, str]:
    config = changes.pop("config", {"model_type": "gpt2"})
    targets = changes.pop("targets", ("q",))
    with pytest.raises(InputError) as caught:
        build_workload(read_architecture(config), Job(**changes), "m", targets=targets)  # type: ignore[arg-type]
    assert caught.value.code == "bad-job"
    return {fault.place: fault.limit for fault in caught.value.faults}


def test_a_job_the_model_cannot_take_is_refused_with_every_fault() -> None:
    faults = faults_of(sequence_tokens=1025, dtype="int8", adapter_rank=-1, targets=("q", "lm_head"))
    assert set(faults) == {"job.sequence_tokens", "job.dtype", "job.adapter_rank", "job.targets"}
    assert "1024" in faults["job.sequence_tokens"]
    assert set(faults_of(sequence_tokens=0)) == {"job.sequence_tokens"}


def test_targets_that_a_family_lacks_are_passed_over_but_some_must_exist() -> None:
    job = Job(sequence_tokens=64, adapter_rank=4)
    architecture = read_architecture({"model_type": "gpt2"})
    with_gate = build_workload(architecture, job, "m", targets=("gate", "up"))
    assert with_gate == build_workload(architecture, job, "m", targets=("up",))
    faults = faults_of(sequence_tokens=64, adapter_rank=4, targets=("gate",))
    assert faults["job.targets"] == "at least one of q, k, v, o, up, down"
    assert set(faults_of(sequence_tokens=64, adapter_rank=4, targets=())) == {"job.targets"}


def test_rotary_positions_reach_beyond_the_length_trained_with() -> None:
    job = Job(sequence_tokens=9000)
    assert chain(job, model_type="llama", max_position_embeddings=2048).job.sequence_tokens == 9000


LAYER = LayerSpec(
    kind="a",
    params=10,
    trainable_params=10,
    forward_flops_per_token=20.0,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=4.0,
    output_bytes_per_token=4.0,
)


def test_explicit_layers_become_a_chain() -> None:
    tied = replace(LAYER, kind="b", tied_to=0, shared_params=10)
    workload = workload_from_layers("mine", [LAYER, LAYER, tied], Job())
    assert workload.layers == (LAYER, LAYER, tied)
    assert workload.num_params == 20


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        ([], {"layers"}),
        ([replace(LAYER, params=-1)], {"layers[0].params"}),
        ([LAYER, replace(LAYER, kind="b", trainable_params=11)], {"layers[1].trainable_params"}),
        ([replace(LAYER, expert_params=11)], {"layers[0].expert_params"}),
        ([replace(LAYER, forward_flops_per_token=float("nan"))], {"layers[0].forward_flops_per_token"}),
        ([replace(LAYER, output_bytes_per_token=float("inf"))], {"layers[0].output_bytes_per_token"}),
        ([replace(LAYER, input_bytes_per_token=9.0)], {"layers[0].input_bytes_per_token"}),
        ([replace(LAYER, tensor_parallel_max=0)], {"layers[0].tensor_parallel_max"}),
        ([replace(LAYER, tied_to=0)], {"layers[0].tied_to"}),
        ([LAYER, replace(LAYER, kind="b", tied_to=1)], {"layers[1].tied_to"}),
        ([LAYER, replace(LAYER, kind="b", tied_to=-1)], {"layers[1].tied_to"}),
        ([replace(LAYER, shared_params=1)], {"layers[0].shared_params"}),
        ([LAYER, replace(LAYER, kind="b", tied_to=0, shared_params=11)], {"layers[1].shared_params"}),
        ([LAYER, replace(LAYER, params=12)], {"layers[1].kind"}),
        ([LAYER, replace(LAYER, kind="b", num_collectives=-2, tied_to=7)],
         {"layers[1].num_collectives", "layers[1].tied_to"}),
    ],
)  # fmt: skip
def test_explicit_layers_out_of_range_are_refused_by_place(layers: list[LayerSpec], places: set[str]) -> None:
    with pytest.raises(InputError) as caught:
        workload_from_layers("mine", layers, Job())
    assert caught.value.code == "bad-layers"
    assert {fault.place for fault in caught.value.faults} == places
