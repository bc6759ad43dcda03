"""The text of a job as tokens on disk: found again when nothing changed, else made anew as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from executors.training import text_store as store
from executors.training.shares import HELD_OUT, Shares
from executors.training.text import Document, Piece, Progress, Survey, find_documents, pieces, survey
from executors.training.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    GivenTokenizer,
    TextTokenizer,
    load_tokenizer,
    read_tokenizer,
    train_tokenizer,
)
from planner.training import TrainingJob
from policies.errors import Fault, InputError

FOLDER = "text"
LOCK = "text.lock"
LOCK_WAIT_S = 3600.0
# Text a tokenizer is trained on at most, spread evenly over all of it.
TOKENIZER_TEXT_BYTES = 32 * 2**20
# Text that is turned into tokens at a time.
ENCODED_CHARACTERS = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedText:
    """One participant's tokens and everybody's held-out ones, ready to be cut into sequences.

    A sequence has `sequence_tokens + 1` tokens; the last one is the first of the next sequence, so every
    token is predicted once. `num_ids` counts the ids of the tokenizer. `sha256` is equal on two hosts when
    their tokens and tokenizers are. `notes` are for the user to read.
    """

    folder: Path
    sequence_tokens: int
    participant: int
    num_participants: int
    num_tokens: int
    num_held_out_tokens: int
    num_ids: int
    end_of_text_id: int | None
    num_documents: int
    num_skipped: int
    num_bytes: int
    sha256: str
    notes: tuple[str, ...]

    @property
    def tokens_path(self) -> Path:
        """The participant's tokens, a one-dimensional array of `num_tokens`."""
        return self.folder / store.TOKENS

    @property
    def held_out_path(self) -> Path:
        """The held-out tokens, a one-dimensional array of `num_held_out_tokens`."""
        return self.folder / store.HELD_OUT

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer; its config, where there is one, stands beside it."""
        return self.folder / TOKENIZER_FILE

    @property
    def num_sequences(self) -> int:
        """Sequences of the participant, all of which an epoch brings once."""
        return max(0, (self.num_tokens - 1) // self.sequence_tokens)

    @property
    def num_held_out_sequences(self) -> int:
        """Sequences held out; 0 when the job holds nothing out."""
        return max(0, (self.num_held_out_tokens - 1) // self.sequence_tokens)


def prepare_text(
    training: TrainingJob,
    *,
    folder: Path,
    vocab_size: int,
    sequence_tokens: int,
    participant: int = 0,
    num_participants: int = 1,
    progress: Progress | None = None,
    wait_s: float = LOCK_WAIT_S,
) -> PreparedText:
    """The tokens of a participant in `<folder>/text`, made only when settings or sources changed.

    Processes of one host may call it at the same time: one works, the others wait and find the result.

    Args:
        training: its data, tokenizer and held-out share are used.
        folder: the run folder of the participant.
        vocab_size: ids the model has rows for.
        sequence_tokens: tokens the model reads at a time.
        participant: whose share of the text it is, from 0.
        num_participants: how many share the text.
        progress: told what is being done and how far it is.
        wait_s: longest wait for another process that prepares the same text.

    Raises:
        InputError: `data-missing`, `data-empty`, `data-unreadable`, `data-not-text`, `no-text`,
            `too-little-text`, `tokenizer-missing`, `bad-tokenizer`, `tokenizer-too-large`,
            `vocabulary-too-small`.
        ExecutorFailedError: `disk-full`, `folder-not-writable`, `text-locked`.
    """
    documents = find_documents(training.data)
    given = None if training.tokenizer is None else read_tokenizer(training.tokenizer)
    settings = _settings(training, documents, given, vocab_size, participant, num_participants)
    with store.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with store.locked(folder / LOCK, wait_s):
            manifest = store.read_manifest(folder / FOLDER)
            if manifest is None or manifest.settings != settings:
                found = survey(documents, progress)
                manifest = _make(folder / FOLDER, found, given, settings, progress)
    prepared = _prepared(folder / FOLDER, manifest, sequence_tokens)
    _require_sequences(prepared, training.evaluation_frac)
    return prepared


def _settings(
    training: TrainingJob,
    documents: Sequence[Document],
    given: GivenTokenizer | None,
    vocab_size: int,
    participant: int,
    num_participants: int,
) -> dict[str, Any]:
    """Everything that decides the tokens, as JSON values."""
    from tokenizers import __version__ as tokenizers_version

    listed = hashlib.sha256()
    for document in documents:
        line = [str(document.path), document.topic, document.size_bytes, document.modified_ns]
        listed.update(json.dumps(line).encode())
    return {
        "data": list(training.data),
        "sources_sha256": listed.hexdigest(),
        "tokenizer_sha256": None if given is None else given.sha256,
        "tokenizers": tokenizers_version,
        "evaluation_frac": float(training.evaluation_frac),
        "vocab_size": vocab_size,
        "participant": participant,
        "num_participants": num_participants,
    }


def _make(
    folder: Path,
    found: Survey,
    given: GivenTokenizer | None,
    settings: dict[str, Any],
    progress: Progress | None,
) -> store.TextManifest:
    """Write the whole text folder."""
    vocab_size = settings["vocab_size"]
    if given is None:
        frac = settings["evaluation_frac"]
        tokenizer = train_tokenizer(_tokenizer_texts(found, frac, progress), vocab_size)
    else:
        tokenizer = load_tokenizer(given, vocab_size)
    with store.replaced_whole(folder) as partial:
        num_tokens, num_held_out_tokens = _write_tokens(partial, found, tokenizer, settings, progress)
        store.write_text(partial / TOKENIZER_FILE, tokenizer.to_json())
        if tokenizer.config_text is not None:
            store.write_text(partial / CONFIG_FILE, tokenizer.config_text)
        manifest = store.TextManifest(
            settings=settings,
            files={path.name: store.stored_file(path) for path in sorted(partial.iterdir())},
            num_tokens=num_tokens,
            num_held_out_tokens=num_held_out_tokens,
            num_ids=tokenizer.num_ids,
            end_of_text_id=tokenizer.end_of_text_id,
            num_documents=len(found.documents),
            num_skipped=found.num_skipped,
            num_bytes=found.num_bytes,
            notes=(*tokenizer.notes, *_skipped(found)),
        )
        store.write_manifest(partial, manifest)
    return manifest


def _skipped(found: Survey) -> tuple[str, ...]:
    number = "1 file was" if found.num_skipped == 1 else f"{found.num_skipped:,} files were"
    return (f"{number} left out: not UTF-8 text",) if found.num_skipped else ()


def _tokenizer_texts(found: Survey, evaluation_frac: float, progress: Progress | None) -> Iterator[str]:
    """What the tokenizer may see: text of all participants alike, but none that is held out."""
    shares = Shares(num_participants=1, evaluation_frac=evaluation_frac)
    stride, num_seen = -(-found.num_bytes // TOKENIZER_TEXT_BYTES), 0
    for piece in _told(found, "training the tokenizer", progress):
        if shares.owner(len(piece.text)) != HELD_OUT:
            if num_seen % stride == 0:
                yield piece.text
            num_seen += 1


def _write_tokens(
    folder: Path,
    found: Survey,
    tokenizer: TextTokenizer,
    settings: dict[str, Any],
    progress: Progress | None,
) -> tuple[int, int]:
    """Write the participant's and the held-out tokens; how many of each there are."""
    dtype = np.uint16 if settings["vocab_size"] <= 2**16 else np.uint32
    shares = Shares(
        num_participants=settings["num_participants"], evaluation_frac=settings["evaluation_frac"]
    )
    files = {settings["participant"]: store.TOKENS, HELD_OUT: store.HELD_OUT}
    batch: list[tuple[int, Piece]] = []
    num_characters = 0
    with ExitStack() as stack:
        streams = {
            owner: stack.enter_context(store.TokenStream(folder / name, dtype, tokenizer.end_of_text_id))
            for owner, name in files.items()
        }
        for piece in _told(found, "turning text into tokens", progress):
            owner = shares.owner(len(piece.text))
            if owner in streams:
                batch.append((owner, piece))
                num_characters += len(piece.text)
            if num_characters >= ENCODED_CHARACTERS:
                _encode(batch, tokenizer, streams)
                batch, num_characters = [], 0
        _encode(batch, tokenizer, streams)
    return streams[settings["participant"]].num_tokens, streams[HELD_OUT].num_tokens


