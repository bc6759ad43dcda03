"""Text in files, folders and Python itself, as a stream of pieces that is never held whole.

Order, pieces and shares depend on the text alone, so every host and every process finds the same ones.
"""

from __future__ import annotations

import codecs
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TextIO

from planner.faults import nearest, show
from planner.training import BUNDLED_TEXTS
from policies.errors import Fault, InputError

PROSE, CODE = BUNDLED_TEXTS
CODE_BYTES_MAX = 4 * 2**20
READ_BYTES = 2**20
PIECE_CHARACTERS_MIN = 512
PIECE_CHARACTERS_MAX = 256 * 2**10
# At least so many pieces of one long text, so that shares and held-out text come from all of it.
PIECES_PER_TEXT = 256
_NOT_TEXT = frozenset({"__pycache__"})
# Not sources one would read: installed packages, tests, prose and tables of characters.
_NOT_CODE = _NOT_TEXT | {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "encodings",
}  # fmt: skip

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many bytes are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file, or one of the help topics in it. `named` says that the job names it, not a folder around it."""

    path: Path
    size_bytes: int
    modified_ns: int
    topic: str = ""
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The documents that are text, how many files were left out because they aren't, and their size."""

    documents: tuple[Document, ...]
    num_skipped: int
    num_bytes: int

    @property
    def piece_characters(self) -> int:
        """Longest piece before its last line is completed."""
        return min(PIECE_CHARACTERS_MAX, max(PIECE_CHARACTERS_MIN, self.num_bytes // PIECES_PER_TEXT))


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive lines of a document; `document` and `index` count from 0."""

    document: int
    index: int
    text: str


def find_documents(data: Sequence[str]) -> tuple[Document, ...]:
    """Every document of a job's `data`, in order, each once; nothing is opened.

    Raises:
        InputError: `data-missing`, `data-empty` or `data-unreadable` (the first found) with every fault.
    """
    found: dict[tuple[Path, str], Document] = {}
    faults: list[tuple[str, Fault]] = []
    for i, name in enumerate(data):
        place = f"job: data[{i}]"
        try:
            documents = _documents_of(name, place)
        except InputError as error:
            faults += [(error.code, fault) for fault in error.faults]
            continue
        except (OSError, ValueError) as error:
            fault = Fault(place=place, value=_told(name, error), limit="a file or folder that can be read")
            faults.append(("data-unreadable", fault))
            continue
        for document in documents:
            found.setdefault((document.path, document.topic), document)
    if faults:
        raise _refused(faults[0][0], [fault for _code, fault in faults])
    return tuple(found.values())


def survey(documents: Sequence[Document], progress: Progress | None = None) -> Survey:
    """Which documents are text; reads each once, a megabyte at a time.

    A file in a folder that holds a zero byte or isn't UTF-8 is left out; one that the job names is refused.

    Raises:
        InputError: `data-not-text`, `data-unreadable` or `no-text`.
    """
    kept: list[Document] = []
    total_bytes, done_bytes, num_bytes = sum(d.size_bytes for d in documents), 0, 0
    for document in documents:
        reason = "" if document.topic else _not_text(document.path)
        if reason and document.named:
            fault = Fault(place=str(document.path), value=reason, limit="UTF-8 text", hint="convert the file")
            raise _refused("data-not-text", [fault])
        done_bytes += document.size_bytes
        if not reason and document.size_bytes:
            kept.append(document)
            num_bytes += document.size_bytes
        if progress is not None:
            progress("reading", done_bytes, total_bytes)
    if not kept:
        value = f"{len(documents)} files, none with text"
        fault = Fault(place="job: data", value=value, limit="UTF-8 text", hint="name folders with text files")
        raise _refused("no-text", [fault])
    num_skipped = sum(1 for d in documents if d.size_bytes) - len(kept)
    return Survey(documents=tuple(kept), num_skipped=num_skipped, num_bytes=num_bytes)


def pieces(found: Survey) -> Iterator[Piece]:
    """The text in order, cut at ends of lines where there are any.

    Raises:
        InputError: `data-unreadable` when a file changed or vanished since the survey.
    """
    for i, document in enumerate(found.documents):
        try:
            for k, text in enumerate(_texts(document, found.piece_characters)):
                yield Piece(document=i, index=k, text=text)
        except (OSError, UnicodeDecodeError) as error:
            value = _told("changed while it was read", error)
            raise _refused(
                "data-unreadable", [Fault(place=str(document.path), value=value, limit="text that stays")]
            ) from error


def _texts(document: Document, piece_characters: int) -> Iterator[str]:
    with _opened(document) as file:
        while text := file.read(piece_characters):
            yield text + file.readline(piece_characters)


def _opened(document: Document) -> TextIO:
    if not document.topic:
        return document.path.open(encoding="utf-8-sig", newline="")
    from pydoc_data.topics import topics

    return StringIO(topics[document.topic], newline="")


def _documents_of(name: str, place: str) -> list[Document]:
    if name == PROSE:
        return _prose(place)
    if name == CODE:
        return _code(place)
    path = Path(name)
    if path.is_dir():
        documents = [_document(file) for file in _files_below(path)]
        if not any(document.size_bytes for document in documents):
            value = f"folder {show(name)} with {len(documents)} files"
            hint = "put text files into it, or name another folder"
            raise _refused(
                "data-empty",
                [Fault(place=place, value=value, limit="at least one file with content", hint=hint)],
            )
        return documents
    if not path.is_file():
        is_there = path.exists()
        near = "" if is_there else nearest(path.name, _names_beside(path))
        hint = near if near.startswith("did you") else "check the path: each host reads it for itself"
        value = f"{show(name)}: {'no regular file' if is_there else 'no such file or folder'}"
        raise _refused(
            "data-missing", [Fault(place=place, value=value, limit="an existing file or folder", hint=hint)]
        )
    return [_document(path, named=True)]


def _names_beside(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _document(path: Path, *, named: bool = False) -> Document:
    status = path.stat()
    return Document(
        path=path.resolve(), size_bytes=status.st_size, modified_ns=status.st_mtime_ns, named=named
    )


def _files_below(folder: Path, *, left_out: frozenset[str] = _NOT_TEXT) -> list[Path]:
    """Regular files below a folder by relative path, without hidden ones, links to folders and `left_out`."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        found += [Path(where) / name for name in names if not name.startswith(".")]
    regular = [path for path in found if path.is_file()]
    return sorted(regular, key=lambda path: path.relative_to(folder).as_posix())


def _prose(place: str) -> list[Document]:
    """Python's help topics by name."""
    try:
        from pydoc_data import topics
    except ImportError:
        raise _not_here(PROSE, place) from None
    path = Path(str(topics.__file__))
    modified_ns = path.stat().st_mtime_ns
    sizes = {name: len(text.encode()) for name, text in sorted(topics.topics.items())}
    return [
        Document(path=path, size_bytes=size, modified_ns=modified_ns, topic=name)
        for name, size in sizes.items()
    ]


def _code(place: str) -> list[Document]:
    """Sources of the standard library by relative path, up to `CODE_BYTES_MAX`."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    chosen: list[Document] = []
    left_bytes = CODE_BYTES_MAX
    for path in _files_below(folder, left_out=_NOT_CODE):
        if path.suffix != ".py":
            continue
        document = _document(path)
        left_bytes -= document.size_bytes
        if left_bytes < 0:
            break
        chosen.append(document)
    if not chosen:
        raise _not_here(CODE, place)
    return chosen


def _not_here(name: str, place: str) -> InputError:
    fault = Fault(
        place=place,
        value=f"{name}: this Python comes without it",
        limit="a Python with its standard library's sources",
        hint="name text files of your own",
    )
    return _refused("data-missing", [fault])


def _not_text(path: Path) -> str:
    """Why a file is no text, or an empty word.

    Raises:
        InputError: `data-unreadable`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                if (zero := block.find(0)) >= 0:
                    return f"a zero byte at offset {offset + zero:,}"
                decoder.decode(block)
                offset += len(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return f"bytes that are no UTF-8 near offset {offset:,}"
    except OSError as error:
        fault = Fault(place=str(path), value=_told("unreadable", error), limit="a file that can be read")
        raise _refused("data-unreadable", [fault]) from error
    return ""


def _told(name: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"{show(name)}: {reason}"


def _refused(code: str, faults: Sequence[Fault]) -> InputError:
    number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return InputError(code, f"{number} in the job's text", faults=faults)
