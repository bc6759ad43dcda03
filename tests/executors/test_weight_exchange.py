"""A replica's trained weights as one vector: seen alike under every layout, replaced everywhere at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forked import run_ranks
from torch_cases import Case, build, engine_arguments, preload, stages, train

pytest.importorskip("torch")

BEFORE, STEPS = 2, 4
CASES = {
    "unequal, zero 1": Case(stages=stages([0, 2, 6], [[3, 1], [4]], zero=[1, 0]), model="qwen3"),
    "zero 3": Case(stages=stages([0, 6], [[2, 2]], zero=[3]), model="qwen3"),
    "tensor parallel": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[2, 1]), model="qwen3"),
    "adapters": Case(stages=stages([0, 3, 6], [[2, 2], [4]]), adapter_rank=4),
}


def shrunk(weights_P: Any) -> Any:
    return (weights_P * np.float32(0.75)).astype(np.float32)


def with_one_process(case: Case) -> tuple[Any, tuple[float, ...]]:
    """The vector after the first steps, and the losses after every weight was replaced."""
    from executors.training.chain import Chain
    from executors.training.single import SingleEngine
    from executors.training.trained_vector import TrainedVector

    engine = SingleEngine(
        **engine_arguments(case), micro_batches=case.micro_batches, micro_batch_size=case.micro_batch_size
    )
    vector = TrainedVector(Chain(case.spec))
    train(engine, range(BEFORE))
    states = engine.layer_states()
    weights_P = vector.flattened(states)
    engine.load_layer_states(vector.replaced(states, shrunk(weights_P)), BEFORE)
    return weights_P, train(engine, range(BEFORE, STEPS)).losses


@pytest.mark.parametrize("name", CASES)
def test_every_layout_goes_on_with_the_weights_that_rank_0_was_given(name: str) -> None:
    case = CASES[name]
    preload(case)

    def work(rank: int) -> tuple[list[Any], tuple[float, ...]]:
        from executors.training.chain import Chain
        from executors.training.trained_vector import TrainedVector
        from executors.training.weight_exchange import WeightExchange

        engine = build(case, rank)
        exchange = WeightExchange(engine, TrainedVector(Chain(case.spec)))
        seen: list[Any] = []
        train(engine, range(BEFORE))

        def change(weights_P: Any) -> Any:
            seen.append(weights_P)
            return shrunk(weights_P)

        exchange.visit(BEFORE, change)
        exchange.visit(BEFORE, lambda weights_P: seen.append(weights_P))
        losses = train(engine, range(BEFORE, STEPS)).losses
        engine.close()
        return seen, losses

    outcomes = run_ranks(case.num_ranks, work)
    (first_P, second_P), losses = outcomes[0]
    expected_P, expected_losses = with_one_process(case)
    np.testing.assert_allclose(first_P, expected_P, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(second_P, shrunk(first_P))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert all(seen == [] and other == losses for seen, other in outcomes[1:])


def test_an_error_on_rank_0_is_met_by_all(tmp_path: Any) -> None:
    case = Case(stages=stages([0, 3, 6], [[2], [2]]))
    preload(case)

    def work(rank: int) -> str:
        from executors.training.chain import Chain
        from executors.training.trained_vector import TrainedVector
        from executors.training.weight_exchange import WeightExchange

        engine = build(case, rank)
        engine.train_step(0, 1e-3)

        def refuse(weights_P: Any) -> Any:
            raise ValueError("not now")

        try:
            WeightExchange(engine, TrainedVector(Chain(case.spec))).visit(1, refuse)
        except ValueError as error:
            return str(error)
        finally:
            engine.close()
        return ""

    assert run_ranks(case.num_ranks, work) == ["not now"] * 2


def test_the_manifest_names_what_the_vector_means() -> None:
    from executors.training.chain import Chain
    from executors.training.trained_vector import TrainedVector

    case = CASES["adapters"]
    vector = TrainedVector(Chain(case.spec))
    other = TrainedVector(Chain(replace(case, adapter_rank=2).spec))
    assert vector.num_weights == 2 * other.num_weights
    assert vector.manifest_sha256 == TrainedVector(Chain(case.spec)).manifest_sha256
    assert vector.manifest_sha256 != other.manifest_sha256
    starts = [slot.start for slot in vector.slots]
    assert starts == [0, *(slot.stop for slot in vector.slots[:-1])]
