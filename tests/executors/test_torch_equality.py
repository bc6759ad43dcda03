"""A torch-native pipeline trains exactly what one process trains, whatever its widths."""

from __future__ import annotations

from typing import Any

import pytest
from forked import run_ranks
from torch_cases import Case, Outcome, alone, assert_equal, engine_arguments, job, merged, stages, train

from planner.training import PipelineSchedule

pytestmark = pytest.mark.deepspeed

UNEQUAL = {
    "2-1": Case(stages=stages([0, 3, 6], [[2, 2], [4]])),
    "1-2": Case(stages=stages([0, 2, 6], [[4], [3, 1]])),
    "1-2-1": Case(stages=stages([0, 1, 4, 6], [[4], [1, 3], [4]])),
    "3-1": Case(stages=stages([0, 4, 6], [[2, 1, 1], [4]])),
    "3-2": Case(stages=stages([0, 3, 6], [[1, 2, 2], [3, 2]]), micro_batches=3),
    "fewer micro-batches than stages": Case(stages=stages([0, 1, 3, 6], [[2], [1, 1], [2]]), micro_batches=2),
    "one stage": Case(stages=stages([0, 6], [[3, 1]])),
    "one rank": Case(stages=stages([0, 6], [[4]])),
}
STRATEGIES = {
    "zero 1": Case(stages=stages([0, 3, 6], [[2, 2], [3, 1]], zero=[1, 1])),
    "zero 2, one stage": Case(stages=stages([0, 6], [[3, 1]], zero=[2])),
    "zero 2": Case(stages=stages([0, 3, 6], [[4], [1, 2, 1]], zero=[0, 2])),
    "zero 3": Case(stages=stages([0, 3, 6], [[2, 2], [3, 1]], zero=[3, 3])),
    "zero 3, one stage, recomputed": Case(stages=stages([0, 6], [[3, 1]], zero=[3], recompute=[4])),
    "recomputed": Case(stages=stages([0, 3, 6], [[2, 2], [4]], recompute=[2, 3])),
    "gpipe": Case(stages=stages([0, 3, 6], [[2, 2], [4]]), training=job(pipeline=PipelineSchedule.GPIPE)),
    "no clipping": Case(stages=stages([0, 3, 6], [[4], [4]]), training=job(clip_norm=0.0)),
}
TIED = {
    "two stages": Case(stages=stages([0, 3, 6], [[4], [4]]), model="qwen3"),
    "unequal widths": Case(stages=stages([0, 2, 4, 6], [[2, 2], [4], [1, 2, 1]]), model="qwen3"),
    "zero 1 and 0": Case(stages=stages([0, 3, 6], [[2, 2], [4]], zero=[1, 0]), model="qwen3"),
    "zero 2 and 3": Case(stages=stages([0, 3, 6], [[2, 2], [1, 1, 2]], zero=[2, 3]), model="qwen3"),
    "zero 3, one stage": Case(stages=stages([0, 6], [[3, 1]], zero=[3]), model="qwen3"),
    "zero 2, one stage": Case(stages=stages([0, 6], [[3, 1]], zero=[2]), model="qwen3"),
    "gpt2": Case(stages=stages([0, 3, 6], [[3, 1], [4]]), model="gpt2"),
}
ADAPTERS = {
    "first stage trains nothing": Case(stages=stages([0, 1, 6], [[4], [3, 1]]), adapter_rank=4),
    "last stage trains nothing": Case(stages=stages([0, 5, 6], [[3, 1], [4]]), adapter_rank=4),
    "zero 3": Case(stages=stages([0, 3, 6], [[2, 2], [4]], zero=[3, 0]), adapter_rank=4),
    "recomputed, tied": Case(
        stages=stages([0, 1, 4, 6], [[4], [1, 3], [4]], recompute=[1, 2, 1]), adapter_rank=4, model="gpt2"
    ),
}


def trained(case: Case) -> Outcome:
    """The case in as many ranks as it asks for."""
    return merged(run_ranks(case.num_ranks, lambda rank: train_rank(case, rank)))


def train_rank(case: Case, rank: int) -> Outcome:
    """One rank of a case."""
    engine = build(case, rank)
    outcome = train(engine, range(5))
    engine.close()
    return outcome


def build(case: Case, rank: int, **changes: Any) -> Any:
    """The engine of one rank."""
    from executors.torch_native.engine import TorchEngine

    arguments = {**engine_arguments(case), **changes}
    return TorchEngine(**arguments, replica=case.replica, layout=case.layout, rank=rank, timeout_s=60.0)


@pytest.mark.parametrize("case", UNEQUAL.values(), ids=UNEQUAL.keys())
def test_unequal_widths_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_every_strategy_trains_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", TIED.values(), ids=TIED.keys())
def test_tied_embeddings_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_adapters_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))
