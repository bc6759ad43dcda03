"""What an agent is told: one JSON line with everything that its host needs. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCHEMA = "echelon/agent/1"
STOP_LINE = "stop\n"
BEAT_LINE = "beat\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One host's share of one start of a replica.

    `host` is its name in the plan, `expected` the name or address that must be this machine's ("" for any).
    `files` go below `folder`, each whole or not at all. `argv` runs there; `env` is added to the environment,
    and null removes a variable. `ranks` are those that the command starts here. `port` must be free before
    (0 for none). `grace_s` lies between SIGTERM and SIGKILL. The agent reports every `beat_s`, and ends
    everything where it hears nothing for `silence_s` (0 waits for the end of the input alone).
    """

    replica: str
    host: str
    folder: str
    argv: tuple[str, ...]
    expected: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    port: int = 0
    grace_s: float = 5.0
    beat_s: float = 1.0
    silence_s: float = 0.0
    schema: str = SCHEMA

    def line(self) -> str:
        """The JSON line, with its newline."""
        return json.dumps(asdict(self)) + "\n"


def parse_spec(line: str | bytes) -> AgentSpec:
    """The specification in a line.

    Raises:
        ValueError: not one of this schema, or a field that is unknown, missing or of the wrong type.
    """
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"expected {SCHEMA}, found {found!r}: launcher and host run different versions")
    unknown = sorted(set(record) - {each.name for each in fields(AgentSpec)})
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")
    for name, good in _GOOD.items():
        if name in record and not good(record[name]):
            raise ValueError(f"{name} is {record[name]!r}")
    outside = [path for path in record.get("files", {}) if path.startswith("/") or ".." in path.split("/")]
    if outside:
        raise ValueError(f"files outside the folder: {', '.join(outside)}")
    try:
        return AgentSpec(**record | {"argv": tuple(record["argv"]), "ranks": tuple(record.get("ranks", ()))})
    except (KeyError, TypeError) as error:
        raise ValueError(f"a field is missing: {error}") from error


def file_name(host: str) -> str:
    """A host's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", host)


def _is_map(value: Any, *, null: bool) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) or (null and text is None) for text in value.values()
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


_GOOD: Mapping[str, Callable[[Any], bool]] = {
    "replica": lambda value: isinstance(value, str),
    "host": lambda value: isinstance(value, str) and value != "",
    "expected": lambda value: isinstance(value, str),
    "folder": lambda value: isinstance(value, str) and value.startswith("/"),
    "argv": lambda value: isinstance(value, list) and value != [] and all(type(w) is str for w in value),
    "files": lambda value: _is_map(value, null=False),
    "env": lambda value: _is_map(value, null=True),
    "ranks": lambda value: isinstance(value, list) and all(_is_count(rank) for rank in value),
    "port": lambda value: _is_count(value) and value <= 65535,
    "grace_s": _is_seconds,
    "beat_s": lambda value: _is_seconds(value) and value > 0,
    "silence_s": _is_seconds,
}
"""What each field must be; the line comes from another machine."""
