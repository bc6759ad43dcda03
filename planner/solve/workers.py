"""Boundaries solved side by side in forked processes.

A child inherits its problem by the fork and sends progress and its result through a pipe. That keeps the
command itself free to show progress and to answer Ctrl-C at once, which a compiled solver running in it would
hold up. A child leads a process group of its own: helpers that a solver starts in it end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from planner.problem import BoundaryProblem
from planner.solve.registry import SolveBoundary
from planner.solve.result import BoundaryResult, Limits, Progress
from policies.errors import EchelonError

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A boundary and what is to be done with it."""

    boundary: BoundaryProblem
    work: SolveBoundary


LimitsOf = Callable[[int, Sequence[int]], Limits]
Told = Callable[[int, Progress], None]


@dataclass(slots=True, kw_only=True)
class _Running:
    position: int
    process: BaseProcess
    pipe: Connection


def run_jobs(
    jobs: Sequence[Job],
    limits_of: LimitsOf,
    told: Told,
    *,
    should_stop: Callable[[], bool],
    processes: int = 2,
) -> list[BoundaryResult | None]:
    """The result of every job, in order; None for those not begun before `should_stop` said so.

    `limits_of(position, waiting)` gives a job's limits when it starts; `waiting` lists the jobs not begun,
    itself included. `told` hears the progress of every job. With `processes` 0, or where the system can't
    fork, jobs run in this process, one after another. No child outlives the call.

    Raises:
        EchelonError: what a solver refused; `solver-died` when a process ended without an answer.
    """
    if processes < 1 or "fork" not in multiprocessing.get_all_start_methods():
        return _run_here(jobs, limits_of, told, should_stop)
    results: list[BoundaryResult | None] = [None] * len(jobs)
    waiting = list(range(len(jobs)))
    running: list[_Running] = []
    try:
        while running or (waiting and not should_stop()):
            while waiting and len(running) < processes and not should_stop():
                limits = limits_of(waiting[0], tuple(waiting))
                running.append(_start(jobs[waiting[0]], waiting.pop(0), limits))
            if should_stop():
                _ask_to_stop(running)
            for pipe in wait([one.pipe for one in running], timeout=POLL_S):
                one = next(r for r in running if r.pipe is pipe)
                answer = _hear(one, jobs[one.position].boundary.name, told)
                if answer is not None:
                    results[one.position] = answer
                    one.process.join()
                    one.pipe.close()
                    running.remove(one)
            for one in running:
                # Helpers hold the child's end of the pipe too, so its death alone doesn't close it.
                if not one.process.is_alive() and not one.pipe.poll():
                    raise _died(one, jobs[one.position].boundary.name)
    finally:
        for one in running:
            _end(one)
    return results


def _run_here(
    jobs: Sequence[Job], limits_of: LimitsOf, told: Told, should_stop: Callable[[], bool]
) -> list[BoundaryResult | None]:
    results: list[BoundaryResult | None] = [None] * len(jobs)
    for position, job in enumerate(jobs):
        if should_stop():
            break

        def report(progress: Progress, position: int = position) -> None:
            told(position, progress)

        limits = limits_of(position, tuple(range(position, len(jobs))))
        results[position] = job.work(job.boundary, replace(limits, should_stop=should_stop, report=report))
    return results


def _start(job: Job, position: int, limits: Limits) -> _Running:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, here, job, limits, os.getpid()), daemon=False)
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads; numpy's idle workers are such threads and survive a
        # fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    there.close()
    return _Running(position=position, process=process, pipe=here)


def _ask_to_stop(running: Sequence[_Running]) -> None:
    """Once is not enough: a child that has only just begun doesn't listen yet."""
    for one in running:
        if one.process.pid is not None and one.process.is_alive():
            os.kill(one.process.pid, signal.SIGINT)


def _hear(one: _Running, name: str, told: Told) -> BoundaryResult | None:
    """The job's result once it is there."""
    try:
        kind, content = one.pipe.recv()
    except EOFError:
        raise _died(one, name) from None
    if kind == "progress":
        told(one.position, content)
        return None
    if kind == "refused":
        raise _revived(*content)
    if kind == "failed":
        raise RuntimeError(f"boundary {name}: {content}")
    result: BoundaryResult = content
    return result


def _died(one: _Running, name: str) -> EchelonError:
    one.process.join()
    return EchelonError(
        "solver-died",
        f"the process that solved boundary {name} ended with code {one.process.exitcode} and no answer",
        hint="-9 usually means that memory ran out: solve with fewer candidates or another solver",
    )


def _end(one: _Running) -> None:
    """End a child and all that it started."""
    assert one.process.pid is not None
    try:
        os.killpg(one.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        # It ended, or hasn't come to lead its group yet.
        one.process.kill()
    one.process.join()
    one.pipe.close()


def _child(pipe: Connection, other_end: Connection, job: Job, limits: Limits, parent_pid: int) -> None:
    """The whole life of a child; SIGINT asks it to finish with what it has."""
    os.setpgid(0, 0)
    other_end.close()
    asked = False

    def stop(_signal: int, _frame: Any) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGINT, stop)

    def send(kind: str, content: Any) -> None:
        with suppress(BrokenPipeError):
            pipe.send((kind, content))

    def report(progress: Progress) -> None:
        send("progress", progress)

    def should_stop() -> bool:
        return asked or os.getppid() != parent_pid

    try:
        result = job.work(job.boundary, replace(limits, should_stop=should_stop, report=report))
        send("done", result)
    except EchelonError as error:
        send("refused", (type(error), error.args, dict(vars(error))))
    except Exception:
        send("failed", traceback.format_exc())
    pipe.close()


def _revived(kind: type[EchelonError], arguments: tuple[Any, ...], state: dict[str, Any]) -> EchelonError:
    """An error of a child as it was raised there."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(state)
    return error
