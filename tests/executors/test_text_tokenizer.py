"""Given tokenizers must fit the model; trained ones are the same for the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executors.training.tokenizer import (
    END_OF_TEXT,
    TextTokenizer,
    load_tokenizer,
    read_tokenizer,
    train_tokenizer,
)
from policies.errors import InputError

TEXTS = ["the cat sat on the mat\n" * 20, "der Hund lag unter dem Tisch — ganz ruhig\n" * 20]


def word_tokenizer(vocabulary: dict[str, int]) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


def loaded(folder: Path, text: str, config: Any = None, *, vocab_size: int = 100) -> TextTokenizer:
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(read_tokenizer(str(folder)), vocab_size)


def test_a_trained_tokenizer_spells_every_text_and_is_the_same_again() -> None:
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(iter(TEXTS), 300)
    assert first.to_json() == second.to_json()
    assert (first.num_ids, first.notes) == (300, ())
    text = "quite other words: ж 漢 🎈\r\n\t<|endoftext"
    (ids,) = first.encode([text])
    assert first.tokenizer.decode(ids.tolist()) == text
    assert int(ids.max()) < 300


def test_too_little_text_for_the_vocabulary_is_a_note() -> None:
    trained = train_tokenizer(["abc"], 4000)
    assert trained.num_ids < 400
    assert "4,000" in trained.notes[0]


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        train_tokenizer(TEXTS, 256)
    assert caught.value.code == "vocabulary-too-small"
    assert "257" in caught.value.faults[0].limit


def test_more_ids_than_the_model_has_rows_are_refused_with_both_numbers(tmp_path: Path) -> None:
    text = word_tokenizer({"?": 0, "a": 1, "b": 120})
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text, vocab_size=120)
    assert caught.value.code == "tokenizer-too-large"
    fault = caught.value.faults[0]
    assert fault.place == "job: tokenizer"
    assert "121" in fault.value
    assert "120" in fault.limit
    assert loaded(tmp_path, text, vocab_size=121).num_ids == 121


@pytest.mark.parametrize(
    ("config", "end"),
    [
        (None, 2),
        ({"eos_token": "stop"}, 3),
        ({"eos_token": {"content": "stop"}}, 3),
        ({"eos_token": "absent"}, 2),
        (["no", "mapping"], 2),
    ],
)
def test_the_end_of_text_is_what_the_config_names_else_a_usual_name(
    config: Any, end: int, tmp_path: Path
) -> None:
    text = word_tokenizer({"?": 0, "a": 1, "</s>": 2, "stop": 3})
    assert loaded(tmp_path, text, config).end_of_text_id == end


def test_without_an_end_of_text_token_there_is_a_note(tmp_path: Path) -> None:
    found = loaded(tmp_path, word_tokenizer({"?": 0, "a": 1}))
    assert found.end_of_text_id is None
    assert len(found.notes) == 1


def test_a_tokenizer_that_cuts_or_pads_gives_whole_texts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(word_tokenizer({"?": 0, "a": 1}))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    found = loaded(tmp_path, tokenizer.to_str())
    assert [ids.tolist() for ids in found.encode(["a a a", "a"])] == [[1, 1, 1], [1]]


def test_files_that_are_no_tokenizer_are_refused_by_name(tmp_path: Path) -> None:
    codes = []
    for name, content in (("absent", None), ("empty", b""), ("json", b"{}"), ("bytes", b"\xff\0")):
        path = tmp_path / f"{name}.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_tokenizer(read_tokenizer(str(path)), 300)
        codes.append(caught.value.code)
        assert str(path) in caught.value.faults[0].value.replace("...", "") or name in str(path)
    assert codes == ["tokenizer-missing", "bad-tokenizer", "bad-tokenizer", "bad-tokenizer"]
    with pytest.raises(InputError) as caught:
        read_tokenizer(str(tmp_path))
    assert caught.value.code == "tokenizer-missing"


def test_a_trained_tokenizer_is_found_again_by_its_files(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 300)
    again = loaded(tmp_path, trained.to_json(), json.loads(trained.config_text or ""), vocab_size=300)
    assert again.end_of_text_id == trained.end_of_text_id == again.tokenizer.token_to_id(END_OF_TEXT)
    assert [ids.tolist() for ids in again.encode(TEXTS)] == [ids.tolist() for ids in trained.encode(TEXTS)]
