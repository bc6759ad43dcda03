"""Tokens on disk: nothing lost, nothing shared, found again, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executors.training import prepare as prepare_module
from executors.training.prepare import PreparedText, prepare_text
from executors.training.tokenizer import END_OF_TEXT, TextTokenizer, train_tokenizer
from planner.training import TrainingJob
from policies.errors import EchelonError, ExecutorFailedError, InputError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"vocab_size": 320, "sequence_tokens": 8}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Some 40 KB in files of very different lengths; every line is told apart from every other."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, num_lines in enumerate((700, 3, 40, 1, 300)):
        lines = "".join(f"line {k} of text {i}: {'word ' * (k % 7)}\n" for k in range(num_lines))
        (folder / f"{i}.txt").write_text(lines, encoding="utf-8")
    return folder


def prepared(training: TrainingJob, folder: Path, **changes: Any) -> PreparedText:
    return prepare_text(training, folder=folder, **(SETTINGS | changes))


def job(data: Path | str, **fields: Any) -> TrainingJob:
    return TrainingJob(data=(str(data),), **fields)


def runs_of_text(found: PreparedText, path: Path) -> list[str]:
    """The texts between ends of text in a token file."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(found.tokenizer_path))
    ids = np.load(path)
    assert ids[-1] == found.end_of_text_id
    runs = np.split(ids, np.flatnonzero(ids == found.end_of_text_id) + 1)
    return [tokenizer.decode(run.tolist()) for run in runs if len(run)]


def refusal(training: TrainingJob, folder: Path, **changes: Any) -> EchelonError:
    with pytest.raises(EchelonError) as caught:
        prepared(training, folder, **changes)
    return caught.value


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_participant_gets_all_but_the_held_out_text(data: Path, tmp_path: Path) -> None:
    found = prepared(job(data), tmp_path / "run")
    runs = runs_of_text(found, found.tokens_path)
    held_out = runs_of_text(found, found.held_out_path)
    texts = [path.read_text(encoding="utf-8") for path in sorted(data.iterdir())]
    assert sum(map(len, runs + held_out)) == sum(map(len, texts))
    assert all(any(run in text for text in texts) for run in runs + held_out)
    held_frac = sum(map(len, held_out)) / sum(map(len, texts))
    assert 0.03 < held_frac < 0.07
    assert found.num_sequences == (found.num_tokens - 1) // 8
    assert np.load(found.tokens_path).dtype == np.uint16


def test_participants_share_the_text_without_overlap_and_hold_out_the_same(
    data: Path, tmp_path: Path
) -> None:
    training = job(data, evaluation_frac=0.2)
    shares = [prepared(training, tmp_path / str(i), participant=i, num_participants=3) for i in range(3)]
    alone = prepared(training, tmp_path / "alone")
    lines = [Counter("".join(runs_of_text(found, found.tokens_path)).splitlines()) for found in shares]
    held_out = Counter("".join(runs_of_text(alone, alone.held_out_path)).splitlines())
    texts = Counter("".join(p.read_text(encoding="utf-8") for p in data.iterdir()).splitlines())
    assert sum(lines, held_out) == texts, "every line once, with one of the participants or held out"
    for found in shares:
        assert found.held_out_path.read_bytes() == alone.held_out_path.read_bytes()
        assert found.tokenizer_path.read_bytes() == alone.tokenizer_path.read_bytes()
    sizes = [found.num_tokens for found in shares]
    assert max(sizes) < 1.2 * min(sizes)


def test_it_is_found_again_and_made_anew_when_anything_changed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told: list[str] = []

    def note(what: str, _done_bytes: int, _all_bytes: int) -> None:
        told.append(what)

    def made(training: TrainingJob, **changes: Any) -> bool:
        told.clear()
        prepared(training, folder, progress=note, **changes)
        return bool(told)

    training = job(data)
    assert made(training)
    assert not made(training)
    assert not made(replace(training, steps=7, seed=9, learning_rate=1.0))
    assert not made(training, sequence_tokens=16), "tokens are the same for any length of sequence"
    assert made(training, vocab_size=300)
    assert made(training, vocab_size=300, num_participants=2)
    assert made(training, vocab_size=300, participant=1, num_participants=2)
    assert made(replace(training, evaluation_frac=0.1))
    os.utime(data / "1.txt", ns=(1, 1))
    assert made(replace(training, evaluation_frac=0.1))
    (data / "new.txt").write_text("new\n", encoding="utf-8")
    assert made(replace(training, evaluation_frac=0.1))
    tokens = folder / "text" / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert made(replace(training, evaluation_frac=0.1)), "a file of another size is not trusted"
    (folder / "text" / "manifest.json").write_text("{", encoding="utf-8")
    assert made(replace(training, evaluation_frac=0.1))


