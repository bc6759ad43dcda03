"""Solvers may start helpers of their own; whatever happens, none of them outlives the solve."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from planner.problem import BoundaryProblem
from planner.solve.result import BoundaryResult, Limits, Progress, Status
from planner.solve.workers import Job, run_jobs
from policies.errors import EchelonError
from solver.micro_fleets import CONDITIONS, micro_case

PROBLEM = micro_case(0, CONDITIONS[0]).problem()
RESULT = BoundaryResult(
    boundary="b", status=Status.UNKNOWN, replicas=(), value=None, bound=None, proof={}, stop="done"
)


def sleep_long() -> None:
    time.sleep(300.0)


def start_helper(limits: Limits) -> int:
    """A helper as a solver starts one; its id reaches the test as a progress."""
    helper = multiprocessing.get_context("fork").Process(target=sleep_long, daemon=True)
    helper.start()
    assert helper.pid is not None
    limits.report(Progress(elapsed_s=0.0, value=float(helper.pid), bound=None, note="helper"))
    return helper.pid


def gone(pid: int) -> bool:
    """Whether a process ended, up to its exit status that nobody has asked for yet."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def with_helper(_problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    start_helper(limits)
    return RESULT


def killed_beside_its_helper(_problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    start_helper(limits)
    os.kill(os.getpid(), signal.SIGKILL)
    return RESULT


def waiting_beside_its_helper(_problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    start_helper(limits)
    sleep_long()
    return RESULT


def run(work: Any, told: list[int], *, stop: BaseException | None = None) -> Sequence[BoundaryResult | None]:
    def tell(_position: int, progress: Progress) -> None:
        told.append(int(cast("float", progress.value)))
        if stop is not None:
            raise stop

    jobs = [Job(boundary=PROBLEM, work=work)]
    return run_jobs(jobs, lambda _position, _waiting: Limits(), tell, should_stop=lambda: False, processes=2)


@pytest.fixture(autouse=True)
def _needs_proc() -> None:
    if not Path("/proc/self/stat").is_file():
        pytest.skip("no /proc on this system")


def test_a_solver_may_start_a_helper() -> None:
    told: list[int] = []
    (result,) = run(with_helper, told)
    assert result == RESULT
    assert gone(told[0])


def test_a_killed_solver_is_noticed_although_its_helper_lives() -> None:
    told: list[int] = []
    with pytest.raises(EchelonError, match="code -9") as caught:
        run(killed_beside_its_helper, told)
    assert caught.value.code == "solver-died"
    assert gone(told[0])


def test_an_interrupt_ends_solver_and_helper() -> None:
    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(waiting_beside_its_helper, told, stop=KeyboardInterrupt())
    assert gone(told[0])
