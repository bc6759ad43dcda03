"""Runs a function in several forked ranks with a gloo group between them, and collects what they return."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

DEADLINE_S = 90.0


class RankFailedError(AssertionError):
    """A rank raised, died or didn't answer in time; the message holds its traceback."""


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_ranks(
    num_ranks: int, work: Callable[[int], Any], *, deadline_s: float = DEADLINE_S, group: bool = True
) -> list[Any]:
    """What `work(rank)` returns on each of `num_ranks` forked processes, in rank order.

    Results travel through a pipe, so they must be picklable (no tensors: turn them into numpy arrays).
    With `group` each rank has joined a default gloo group before.
    """
    import torch.distributed  # noqa: F401  imported once here, so that no rank has to

    context = multiprocessing.get_context("fork")
    port = free_port()
    processes, ends = [], []
    # Objects of the parent are left alone by the ranks' garbage collectors, so their pages stay shared.
    gc.freeze()
    for rank in range(num_ranks):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank_main, args=(rank, num_ranks, port, work, theirs, group))
        with warnings.catch_warnings():
            # Threads of the parent (torch's pools) aren't used by the children.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        processes.append(process)
        ends.append(mine)
    gc.unfreeze()
    try:
        return _collect(ends, time.monotonic() + deadline_s)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _collect(ends: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    faults: dict[int, str] = {}
    waiting = dict(zip(ends, range(len(ends)), strict=True))
    while waiting and not faults:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"no answer in time from ranks {sorted(waiting.values())}")
        for end in ready:
            assert isinstance(end, Connection)
            rank = waiting.pop(end)
            try:
                fault, value = end.recv()
            except EOFError:
                fault, value = "died without an answer", None
            if fault:
                faults[rank] = fault
            answers[rank] = value
    if faults:
        # A rank that lost its peer fails too; a moment later the one that failed first may have answered.
        for end in wait(list(waiting), timeout=1.0) if waiting else ():
            assert isinstance(end, Connection)
            try:
                fault, _ = end.recv()
            except EOFError:
                fault = "died without an answer"
            if fault:
                faults[waiting[end]] = fault
        raise RankFailedError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(faults.items())))
    return [answers[rank] for rank in sorted(answers)]


def _rank_main(
    rank: int, num_ranks: int, port: int, work: Callable[[int], Any], end: Connection, group: bool
) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    code = 0
    try:
        torch.set_num_threads(1)
        if group:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=rank,
                world_size=num_ranks,
                timeout=datetime.timedelta(seconds=60),
            )
        end.send(("", work(rank)))
    except BaseException:  # the parent raises it
        end.send((traceback.format_exc(), None))
        code = 1
    end.close()
    # No interpreter shutdown: what the parent registered at exit isn't ours to run.
    os._exit(code)
