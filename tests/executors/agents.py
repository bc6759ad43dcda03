"""One agent under test: started here, spoken to over its pipes, its events collected."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from executors.agent_spec import AgentSpec
from executors.events import Event, Kind, parse_event

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0


class Agent:
    """A running agent; `events` are those that have come so far, heartbeats left out."""

    def __init__(self, spec: AgentSpec | None, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "executors.agent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            bufsize=0,
        )
        self.events: list[Event] = []
        self.beats: list[Event] = []
        self._rest = b""
        if spec is not None:
            self.say(spec.line())

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def until(self, condition: Callable[[Event], bool]) -> Event:
        """The first event for which the condition holds, from now on or before.

        Raises:
            TimeoutError: there is none, or the agent ends before.
        """
        deadline_s = time.monotonic() + LIMIT_S
        known = 0
        while True:
            for event in self.events[known:]:
                if condition(event):
                    return event
            known = len(self.events)
            if not self._read(deadline_s - time.monotonic()):
                raise TimeoutError(f"waited in vain; so far {self.kinds()}")

    def until_beat(self, condition: Callable[[], bool]) -> None:
        """Until the condition, which looks at `beats`, holds.

        Raises:
            TimeoutError: it does not in time, or the agent ends before.
        """
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            if not self._read(deadline_s - time.monotonic()):
                raise TimeoutError(f"waited in vain; so far {self.kinds()}")

    def until_kind(self, kind: Kind) -> Event:
        return self.until(lambda event: event.kind is kind)

    def end(self) -> int:
        """The exit code, once the agent has ended; all its events are known then."""
        deadline_s = time.monotonic() + LIMIT_S
        while self._read(deadline_s - time.monotonic()):
            pass
        return self.process.wait(timeout=LIMIT_S)

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
        self.process.wait(timeout=LIMIT_S)

    def _read(self, timeout_s: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(0.0, timeout_s))[0]:
            return False
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for event in map(parse_event, lines):
            (self.beats if event.kind is Kind.BEAT else self.events).append(event)
        return bool(data)


def spec_in(folder: Path, argv: Sequence[str], **fields: Any) -> AgentSpec:
    """A specification with short times."""
    quick = {"replica": "lab-r0", "host": "a", "grace_s": 0.5, "beat_s": 0.2}
    return AgentSpec(**{**quick, "folder": str(folder), "argv": tuple(argv), **fields})


def python(program: str) -> list[str]:
    """A command that runs a Python program."""
    return [sys.executable, "-c", program]


def said(path: Path) -> dict[str, Any]:
    """The JSON that a command left in a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
