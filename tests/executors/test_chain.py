"""The chain is the whole model of transformers, cut in layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chain_cases as cases
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from executors.training.chain import Chain, token_loss  # noqa: E402

pytestmark = pytest.mark.deepspeed


def tokens_of(seed: int = 1, num_tokens: int = cases.TOKENS) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, cases.VOCAB, (2, num_tokens), generator=generator)


def give_adapters_weight(layers: Sequence[Any]) -> None:
    """PEFT starts the second adapter matrix at zero, which would hide the first one."""
    generator = torch.Generator().manual_seed(5)
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3, generator=generator)


@pytest.mark.parametrize("rank", [0, 3], ids=["full", "adapters"])
@pytest.mark.parametrize("name", cases.CONFIGS)
def test_logits_and_gradients_equal_those_of_the_whole_model(name: str, rank: int) -> None:
    chain = Chain(cases.spec_of(name, rank=rank))
    layers = cases.built(chain)
    give_adapters_weight(layers)
    model = cases.whole_model(chain, layers)
    tokens, labels = tokens_of(), tokens_of(2)
    logits = cases.run(layers, tokens)
    expected = model(tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    token_loss(logits, labels).backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten()).backward()
    compare_gradients(chain, layers, cases.gradients_by_name(model))


def compare_gradients(chain: Chain, layers: Sequence[Any], expected: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        for own, parameter in layer.named_parameters():
            if parameter.requires_grad:
                home = chain.tied is not None and own == chain.tied_parameter(i)
                name = chain.checkpoint_name(0, "words.weight") if home else chain.checkpoint_name(i, own)
                # A tied weight's gradient is the sum over both places where it is used.
                found[name] = found.get(name, 0) + parameter.grad
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen2_moe", "qwen3_moe"])
def test_a_sliding_window_matters_once_the_sequence_is_longer(name: str) -> None:
    chain = Chain(cases.spec_of(name))
    layers = cases.built(chain)
    tokens = tokens_of()
    logits = cases.run(layers, tokens)
    for layer in layers[1:-1]:
        layer.window = None
    assert not torch.allclose(cases.run(layers, tokens), logits, atol=1e-3)
    window = 4
    short = tokens[:, :window]
    unlimited = cases.run(layers, short)
    for layer in layers[1:-1]:
        layer.window = window
    assert torch.equal(cases.run(layers, short), unlimited)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_windows_are_those_the_planner_prices(name: str) -> None:
    from costmodels.model import read_architecture

    chain = Chain(cases.spec_of(name))
    planned = [block.attention.window for block in read_architecture(cases.CONFIGS[name]).blocks]
    assert [chain.without_weights(i).window for i in range(1, chain.num_layers - 1)] == planned


@pytest.mark.parametrize(
    ("rank", "targets"),
    [(0, ()), (3, ("q",)), (3, ("o",)), (3, ("v", "down")), (5, ("q", "k", "v", "o", "gate", "up", "down"))],
)
@pytest.mark.parametrize("name", cases.CONFIGS)
def test_trained_and_held_weights_are_those_the_planner_counts(
    name: str, rank: int, targets: tuple[str, ...]
) -> None:
    if name in cases.MIXTURES:
        targets = tuple(target for target in targets if target in "qkvo")
    spec = cases.spec_of(name, rank=rank, targets=targets)
    chain = Chain(spec)
    planned = cases.workload_of(spec).layers
    for i, layer in enumerate(cases.built(chain)):
        parameters = list(layer.parameters())
        assert sum(p.numel() for p in parameters) == planned[i].params
        assert sum(p.numel() for p in parameters if p.requires_grad) == planned[i].trainable_params
        assert (chain.tied == (0, i)) == (planned[i].tied_to == 0)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_both_copies_of_a_tied_weight_begin_equal(name: str) -> None:
    chain = Chain(cases.spec_of(name))
    first, last = chain.build(0), chain.build(chain.num_layers - 1)
    names = chain.tied_parameter(0), chain.tied_parameter(chain.num_layers - 1)
    equal = torch.equal(first.words.weight, last.output.weight)
    if chain.tied is None:
        assert names == (None, None)
        assert not equal
    else:
        assert equal
        assert first.get_parameter(names[0]) is first.words.weight
        assert last.get_parameter(names[1]) is last.output.weight
    assert chain.tied_parameter(1) is None


@pytest.mark.parametrize("rank", [0, 3], ids=["full", "adapters"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-projected", "mixtral"])
def test_weights_depend_on_seed_and_layer_alone(name: str, rank: int) -> None:
    spec = cases.spec_of(name, rank=rank)
    layers = cases.built(Chain(spec))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    again = [Chain(spec).build(i) for i in reversed(range(4))][::-1]
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(layers, again, strict=True):
        for (own, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(a, b), own
    other_seed = Chain(cases.spec_of(name, rank=rank, seed=8)).build(1)
    key = ".lora_A." if rank else "layer."
    pairs = zip(layers[1].named_parameters(), other_seed.named_parameters(), strict=True)
    assert any(key in own and a.ndim > 1 and not torch.equal(a, b) for (own, a), (_, b) in pairs)
    if layers[1].state_dict().keys() == layers[2].state_dict().keys():
        neighbours = zip(layers[1].named_parameters(), layers[2].parameters(), strict=True)
        random = [(a, b) for (own, a), b in neighbours if key in own and float(a.detach().std()) > 0]
        assert random
        assert not any(torch.equal(a, b) for a, b in random)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_every_weight_is_drawn_as_transformers_draws_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.Module.to_empty

    def filled(module: Any, **where: Any) -> Any:
        real(module, **where)
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
        return module

    monkeypatch.setattr(torch.nn.Module, "to_empty", filled)
    chain = Chain(cases.spec_of(name))
    layers = cases.built(chain)
    torch.manual_seed(0)
    from transformers import AutoModelForCausalLM

    expected = dict(AutoModelForCausalLM.from_config(chain.config, dtype=torch.float32).named_parameters())
    for i, layer in enumerate(layers):
        for own, parameter in layer.requires_grad_(False).named_parameters():
            name_there = chain.checkpoint_name(i, own)
            if chain.tied_parameter(i) == own:
                name_there = chain.checkpoint_name(0, "words.weight")
            theirs = expected[name_there].detach()
            assert parameter.shape == theirs.shape
            assert bool(parameter.isfinite().all()), own
            if float(theirs.std()) == 0.0:
                assert torch.equal(parameter, theirs), own
            else:
                assert float(parameter.std()) == pytest.approx(float(theirs.std()), rel=0.25), own


def test_bf16_holds_weights_and_adapters_in_bf16_and_stays_near_fp32() -> None:
    single = cases.built(Chain(cases.spec_of("llama", rank=3)))
    half = cases.built(Chain(cases.spec_of("llama", rank=3, dtype="bf16")))
    for one, other in zip(single, half, strict=True):
        for (own, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            assert b.dtype == torch.bfloat16
            assert torch.equal(a.to(torch.bfloat16), b), own
    tokens = tokens_of()
    loss, near = (token_loss(cases.run(layers, tokens), tokens).detach() for layers in (single, half))
    assert near.dtype == torch.float32
    assert float(near) == pytest.approx(float(loss), rel=0.02)


def test_casting_the_layers_leaves_rotary_angles_in_full_precision() -> None:
    chain = Chain(cases.spec_of("llama"))
    layer = chain.build(1)
    hidden = torch.randn((1, 64, 32), generator=torch.Generator().manual_seed(0))
    before = layer(hidden)
    layer.bfloat16()
    layer.float()
    fresh = Chain(cases.spec_of("llama")).build(1)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer(hidden), fresh(hidden))
    assert not torch.equal(layer(hidden), before)
    assert not any("inv_freq" in name for name, _ in layer.named_buffers())


def test_evaluating_first_does_not_spoil_training() -> None:
    layers = cases.built(Chain(cases.spec_of("mistral")))
    tokens = tokens_of()
    with torch.inference_mode():
        cases.run(layers, tokens)
    token_loss(cases.run(layers, tokens), tokens).backward()
    assert layers[0].words.weight.grad is not None


def test_the_loss_is_the_mean_over_all_tokens_in_fp32() -> None:
    logits = torch.randn((2, 3, 5), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    labels = torch.tensor([[0, 1, 2], [3, 4, 0]])
    exact = logits.double()
    by_hand = -sum(exact[b, t].log_softmax(-1)[labels[b, t]] for b in range(2) for t in range(3)) / 6
    loss = token_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-6)
