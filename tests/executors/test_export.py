"""What is exported loads in transformers and PEFT, and computes what was trained."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chain_cases as cases
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from executors.training.chain import Chain, token_loss  # noqa: E402
from executors.training.export import write_adapter, write_base, write_model  # noqa: E402
from policies.errors import ExecutorFailedError, InputError  # noqa: E402

pytestmark = pytest.mark.deepspeed

ABOUT = {"plan_sha256": "0" * 64, "step": 3}


def trained(chain: Chain) -> tuple[list[Any], dict[int, dict[str, Any]]]:
    """Layers with changed weights, and their states as an engine hands them over."""
    layers = cases.built(chain)
    generator = torch.Generator().manual_seed(11)
    states: dict[int, dict[str, Any]] = {}
    for i, layer in enumerate(layers):
        for own, parameter in layer.named_parameters():
            if parameter.requires_grad and own != (chain.tied_parameter(i) if i else None):
                change = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.data.add_(change.to(parameter.dtype))
                state = states.setdefault(i, {})
                state[f"weight:{own}"] = parameter.detach().float().clone()
                state[f"exp_avg:{own}"] = torch.zeros(parameter.shape)
    if chain.tied is not None and chain.spec.full:
        layers[-1].output.weight.data.copy_(layers[0].words.weight.data)
    return layers, states


def loss_of(model: Any, tokens: Any) -> float:
    with torch.no_grad():
        return float(token_loss(model(tokens).logits, tokens.roll(-1, 1)))


def chain_loss(layers: Sequence[Any], tokens: Any) -> float:
    for layer in layers:
        layer.eval()
    with torch.no_grad():
        return float(token_loss(cases.run(layers, tokens), tokens.roll(-1, 1)))


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


def load_adapter(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft asks transformers for a property under its old name.
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(load(base), folder).eval()


@pytest.fixture
def tokens() -> Any:
    return torch.randint(0, cases.VOCAB, (3, cases.TOKENS), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_a_trained_model_loads_and_has_the_same_loss(name: str, tmp_path: Path, tokens: Any) -> None:
    chain = Chain(cases.spec_of(name))
    layers, states = trained(chain)
    write_model(tmp_path / "model", chain.spec, states, ABOUT)
    model = load(tmp_path / "model")
    assert model.dtype == torch.float32
    assert loss_of(model, tokens) == pytest.approx(chain_loss(layers, tokens), abs=1e-6)
    assert json.loads((tmp_path / "model" / "echelon.json").read_text()) == ABOUT


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_a_written_model_is_a_place_to_start_from(name: str, tmp_path: Path) -> None:
    chain = Chain(cases.spec_of(name))
    layers, states = trained(chain)
    write_model(tmp_path / "model", chain.spec, states, ABOUT)
    again = cases.built(Chain(cases.spec_of(name, seed=99, start=str(tmp_path / "model"))))
    for one, other in zip(layers, again, strict=True):
        for (own, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(a, b), own
            assert b.requires_grad


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_adapters_load_in_peft_and_merge_to_the_same_loss(name: str, tmp_path: Path, tokens: Any) -> None:
    chain = Chain(cases.spec_of(name, rank=3))
    base_loss = chain_loss(cases.built(chain), tokens)
    layers, states = trained(chain)
    write_base(tmp_path / "base", chain.spec, ABOUT)
    write_adapter(tmp_path / "adapter", chain.spec, states, ABOUT)
    write_model(tmp_path / "merged", chain.spec, states, ABOUT)
    expected = chain_loss(layers, tokens)
    assert abs(expected - base_loss) > 1e-3
    assert loss_of(load(tmp_path / "base"), tokens) == pytest.approx(base_loss, abs=1e-6)
    with_adapter = load_adapter(tmp_path / "base", tmp_path / "adapter")
    assert loss_of(with_adapter, tokens) == pytest.approx(expected, abs=1e-6)
    assert loss_of(load(tmp_path / "merged"), tokens) == pytest.approx(expected, abs=1e-5)


def test_adapters_from_a_checkpoint_folder_name_it_as_their_base(tmp_path: Path, tokens: Any) -> None:
    first = Chain(cases.spec_of("qwen3"))
    write_model(tmp_path / "start", first.spec, trained(first)[1], ABOUT)
    chain = Chain(cases.spec_of("qwen3", rank=2, start=str(tmp_path / "start")))
    layers, states = trained(chain)
    write_adapter(tmp_path / "adapter", chain.spec, states, ABOUT)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == chain.spec.start
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["r"] == 2
    assert config["lora_alpha"] == 8
    model = load_adapter(tmp_path / "start", tmp_path / "adapter")
    assert loss_of(model, tokens) == pytest.approx(chain_loss(layers, tokens), abs=1e-6)


def test_bf16_models_are_written_in_bf16(tmp_path: Path, tokens: Any) -> None:
    chain = Chain(cases.spec_of("gpt2", rank=3, dtype="bf16"))
    layers, states = trained(chain)
    write_base(tmp_path / "base", chain.spec, ABOUT)
    write_adapter(tmp_path / "adapter", chain.spec, states, ABOUT)
    write_model(tmp_path / "merged", chain.spec, states, ABOUT)
    expected = chain_loss(layers, tokens)
    merged = load(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert loss_of(merged, tokens) == pytest.approx(expected, rel=0.02)
    model = load_adapter(tmp_path / "base", tmp_path / "adapter")
    assert loss_of(model, tokens) == pytest.approx(expected, rel=0.02)


def test_adapters_are_merged_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama", rank=3, dtype="bf16"))
    states = trained(chain)[1]
    write_model(tmp_path / "merged", chain.spec, states, ABOUT)
    merged = load(tmp_path / "merged").get_parameter("model.layers.1.self_attn.q_proj.weight")
    base = chain.build(2).get_parameter("layer.self_attn.q_proj.base_layer.weight").detach().float()
    inner, outer = (states[2][f"weight:layer.self_attn.q_proj.lora_{which}.default.weight"] for which in "AB")
    expected = (base + chain.spec.adapter_alpha / 3 * outer @ inner).to(torch.bfloat16)
    assert torch.equal(merged, expected)


def test_states_are_asked_for_one_layer_at_a_time(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama"))
    states = trained(chain)[1]
    asked: list[int] = []

    class Lazy(Mapping[int, Mapping[str, Any]]):
        def __getitem__(self, layer_i: int) -> Mapping[str, Any]:
            asked.append(layer_i)
            return states[layer_i]

        def __iter__(self) -> Any:
            return iter(states)

        def __len__(self) -> int:
            return len(states)

    write_model(tmp_path / "model", chain.spec, Lazy(), ABOUT)
    assert asked == [0, 1, 2, 3]


def test_missing_and_misshapen_states_are_all_named(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    del states[1]["weight:layer.self_attn.q_proj.lora_A.default.weight"]
    states[1]["weight:layer.mlp.up_proj.lora_B.default.weight"] = torch.zeros((48, 2))
    with pytest.raises(InputError) as refused:
        write_adapter(tmp_path / "adapter", chain.spec, states, ABOUT)
    assert refused.value.code == "incomplete-states"
    assert {
        (fault.place.split("layers.")[1], fault.value, fault.limit) for fault in refused.value.faults
    } == {
        ("0.self_attn.q_proj.lora_A.weight", "missing", "shape [3, 32]"),
        ("0.mlp.up_proj.lora_B.weight", "shape [48, 2]", "shape [48, 3]"),
    }
    del states[2]
    with pytest.raises(InputError, match="layer 1: "):
        write_model(tmp_path / "model", chain.spec, states, ABOUT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_adapter, write_model])
def test_a_full_disk_leaves_nothing_half_written(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(ExecutorFailedError) as failed:
            write(tmp_path / "out", chain.spec, states, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.code == "disk-full"
    assert str(tmp_path / "out") in failed.value.message
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_our_own_folder_and_no_other(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(folder, chain.spec, states, ABOUT)
    (tmp_path / ".adapter.partial").mkdir()
    write_adapter(folder, chain.spec, states, {"step": 4})
    assert json.loads((folder / "echelon.json").read_text()) == {"step": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError) as refused:
        write_adapter(theirs, chain.spec, states, ABOUT)
    assert refused.value.code == "folder-taken"
    assert (theirs / "thesis.txt").read_text() == "years of work"


def test_the_same_states_give_the_same_bytes(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    for name in ("one", "two"):
        write_adapter(tmp_path / name, chain.spec, states, ABOUT)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "adapter_model.safetensors" in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_writer_killed_at_any_moment_leaves_a_whole_adapter(tmp_path: Path) -> None:
    import multiprocessing
    import random

    from safetensors.torch import load_file

    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    folder = tmp_path / "adapter"

    def write_forever() -> None:
        for step in range(10**6):
            write_adapter(folder, chain.spec, states, {"step": step})

    write_adapter(folder, chain.spec, states, {"step": -1})
    names = load_file(folder / "adapter_model.safetensors").keys()
    delays = random.Random(0)
    for _ in range(10):
        writer = multiprocessing.get_context("fork").Process(target=write_forever)
        with warnings.catch_warnings():
            # Threads of the parent (torch's pools) aren't used by the child.
            warnings.simplefilter("ignore", DeprecationWarning)
            writer.start()
        writer.join(delays.uniform(0.02, 0.2))
        writer.kill()
        writer.join()
        found = folder if folder.exists() else tmp_path / ".adapter.before"
        assert load_file(found / "adapter_model.safetensors").keys() == names
        assert "step" in json.loads((found / "echelon.json").read_text())
    write_adapter(folder, chain.spec, states, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_left_aside_comes_back_when_writing_fails(tmp_path: Path) -> None:
    chain = Chain(cases.spec_of("llama", rank=3))
    states = trained(chain)[1]
    write_adapter(tmp_path / "adapter", chain.spec, states, ABOUT)
    (tmp_path / "adapter").rename(tmp_path / ".adapter.before")
    with pytest.raises(TypeError):
        write_adapter(tmp_path / "adapter", chain.spec, states, {"step": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert json.loads((tmp_path / "adapter" / "echelon.json").read_text()) == ABOUT
