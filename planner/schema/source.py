"""A file as it was written: its content as plain data, and on which line each part of it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.faults import show
from policies.errors import Fault

KeyPath = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_./-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One parsed file. `name` is the path as the user gave it; `line_of` counts from 1."""

    name: str
    data: Mapping[str, Any]
    line_of: Mapping[KeyPath, int] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where it is: `fleet.yaml:12: hosts[3].memory`; for an absent part its parent's line."""
        for length in range(len(path), -1, -1):
            line = self.line_of.get(path[:length])
            if line is not None:
                return f"{self.name}:{line}: {path_text(path)}".removesuffix(": ")
        return f"{self.name}: {path_text(path)}".removesuffix(": ")

    def value_at(self, path: KeyPath) -> Any:
        """What the file has at `path`, or None."""
        found: Any = self.data
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def written(self, path: KeyPath) -> KeyPath:
        """The longest leading part of `path` that stands in the file; what short forms expand to does not."""
        length = len(path)
        while length and path[:length] not in self.line_of:
            length -= 1
        return path[:length]

    def fault(self, path: KeyPath, limit: str, *, value: str | None = None, hint: str = "") -> Fault:
        """A fault at `path`; its value is what stands there unless given."""
        found = show(self.value_at(path)) if value is None else value
        return Fault(place=self.place(path), value=found, limit=limit, hint=hint)


def path_text(path: KeyPath) -> str:
    """`('hosts', 3, 'memory')` as `hosts[3].memory`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _PLAIN_KEY.fullmatch(part) else show(part)
            text += f".{key}" if text else key
    return text
