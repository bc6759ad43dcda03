"""The starter of one host's ranks: environment, logs, and the end of all with the first that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agents import ROOT
from launches import mark, marked, wait_until

from executors.events import Kind, parse_event
from executors.rank_starter import rank_starts
from executors.runfile import run_texts
from planner.training import TrainingJob
from render_plans import drawn_plan, ward_fleet

__all__ = ["mark"]

pytestmark = pytest.mark.usefixtures("mark")

TELL = "import json, os; print(json.dumps(dict(os.environ)))"
SELF = """
import sys
from pathlib import Path
from executors.rank_starter import rank_starts, run_ranks
starts = rank_starts([(4, 0), (5, 1), (6, 2)], [sys.executable, "-c", sys.argv[2]],
                     world_size=9, master=("10.0.0.1", 99), threads=2)
sys.exit(run_ranks(starts, Path(sys.argv[1]), grace_s=0.3))
"""
WAIT = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def started(folder: Path, program: str) -> subprocess.Popen[bytes]:
    """The starter with three ranks that run the program."""
    return subprocess.Popen([sys.executable, "-c", SELF, str(folder), program], cwd=ROOT)


def test_each_rank_has_its_environment() -> None:
    first, second = rank_starts(
        [(4, 0), (7, 1)], ["python", "w.py"], world_size=9, master=("10.0.0.1", 99), threads=2
    )
    assert first.argv == ("python", "w.py")
    assert first.env == {
        "RANK": "4",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "9",
        "LOCAL_WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "99",
        "OMP_NUM_THREADS": "2",
    }
    assert (second.rank, second.env["RANK"], second.env["LOCAL_RANK"]) == (7, "7", "1")


def test_ranks_have_a_log_and_a_hello_each(tmp_path: Path) -> None:
    with started(tmp_path, "import os; print('rank', os.environ['RANK'])") as starter:
        assert starter.wait(timeout=30) == 0
    for rank in (4, 5, 6):
        assert (tmp_path / f"rank-{rank}.log").read_text() == f"rank {rank}\n"
        event = parse_event((tmp_path / f"rank-{rank}.jsonl").read_text())
        assert (event.kind, event.rank) == (Kind.HELLO, rank)


@pytest.mark.parametrize(
    ("fails", "code"),
    [("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("raise ValueError", 1)],
)
def test_the_first_failure_ends_all_and_gives_the_exit_code(
    tmp_path: Path, fails: str, code: int, mark: str
) -> None:
    program = f"{WAIT}if os.environ['RANK'] == '5':\n    {fails}\ntime.sleep(1000)"
    with started(tmp_path, program) as starter:
        assert starter.wait(timeout=30) == code
    assert marked(mark) == []


def test_sigterm_ends_all(tmp_path: Path, mark: str) -> None:
    with started(tmp_path, f"{WAIT}print('here', flush=True)\ntime.sleep(1000)") as starter:
        wait_until(
            lambda: all(
                (tmp_path / f"rank-{r}.log").exists() and (tmp_path / f"rank-{r}.log").stat().st_size
                for r in (4, 5, 6)
            )
        )
        starter.terminate()
        assert starter.wait(timeout=30) == 128 + signal.SIGTERM
    assert marked(mark) == []


def test_ranks_go_with_a_starter_that_is_killed(tmp_path: Path, mark: str) -> None:
    with started(tmp_path, f"{WAIT}time.sleep(1000)") as starter:
        wait_until(lambda: len(marked(mark)) == 4)
        starter.kill()
    wait_until(lambda: marked(mark) == [])


@pytest.mark.parametrize("one_machine", [False, True])
def test_ranks_are_those_that_the_plan_puts_on_this_host(tmp_path: Path, one_machine: bool) -> None:
    plan = drawn_plan(ward_fleet())
    replica = plan.boundaries[0].replicas[0]
    texts = run_texts(
        plan,
        TrainingJob(data=("python:prose",), threads_per_device=3),
        boundary="hospital",
        replica=replica.id,
        executor="torch",
        master_addr="10.0.0.1",
        master_port=77,
        one_machine=one_machine,
    )
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
    program = f"import os; print(*(os.environ[name] for name in {names}))"
    argv = [sys.executable, "-m", "executors.rank_starter", str(tmp_path / "run.json"), "--"]
    env = {**os.environ, "ECHELON_HOST": "ward-1"}
    done = subprocess.run([*argv, sys.executable, "-c", program], cwd=ROOT, check=False, env=env)
    assert done.returncode == 0
    told = sorted(path.read_text().split() for path in tmp_path.glob("rank-*.log"))
    size = sum(len(stage.devices) for stage in replica.stages)
    assert {(words[2], words[3], words[4]) for words in told} == {(str(size), "77", "3")}
    if one_machine:
        assert sorted(int(words[0]) for words in told) == list(range(size))
        assert all(words[0] == words[1] for words in told)
    else:
        on_ward = [d for stage in replica.stages for d in stage.devices if d.startswith("ward-1/")]
        assert [words[1] for words in told] == [str(i) for i in range(len(on_ward))]
        assert 0 < len(on_ward) < size


def test_a_run_file_that_is_missing_is_named(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "executors.rank_starter", str(tmp_path / "run.json")]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error[")
