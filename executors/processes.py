"""Processes that we started, and theirs: found by parent links, signalled by handle, never by name.

Linux only: `/proc`, pidfds and process controls of the kernel (man pages proc(5), pidfd_open(2), prctl(2)).
A *subreaper* becomes the parent of orphans among its descendants, so whatever a command leaves behind stays
below the process that is to end it. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02
_GIVE_UP_S = 30.0

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A line of the process table. `start_ticks` since boot tells a process from a later one of its pid.

    `state` is the kernel's letter: R running, S sleeping, D waiting for a device, T stopped, Z ended.
    """

    pid: int
    parent: int
    state: str
    cpu_s: float
    start_ticks: int
    exit_status: int


def read_process(pid: int) -> Process | None:
    """The process of this pid, or None where there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold anything; field 3 follows the last one (proc(5)).
    fields = text[text.rindex(")") + 2 :].split()
    ticks = int(fields[11]) + int(fields[12])
    return Process(
        pid=pid,
        parent=int(fields[1]),
        state=fields[0],
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        start_ticks=int(fields[19]),
        exit_status=int(fields[49]),
    )


def process_table() -> dict[int, Process]:
    """All processes of this machine that can be seen, by pid."""
    found = (read_process(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(root: int, table: Mapping[int, Process]) -> tuple[Process, ...]:
    """Children of `root`, their children and so on, parents before children."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += [process.pid for process in below]
    return tuple(found)


def exit_code_of(pid: int) -> int | None:
    """How a process ended that nobody has waited for yet: its code, or minus its signal; None if unknown."""
    process = read_process(pid)
    if process is None or process.state != "Z":
        return None
    return os.waitstatus_to_exitcode(process.exit_status)


def send_signal(process: Process, number: int) -> bool:
    """Signal this very process; False where it is gone, even if another one has its pid by now."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        current = read_process(process.pid)
        if current is None or current.start_ticks != process.start_ticks or current.state == "Z":
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def become_subreaper() -> None:
    """From now on orphans among this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Get this signal when the parent process ends; call it in the child, with the pid of its parent.

    The kernel watches the thread that made this process, so that must be one that lasts.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def reap(codes: dict[int, int]) -> None:
    """Wait for every child that has ended; adds their exit codes (minus signals) by pid."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        codes[pid] = os.waitstatus_to_exitcode(status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an ending went: processes that had to be killed, and pids that even that did not end (state D)."""

    num_killed: int
    left: tuple[int, ...] = ()


def end_descendants(
    codes: dict[int, int], *, grace_s: float, tick: Callable[[], None] | None = None
) -> Ending:
    """End all descendants of this process, which must be a subreaper: SIGTERM, and SIGKILL after `grace_s`.

    Returns when none is left. Processes started meanwhile are ended too. Exit codes go to `codes` by pid;
    `tick` is called now and then.
    """
    deadline_s = time.monotonic() + grace_s
    asked: set[tuple[int, int]] = set()
    killed: set[tuple[int, int]] = set()
    while True:
        reap(codes)
        living = [p for p in descendants(os.getpid(), process_table()) if p.state != "Z"]
        if not living and not _has_children():
            return Ending(num_killed=len(killed))
        late = time.monotonic() > deadline_s
        if time.monotonic() > deadline_s + _GIVE_UP_S:
            return Ending(num_killed=len(killed), left=tuple(p.pid for p in living))
        for process in living:
            key = (process.pid, process.start_ticks)
            if late and send_signal(process, signal.SIGKILL):
                killed.add(key)
            elif key not in asked and send_signal(process, signal.SIGTERM):
                # A stopped process gets its SIGTERM only when it goes on.
                send_signal(process, signal.SIGCONT)
                asked.add(key)
        if tick is not None:
            tick()
        time.sleep(_POLL_S)


def num_oom_kills() -> int:
    """How many processes this machine's kernel has ended for want of memory since it started."""
    try:
        lines = (PROC / "vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _has_children() -> bool:
    """Whether a child is left, living or ended; WNOWAIT leaves it to be waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _prctl(option: int, value: int) -> None:
    if not sys.platform.startswith("linux"):
        raise OSError("process control needs Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
