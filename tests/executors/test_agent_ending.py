"""However an agent or something below it ends, nothing that it started stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agents import ROOT, Agent, python, spec_in
from launches import mark, marked, wait_until

from executors.events import Kind
from executors.processes import descendants, process_table, send_signal

__all__ = ["mark"]

# A launcher that starts a rank and hardly looks after it; the rank leaves a daemon behind that has left its
# session and its parent. Both ignore SIGTERM.
TREE = """
import os, signal, subprocess, sys, time
RANK = '''
import os, signal, time
from pathlib import Path
from executors import events
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
log = events.rank_log(Path.cwd(), 0)
log(events.ready(0))
time.sleep(1000)
'''
rank = subprocess.Popen([sys.executable, "-c", RANK])
time.sleep(1000)
"""
SLOW_TO_END = """
import signal, sys, time
from pathlib import Path
from executors import events
def end(number, frame):
    Path("saved").write_text("all")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
events.rank_log(Path.cwd(), 0)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the run folder and import our packages."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def tree(folder: Path, **fields: float) -> tuple[Agent, int]:
    """An agent whose rank is ready, and the pid of the rank."""
    agent = Agent(spec_in(folder, python(TREE), ranks=(0,), **fields))
    pid = agent.until_kind(Kind.HELLO).data["pid"]
    agent.until_kind(Kind.READY)
    return agent, pid


def test_the_mark_finds_daemons(mark: str, tmp_path: Path) -> None:
    agent, pid = tree(tmp_path)
    found = marked(mark)
    # The guard, the agent, the launcher, the rank and its daemon.
    assert len(found) == 5
    assert {agent.process.pid, pid} < set(found)
    agent.hang_up()
    agent.end()
    agent.close()


def worker_of(agent: Agent) -> int:
    """The process that works, below its guard."""
    return next(p.pid for p in process_table().values() if p.parent == agent.process.pid)


