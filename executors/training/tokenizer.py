"""A tokenizer given as `tokenizer.json`, or byte-level BPE trained on the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.faults import show
from policies.errors import Fault, InputError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
# One id per byte and the end of text: less can't spell every text.
VOCABULARY_MIN = 257
# What end-of-text tokens are called where no tokenizer_config.json says so.
_END_NAMES = (
    END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "<｜end▁of▁sentence｜>",
    "[SEP]",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTokenizer:
    """A tokenizer's files as they were read: `tokenizer.json` and, where it stands beside, its config."""

    place: str
    text: str
    config_text: str | None

    @property
    def sha256(self) -> str:
        """Hash of both files."""
        return hashlib.sha256(f"{self.text}\0{self.config_text}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTokenizer:
    """Text into ids below `num_ids`. `end_of_text_id` is None where the tokenizer has no such token."""

    tokenizer: Any
    num_ids: int
    end_of_text_id: int | None
    config_text: str | None
    notes: tuple[str, ...]

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, without special tokens around it."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in found]

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return str(self.tokenizer.to_str())


def read_tokenizer(name: str) -> GivenTokenizer:
    """The files of the tokenizer that a job names: a `tokenizer.json` or a folder with one.

    Raises:
        InputError: `tokenizer-missing` or `bad-tokenizer`.
    """
    path = Path(name) / TOKENIZER_FILE if Path(name).is_dir() else Path(name)
    config = path.parent / CONFIG_FILE
    try:
        if not path.is_file():
            value = f"{show(str(path))}: no such file"
            hint = "check the path, or leave `tokenizer` out to train one on the data"
            raise _refused(
                "tokenizer-missing", value, f"an existing `{TOKENIZER_FILE}` or a folder with one", hint
            )
        text = path.read_text(encoding="utf-8")
        config_text = config.read_text(encoding="utf-8") if config.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise _refused("bad-tokenizer", f"{show(str(path))}: {reason}", "UTF-8 that can be read") from error
    return GivenTokenizer(place=str(path), text=text, config_text=config_text)


def load_tokenizer(given: GivenTokenizer, vocab_size: int) -> TextTokenizer:
    """The given tokenizer, for a model with `vocab_size` embeddings.

    Raises:
        InputError: `bad-tokenizer`, or `tokenizer-too-large` when it has ids the model has no row for.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(given.text)
    except Exception as error:
        value = f"{show(given.place)}: {str(error)[:120]}"
        hint = "tokenizers of other kinds are converted by transformers' `save_pretrained`"
        raise _refused(
            "bad-tokenizer", value, f"a `{TOKENIZER_FILE}` of the tokenizers library", hint
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    num_ids = max(vocabulary.values(), default=-1) + 1
    if num_ids > vocab_size:
        value = f"{num_ids:,} ids in {show(given.place)}"
        hint = "name the tokenizer that belongs to the model, or raise `vocab_size` in the model's config"
        limit = f"at most {vocab_size:,}, the model's vocab_size"
        raise _refused("tokenizer-too-large", value, limit, hint)
    end_of_text_id = _end_of_text(vocabulary, given.config_text)
    notes = () if end_of_text_id is not None else ("no end-of-text token: documents follow without one",)
    return TextTokenizer(
        tokenizer=tokenizer,
        num_ids=num_ids,
        end_of_text_id=end_of_text_id,
        config_text=given.config_text,
        notes=notes,
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Byte-level BPE with up to `vocab_size` ids; the same texts give the same tokenizer.

    Raises:
        InputError: `vocabulary-too-small` for fewer ids than bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < VOCABULARY_MIN:
        hint = "raise `vocab_size` in the model's config, or name a tokenizer"
        limit = f"at least {VOCABULARY_MIN} to train a tokenizer: every byte and the end of text"
        fault = Fault(place="model: vocab_size", value=f"{vocab_size:,}", limit=limit, hint=hint)
        message = f"a vocabulary of {vocab_size:,} can't spell every text"
        raise InputError("vocabulary-too-small", message, faults=[fault], hint=hint)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    num_ids = tokenizer.get_vocab_size(with_added_tokens=True)
    short = f"the text gives a tokenizer of {num_ids:,} ids; the model's vocabulary has {vocab_size:,}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    return TextTokenizer(
        tokenizer=tokenizer,
        num_ids=num_ids,
        end_of_text_id=tokenizer.token_to_id(END_OF_TEXT),
        config_text=json.dumps(config, indent=1) + "\n",
        notes=(short,) if num_ids < vocab_size else (),
    )


def _end_of_text(vocabulary: dict[str, int], config_text: str | None) -> int | None:
    """The id of the end-of-text token: as the config names it, else by its usual names."""
    try:
        config = json.loads(config_text or "{}")
    except ValueError:
        config = {}
    named = config.get("eos_token") if isinstance(config, dict) else None
    named = named.get("content") if isinstance(named, dict) else named
    names = (named, *_END_NAMES) if isinstance(named, str) else _END_NAMES
    return next((vocabulary[name] for name in names if name in vocabulary), None)


def _refused(code: str, value: str, limit: str, hint: str = "") -> InputError:
    fault = Fault(place="job: tokenizer", value=value, limit=limit, hint=hint)
    return InputError(code, f"the job's tokenizer can't be used: {value}", faults=[fault], hint=hint)
