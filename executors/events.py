"""What happens during a run, as JSON lines: the closed list of events and who writes which.

Ranks append theirs to `<folder>/rank-<r>.jsonl`. The agent of a host forwards them on its standard output
and adds its own; the launcher merges those of all hosts into `<folder>/events.jsonl`. Each line is one JSON
object with `event`, `time_s` (Unix time by the writer's clock) and `rank` (null where it is not a rank's).

Standard library only: agents run where nothing else is installed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from policies.errors import EchelonError, ExecutorFailedError

EVENTS_FILE = "events.jsonl"
MAX_TEXT = 2000
"""Longer texts lose their middle, so that lines stay short enough for every shell between the hosts."""


class Kind(StrEnum):
    """Every event there is: of ranks, of agents, of the launcher."""

    HELLO = "hello"
    READY = "ready"
    STEP = "step"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    EXPORTED = "exported"
    FAILED = "failed"
    FINISHED = "finished"
    NOTE = "note"

    STARTED = "started"
    BEAT = "beat"
    RANK_DIED = "rank-died"
    EXITED = "exited"
    ENDED = "ended"
    WRONG_HOST = "wrong-host"
    REFUSED = "refused"

    LAUNCHED = "launched"
    FAILOVER = "failover"
    RESUMED = "resumed"
    OUTCOME = "outcome"


_HEAD = frozenset({"event", "time_s", "rank", "host", "replica"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line. `data` are the fields of its kind; `host` and `replica` are added on the way."""

    kind: Kind
    time_s: float
    rank: int | None = None
    host: str = ""
    replica: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The JSON line, with its newline. Numbers that JSON lacks (NaN, infinities) become null."""
        record: dict[str, Any] = {"event": self.kind.value, "time_s": self.time_s, "rank": self.rank}
        record |= {name: text for name, text in (("host", self.host), ("replica", self.replica)) if text}
        record |= self.data
        return json.dumps(_finite(record), allow_nan=False) + "\n"


def parse_event(line: str | bytes) -> Event:
    """The event of a line.

    Raises:
        ValueError: no JSON object, an event outside the list, or a head field of the wrong type.
    """
    record = json.loads(line)
    _require(isinstance(record, dict), "a line is one JSON object")
    time_s, rank = record.get("time_s"), record.get("rank")
    host, replica = record.get("host", ""), record.get("replica", "")
    _require(_is_number(time_s), f"time_s is {time_s!r}, not a number")
    _require(rank is None or (type(rank) is int and rank >= 0), f"rank is {rank!r}, not a rank or null")
    _require(isinstance(host, str) and isinstance(replica, str), "host and replica are texts")
    return Event(
        kind=Kind(record.get("event")),
        time_s=float(time_s),
        rank=rank,
        host=host,
        replica=replica,
        data={name: value for name, value in record.items() if name not in _HEAD},
    )


def now(kind: Kind, rank: int | None = None, /, **data: Any) -> Event:
    """An event of this moment."""
    return Event(kind=kind, time_s=time.time(), rank=rank, data=data)


def hello(rank: int, pid: int) -> Event:
    """A rank's first word, so that its process can be watched; written before anything heavy is imported."""
    return now(Kind.HELLO, rank, pid=pid)


def ready(rank: int, step: int = 0, **more: Any) -> Event:
    """The rank has model, data and peers, and goes on after `step` optimiser steps."""
    return now(Kind.READY, rank, step=step, **more)


def step(
    rank: int,
    *,
    step: int,
    loss: float,
    gradient_norm: float,
    wall_s: float,
    cpu_s: float,
    tokens: int,
    **more: Any,
) -> Event:
    """Now `step` optimiser steps are done. `tokens` are the replica's in this one, 0 but from one rank."""
    figures = {"loss": loss, "gradient_norm": gradient_norm, "wall_s": wall_s, "cpu_s": cpu_s}
    return now(Kind.STEP, rank, step=step, tokens=tokens, **figures, **more)


def evaluation(rank: int, *, step: int, loss: float, **more: Any) -> Event:
    """Mean loss on the held-out text after `step` optimiser steps."""
    return now(Kind.EVALUATION, rank, step=step, loss=loss, **more)


def checkpoint(rank: int, *, step: int, folder: str) -> Event:
    """A checkpoint after `step` optimiser steps lies complete in `folder`."""
    return now(Kind.CHECKPOINT, rank, step=step, folder=folder)


def exported(rank: int, *, folder: str) -> Event:
    """The trained model or adapter lies complete in `folder`."""
    return now(Kind.EXPORTED, rank, folder=folder)


def failed(
    rank: int,
    *,
    code: str,
    message: str,
    hint: str = "",
    exit_code: int = 1,
    consequence: bool = False,
    where: str = "",
) -> Event:
    """The rank gives up; `consequence` says that it only noticed the end of another rank.

    `where` is the place in the code, for faults that no user can mend.
    """
    texts = {"code": code, "message": shortened(message), "hint": shortened(hint), "where": where}
    return now(Kind.FAILED, rank, exit_code=exit_code, consequence=consequence, **texts)


def failure(rank: int, error: BaseException) -> Event:
    """`failed` for an exception: code and hint of our own errors, else type and message."""
    if isinstance(error, EchelonError):
        return failed(
            rank, code=error.code, message=error.message, hint=error.hint, exit_code=error.exit_code
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    message = "".join(traceback.format_exception_only(error)).strip()
    return failed(rank, code="exception", message=message, where=where)


def finished(rank: int, **more: Any) -> Event:
    """The rank has done all its work."""
    return now(Kind.FINISHED, rank, **more)


def note(text: str, rank: int | None = None) -> Event:
    """Something worth a line."""
    return now(Kind.NOTE, rank, text=shortened(text))


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """The text, without its middle where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def rank_file(folder: Path, rank: int) -> Path:
    """Where a rank's events go."""
    return folder / f"rank-{rank}.jsonl"


class EventLog:
    """Appends events to a file; each line goes out in one write, so that writers never mix.

    Where that fails, construction and calls raise ExecutorFailedError: `disk-full` or `log-unwritable`.
    Earlier lines stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    def __call__(self, event: Event) -> None:
        """Append one event."""
        rest = memoryview(event.line().encode("utf-8"))
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _unwritable(self, error: OSError) -> ExecutorFailedError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return ExecutorFailedError(
            "disk-full" if full else "log-unwritable",
            f"{self._path} can't be written: {error.strerror}",
            hint="free some space there" if full else "choose another folder",
        )


def rank_log(folder: Path, rank: int) -> EventLog:
    """The log of one rank, which begins with its `hello`."""
    log = EventLog(rank_file(folder, rank))
    log(hello(rank, os.getpid()))
    return log


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)
