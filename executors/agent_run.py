"""What an agent does once it may: starts the command, watches its ranks, ends everything.

One process, one thread. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from executors.agent_spec import STOP_LINE, AgentSpec, file_name
from executors.causes import first_error, last_line
from executors.events import Event, Kind, now, shortened
from executors.processes import (
    Ending,
    become_subreaper,
    end_descendants,
    end_with_parent,
    exit_code_of,
    num_oom_kills,
    read_process,
    reap,
)
from executors.tails import RankTail, size_of, text_since

TICK_S = 0.1
"""How often rank files are read; the end of a process wakes the agent at once."""

_TOGETHER_S = 0.05
"""Within this time the kernel ends ranks whose starter is killed."""

_STDIN, _STDOUT = 0, 1


class Outlet:
    """Events to the launcher, one line each. Once nobody reads them it is `closed` and stays silent."""

    def __init__(self, host: str, replica: str) -> None:
        self._host, self._replica = host, replica
        self.closed = False

    def __call__(self, event: Event) -> None:
        """Send one event."""
        rest = memoryview(replace(event, host=self._host, replica=self._replica).line().encode("utf-8"))
        while rest and not self.closed:
            try:
                rest = rest[os.write(_STDOUT, rest) :]
            except OSError:
                self.closed = True


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A rank's process, by the handle that tells of its end."""

    rank: int
    pid: int
    num_oom_kills: int
    handle: int | None = None
    finished: bool = False