def _encode(
    batch: list[tuple[int, Piece]], tokenizer: TextTokenizer, streams: dict[int, store.TokenStream]
) -> None:
    encoded = tokenizer.encode([piece.text for _owner, piece in batch])
    for (owner, piece), ids in zip(batch, encoded, strict=True):
        streams[owner].add(piece.document, piece.index, ids)


def _told(found: Survey, what: str, progress: Progress | None) -> Iterator[Piece]:
    """The pieces of the text, with word of each document that begins and of the end."""
    before, document = 0, -1
    for piece in pieces(found):
        if progress is not None and piece.document != document:
            before += found.documents[document].size_bytes if document >= 0 else 0
            document = piece.document
            progress(what, before, found.num_bytes)
        yield piece
    if progress is not None:
        progress(what, found.num_bytes, found.num_bytes)


def _prepared(folder: Path, manifest: store.TextManifest, sequence_tokens: int) -> PreparedText:
    hashes = [manifest.files[name].sha256 for name in (store.TOKENS, store.HELD_OUT, TOKENIZER_FILE)]
    return PreparedText(
        folder=folder,
        sequence_tokens=sequence_tokens,
        participant=manifest.settings["participant"],
        num_participants=manifest.settings["num_participants"],
        num_tokens=manifest.num_tokens,
        num_held_out_tokens=manifest.num_held_out_tokens,
        num_ids=manifest.num_ids,
        end_of_text_id=manifest.end_of_text_id,
        num_documents=manifest.num_documents,
        num_skipped=manifest.num_skipped,
        num_bytes=manifest.num_bytes,
        sha256=hashlib.sha256(" ".join(hashes).encode()).hexdigest(),
        notes=manifest.notes,
    )


def _require_sequences(prepared: PreparedText, evaluation_frac: float) -> None:
    """At least one sequence to learn from, and one held out where some of the text is."""
    limit = f"at least {prepared.sequence_tokens + 1:,}: one sequence and the token after it"
    faults: list[Fault] = []
    if not prepared.num_sequences:
        share = f" for participant {prepared.participant + 1} of {prepared.num_participants}"
        value = f"{prepared.num_tokens:,} tokens{share if prepared.num_participants > 1 else ''}"
        hint = "add text, or shorten `sequence` in the model file"
        faults.append(Fault(place="job: data", value=value, limit=limit, hint=hint))
    if evaluation_frac > 0 and not prepared.num_held_out_sequences:
        value = f"{evaluation_frac:g}: {prepared.num_held_out_tokens:,} tokens held out"
        hint = "add text, hold out a larger share, or 0 for no evaluation"
        faults.append(Fault(place="job: evaluation.frac", value=value, limit=limit, hint=hint))
    if faults:
        message = f"the text has {prepared.num_bytes:,} bytes: too little for this job"
        raise InputError("too-little-text", message, faults=faults)
