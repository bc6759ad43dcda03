"""Every sequence once per epoch, at random access: nothing but seed, participant and step decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.training.batches import Batches, permuted
from executors.training.prepare import PreparedText
from policies.errors import InputError

Make = Callable[..., Batches]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Batches over a text whose tokens are 0, 1, 2, ... and held-out ones -- from 1,000 on."""

    def build(
        *, num_tokens: int, length: int = 4, num_held_out: int = 0, seed: int = 0, participant: int = 0
    ) -> Batches:
        folder = tmp_path_factory.getbasetemp() / f"{num_tokens}-{num_held_out}"
        if not folder.exists():
            folder.mkdir()
            np.save(folder / "tokens.npy", np.arange(num_tokens, dtype=np.uint16))
            np.save(folder / "held_out.npy", np.arange(1000, 1000 + num_held_out, dtype=np.uint16))
        prepared = PreparedText(
            folder=folder,
            sequence_tokens=length,
            participant=participant,
            num_participants=2,
            num_tokens=num_tokens,
            num_held_out_tokens=num_held_out,
            num_ids=2**16,
            end_of_text_id=0,
            num_documents=1,
            num_skipped=0,
            num_bytes=1,
            sha256="",
            notes=(),
        )
        return Batches(prepared, seed)

    return build


def step_rows(batches: Batches, step: int, micro_batches: int, size: int) -> list[list[int]]:
    return [
        row
        for j in range(micro_batches)
        for row in batches.micro_batch(step, j, micro_batches=micro_batches, micro_batch_size=size).tolist()
    ]


@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
def test_the_keyed_permutation_is_one(size: int, key: list[int]) -> None:
    found = permuted(np.arange(size), size, np.array(key, dtype=np.uint64))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_the_permutation_mixes_well() -> None:
    size, trials = 1000, 200
    keys = np.random.default_rng(0).integers(0, 2**63, (trials, 8)).astype(np.uint64)
    found = np.array([permuted(np.arange(size), size, key) for key in keys])
    # Means of uniform draws: standard error 289 / sqrt(200) = 20 per position, 289 / sqrt(1000) = 9 per half.
    assert np.abs(found.mean(axis=0) - 499.5).max() < 100
    assert np.abs(found[:, ::2].mean(axis=1) - 499.5).max() < 60
    neighbours = np.abs(np.diff(found, axis=1)).mean()
    assert abs(neighbours - size / 3) < 5


@given(
    num_tokens=st.integers(2, 150),
    length=st.integers(1, 9),
    micro_batches=st.integers(1, 4),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_sequence_comes_once_in_every_epoch(
    make: Make, num_tokens: int, length: int, micro_batches: int, size: int, seed: int
) -> None:
    batches = make(num_tokens=max(num_tokens, length + 1), length=length, seed=seed)
    number = batches.num_sequences
    assert number == (max(num_tokens, length + 1) - 1) // length
    num_steps = -(-3 * number // (micro_batches * size))
    rows = [row for step in range(num_steps) for row in step_rows(batches, step, micro_batches, size)]
    expected = [list(range(i * length, i * length + length + 1)) for i in range(number)]
    for epoch in range(3):
        assert sorted(rows[epoch * number : (epoch + 1) * number]) == expected


@given(step=st.integers(0, 10**12), splits=st.sampled_from([(1, 12), (2, 6), (3, 4), (12, 1)]))
def test_a_step_reads_the_same_however_it_is_divided(make: Make, step: int, splits: tuple[int, int]) -> None:
    batches = make(num_tokens=201, seed=5)
    assert step_rows(batches, step, *splits) == step_rows(batches, step, 4, 3)


@given(step=st.integers(0, 10**6), j=st.integers(0, 2), first=st.integers(0, 8), count=st.integers(0, 8))
def test_rows_are_rows_of_the_whole_micro_batch(
    make: Make, step: int, j: int, first: int, count: int
) -> None:
    batches = make(num_tokens=201)
    whole = batches.micro_batch(step, j, micro_batches=3, micro_batch_size=8)
    rows = slice(first, first + count)
    part = batches.micro_batch(step, j, micro_batches=3, micro_batch_size=8, rows=rows)
    assert part.dtype == np.int64
    assert np.array_equal(part, whole[rows])


def test_seed_participant_and_epoch_each_change_the_order_and_nothing_else_does(make: Make) -> None:
    def order(step: int, **fields: int) -> list[list[int]]:
        return step_rows(make(num_tokens=401, **fields), step, 1, 100)

    orders = [order(0), order(0, seed=1), order(0, participant=1), order(1)]
    assert len({str(found) for found in orders}) == 4
    assert order(0) == orders[0]
    assert all(sorted(found) == sorted(orders[0]) for found in orders)


def test_to_resume_is_to_ask_for_a_later_step(make: Make) -> None:
    going, resumed = make(num_tokens=201, seed=3), make(num_tokens=201, seed=3)
    for step in range(20):
        step_rows(going, step, 2, 4)
    assert step_rows(resumed, 20, 2, 4) == step_rows(going, 20, 2, 4)


def test_evaluation_is_the_same_for_all_and_goes_round(make: Make) -> None:
    batches = make(num_tokens=201, num_held_out=41, seed=1)
    other = make(num_tokens=201, num_held_out=41, seed=2, participant=1)
    assert batches.num_held_out_sequences == 10
    rows = np.concatenate([batches.evaluation(k, 4) for k in range(5)])
    assert np.array_equal(rows, np.concatenate([other.evaluation(k, 4) for k in range(5)]))
    assert np.array_equal(rows[:10], rows[10:])
    assert sorted(rows[:10, 0].tolist()) == list(range(1000, 1040, 4))
    assert rows[:10, 0].tolist() != list(range(1000, 1040, 4))
    assert np.array_equal(batches.evaluation(1, 4, slice(1, 3)), rows[5:7])


def test_without_held_out_text_there_is_no_evaluation(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        make(num_tokens=201).evaluation(0, 4)
    assert caught.value.code == "nothing-held-out"


def test_a_micro_batch_that_the_step_does_not_have_is_our_mistake(make: Make) -> None:
    with pytest.raises(ValueError, match="micro-batch 3 of 3"):
        make(num_tokens=201).micro_batch(0, 3, micro_batches=3, micro_batch_size=1)


def test_tokens_stay_on_disk(make: Make) -> None:
    batches = make(num_tokens=201)
    assert isinstance(batches._tokens, np.memmap)
    assert Path(str(batches._tokens.filename)) == batches.prepared.tokens_path
