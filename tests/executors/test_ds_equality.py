"""DeepSpeed against one process: losses, gradient norms and weights of the same model, whatever the plan."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forked import free_port, run_ranks
from torch_cases import Case, Outcome, alone, assert_equal, engine_arguments, merged, stages, train

pytestmark = pytest.mark.deepspeed

TIED = (("tie_word_embeddings", True),)
CASES = {
    "one stage": Case(stages=stages([0, 6], [[2]])),
    "two stages": Case(stages=stages([0, 3, 6], [[2], [2]])),
    "uneven cut": Case(stages=stages([0, 5, 6], [[1], [1]])),
    "embedding alone": Case(stages=stages([0, 1, 2, 6], [[1], [1], [1]])),
    "four stages": Case(stages=stages([0, 1, 3, 4, 6], [[1]] * 4), micro_batches=6),
    "two wide": Case(stages=stages([0, 4, 6], [[2, 2], [2, 2]])),
    "two wide, zero 1": Case(stages=stages([0, 2, 6], [[1, 1], [1, 1]], zero=[1, 1])),
    "few micro-batches": Case(stages=stages([0, 2, 4, 6], [[1]] * 3), micro_batches=2),
    "recomputed": Case(stages=stages([0, 3, 6], [[2], [2]], recompute=[2, 1])),
    "tied": Case(stages=stages([0, 3, 6], [[2], [2]]), overrides=TIED),
    "tied, two wide, zero 1": Case(stages=stages([0, 3, 6], [[1, 1], [1, 1]], zero=[1, 1]), overrides=TIED),
    "adapters": Case(stages=stages([0, 3, 6], [[2], [2]]), adapter_rank=4),
    "adapters, ends alone": Case(stages=stages([0, 1, 5, 6], [[1], [1], [1]]), adapter_rank=4),
    "adapters, two wide, zero 1": Case(
        stages=stages([0, 3, 6], [[1, 1], [1, 1]], zero=[1, 1]), adapter_rank=4
    ),
    "data parallel": Case(stages=stages([0, 6], [[1, 1]])),
    "zero 1": Case(stages=stages([0, 6], [[1, 1]], zero=[1])),
    "zero 2": Case(stages=stages([0, 6], [[1, 1]], zero=[2])),
    "zero 3": Case(stages=stages([0, 6], [[1, 1]], zero=[3])),
    "zero 3, two groups of ranks": Case(stages=stages([0, 6], [[1, 1, 1]], zero=[3])),
    "zero 3, adapters": Case(stages=stages([0, 6], [[1, 1]], zero=[3]), adapter_rank=4),
}


def build(case: Case, rank: int) -> Any:
    """The engine of one rank."""
    import torch

    from executors.ds_pipeline.engine import DeepSpeedEngine, join
    from executors.training.clock import NoClock

    join(torch.device("cpu"))
    me = case.layout.ranks[rank]
    stage = case.replica.stages[me.stage]
    first, last = stage.layers
    blocks = [i for i in range(first, last) if 0 < i < case.spec.num_layers - 1]
    return DeepSpeedEngine(
        **engine_arguments(case),
        spec=case.spec,
        replica=case.replica,
        layout=case.layout,
        rank=rank,
        recomputed=frozenset(blocks[: stage.recompute]),
        clock=NoClock(),
    )


def ranks_of(case: Case, work: Any) -> list[Any]:
    """What `work(engine)` returns on each rank."""
    port = free_port()

    def one(rank: int) -> Any:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.num_ranks, "LOCAL_SIZE": case.num_ranks}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(build(case, rank))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed  # noqa: F401  imported once here, so that no rank has to

        return run_ranks(case.num_ranks, one, group=False)


def trained(case: Case, num_steps: int = 5) -> Outcome:
    """What all ranks together make of the case."""
    return merged(ranks_of(case, lambda engine: train(engine, range(num_steps))))


@pytest.mark.parametrize("name", CASES)
def test_losses_norms_and_weights_are_those_of_one_process(name: str) -> None:
    assert_equal(trained(CASES[name]), alone(CASES[name]))


@pytest.mark.parametrize("name", ["two stages", "zero 1"])
def test_bf16_stays_close_to_one_process(name: str) -> None:
    case = replace(CASES[name], dtype="bf16")
    found, expected = trained(case), alone(case)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=5e-3)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=5e-2)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("two stages", "zero 3"),
        ("zero 3", "two wide, zero 1"),
        ("two wide, zero 1", "zero 2"),
        ("zero 2", "one stage"),
    ],
)
def test_states_of_any_layout_continue_in_any_other(first: str, then: str) -> None:
    before = trained(_alike(CASES[first]), 2)
    states = {i: dict(state) for i, state in before.states.items()}

    def resumed(engine: Any) -> Outcome:
        import torch

        tensors = {
            i: {key: torch.from_numpy(value) for key, value in state.items()} for i, state in states.items()
        }
        engine.load_layer_states(tensors, 2)
        return train(engine, range(2, 5))

    case = _alike(CASES[then])
    found, expected = merged(ranks_of(case, resumed)), alone(case)
    np.testing.assert_allclose(found.losses, expected.losses[2:], rtol=1e-5)
    np.testing.assert_allclose(found.norms, expected.norms[2:], rtol=1e-5)


def _alike(case: Case) -> Case:
    """The case with two rows in a micro-batch, so that every layout sees the same text."""
    width = len(case.stages[0].shares)
    return replace(case, stages=tuple(replace(s, shares=(2 // width,) * width) for s in case.stages))
