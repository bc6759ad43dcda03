"""Starts the ranks of one host: `python -m executors.rank_starter RUN.json [-- PROGRAM ARGS...]`.

Each rank runs the worker, or the program given, with the environment that launchers of torch give (RANK,
LOCAL_RANK, WORLD_SIZE, ...) and its own log `rank-<r>.log`. When one fails the others are ended; the exit
code is that of the first failure, 128 + n for signal n.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from executors.events import EventLog, hello, rank_file
from executors.processes import end_with_parent, exit_code_of
from policies.errors import EchelonError
from policies.one_home import require_one_home

WORKER = "executors.training.worker"
HOST_VARIABLE = "ECHELON_HOST"
"""Set by the agent: the name that its host has in the plan."""
GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStart:
    """What to start for one rank; `env` is added to this process's environment."""

    rank: int
    argv: tuple[str, ...]
    env: Mapping[str, str]


def rank_starts(
    ranks: Sequence[tuple[int, int]],
    argv: Sequence[str],
    *,
    world_size: int,
    master: tuple[str, int],
    threads: int,
) -> tuple[RankStart, ...]:
    """The starts of one host's ranks, given as pairs of rank and local rank. Pure."""
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(len(ranks)),
        "LOCAL_SIZE": str(len(ranks)),
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
        "OMP_NUM_THREADS": str(threads),
    }
    return tuple(
        RankStart(
            rank=rank,
            argv=tuple(argv),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(local_rank)},
        )
        for rank, local_rank in ranks
    )


def run_ranks(starts: Sequence[RankStart], folder: Path, grace_s: float = GRACE_S) -> int:
    """Run all ranks to their end; the exit code of the first that fails, else 0.

    Ranks that have ended are left for the agent to wait for, which then knows how each one ended.
    """
    stop: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    running = _Running()
    code = 0
    try:
        for start in starts:
            running.add(_start(start, folder))
        while running and code == 0 and not stop:
            code = next((code for code in running.wait(0.2) if code != 0), 0)
    finally:
        running.end(grace_s)
    if code == 0 and stop:
        code = -stop[0]
    return 128 - code if code < 0 else code


class _Running:
    """Child processes that still run, by the handles that tell of their end."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._poll = select.poll()

    def __len__(self) -> int:
        return len(self._processes)

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Watch a process that has just been started."""
        handle = os.pidfd_open(process.pid)
        self._processes[handle] = process
        self._poll.register(handle, select.POLLIN)

    def wait(self, timeout_s: float) -> list[int]:
        """Exit codes (minus signals) of those that have ended, as soon as there are any."""
        codes = []
        for handle, _ in self._poll.poll(timeout_s * 1000):
            process = self._processes.pop(handle)
            # With a code of its own the object leaves the ended process alone.
            process.returncode = exit_code_of(process.pid) or 0
            codes.append(process.returncode)
            self._poll.unregister(handle)
            os.close(handle)
        return codes

    def end(self, grace_s: float) -> None:
        """SIGTERM to all, and SIGKILL to those that are left after `grace_s`."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for handle in self._processes:
                signal.pidfd_send_signal(handle, number)
            deadline_s = time.monotonic() + grace_s
            while self._processes and time.monotonic() < deadline_s:
                self.wait(0.1)


def _start(start: RankStart, folder: Path) -> subprocess.Popen[bytes]:
    """One rank; the kernel ends it with this process. Its `hello` is said for it, should it die at once."""
    starter = os.getpid()
    with (folder / f"rank-{start.rank}.log").open("ab") as log:
        process = subprocess.Popen(
            start.argv,
            env={**os.environ, **start.env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Safe: this process has one thread.
            preexec_fn=lambda: end_with_parent(starter),
        )
    events = EventLog(rank_file(folder, start.rank))
    events(hello(start.rank, process.pid))
    events.close()
    return process


def main(argv: Sequence[str] | None = None) -> int:
    """Start this host's ranks of a run; the exit code is that of the first failure."""
    require_one_home()
    words = list(sys.argv[1:] if argv is None else argv)
    path = Path(words[0])
    program = words[2:] if words[1:2] == ["--"] else [sys.executable, "-m", WORKER, str(path)]
    try:
        starts = _starts_of(path, program)
    except EchelonError as error:
        sys.stderr.write(f"error[{error.code}]: {error.message}\n")
        return error.exit_code
    return run_ranks(starts, path.parent)


def _starts_of(path: Path, program: Sequence[str]) -> tuple[RankStart, ...]:
    """The ranks that the plan puts on this host; on one machine all of them."""
    # A plan is heavier to read than anything else here.
    from executors.layout import layout_of
    from executors.runfile import read_run

    run = read_run(path)
    layout = layout_of(run.inputs.fleet, run.replica)
    if run.file.one_machine:
        ranks = [(rank.rank, rank.rank) for rank in layout.ranks]
    else:
        ranks = [(rank.rank, rank.local_rank) for rank in layout.on_host(os.environ.get(HOST_VARIABLE, ""))]
    return rank_starts(
        ranks,
        program,
        world_size=layout.world_size,
        master=(run.file.master_addr, run.file.master_port),
        threads=run.training.threads_per_device or 1,
    )


if __name__ == "__main__":
    sys.exit(main())
