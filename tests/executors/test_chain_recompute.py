"""Recomputed layers compute the same and keep less; which they are is what the planner priced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import chain_cases as cases
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.chain import LayerChain
from costmodels.sizes import recompute_order
from executors.training.recompute import recomputed_layers
from policies.errors import InputError

NAMES = sorted(cases.CONFIGS)


@given(
    name=st.sampled_from(NAMES),
    rank=st.sampled_from([0, 3]),
    ends=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda ends: ends[0] < ends[1]),
)
def test_the_planners_order_of_kinds_is_kept(name: str, rank: int, ends: tuple[int, int]) -> None:
    workload = cases.workload_of(cases.spec_of(name, rank=rank))
    kinds = LayerChain(workload).kinds
    order = recompute_order(kinds, workload.job)
    place = {kinds[j]: place for place, j in enumerate(order)}
    places = [place.get(replace(layer, kind="")) for layer in workload.layers]
    worth = [i for i in range(*ends) if places[i] is not None]
    before: frozenset[int] = frozenset()
    for count in range(len(worth) + 1):
        chosen = recomputed_layers(workload, *ends, count)
        assert len(chosen) == count
        assert before <= chosen <= set(worth)
        (added,) = chosen - before if count else (None,)
        if added is not None:
            assert all((places[added], added) <= (places[i], i) for i in worth if i not in before)
        before = chosen
    with pytest.raises(InputError) as refused:
        recomputed_layers(workload, *ends, len(worth) + 1)
    assert refused.value.code == "too-many-recomputed"


def test_the_first_blocks_of_a_stage_are_recomputed_first() -> None:
    config = {**cases.CONFIGS["llama"], "num_hidden_layers": 6}
    workload = cases.workload_of(cases.spec_of("llama", rank=3, config=config, num_layers=8))
    assert recomputed_layers(workload, 0, 8, 0) == set()
    assert recomputed_layers(workload, 0, 8, 2) == {1, 2}
    assert recomputed_layers(workload, 3, 8, 2) == {3, 4}
    assert recomputed_layers(workload, 3, 8, 2, tp=2) == {3, 4}


def test_a_job_without_recomputation_recomputes_nothing() -> None:
    workload = cases.workload_of(cases.spec_of("llama"), recompute=False)
    assert recomputed_layers(workload, 0, 4, 0) == set()
    with pytest.raises(InputError, match="0 can be"):
        recomputed_layers(workload, 0, 4, 1)


@pytest.mark.deepspeed
@pytest.mark.parametrize("rank", [0, 3], ids=["full", "adapters"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-projected", "qwen3_moe"])
def test_recomputed_layers_have_the_same_names_outputs_and_gradients(name: str, rank: int) -> None:
    torch = pytest.importorskip("torch")
    from executors.training.chain import Chain, token_loss, with_recompute

    tokens = torch.randint(0, cases.VOCAB, (2, cases.TOKENS), generator=torch.Generator().manual_seed(2))
    outcomes: list[tuple[Any, list[str], list[Any]]] = []
    for again in (False, True):
        layers = cases.built(Chain(cases.spec_of(name, rank=rank)))
        if again:
            layers = [with_recompute(layer) for layer in layers]
        loss = token_loss(cases.run(layers, tokens), tokens)
        loss.backward()
        named = [(own, p) for layer in layers for own, p in layer.named_parameters()]
        outcomes.append((loss.detach(), [own for own, _ in named], [p.grad for _, p in named]))
    (loss, names, gradients), (loss_again, names_again, gradients_again) = outcomes
    assert torch.equal(loss, loss_again)
    assert names == names_again
    for one, other in zip(gradients, gradients_again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.deepspeed
def test_a_recomputed_block_keeps_its_input_alone() -> None:
    torch = pytest.importorskip("torch")
    from executors.training.chain import Chain, with_recompute

    chain = Chain(cases.spec_of("llama"))
    hidden = torch.randn((2, cases.TOKENS, 32), requires_grad=True)
    own = {parameter.data_ptr() for parameter in chain.build(1).parameters()}

    def kept_bytes(layer: Any) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Any) -> Any:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(hidden)
        weights = own | {parameter.data_ptr() for parameter in layer.parameters()}
        return sum(size for pointer, size in kept.items() if pointer not in weights)

    plain = kept_bytes(chain.build(1))
    again = kept_bytes(with_recompute(chain.build(1)))
    assert again <= hidden.nbytes
    assert plain > 5 * again
