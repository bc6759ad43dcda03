"""Interleaved and zero-bubble pipelines train what one process trains; where they can't, a rule says so."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from forked import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch_cases import (
    Case,
    Outcome,
    alone,
    assert_equal,
    build,
    job,
    merged,
    preload,
    stages,
    train,
    trained,
)

from executors.torch_native.virtual import held_layers, pieces_in_flight
from planner.training import PipelineSchedule

pytestmark = pytest.mark.deepspeed

INTERLEAVED, ZERO_BUBBLE = PipelineSchedule.INTERLEAVED, PipelineSchedule.ZERO_BUBBLE


def case(schedule: PipelineSchedule, cuts: list[int], shares: list[list[int]], **settings: Any) -> Case:
    """Stages under a schedule of the library; settings of stages are lists."""
    of_stages = {name: settings.pop(name) for name in ("zero", "recompute") if name in settings}
    settings.setdefault("micro_batches", 2)
    return Case(stages=stages(cuts, shares, **of_stages), training=job(pipeline=schedule), **settings)


CASES = {
    "interleaved, tied, zero 1": case(
        INTERLEAVED, [0, 3, 6], [[3, 1], [3, 1]], zero=[1, 0], model="qwen3", micro_batches=4
    ),
    "interleaved, three stages": case(
        INTERLEAVED, [0, 2, 4, 6], [[4], [4], [4]], micro_batches=3, recompute=[0, 2, 1]
    ),
    "interleaved, first piece trains nothing": case(
        INTERLEAVED, [0, 2, 6], [[4], [4]], adapter_rank=4
    ),
    "zero bubble, tied, zero 1": case(ZERO_BUBBLE, [0, 3, 6], [[2, 2], [2, 2]], zero=[0, 1], model="qwen3"),
    "zero bubble, three stages": case(
        ZERO_BUBBLE, [0, 1, 3, 6], [[4], [4], [4]], micro_batches=6, recompute=[1, 1, 2]
    ),
    "zero bubble, first stage trains nothing": case(ZERO_BUBBLE, [0, 1, 6], [[4], [4]], adapter_rank=4),
    "zero bubble, last stage trains nothing": case(ZERO_BUBBLE, [0, 5, 6], [[4], [4]], adapter_rank=4),
    "one stage": case(ZERO_BUBBLE, [0, 6], [[3, 1]], zero=[3]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """The library warns that its schedules are new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.distributed.pipelining")
        yield


@pytest.mark.parametrize("given_case", CASES.values(), ids=CASES.keys())
def test_library_schedules_train_what_one_process_trains(given_case: Case) -> None:
    plain = replace(given_case, training=job())
    assert_equal(trained(given_case), alone(plain))


def test_a_run_continues_under_another_schedule() -> None:
    interleaved = case(INTERLEAVED, [0, 3, 6], [[4], [4]], model="qwen3")
    one_by_one = replace(interleaved, stages=stages([0, 2, 6], [[3, 1], [4]]), training=job())
    halves = [_run(interleaved, None, range(3)), None]
    halves[1] = _run(one_by_one, halves[0], range(3, 5))
    first, second = halves
    assert first is not None
    assert second is not None
    both = replace(second, losses=first.losses + second.losses, norms=first.norms + second.norms)
    assert_equal(both, alone(one_by_one))


def _run(given_case: Case, before: Outcome | None, steps: range) -> Outcome:
    """Some steps, from the states of an earlier run."""
    import torch

    preload(given_case)
    states = {} if before is None else before.states

    def work(rank: int) -> Outcome:
        engine = build(given_case, rank)
        stage = given_case.layout.ranks[rank].stage
        own = held_layers(given_case.replica, given_case.training.pipeline, stage)
        if before is not None:
            engine.load_layer_states(
                {
                    i: {k: torch.from_numpy(v.copy()) for k, v in states[i].items()}
                    for i in own
                    if i in states
                },
                steps.start,
            )
        outcome = train(engine, steps)
        engine.close()
        return outcome

    return merged(run_ranks(given_case.num_ranks, work))


counts = st.integers(2, 5)


@given(num_stages=counts, layers=st.integers(2, 6), rounds=counts)
def test_every_layer_stands_in_one_place_and_counts_are_as_planned(
    num_stages: int, layers: int, rounds: int
) -> None:
    cuts = [layers * i for i in range(num_stages + 1)]
    replica = case(INTERLEAVED, cuts, [[1]] * num_stages, micro_batches=rounds).replica
    held = [held_layers(replica, INTERLEAVED, s) for s in range(num_stages)]
    assert sorted(i for own in held for i in own) == list(range(cuts[-1]))
    assert [len(own) for own in held] == [layers] * num_stages
    assert 0 in held[0]
    assert cuts[-1] - 1 in held[-1]


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("rounds", [0, 1, 2, 4])
@pytest.mark.parametrize("schedule", [INTERLEAVED, ZERO_BUBBLE])
def test_micro_batches_in_flight_are_those_of_the_library(
    schedule: PipelineSchedule, rounds: int, num_stages: int
) -> None:
    micro_batches = max(1, rounds * num_stages)
    cuts = [2 * i for i in range(num_stages + 1)]
    replica = case(schedule, cuts, [[1]] * num_stages, micro_batches=micro_batches).replica
    for stage_i in range(num_stages):
        found = _library_in_flight(schedule, num_stages, micro_batches, stage_i)
        assert pieces_in_flight(replica, schedule, stage_i) == found


def _library_in_flight(schedule: PipelineSchedule, num_stages: int, micro_batches: int, stage_i: int) -> int:
    """The most pieces that are forward but not fully backward in the library's own order."""
    from torch.distributed.pipelining import schedules

    logging.getLogger(schedules.__name__).setLevel(logging.ERROR)
    interleaved = schedule is INTERLEAVED
    kind = schedules.ScheduleInterleaved1F1B if interleaved else schedules.ScheduleInterleavedZeroBubble
    order = kind.__new__(kind)
    order.pp_group_size, order.n_local_stages = num_stages, 2 if interleaved else 1
    order._n_microbatches = micro_batches
    order.number_of_rounds = max(1, micro_batches // num_stages)
    order.microbatches_per_round = micro_batches // order.number_of_rounds
    held = most = 0
    for action in filter(None, order._calculate_single_rank_operations(stage_i)):
        if action.computation_type is schedules.FORWARD:
            held += 1
        elif action.computation_type in (schedules.FULL_BACKWARD, schedules.BACKWARD_WEIGHT):
            held -= 1
        most = max(most, held)
    assert np.isclose(held, 0)
    return most