ENDINGS: dict[str, Callable[[Agent], None]] = {
    "end of input": Agent.hang_up,
    "stop": lambda agent: agent.say("stop\n"),
    "SIGTERM": lambda agent: agent.process.terminate(),
    "SIGINT": lambda agent: agent.process.send_signal(signal.SIGINT),
    "SIGHUP": lambda agent: agent.process.send_signal(signal.SIGHUP),
    "kill -9 of the guard": lambda agent: agent.process.kill(),
    "kill -9 of the agent": lambda agent: os.kill(worker_of(agent), signal.SIGKILL),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_everything_ends(mark: str, tmp_path: Path, how: str) -> None:
    agent, _ = tree(tmp_path)
    ENDINGS[how](agent)
    agent.end()
    wait_until(lambda: marked(mark) == [])
    ended = agent.until_kind(Kind.ENDED).data
    assert ended["left"] == []
    # The rank and its daemon would not go when asked to. A killed agent's command goes with it at once.
    assert ended["num_killed"] >= 2
    assert "rank-died" not in agent.kinds()
    agent.close()


@pytest.mark.parametrize("which", ["rank", "runner"])
def test_kill_9_below_the_agent_is_noticed_at_once(mark: str, tmp_path: Path, which: str) -> None:
    agent, pid = tree(tmp_path)
    if which == "rank":
        os.kill(pid, signal.SIGKILL)
        died = agent.until_kind(Kind.RANK_DIED)
        assert (died.rank, died.data["pid"], died.data["signal"]) == (0, pid, signal.SIGKILL)
        # The launcher above it has not even noticed.
        assert "exited" not in agent.kinds()
        agent.hang_up()
    else:
        os.kill(agent.until_kind(Kind.STARTED).data["pid"], signal.SIGKILL)
        assert agent.until_kind(Kind.EXITED).data["signal"] == signal.SIGKILL
    agent.end()
    agent.close()
    assert marked(mark) == []


def test_there_is_time_to_end_in_order(mark: str, tmp_path: Path) -> None:
    agent = Agent(spec_in(tmp_path, python(SLOW_TO_END), ranks=(0,), grace_s=30))
    agent.until_kind(Kind.HELLO)
    agent.say("stop\n")
    agent.end()
    assert agent.until_kind(Kind.ENDED).data == {"reason": "stop", "num_killed": 0, "left": []}
    assert (tmp_path / "saved").read_text() == "all"
    agent.close()


def test_a_stopped_rank_ends_too_and_its_state_is_told(mark: str, tmp_path: Path) -> None:
    agent, pid = tree(tmp_path)
    os.kill(pid, signal.SIGSTOP)
    agent.until_beat(lambda: any(beat.data["ranks"].get("0", "?")[0] == "T" for beat in agent.beats))
    agent.hang_up()
    agent.end()
    agent.close()
    assert marked(mark) == []


def test_silence_of_the_launcher_ends_everything(mark: str, tmp_path: Path) -> None:
    agent, _ = tree(tmp_path, silence_s=0.5)
    assert agent.until_kind(Kind.ENDED).data["reason"] == "launcher-silent"
    agent.end()
    agent.close()
    assert marked(mark) == []


def test_beats_of_the_launcher_keep_it_going(mark: str, tmp_path: Path) -> None:
    agent, _ = tree(tmp_path, silence_s=1.5, beat_s=0.1)
    for _ in range(3):
        heard = len(agent.beats)
        agent.until_beat(lambda heard=heard: len(agent.beats) >= heard + 7)  # type: ignore[misc]
        agent.say("beat\n")
    assert "ended" not in agent.kinds()
    agent.hang_up()
    agent.end()
    agent.close()


def test_a_launcher_that_is_killed_ends_everything(mark: str, tmp_path: Path) -> None:
    """Nobody reads and nobody writes any more: both pipes have lost their other end."""
    program = (
        "import subprocess, sys, time\n"
        "agent = subprocess.Popen([sys.executable, '-m', 'executors.agent'], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE)\n"
        "agent.stdin.write(sys.argv[1].encode()); agent.stdin.flush()\n"
        "for line in agent.stdout: print(line.decode(), end='', flush=True)\n"
    )
    line = spec_in(tmp_path, python(TREE), ranks=(0,)).line()
    with subprocess.Popen(
        [sys.executable, "-c", program, line], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        while "ready" not in launcher.stdout.readline():
            pass
        launcher.kill()
    wait_until(lambda: marked(mark) == [])


def test_end_by_folder_ends_the_agents_of_that_folder_alone(mark: str, tmp_path: Path) -> None:
    ours, _ = tree(tmp_path / "ours")
    other, _ = tree(tmp_path / "other")
    ender = Agent(None, "--end", str(tmp_path / "ours"))
    assert ender.end() == 0
    ours.end()
    assert ours.until_kind(Kind.ENDED).data["reason"] == "SIGTERM"
    assert other.process.poll() is None
    # A note of an agent that has ended is no reason to end whoever has its pid now.
    note = (tmp_path / "other" / "agent-a.json").read_text()
    other.hang_up()
    other.end()
    (tmp_path / "ours" / "agent-a.json").write_text(note.replace(str(other.process.pid), str(os.getpid())))
    again = Agent(None, "--end", str(tmp_path / "ours"))
    assert again.end() == 0
    for agent in (ours, other, ender, again):
        agent.close()


def test_a_signal_reaches_no_later_process_of_the_same_pid() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        process = process_table()[child.pid]
        earlier = type(process)(
            pid=process.pid,
            parent=process.parent,
            state=process.state,
            cpu_s=0.0,
            start_ticks=process.start_ticks - 1,
            exit_status=0,
        )
        assert not send_signal(earlier, signal.SIGKILL)
        assert child.pid in {p.pid for p in descendants(os.getpid(), process_table())}
        assert send_signal(process, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not send_signal(process, signal.SIGKILL)
