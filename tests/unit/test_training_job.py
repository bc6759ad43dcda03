"""Job files become training jobs with absolute paths, and training jobs survive JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.files import load_training_job
from planner.training import (
    LearningRateSchedule,
    PipelineSchedule,
    TrainingJob,
    training_from_json,
    training_to_json,
)
from policies.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

numbers = st.floats(0, 1e6, allow_nan=False)
jobs = st.builds(
    TrainingJob,
    data=st.lists(st.text(min_size=1), min_size=1).map(tuple),
    tokenizer=st.none() | st.text(),
    start=st.none() | st.text(),
    steps=st.integers(1, 2**40),
    learning_rate=numbers,
    schedule=st.sampled_from(LearningRateSchedule),
    adapter_alpha=st.none() | numbers,
    adapter_merged=st.booleans(),
    evaluation_frac=numbers,
    pipeline=st.sampled_from(PipelineSchedule),
    threads_per_device=st.none() | st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
)


def written(folder: Path, text: str) -> TrainingJob:
    path = folder / "job.yaml"
    path.write_text("schema: echelon/job/1\n" + text, encoding="utf-8")
    return load_training_job(path)


def test_every_key_arrives() -> None:
    folder = ROOT / "tests" / "corpus" / "good"
    assert load_training_job(folder / "job.yaml") == TrainingJob(
        data=(str(folder / "texts"), "python:prose"),
        tokenizer=str(folder / "words/tokenizer.json"),
        steps=200,
        learning_rate=1e-3,
        schedule=LearningRateSchedule.LINEAR,
        warmup_steps=20,
        final_frac=0.05,
        weight_decay=0.1,
        clip_norm=0.5,
        adapter_alpha=16.0,
        adapter_dropout=0.05,
        adapter_merged=True,
        evaluation_frac=0.04,
        evaluation_every=25,
        evaluation_sequences=32,
        checkpoint_every=25,
        checkpoint_keep=3,
        threads_per_device=1,
        seed=7,
    )


def test_what_is_left_out_is_the_default_of_the_core_type(tmp_path: Path) -> None:
    assert written(tmp_path, "data: python:code\n") == TrainingJob(data=("python:code",))


def test_short_forms(tmp_path: Path) -> None:
    job = written(tmp_path, "data: notes.md\nlearning_rate: 1\nsteps: 4\n")
    assert job == TrainingJob(data=(str(tmp_path / "notes.md"),), steps=4, learning_rate=1.0, warmup_steps=4)


def test_nothing_is_evaluated_where_nothing_is_held_out(tmp_path: Path) -> None:
    assert written(tmp_path, "data: python:code\nevaluation: {frac: 0 %}\n").evaluation_every == 0


def test_paths_are_absolute_whatever_the_folder_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "job.yaml").write_text(
        "schema: echelon/job/1\ndata: [/elsewhere/text.txt, texts]\nstart: weights\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    job = load_training_job("inner/job.yaml")
    assert job.data == ("/elsewhere/text.txt", str(tmp_path / "inner" / "texts"))
    assert job.start == str(tmp_path / "inner" / "weights")


@given(job=jobs)
def test_a_job_survives_json(job: TrainingJob) -> None:
    assert training_from_json(json.loads(json.dumps(training_to_json(job)))) == job


@pytest.mark.parametrize(
    ("change", "place", "limit"),
    [
        ({"steps": 1.5}, "run.json: steps", "a whole number"),
        ({"schedule": "steep"}, "run.json: schedule", "one of 'constant', 'linear', 'cosine'"),
        ({"pipeline": None}, "run.json: pipeline", "one of '1f1b', 'gpipe', 'interleaved', 'zero-bubble'"),
        ({"data": "text"}, "run.json: data", "a list"),
        ({"data": [3]}, "run.json: data[0]", "text"),
        ({"sead": 3}, "run.json: 'sead'", ""),
    ],
)
def test_every_fault_of_the_json_has_its_place(change: dict[str, Any], place: str, limit: str) -> None:
    plain = training_to_json(TrainingJob(data=("x",))) | change
    with pytest.raises(InputError) as caught:
        training_from_json(plain, place="run.json")
    assert caught.value.code == "bad-training"
    assert [(fault.place, fault.limit) for fault in caught.value.faults] == [(place, limit)]


@pytest.mark.parametrize("wrong", [None, [], "job", {}])
def test_json_that_is_no_object_or_lacks_its_data_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError) as caught:
        training_from_json(wrong)
    assert len(caught.value.faults) == 1


def test_enums_come_back_as_enums() -> None:
    job = replace(TrainingJob(data=("x",)), pipeline=PipelineSchedule.GPIPE)
    assert training_from_json(training_to_json(job)).pipeline is PipelineSchedule.GPIPE
