"""States are free of layout: what one plan trained, any other plan continues; tied copies stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forked import run_ranks
from torch_cases import (
    Case,
    Outcome,
    alone,
    assert_equal,
    build,
    engine_arguments,
    merged,
    preload,
    stages,
    train,
)

pytestmark = pytest.mark.deepspeed

HALF, STEPS = 3, 5
LAYOUTS = {
    "unequal, zero 1": Case(stages=stages([0, 2, 6], [[3, 1], [4]], zero=[1, 0]), model="qwen3"),
    "zero 3 and 2": Case(stages=stages([0, 4, 6], [[2, 2], [1, 3]], zero=[3, 2]), model="qwen3"),
    "tensor parallel": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[2, 1]), model="qwen3"),
    "zero 3, one stage": Case(stages=stages([0, 6], [[2, 2]], zero=[3]), model="qwen3"),
}
States = Mapping[int, Mapping[str, np.ndarray]]


def continued(case: Case, states: States | None, steps: range) -> Outcome:
    """A run of the case over these steps, from these states on; each rank is given its own layers only."""
    preload(case)

    def work(rank: int) -> Outcome:
        engine = build(case, rank)
        if states is not None:
            own = range(*case.replica.stages[case.layout.ranks[rank].stage].layers)
            engine.load_layer_states(tensors({i: states[i] for i in own if i in states}), steps.start)
        outcome = train(engine, steps)
        engine.close()
        return outcome

    return merged(run_ranks(case.num_ranks, work))


def tensors(states: States) -> dict[int, dict[str, Any]]:
    """States as engines take them."""
    import torch

    return {i: {name: torch.from_numpy(a.copy()) for name, a in state.items()} for i, state in states.items()}


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [(0, 1, "fp32"), (1, 2, "fp32"), (2, 3, "fp32"), (3, 0, "fp32"), (0, 1, "bf16")],
    ids=["to zero 3", "to tp", "to one stage", "back", "to zero 3, bf16"],
)
def test_a_run_continues_under_another_layout(first: int, second: int, dtype: str) -> None:
    cases = [replace(case, dtype=dtype) for case in LAYOUTS.values()]
    before = continued(cases[first], None, range(HALF))
    after = continued(cases[second], before.states, range(HALF, STEPS))
    expected = alone(cases[first], STEPS)
    if dtype == "fp32":
        assert_equal(
            replace(after, losses=before.losses + after.losses, norms=before.norms + after.norms), expected
        )
    else:
        np.testing.assert_allclose(before.losses + after.losses, expected.losses, rtol=1e-3)


def test_one_process_continues_what_a_pipeline_began() -> None:
    from executors.training.single import SingleEngine

    case = LAYOUTS["zero 3 and 2"]
    before = continued(case, None, range(HALF))
    engine = SingleEngine(
        **engine_arguments(case), micro_batches=case.micro_batches, micro_batch_size=case.micro_batch_size
    )
    engine.load_layer_states(tensors(before.states), HALF)
    after = train(engine, range(HALF, STEPS))
    assert_equal(
        replace(after, losses=before.losses + after.losses, norms=before.norms + after.norms),
        alone(case, STEPS),
    )


def test_states_loaded_after_an_evaluation_are_what_the_next_one_uses() -> None:
    case = LAYOUTS["zero 3, one stage"]
    later = continued(case, None, range(1))

    def work(rank: int) -> tuple[float, float]:
        engine = build(case, rank)
        first = engine.evaluate()
        engine.load_layer_states(tensors(later.states), 1)
        second = engine.evaluate()
        engine.close()
        return first, second

    for first, second in run_ranks(case.num_ranks, work):
        assert first != later.evaluation
        assert second == later.evaluation


def test_states_of_bf16_weights_are_the_fp32_master_copies() -> None:
    case = Case(stages=stages([0, 3, 6], [[2, 2], [4]], zero=[1, 0]), dtype="bf16")
    states = continued(case, None, range(1)).states
    weight = states[2]["weight:layer.mlp.up_proj.weight"]
    import torch

    assert not np.array_equal(weight, torch.from_numpy(weight).bfloat16().float().numpy())


@pytest.mark.parametrize(
    "case",
    [
        Case(stages=stages([0, 2, 6], [[3, 1], [4]], zero=[1, 0]), model="qwen3"),
        Case(stages=stages([0, 2, 6], [[1, 2, 1], [2, 2]], zero=[0, 3]), model="qwen3", dtype="bf16"),
        Case(stages=stages([0, 2, 6], [[2, 2], [4]], zero=[2, 0], tp=[1, 2]), model="gpt2"),
    ],
    ids=["unequal widths", "zero 3, bf16", "tensor parallel"],
)
def test_tied_weights_are_equal_bit_for_bit_after_training(case: Case) -> None:
    import torch

    preload(case)

    def work(rank: int) -> bytes:
        engine = build(case, rank)
        before = engine.tied_weight()
        train(engine, range(3))
        weight = engine.tied_weight()
        engine.close()
        assert not torch.equal(before, weight), "nothing was trained"
        held: bytes = weight.contiguous().view(torch.uint8).numpy().tobytes()
        return held

    assert len(set(run_ranks(case.num_ranks, work))) == 1


def test_adapters_alone_stand_in_the_states() -> None:
    case = Case(stages=stages([0, 1, 4, 6], [[4], [2, 2], [4]]), adapter_rank=4)
    states = continued(case, None, range(1)).states
    assert sorted(states) == [1, 2, 3, 4]
    assert all(".lora_" in name for state in states.values() for name in state)
