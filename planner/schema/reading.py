"""Files into plain data, safely: nothing is executed, nothing outgrows the file, every part keeps its line.

YAML 1.2 core values: `no`, `on` and `0123` are words, `1e-5` is a number. JSON is read by the same road.
Anchors, aliases, tags, several documents and keys that are not plain words are refused: none of them says
anything a fleet needs, and each has been used to blow readers up.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from planner.faults import refused, show
from planner.schema.source import KeyPath, Source
from policies.errors import Fault, InputError

MAX_FILE_BYTES = 8 * 2**20
MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_FAULTS = 1_000

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,29})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
# What YAML 1.2 section 5.1 leaves out, without the surrogates that UTF-8 can't hold anyway.
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
_WORDS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document(path: Path, *, nulls: bool = False) -> tuple[Source, list[Fault]]:
    """The file's content with its lines, and what is wrong already: keys given twice or without a value.

    With `nulls` a key may have no value, as in the configs of other programs.

    Raises:
        InputError: `bad-input` when nothing can be read at all.
    """
    text = read_text(path)
    composer = _Composer(name=str(path), nulls=nulls)
    try:
        data = composer.compose(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        raise refused([_syntax_fault(str(path), text, error)]) from None
    except yaml.YAMLError:
        raise _control_character(path, text) from None
    source = Source(name=str(path), data=data, line_of=composer.line_of)
    return source, composer.faults


def read_text(path: Path) -> str:
    """The file as text.

    Raises:
        InputError: `bad-input`: missing, not a regular file, unreadable, too large, or not UTF-8.
    """
    try:
        mode = path.stat()
        if stat.S_ISDIR(mode.st_mode):
            raise _unreadable(path, "a folder", "a file", "name the file inside it")
        if not stat.S_ISREG(mode.st_mode):
            raise _unreadable(path, "no regular file", "a file on disk")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        hint = "check the path, or start from `echelon init --example hospital DIR`"
        raise _unreadable(path, "no such file", "an existing file", hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, reason, "a file that can be read") from None
    if len(raw) > MAX_FILE_BYTES:
        hint = "describe equal hosts by one pattern such as `gpu-[001-128]`"
        limit = f"at most {MAX_FILE_BYTES:,} bytes"
        size = f"{max(mode.st_size, len(raw)):,} bytes"
        raise _unreadable(path, size, limit, hint)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        value = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise _unreadable(path, value, "UTF-8 text", "save the file as UTF-8", line=line) from None


def _control_character(path: Path, text: str) -> InputError:
    """The error for a character that YAML does not allow."""
    found = next((match for match in _NOT_PRINTABLE.finditer(text)), None)
    line = None if found is None else text.count("\n", 0, found.start()) + 1
    value = "a control character" if found is None else f"character U+{ord(found[0]):04X}"
    return _unreadable(path, value, "text without control characters", "remove it", line=line)


def _unreadable(path: Path, value: str, limit: str, hint: str = "", *, line: int | None = None) -> InputError:
    place = str(path) if line is None else f"{path}:{line}"
    return refused([Fault(place=place, value=value, limit=limit, hint=hint)])


class _Composer:
    """Events of the YAML parser into plain data. Iterative over documents, at most MAX_DEPTH deep."""

    def __init__(self, *, name: str, nulls: bool) -> None:
        self.name = name
        self.nulls = nulls
        self.line_of: dict[KeyPath, int] = {}
        self.faults: list[Fault] = []
        self._num_nodes = 0

    def compose(self, events: Iterator[Any]) -> dict[str, Any]:
        """The one document, which must be a mapping."""
        data: Any = None
        num_documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    self._stop(
                        event, "a second document", "one document", "remove the line `---` and what follows"
                    )
            elif isinstance(event, yaml.NodeEvent):
                data = self._node(event, events, ())
        if num_documents == 0 or data is None:
            hint = "start from `echelon init --example hospital DIR`"
            fault = Fault(place=self.name, value="an empty file", limit="a mapping of keys", hint=hint)
            raise refused([fault])
        if not isinstance(data, dict):
            hint = "the first line is `schema: echelon/<kind>/1`"
            fault = Fault(place=f"{self.name}:1", value=show(data), limit="a mapping of keys", hint=hint)
            raise refused([fault])
        return data

    def _node(self, event: Any, events: Iterator[Any], path: KeyPath) -> Any:
        self._require_plain(event, path)
        self.line_of[path] = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] and not event.style else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(self._node(item, events, (*path, len(items))))
            return items
        return self._mapping(events, path)

    def _mapping(self, events: Iterator[Any], path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(key_event := next(events), yaml.MappingEndEvent):
            if not isinstance(key_event, yaml.ScalarEvent):
                self._stop(key_event, "a key that is no word", "a plain word as key", "")
            self._require_plain(key_event, path)
            key = str(key_event.value)
            line = key_event.start_mark.line + 1
            if (*path, key) in self.line_of:
                first = self.line_of[*path, key]
                place = Source(name=self.name, data={}, line_of={path: line}).place((*path, key))
                hint = f"first given on line {first}: keep one of the two"
                self.faults.append(Fault(place=place, value="given twice", limit="each key once", hint=hint))
                if len(self.faults) >= MAX_FAULTS:
                    self._stop(key_event, f"more than {MAX_FAULTS:,} faults", "a file with fewer", "")
                self._skip(events, path)
                continue
            value = self._node(next(events), events, (*path, key))
            self.line_of[*path, key] = line
            if value is None and not self.nulls and path[:1] != ("config",):
                place = Source(name=self.name, data={}, line_of=self.line_of).place((*path, key))
                hint = "give it a value, or remove the line for the default"
                self.faults.append(Fault(place=place, value="nothing", limit="a value", hint=hint))
                continue
            mapping[key] = value
        return mapping

    def _skip(self, events: Iterator[Any], path: KeyPath) -> None:
        """Drop one node with everything inside it."""
        depth = 0
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                self._require_plain(event, path)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth == 0:
                return

    def _require_plain(self, event: Any, path: KeyPath) -> None:
        self._num_nodes += 1
        if len(path) > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH}", f"at most {MAX_DEPTH} levels", "")
        if self._num_nodes > MAX_NODES:
            hint = "describe equal hosts by one pattern such as `gpu-[001-128]`"
            self._stop(event, f"more than {MAX_NODES:,} values", f"at most {MAX_NODES:,} values", hint)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            self._stop(event, show(f"{sign}{event.anchor}"), "no anchors or aliases", "write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._stop(
                event,
                show(str(tag).replace("tag:yaml.org,2002:", "!!")),
                "no tags",
                "write the value without `!`",
            )

    def _stop(self, event: Any, value: str, limit: str, hint: str) -> None:
        place = f"{self.name}:{event.start_mark.line + 1}"
        fault = Fault(place=place, value=value, limit=limit, hint=hint)
        raise refused([*self.faults, fault])


def _scalar(text: str) -> Any:
    """A plain scalar by the YAML 1.2 core schema, but `0x..` and `0o..` stay words."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float("-inf" if text.startswith("-") else "inf")
    return text


def _syntax_fault(name: str, text: str, error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    lines = text.split("\n")
    # What is missing at the end is reported on the line after it.
    line = min(mark.line + 1 if mark is not None else 1, len(lines) - (len(lines) > 1 and not lines[-1]))
    written = lines[line - 1]
    began = error.context_mark.line + 1 if error.context_mark is not None else line
    hint = f"what it belongs to begins on line {began}" if began != line else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        hint = "indent with spaces, not tabs"
    reason = error.problem or "not readable"
    return Fault(
        place=f"{name}:{line}", value=show(written.strip()), limit=f"YAML or JSON ({reason})", hint=hint
    )