class AgentRun:
    """One start of the host's command, from its files to the end of its last process."""

    def __init__(self, spec: AgentSpec, out: Outlet, pending: bytes = b"") -> None:
        """`pending` are bytes of standard input read along with the specification."""
        self._spec, self._out = spec, out
        self._folder = Path(spec.folder)
        self._input = pending
        self._stop = ""
        self._codes: dict[int, int] = {}
        self._watched: dict[int, _Watched] = {}
        self._tails = [RankTail(self._folder, rank) for rank in spec.ranks]
        names = [f"host-{file_name(spec.host)}.log", *(f"rank-{rank}.log" for rank in spec.ranks)]
        self._logs = {path: size_of(path) for path in (self._folder / name for name in names)}
        self._poll = select.poll()
        self._heard_s = self._beaten_s = time.monotonic()

    def run(self) -> int:
        """Start the command, stay until it ends or is to end, leave nothing behind. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        become_subreaper()
        try:
            command = self._start()
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            self._out(now(Kind.REFUSED, code="command-not-started", message=f"{error.strerror}{place}"))
            return 9
        self._out(now(Kind.STARTED, pid=command.pid))
        code = self._watch(command)
        ending = end_descendants(self._codes, grace_s=self._spec.grace_s, tick=self._forward)
        self._forward()
        if command.returncode is None:
            command.returncode = self._codes.get(command.pid, 0)
        self._report_end(ending)
        return 0 if code == 0 else 9

    def _start(self) -> subprocess.Popen[bytes]:
        """The command in a session of its own, ended by the kernel should the agent be.

        Raises:
            OSError: no such program, or the log can't be written.
        """
        spec, agent = self._spec, os.getpid()
        added = {"ECHELON_HOST": spec.host, "ECHELON_REPLICA": spec.replica, **spec.env}
        env = {name: text for name, text in {**os.environ, **added}.items() if text is not None}
        with next(iter(self._logs)).open("ab") as log:
            return subprocess.Popen(
                spec.argv,
                cwd=self._folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Safe: this process has one thread.
                preexec_fn=lambda: end_with_parent(agent),
            )

    def _watch(self, command: subprocess.Popen[bytes]) -> int | None:
        """Until the command has ended (its code) or everything is to end (None)."""
        self._poll.register(_STDIN, select.POLLIN)
        self._poll.register(_STDOUT, 0)
        handle = os.pidfd_open(command.pid)
        self._poll.register(handle, select.POLLIN)
        while not self._stop:
            ready = dict(self._poll.poll(TICK_S * 1000))
            if _STDOUT in ready or self._out.closed:
                self._stop = "launcher-gone"
            if _STDIN in ready:
                self._listen()
            self._forward()
            gone = [w for w in self._watched.values() if w.handle is None or w.handle in ready]
            # Ranks may go with the command; then its end is the news.
            if handle in ready or (gone and _is_readable(handle, _TOGETHER_S)):
                return self._command_ended(command)
            for watched in gone:
                self._rank_ended(watched)
            self._beat()
        return None

    def _command_ended(self, command: subprocess.Popen[bytes]) -> int:
        """Report how the command ended, after all that its ranks had to say."""
        reap(self._codes)
        code = command.returncode = self._codes[command.pid]
        self._forward()
        for watched in list(self._watched.values()):
            ended = read_process(watched.pid) is None or exit_code_of(watched.pid) is not None
            if ended and code >= 0:
                self._rank_ended(watched)
        texts = self._log_texts().values() if code != 0 else ()
        errors = [error for error in map(first_error, texts) if error]
        lines = [line for line in map(last_line, texts) if line]
        self._out(now(Kind.EXITED, **_ended_by(code), error=shortened((errors or lines or [""])[0])))
        return code

    def _log_texts(self) -> Mapping[Path, str]:
        """What this start has written to its logs, those of ranks first."""
        order = sorted(self._logs, key=lambda path: not path.name.startswith("rank-"))
        return {path: text_since(path, self._logs[path]) for path in order}

    def _forward(self) -> None:
        """Pass on what ranks have written; a second `hello` of the same process says nothing new."""
        for tail in self._tails:
            for event in tail.take():
                if event.kind is Kind.HELLO and not self._watch_rank(event):
                    continue
                self._out(event)
                if event.kind is Kind.FINISHED and event.rank in self._watched:
                    self._watched[event.rank].finished = True

    def _watch_rank(self, event: Event) -> bool:
        """Watch the process of a `hello`; whether it is one that wasn't watched before."""
        rank, pid = event.rank, event.data.get("pid")
        if rank is None or type(pid) is not int or pid <= 0:
            return False
        known = self._watched.get(rank)
        if known is not None and known.pid == pid:
            return False
        if known is not None and known.handle is not None:
            self._poll.unregister(known.handle)
            os.close(known.handle)
        watched = self._watched[rank] = _Watched(rank=rank, pid=pid, num_oom_kills=num_oom_kills())
        # Without a handle it is gone already, which the next look at the ranks reports.
        with contextlib.suppress(OSError):
            watched.handle = os.pidfd_open(pid)
            self._poll.register(watched.handle, select.POLLIN)
        return True

    def _rank_ended(self, watched: _Watched) -> None:
        """A rank's process is gone: say so, unless it had finished its work."""
        # Whoever started it may not have waited for it yet; then the table still has its exit code.
        code = exit_code_of(watched.pid)
        reap(self._codes)
        if code is None:
            code = self._codes.get(watched.pid)
        if watched.handle is not None:
            self._poll.unregister(watched.handle)
            os.close(watched.handle)
        # Its last words may have come after the tails were read.
        self._watched.pop(watched.rank)
        finished = watched.finished or self._last_words(watched.rank)
        if not (finished and code in (0, None)):
            oom_kills = num_oom_kills() - watched.num_oom_kills
            about = {"pid": watched.pid, "oom_kills": oom_kills, **_ended_by(code)}
            self._out(now(Kind.RANK_DIED, watched.rank, **about))

    def _last_words(self, rank: int) -> bool:
        """Pass on the rest of a rank's events; whether it says there that it finished."""
        finished = False
        for event in self._tails[self._spec.ranks.index(rank)].take():
            self._out(event)
            finished = finished or event.kind is Kind.FINISHED
        return finished

    def _listen(self) -> None:
        """Lines from the launcher. The end of the input is the end of the launch."""
        data = os.read(_STDIN, 1 << 12)
        if not data:
            self._poll.unregister(_STDIN)
            self._stop = self._stop or "launcher-gone"
            return
        self._heard_s = time.monotonic()
        *lines, self._input = (self._input + data).split(b"\n")
        if any(line.decode("ascii", errors="replace") == STOP_LINE.strip() for line in lines):
            self._stop = self._stop or "stop"

    def _beat(self) -> None:
        """Tell the launcher now and then that the host is there, and how its ranks are."""
        now_s = time.monotonic()
        if self._spec.silence_s and now_s - self._heard_s > self._spec.silence_s:
            self._stop = self._stop or "launcher-silent"
        if now_s - self._beaten_s < self._spec.beat_s:
            return
        self._beaten_s = now_s
        found = ((watched.rank, read_process(watched.pid)) for watched in self._watched.values())
        states = {str(rank): [p.state, round(p.cpu_s, 2)] for rank, p in found if p is not None}
        self._out(now(Kind.BEAT, ranks=states))

    def _report_end(self, ending: Ending) -> None:
        about = {"reason": self._stop or "exited", "num_killed": ending.num_killed, "left": list(ending.left)}
        self._out(now(Kind.ENDED, **about))

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._stop = self._stop or signal.Signals(number).name


def _is_readable(handle: int, timeout_s: float) -> bool:
    return bool(select.select([handle], [], [], timeout_s)[0])


def _ended_by(code: int | None) -> dict[str, int | None]:
    """Exit code and signal as an event has them; both null where nobody could tell."""
    if code is None:
        return {"code": None, "signal": None}
    return {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
