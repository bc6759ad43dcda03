"""What a torch-native rank holds, times, repeats and refuses, beside training the right thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from forked import RankFailedError, run_ranks
from torch_cases import Case, Outcome, build, job, merged, preload, stages, train

from executors.training.clock import Kind, StepClock

pytestmark = pytest.mark.deepspeed


class HoldingClock:
    """Counts the micro-batches that are forward but not yet backward."""

    def __init__(self) -> None:
        self.held = self.most = 0

    @contextmanager
    def span(self, kind: Kind, micro_batch: int | None = None) -> Iterator[None]:
        yield
        self.held += {Kind.FORWARD: 1, Kind.BACKWARD: -1}.get(kind, 0)
        self.most = max(self.most, self.held)


@pytest.mark.parametrize("micro_batches", [2, 5])
def test_a_rank_holds_the_micro_batches_that_the_plan_counts(micro_batches: int) -> None:
    case = Case(stages=stages([0, 2, 4, 6], [[2], [1, 1], [2]]), micro_batches=micro_batches)
    preload(case)

    def work(rank: int) -> tuple[int, int]:
        clock = HoldingClock()
        engine = build(case, rank, clock=clock)
        engine.train_step(0, 1e-3)
        assert clock.held == len(engine._held) == 0
        engine.close()
        return case.replica.stages[case.layout.ranks[rank].stage].in_flight, clock.most

    assert {planned == most for planned, most in run_ranks(case.num_ranks, work)} == {True}


def test_the_clock_sees_every_pass_and_transfer() -> None:
    case = Case(stages=stages([0, 3, 6], [[2], [1, 1]]), micro_batches=4)
    preload(case)

    def work(rank: int) -> tuple[int, dict[str, int], bool]:
        clock = StepClock()
        engine = build(case, rank, clock=clock)
        engine.train_step(0, 1e-3)
        spent = clock.take()
        engine.train_step(1, 1e-3)
        assert clock.take().keys() == spent.keys(), "a clock begins anew when it is read"
        engine.close()
        counted = {kind.value: one.num_spans for kind, one in spent.items()}
        stage = case.layout.ranks[rank].stage
        return stage, counted, all(one.wall_s > 0 and one.thread_s >= 0 for one in spent.values())

    for stage, counted, timed in run_ranks(case.num_ranks, work):
        assert timed
        assert counted["forward"] == counted["backward"] == 4
        # Each stage receives one way; sends count once more for the wait at the end of the step.
        assert counted["receive"] == 4
        assert counted["send"] == 5
        assert counted["optimiser"] >= 1, stage


def test_only_the_layers_named_are_recomputed() -> None:
    case = Case(stages=stages([0, 6], [[2]], recompute=[3]))
    preload(case)

    def work(rank: int) -> list[list[bool]]:
        engines = [build(case, rank, recomputed=named) for named in (None, frozenset({0, 4}))]
        return [[layer.recompute for layer in engine._stage.module.layers] for engine in engines]

    (found,) = run_ranks(1, work)
    assert [[i for i, again in enumerate(flags) if again] for flags in found] == [[1, 2, 3], [0, 4]]


DROPPING = Case(
    stages=stages([0, 3, 6], [[3, 1], [4]], tp=[1, 2]),
    model="gpt2",
    overrides=(("attn_pdrop", 0.2), ("embd_pdrop", 0.2), ("resid_pdrop", 0.2)),
)


def test_dropout_is_drawn_anew_and_alike_where_a_stage_is_recomputed_or_resumed() -> None:
    plain = _losses(DROPPING, range(2))
    again = replace(DROPPING, stages=stages([0, 3, 6], [[3, 1], [4]], tp=[1, 2], recompute=[3, 3]))
    np.testing.assert_allclose(_losses(again, range(2)).losses, plain.losses, rtol=1e-5)
    without = _losses(replace(DROPPING, overrides=tuple((k, 0.0) for k, _ in DROPPING.overrides)), range(1))
    assert abs(without.losses[0] - plain.losses[0]) > 1e-3
    # The third step alone, from the first weights: its dropout doesn't depend on the steps before.
    third = _losses(DROPPING, range(2, 3)).losses
    assert third == _losses(DROPPING, range(2, 3)).losses
    assert third != plain.losses[:1]


def _losses(case: Case, steps: range) -> Outcome:
    preload(case)

    def work(rank: int) -> Outcome:
        engine = build(case, rank)
        outcome = train(engine, steps)
        engine.close()
        return outcome

    return merged(run_ranks(case.num_ranks, work))


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    case = Case(stages=stages([0, 3, 6], [[2], [1, 1]]), training=job(clip_norm=0.0))
    preload(case)

    def work(rank: int) -> tuple[str, bool]:
        from policies.errors import ExecutorFailedError

        engine = build(case, rank)
        parameter = next(engine._stage.module.parameters())
        if rank == 0:
            parameter.register_hook(lambda gradient: gradient * float("inf"))
        before = [one.clone() for one in engine._stage.module.parameters()]
        with pytest.raises(ExecutorFailedError) as caught:
            engine.train_step(0, 1e-3)
        same = all(
            map(bool, (a.eq(b).all() for a, b in zip(before, engine._stage.module.parameters(), strict=True)))
        )
        engine.close()
        return caught.value.code, same

    assert set(run_ranks(case.num_ranks, work)) == {("gradient-not-finite", True)}


def test_a_group_that_is_not_the_plans_is_refused() -> None:
    case = Case(stages=stages([0, 3, 6], [[4], [4]]))
    preload(case)
    with pytest.raises(RankFailedError, match="rank 0 of 1, the plan makes it rank 0 of 2"):
        run_ranks(1, lambda rank: build(case, rank))


def test_a_lost_rank_ends_the_others() -> None:
    case = Case(stages=stages([0, 3, 6], [[2], [1, 1]]))
    preload(case)

    def work(rank: int) -> None:
        engine = build(case, rank)
        engine.train_step(0, 1e-3)
        if rank == 1:
            raise KeyboardInterrupt
        engine.train_step(1, 1e-3)

    with pytest.raises(RankFailedError, match=r"rank 1: (?s:.*)KeyboardInterrupt"):
        run_ranks(case.num_ranks, work, deadline_s=60.0)
