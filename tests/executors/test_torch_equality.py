"""A torch-native pipeline trains exactly what one process trains, whatever its widths."""

from __future__ import annotations

from typing import Any

import pytest
from forked import run_ranks
from torch_cases import Case, Outcome, alone, assert_equal, engine_arguments, merged, stages, train

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
