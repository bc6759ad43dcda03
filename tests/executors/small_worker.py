"""A rank without a model: steps in lockstep with its peers, speaks the event protocol, fails on request.

`small_worker.py` runs one rank, as a launcher starts it. Its behaviour stands in SMALL_WORKER as JSON, see
`Behaviour`. Peers of a rank that goes notice a broken connection, as those of a real one do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from executors import events
from policies.errors import InputError

VARIABLE = "SMALL_WORKER"
WAIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How many steps, how long each, how often a checkpoint, and which rank fails at which step and how.

    `how`: kill, raise, refuse (a user's mistake), exit, stop (SIGSTOP), never-ready, stubborn (ignores
    SIGTERM and leaves a daemon that does so too).
    """

    steps: int = 5
    step_s: float = 0.01
    checkpoint_every: int = 2
    rank: int = -1
    at: int = 0
    how: str = ""


def main() -> int:
    """Run one rank; the exit code is what `failed` says."""
    rank, size, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path.cwd()
    behaviour = Behaviour(**json.loads(os.environ[VARIABLE]))
    log = events.rank_log(folder, rank)
    try:
        first = newest_checkpoint(folder)
        peers = meet(rank, size)
        if behaviour.rank == rank and behaviour.how == "never-ready":
            time.sleep(1000)
        if behaviour.how == "stubborn":
            be_stubborn()
        log(events.ready(rank, first))
        for step in range(first, behaviour.steps):
            if (behaviour.rank, behaviour.at) == (rank, step):
                fail(behaviour.how)
            begun_s = time.perf_counter()
            time.sleep(behaviour.step_s)
            exchange(rank, peers)
            wall_s, tokens = time.perf_counter() - begun_s, 64 if rank == 0 else 0
            log(
                events.step(
                    rank,
                    step=step + 1,
                    loss=1 / (step + 1),
                    gradient_norm=1.0,
                    wall_s=wall_s,
                    cpu_s=0.0,
                    tokens=tokens,
                )
            )
            if rank == 0 and (step + 1) % behaviour.checkpoint_every == 0:
                log(write_checkpoint(folder, step + 1))
    except Exception as error:
        event = events.failure(rank, error)
        log(event)
        return int(event.data["exit_code"])
    log(events.finished(rank))
    return 0


def newest_checkpoint(folder: Path) -> int:
    """Steps done in the newest checkpoint; 0 without one."""
    return max((int(path.stem) for path in (folder / "checkpoints").glob("*.json")), default=0)


def write_checkpoint(folder: Path, step: int) -> events.Event:
    path = folder / "checkpoints" / f"{step}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("{}")
    partial.replace(path)
    return events.checkpoint(0, step=step, folder=str(path))


def meet(rank: int, size: int) -> list[socket.socket]:
    """Connections: rank 0's to all others, or that of another rank to rank 0."""
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if rank == 0:
        with socket.create_server(place, backlog=size) as server:
            server.settimeout(WAIT_S)
            return [server.accept()[0] for _ in range(size - 1)]
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            return [socket.create_connection(place, timeout=WAIT_S)]
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


def exchange(rank: int, peers: list[socket.socket]) -> None:
    """Wait until all ranks are here: a byte to rank 0 and one back."""
    for peer in peers:
        if rank != 0:
            peer.sendall(b"x")
        if peer.recv(1) == b"":
            raise RuntimeError("[gloo] Connection closed by peer")
    for peer in peers:
        if rank == 0:
            peer.sendall(b"y")


def fail(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "raise":
        raise ZeroDivisionError("a mistake in the job")
    elif how == "refuse":
        raise InputError("no-data", "the data folder is empty", hint="put text there")
    elif how == "exit":
        os._exit(5)


def be_stubborn() -> None:
    """Ignore SIGTERM, and leave a daemon behind that has left session and parent, and ignores it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)"
    subprocess.run([sys.executable, "-c", daemon], check=True)


if __name__ == "__main__":
    sys.exit(main())
