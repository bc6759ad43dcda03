"""What can't be built is refused by name before anything is built."""

from __future__ import annotations

from typing import Any

import chain_cases as cases
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from costmodels import hf_config  # noqa: E402
from executors.training.chain import Chain  # noqa: E402
from executors.training.families import FAMILIES  # noqa: E402
from policies.errors import InputError  # noqa: E402

pytestmark = pytest.mark.deepspeed


def refusal(**changes: Any) -> InputError:
    name = changes.pop("name", "llama")
    with pytest.raises(InputError) as refused:
        Chain(cases.spec_of(name, **changes))
    return refused.value


def test_every_family_that_can_be_planned_can_be_built() -> None:
    assert FAMILIES.keys() == hf_config._FAMILIES.keys()
    assert {config["model_type"] for config in cases.CONFIGS.values()} == FAMILIES.keys()


def test_an_unknown_family_is_refused_with_those_known() -> None:
    error = refusal(config={"model_type": "mamba"})
    assert error.code == "model-not-built"
    assert "mamba" in error.message
    assert "gpt_neox, llama, mistral" in error.message


def test_fp16_is_refused_without_a_gpu() -> None:
    if torch.cuda.is_available():
        Chain(cases.spec_of("llama", dtype="fp16"))
    else:
        error = refusal(dtype="fp16")
        assert error.code == "fp16-on-cpu"
        assert error.hint


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("gpt2", "add_cross_attention", True),
        ("opt", "layerdrop", 0.1),
        ("mixtral", "output_router_logits", True),
        ("qwen2_moe", "output_router_logits", True),
        ("qwen3_moe", "output_router_logits", True),
        ("llama", "quantization_config", {"quant_method": "gptq", "bits": 4}),
    ],
)
def test_settings_that_can_not_be_trained_are_refused(name: str, setting: str, value: object) -> None:
    error = refusal(config={**cases.CONFIGS[name], setting: value})
    assert error.code == "model-not-built"
    assert [fault.place for fault in error.faults] == [setting]


@pytest.mark.parametrize("name", cases.MIXTURES)
def test_adapters_on_stacked_experts_are_refused(name: str) -> None:
    error = refusal(name=name, rank=3, targets=("q", "up"))
    assert error.code == "model-not-built"
    assert "q, k, v, o" in error.message


def test_adapters_on_a_mixture_without_experts_are_those_of_a_dense_model() -> None:
    config = {**cases.CONFIGS["qwen2_moe"], "mlp_only_layers": [0, 1]}
    layer = Chain(cases.spec_of("qwen2_moe", rank=3, targets=("up",), config=config)).build(1)
    assert any("up_proj.lora_A" in name for name, _ in layer.named_parameters())


def test_targets_that_a_family_lacks_are_refused_when_nothing_is_left() -> None:
    error = refusal(name="gpt2", rank=3, targets=("gate",))
    assert error.code == "model-not-built"
    assert "q, k, v, o, up, down" in error.message


def test_layers_outside_the_chain_are_refused() -> None:
    chain = Chain(cases.spec_of("llama"))
    for i in (-1, 4):
        with pytest.raises(IndexError, match="of a chain of 4"):
            chain.build(i)