def test_the_same_text_gives_the_same_bytes_with_hashes_in_the_manifest(data: Path, tmp_path: Path) -> None:
    first, second = (prepared(job(data), tmp_path / name) for name in "ab")
    assert files_of(first.folder) == files_of(second.folder)
    assert first.sha256 == second.sha256
    manifest = json.loads((first.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == "echelon/text/1"
    assert set(manifest["files"]) == {
        "tokens.npy", "held_out.npy", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    (data / "1.txt").write_text("other words\n", encoding="utf-8")
    assert prepared(job(data), tmp_path / "c").sha256 != first.sha256


def test_a_given_tokenizer_is_used_as_it_is(data: Path, tmp_path: Path) -> None:
    trained = train_tokenizer(["some text"], 260)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")
    training = job(data, tokenizer=str(tmp_path / "given"))
    found = prepared(training, tmp_path / "run", vocab_size=70_000)
    assert found.num_ids == trained.num_ids
    assert np.load(found.tokens_path).dtype == np.uint32
    error = refusal(training, tmp_path / "run", vocab_size=trained.num_ids - 1)
    assert error.code == "tokenizer-too-large"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["text", "text.lock"]


@pytest.mark.parametrize(
    ("text", "fields", "changes", "places"),
    [
        ("short\n", {}, {}, ["job: data", "job: evaluation.frac"]),
        ("short\n", {"evaluation_frac": 0.0}, {}, ["job: data"]),
        ("word " * 300, {"evaluation_frac": 0.001}, {}, ["job: evaluation.frac"]),
        ("word\n" * 300, {"evaluation_frac": 0.0}, {"participant": 7, "num_participants": 8}, ["job: data"]),
    ],
)
def test_less_than_one_sequence_is_refused(
    text: str, fields: dict[str, Any], changes: dict[str, Any], places: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        prepared(job(tmp_path / "text.txt", **fields), tmp_path / "run", **changes)
    assert caught.value.code == "too-little-text"
    assert [fault.place for fault in caught.value.faults] == places
    assert all("at least 9" in fault.limit and fault.hint for fault in caught.value.faults)


def test_the_tokenizer_never_sees_held_out_text(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watched(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(prepare_module, "train_tokenizer", watched)
    found = prepared(job(data), tmp_path, num_participants=2)
    held_out = Counter("".join(runs_of_text(found, found.held_out_path)).splitlines())
    texts = Counter("".join(p.read_text(encoding="utf-8") for p in data.iterdir()).splitlines())
    assert Counter("".join(seen).splitlines()) == texts - held_out
    assert held_out


def test_pieces_that_follow_one_another_stay_joined(data: Path, tmp_path: Path) -> None:
    found = prepared(job(data, evaluation_frac=0.0), tmp_path)
    assert (found.num_held_out_tokens, found.num_held_out_sequences) == (0, 0)
    texts = [path.read_bytes().decode() for path in sorted(data.iterdir())]
    assert [run.removesuffix(END_OF_TEXT) for run in runs_of_text(found, found.tokens_path)] == texts


def test_files_left_out_are_told(data: Path, tmp_path: Path) -> None:
    (data / "picture.png").write_bytes(b"\0")
    found = prepared(job(data), tmp_path)
    assert found.num_skipped == 1
    assert found.notes == ("1 file was left out: not UTF-8 text",)


def test_a_full_disk_is_named_and_leaves_what_was_there(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = files_of(prepared(job(data), folder).folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        error = refusal(job(data, evaluation_frac=0.1), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(error, ExecutorFailedError)
    assert error.code == "disk-full"
    assert files_of(folder / "text") == before
    assert sorted(path.name for path in folder.iterdir()) == ["text", "text.lock"]


def test_a_folder_that_cannot_be_written_to_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert refusal(job(data), tmp_path / "file" / "run").code == "folder-not-writable"


def test_an_interruption_leaves_what_was_there_and_nothing_beside(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before = files_of(prepared(job(data), folder).folder)

    def interrupt(what: str, done_bytes: int, _all_bytes: int) -> None:
        if what.startswith("turning") and done_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(job(data, evaluation_frac=0.1), folder, progress=interrupt)
    assert files_of(folder / "text") == before
    assert sorted(path.name for path in folder.iterdir()) == ["text", "text.lock"]


def test_what_a_killed_process_left_behind_is_cleared(data: Path, tmp_path: Path) -> None:
    (tmp_path / ".text.123.partial").mkdir()
    (tmp_path / ".text.123.partial" / "tokens.npy").write_bytes(b"half")
    prepared(job(data), tmp_path)
    assert not (tmp_path / ".text.123.partial").exists()


def test_a_wait_for_another_process_has_an_end(data: Path, tmp_path: Path) -> None:
    with (tmp_path / prepare_module.LOCK).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        error = refusal(job(data), tmp_path, wait_s=0.0)
    assert error.code == "text-locked"
    prepared(job(data), tmp_path, wait_s=0.0)


WORKER = """
import sys
from pathlib import Path
from executors.training.prepare import prepare_text
from planner.training import TrainingJob
told = set()
found = prepare_text(
    TrainingJob(data=(sys.argv[1],)), folder=Path(sys.argv[2]), vocab_size=320, sequence_tokens=8,
    progress=lambda what, done_bytes, all_bytes: told.add(what),
)
print(found.sha256, len(told))
"""


def test_of_several_processes_one_works_and_all_find_the_same(data: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", WORKER, str(data), str(tmp_path / "run")]
    started = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].split() for process in started]
    assert sorted(int(num_told) for _sha256, num_told in answers) == [0, 0, 3]
    assert {sha256 for sha256, _num_told in answers} == {prepared(job(data), tmp_path / "other").sha256}
