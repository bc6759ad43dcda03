"""Tokens on disk: streams written piece by piece, and one folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from executors.training.disk import full_disk_named
from planner.plan_reading import read_json, record_from_json
from policies.errors import ExecutorFailedError, InputError

SCHEMA = "echelon/text/1"
TOKENS = "tokens.npy"
HELD_OUT = "held_out.npy"
MANIFEST = "manifest.json"
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Size and hash of one file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextManifest:
    """What a text folder holds, and the `settings` and sources it was made from."""

    settings: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    num_tokens: int
    num_held_out_tokens: int
    num_ids: int
    end_of_text_id: int | None
    num_documents: int
    num_skipped: int
    num_bytes: int
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA


class TokenStream:
    """A one-dimensional `.npy` file of tokens, longer with every piece, and on disk when the block ends.

    Pieces that follow one another in a document are joined; before any other one stands the end of text.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, end_of_text_id: int | None) -> None:
        self.num_tokens = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._end = [] if end_of_text_id is None else [end_of_text_id]
        self._expected: tuple[int, int] | None = None
        self._file = path.open("w+b")
        self._header()

    def add(self, document: int, index: int, ids: npt.NDArray[np.uint32]) -> None:
        """Append a piece, the `index`-th of its document."""
        if self._expected not in (None, (document, index)):
            self._append(self._end)
        self._append(ids)
        self._expected = (document, index + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            with suppress(OSError) if kind else nullcontext():
                self._file.close()

    def _finish(self) -> None:
        """End the text, write the length into the header and put everything on disk."""
        if self._expected is not None:
            self._append(self._end)
        self._file.seek(0)
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _append(self, ids: Any) -> None:
        self._file.write(np.asarray(ids, dtype=self._dtype).tobytes())
        self.num_tokens += len(ids)

    def _header(self) -> None:
        # The format leaves room for the longest length, so that a header can be replaced by another.
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.num_tokens,)}
        np.lib.format.write_array_header_1_0(self._file, about)


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock of a file; other processes of this host wait their turn.

    Raises:
        ExecutorFailedError: `text-locked` after `wait_s` seconds.
    """
    deadline_s = time.monotonic() + wait_s
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise ExecutorFailedError(
                        "text-locked",
                        f"another process has prepared the text in {path.parent} for over {wait_s:g} s",
                        hint="look for a worker that hangs, or give the launch another folder",
                    ) from None
                time.sleep(POLL_S)
        yield


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn what the system says about writing below `folder` into named errors.

    Raises:
        ExecutorFailedError: `disk-full` or `folder-not-writable`.
    """
    try:
        with full_disk_named(folder):
            yield
    except OSError as error:
        raise ExecutorFailedError(
            "folder-not-writable",
            f"can't write below {folder}: {error.strerror or error}",
            hint="mend its permissions, or name another run folder",
        ) from error


def read_manifest(folder: Path) -> TextManifest | None:
    """The manifest of a whole text folder, or None where there is none."""
    try:
        manifest = record_from_json(TextManifest, read_json(folder / MANIFEST), place=str(folder / MANIFEST))
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    except (InputError, OSError):
        return None
    whole = all(sizes[name] == file.bytes for name, file in manifest.files.items())
    return manifest if whole and manifest.schema == SCHEMA else None


def stored_file(path: Path) -> StoredFile:
    """Size and hash of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredFile(bytes=path.stat().st_size, sha256=sha256)


def write_text(path: Path, text: str) -> None:
    """Put a text on disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place at the end; on an error all stays as it was.

    Only for a caller that holds the lock: what earlier ones left half-done is removed.
    """
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(left)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old.partial")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_manifest(folder: Path, manifest: TextManifest) -> None:
    """Write the manifest beside the files it lists."""
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")
