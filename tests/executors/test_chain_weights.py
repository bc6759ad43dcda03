"""Weights come from a checkpoint folder as transformers writes it, and what doesn't fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chain_cases as cases
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from executors.training.chain import Chain  # noqa: E402
from policies.errors import InputError  # noqa: E402

pytestmark = pytest.mark.deepspeed


def saved_by_transformers(name: str, folder: Path, **how: Any) -> Any:
    """A model with random weights, written by transformers itself."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    chain = Chain(cases.spec_of(name))
    chain.config.use_cache = True
    model = AutoModelForCausalLM.from_config(chain.config, dtype=torch.float32)
    model.save_pretrained(folder, **how)
    return model.eval()


def rewrite(folder: Path, rename: Any) -> None:
    """Give the tensors of a whole file other names; None drops one."""
    path = folder / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    tensors.pop(None, None)
    save_file(tensors, path, metadata={"format": "pt"})


def same_logits(name: str, folder: Path, model: Any) -> None:
    tokens = torch.randint(0, cases.VOCAB, (2, cases.TOKENS), generator=torch.Generator().manual_seed(2))
    layers = cases.built(Chain(cases.spec_of(name, start=str(folder))))
    with torch.no_grad():
        torch.testing.assert_close(cases.run(layers, tokens), model(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("name", cases.CONFIGS)
def test_a_folder_of_transformers_is_read(name: str, sharded: bool, tmp_path: Path) -> None:
    model = saved_by_transformers(name, tmp_path, **({"max_shard_size": "16KB"} if sharded else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    same_logits(name, tmp_path, model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_names_without_the_models_prefix_are_understood(name: str, tmp_path: Path) -> None:
    model = saved_by_transformers(name, tmp_path)
    prefix = Chain(cases.spec_of(name)).family.prefix
    rewrite(tmp_path, lambda each: each.removeprefix(prefix))
    same_logits(name, tmp_path, model)


def test_names_of_older_files_are_understood(tmp_path: Path) -> None:
    model = saved_by_transformers("gpt_neox", tmp_path)
    rewrite(tmp_path, lambda each: each.replace("lm_head", "embed_out"))
    same_logits("gpt_neox", tmp_path, model)


def test_stacked_experts_are_read_as_well_as_single_ones(tmp_path: Path) -> None:
    model = saved_by_transformers("mixtral", tmp_path)
    assert any("w1" in name for name in load_file(tmp_path / "model.safetensors"))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    same_logits("mixtral", tmp_path, model)


def test_loaded_weights_take_the_jobs_dtype_and_are_not_tied_to_the_file(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    layer = Chain(cases.spec_of("llama", rank=3, dtype="bf16", start=str(tmp_path))).build(1)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    full = Chain(cases.spec_of("llama", start=str(tmp_path))).build(1)
    kept = [parameter.detach().clone() for parameter in full.parameters()]
    (tmp_path / "model.safetensors").write_bytes(bytes(len(before)))
    assert all(torch.equal(a, b) for a, b in zip(kept, full.parameters(), strict=True))


def test_only_the_files_of_a_layer_are_opened(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path, max_shard_size="16KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers.1." in name}
    gone = set(index.values()) - needed
    for file in gone:
        (tmp_path / file).unlink()
    chain = Chain(cases.spec_of("llama", start=str(tmp_path)))
    chain.build(2)
    with pytest.raises(InputError) as refused:
        chain.build(1)
    assert refused.value.code == "bad-weights"
    first_block = {name for name, file in index.items() if ".layers.0." in name and file in gone}
    assert {fault.place for fault in refused.value.faults} == {
        f"{tmp_path / index[name]}: {name}" for name in first_block
    }


def test_missing_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros((40, 32))
    save_file(tensors, path, metadata={"format": "pt"})
    chain = Chain(cases.spec_of("llama", start=str(tmp_path)))
    with pytest.raises(InputError) as refused:
        chain.build(1)
    assert refused.value.code == "bad-weights"
    assert {(fault.place, fault.value, fault.limit) for fault in refused.value.faults} == {
        (f"{path}: model.layers.0.self_attn.q_proj.weight", "missing", "shape [32, 32]"),
        (f"{path}: model.layers.0.mlp.up_proj.weight", "shape [40, 32]", "shape [48, 32]"),
    }
    assert "q_proj.weight: missing, expected shape [32, 32], and 1 more" in refused.value.message


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    saved_by_transformers("qwen3_moe", tmp_path)
    gone = "model.layers.0.mlp.experts.2.up_proj.weight"
    rewrite(tmp_path, lambda each: None if each == gone else each)
    with pytest.raises(InputError) as refused:
        Chain(cases.spec_of("qwen3_moe", start=str(tmp_path))).build(1)
    (fault,) = refused.value.faults
    assert fault.place.endswith(gone)
    assert fault.limit == "shape [24, 32]"


def test_an_untied_model_needs_its_output_matrix(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    rewrite(tmp_path, lambda each: None if each == "lm_head.weight" else each)
    with pytest.raises(InputError, match=r"lm_head\.weight: missing"):
        Chain(cases.spec_of("llama", start=str(tmp_path))).build(3)


def test_a_deeper_model_is_not_cut_short_in_silence(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.input_layernorm.weight"] = torch.zeros(32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.2\.input_layernorm\.weight: present"):
        Chain(cases.spec_of("llama", start=str(tmp_path))).build(1)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors") as refused:
        Chain(cases.spec_of("llama", start=str(tmp_path))).build(1)
    assert refused.value.code == "bad-weights"


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json") as refused:
        Chain(cases.spec_of("llama", start=str(tmp_path))).build(1)
    assert refused.value.code == "bad-weights"
    assert [fault.limit for fault in refused.value.faults] == ["weights as transformers writes them"]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"model\.safetensors or model\.safetensors\.index\.json"):
        Chain(cases.spec_of("llama", start=str(tmp_path))).build(1)


def test_weights_of_another_model_are_refused_before_any_is_read(tmp_path: Path) -> None:
    saved_by_transformers("llama", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 77.0
    config["rms_norm_eps"] = 1e-3
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as refused:
        Chain(cases.spec_of("llama", start=str(tmp_path)))
    assert refused.value.code == "start-of-another-model"
    assert {fault.place for fault in refused.value.faults} == {
        f"{path}: rope_parameters",
        f"{path}: rms_norm_eps",
    }
    path.write_text('{"model_type": "no-such-model"}')
    with pytest.raises(InputError, match="can't be read"):
        Chain(cases.spec_of("llama", start=str(tmp_path)))
