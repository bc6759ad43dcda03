"""Replicas side by side: who failed, how, and that nothing is left, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launches import HERE, QUICK, Heard, local, mark, marked, replica_of, spec_of, wait_until
from small_worker import Behaviour

from executors.events import Event, EventLog, Kind, parse_event
from executors.outcome import Deadlines, Status
from executors.remote import transport_from
from executors.supervisor import supervise
from policies.errors import ExecutorFailedError, InputError

__all__ = ["mark"]

PAIR = replica_of(["a/0", "b/0"])
pytestmark = pytest.mark.usefixtures("mark")


def test_replicas_finish_side_by_side(tmp_path: Path) -> None:
    other = replica_of(["c/0"], name="lab-r1")
    heard = Heard()
    outcome = supervise(
        [spec_of(PAIR, tmp_path / "r0"), spec_of(other, tmp_path / "r1")], local(), heard, deadlines=QUICK
    )
    assert outcome.finished
    assert outcome.error() is None
    assert [(o.replica, o.step, o.checkpoint_step) for o in outcome.replicas] == [
        ("lab-r0", 5, 4),
        ("lab-r1", 5, 4),
    ]
    assert all(o.tokens_per_s for o in outcome.replicas)
    assert {(e.replica, e.host) for e in heard.of(Kind.FINISHED)} == {
        ("lab-r0", "a"),
        ("lab-r0", "b"),
        ("lab-r1", "c"),
    }
    assert heard.of(Kind.BEAT) == []
    assert [e.replica for e in heard.of(Kind.LAUNCHED)] == ["lab-r0", "lab-r1"]


@pytest.mark.parametrize("mode", ["starter", "slow"])
def test_a_killed_rank_is_named_and_the_other_replica_goes_on(tmp_path: Path, mode: str) -> None:
    fails = Behaviour(rank=1, at=3, how="kill", steps=1000)
    other = replica_of(["c/0"], name="lab-r1")
    specs = [
        spec_of(PAIR, tmp_path / "r0", fails, mode=mode),
        spec_of(other, tmp_path / "r1", Behaviour(steps=60)),
    ]
    heard = Heard()
    outcome = supervise(specs, local(), heard, deadlines=QUICK)
    lost, finished = outcome.replicas
    assert finished.status is Status.FINISHED
    assert (lost.status, lost.code, lost.rank, lost.device, lost.host, lost.signal) == (
        Status.LOST,
        "rank-lost",
        1,
        "b/0",
        "b",
        signal.SIGKILL,
    )
    assert (lost.lost_devices, lost.lost_hosts, lost.step, lost.checkpoint_step) == (("b/0",), (), 3, 2)
    assert "rank 1 (device b/0, host b) was ended by signal 9 (SIGKILL)" in lost.message
    error = outcome.error()
    assert isinstance(error, ExecutorFailedError)
    assert "checkpoints/2.json (after step 2)" in error.message


@pytest.mark.parametrize(
    ("how", "code", "words", "kind"),
    [
        ("raise", "exception", "ZeroDivisionError: a mistake in the job", ExecutorFailedError),
        ("refuse", "no-data", "the data folder is empty", InputError),
        ("exit", "rank-ended-early", "ended with 5 before its work was done", ExecutorFailedError),
    ],
)
def test_a_fault_of_the_job_is_told_and_is_no_loss(
    tmp_path: Path, how: str, code: str, words: str, kind: type[Exception]
) -> None:
    behaviour = Behaviour(rank=1, at=3, how=how, steps=1000)
    outcome = supervise([spec_of(PAIR, tmp_path, behaviour)], local(), Heard(), deadlines=QUICK)
    (fault,) = outcome.replicas
    assert (fault.status, fault.code, fault.rank, fault.lost_devices) == (Status.FAULT, code, 1, ())
    assert words in fault.message
    assert isinstance(outcome.error(), kind)


def test_a_command_that_fails_before_any_rank_tells_its_last_words(tmp_path: Path) -> None:
    spec = spec_of(PAIR, tmp_path)
    bad = replace(spec.commands[1], argv=(sys.executable, "-c", "import no_such_module"))
    spec = replace(spec, commands=(spec.commands[0], bad))
    (fault,) = supervise([spec], local(), Heard(), deadlines=QUICK).replicas
    assert (fault.status, fault.code, fault.host) == (Status.FAULT, "command-failed", "b")
    assert "ModuleNotFoundError: No module named 'no_such_module'" in fault.message


def test_a_rank_that_stops_is_named_as_stalled_and_lost(tmp_path: Path) -> None:
    behaviour = Behaviour(rank=1, at=3, how="stop", steps=1000)
    deadlines = replace(QUICK, stall_s=1.0)
    (lost,) = supervise([spec_of(PAIR, tmp_path, behaviour)], local(), Heard(), deadlines=deadlines).replicas
    assert (lost.status, lost.code, lost.rank, lost.lost_devices) == (Status.LOST, "stalled", 1, ("b/0",))
    assert "process state T" in lost.message


def test_a_rank_that_never_gets_ready_is_named(tmp_path: Path) -> None:
    behaviour = Behaviour(rank=1, how="never-ready")
    deadlines = replace(QUICK, start_s=2.0)
    (fault,) = supervise([spec_of(PAIR, tmp_path, behaviour)], local(), Heard(), deadlines=deadlines).replicas
    assert (fault.status, fault.code, fault.rank) == (Status.FAULT, "not-ready", 1)
    assert "rank 1 (device b/0, host b)" in fault.message
    assert "rank 0" not in fault.message


@pytest.mark.parametrize("what", ["guard", "agent", "runner"])
def test_a_killed_agent_or_runner_is_the_loss_of_its_host(tmp_path: Path, what: str) -> None:
    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.rank == 1 and event.data["step"] == 3:
            runner = next(e.data["pid"] for e in heard.of(Kind.STARTED) if e.host == "b")
            agent = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
            guard = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill({"runner": runner, "agent": agent, "guard": guard}[what], signal.SIGKILL)

    heard = Heard(react)
    behaviour = Behaviour(steps=1000, how="stubborn")
    (lost,) = supervise([spec_of(PAIR, tmp_path, behaviour)], local(), heard, deadlines=QUICK).replicas
    assert (lost.status, lost.host, lost.lost_hosts, lost.lost_devices) == (
        Status.LOST,
        "b",
        ("b",),
        ("b/0",),
    )
    assert lost.code == ("command-lost" if what == "runner" else "host-lost")


def test_a_host_that_can_not_be_reached_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    shell = "sh -c 'test {host} = a && exec \"$@\" || echo no way to {host} >&2' - {argv}"
    transport = transport_from(shell, verify=False)
    with_other = [
        spec_of(PAIR, tmp_path / "r0", Behaviour(steps=1000)),
        spec_of(replica_of(["a/1"], name="lab-r1"), tmp_path / "r1", Behaviour(steps=1000)),
    ]
    outcome = supervise(with_other, transport, Heard(), deadlines=QUICK)
    refused, stopped = outcome.replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "host-unreachable", "b")
    assert refused.message.endswith("no way to b")
    assert "no agent on host b: `sh -c" in refused.message
    assert stopped.status is Status.STOPPED
    error = outcome.error()
    assert error is not None
    assert (error.code, error.exit_code) == ("host-unreachable", 9)


def test_a_host_that_does_not_answer_is_refused_in_time(tmp_path: Path) -> None:
    shell = "sh -c 'test {host} = a && exec \"$@\" || exec sleep 1000' - {argv}"
    deadlines = replace(QUICK, connect_s=3.0)
    outcome = supervise(
        [spec_of(PAIR, tmp_path)], transport_from(shell, verify=False), Heard(), deadlines=deadlines
    )
    (refused,) = outcome.replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "host-unreachable", "b")
    assert "gave no answer for 3 s" in refused.message


def test_a_wrong_host_is_refused(tmp_path: Path) -> None:
    transport = transport_from("local", address_of={"a": "127.0.0.1", "b": "192.0.2.7"})
    (refused,) = supervise([spec_of(PAIR, tmp_path)], transport, Heard(), deadlines=QUICK).replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "wrong-host", "b")
    assert "not 192.0.2.7" in refused.message


def test_a_missing_remote_shell_is_named(tmp_path: Path) -> None:
    transport = transport_from("no-such-shell {host}", verify=False)
    with pytest.raises(ExecutorFailedError) as caught:
        supervise([spec_of(PAIR, tmp_path)], transport, Heard(), deadlines=QUICK)
    assert caught.value.code == "remote-shell-missing"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    caught: list[ExecutorFailedError] = []

    def react(event: Event) -> None:
        if event.kind is Kind.READY and event.rank == 0:
            with pytest.raises(ExecutorFailedError) as refused:
                supervise([spec_of(PAIR, tmp_path)], local(), Heard(), deadlines=QUICK)
            caught.append(refused.value)

    assert supervise([spec_of(PAIR, tmp_path)], local(), Heard(react), deadlines=QUICK).finished
    assert [error.code for error in caught] == ["folder-in-use"]
    assert str(os.getpid()) in caught[0].message


def test_replicas_that_would_meet_at_one_port_are_refused(tmp_path: Path) -> None:
    other = replica_of(["c/0"], name="lab-r1")
    specs = [spec_of(PAIR, tmp_path / "r0", port=29501), spec_of(other, tmp_path / "r1", port=29501)]
    with pytest.raises(ExecutorFailedError) as caught:
        supervise(specs, local(), Heard(), deadlines=QUICK)
    assert caught.value.code == "port-taken"
    assert "lab-r0 and lab-r1" in caught.value.message


def test_a_stop_on_request_is_in_order(tmp_path: Path) -> None:
    heard = Heard()
    spec = spec_of(PAIR, tmp_path, Behaviour(steps=100_000))
    outcome = supervise(
        [spec], local(), heard, deadlines=QUICK, should_stop=lambda: len(heard.of(Kind.CHECKPOINT)) >= 2
    )
    (stopped,) = outcome.replicas
    assert (stopped.status, stopped.code) == (Status.STOPPED, "stopped")
    assert stopped.checkpoint_step >= 4
    error = outcome.error()
    assert error is not None
    assert f"checkpoints/{stopped.checkpoint_step}.json" in error.message
    assert {event.data["reason"] for event in heard.of(Kind.ENDED)} == {"stop"}


def test_an_error_of_the_listener_ends_everything(tmp_path: Path) -> None:
    def react(event: Event) -> None:
        if event.kind is Kind.STEP:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        supervise([spec_of(PAIR, tmp_path, Behaviour(steps=1000))], local(), Heard(react), deadlines=QUICK)


def test_stubborn_ranks_are_killed(tmp_path: Path) -> None:
    behaviour = Behaviour(how="stubborn", rank=0, steps=100_000)
    heard = Heard()
    spec = spec_of(PAIR, tmp_path, behaviour)
    supervise([spec], local(), heard, deadlines=QUICK, should_stop=lambda: bool(heard.of(Kind.STEP)))
    assert sum(event.data["num_killed"] for event in heard.of(Kind.ENDED)) >= 4


LAUNCHER = """
import sys
from pathlib import Path
from launches import QUICK, local, replica_of, spec_of
from small_worker import Behaviour
from executors.events import EventLog
from executors.supervisor import supervise
folder = Path(sys.argv[1])
spec = spec_of(replica_of(["a/0", "b/0"]), folder, Behaviour(steps=100_000))
outcome = supervise([spec], local(), EventLog(folder / "events.jsonl"), deadlines=QUICK)
print(outcome.error(), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_launcher_is_the_end_of_everything(tmp_path: Path, mark: str, number: int) -> None:
    paths = os.pathsep.join(str(path) for path in (HERE.parents[1], HERE, HERE.parent))
    log = tmp_path / "events.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        wait_until(lambda: log.exists() and '"checkpoint"' in log.read_text())
        assert len(marked(mark)) >= 9
        # As a terminal does: to the whole group of the foreground.
        os.killpg(launcher.pid, number)
        said = launcher.communicate(timeout=30)[0]
    wait_until(lambda: marked(mark) == [])
    if number != signal.SIGKILL:
        assert launcher.returncode == 0
        assert "replica lab-r0 was stopped after step" in said
        assert "the newest checkpoint is" in said


def test_the_event_log_can_be_read_back(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log" / "events.jsonl")
    heard = Heard(log)
    supervise([spec_of(PAIR, tmp_path / "run")], local(), heard, deadlines=QUICK)
    log.close()
    lines = (tmp_path / "log" / "events.jsonl").read_text().splitlines()
    assert [parse_event(line).kind for line in lines] == [event.kind for event in heard.events]
    assert parse_event(lines[-1]).kind is Kind.OUTCOME


def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.raises(ExecutorFailedError) as caught:
        supervise([spec_of(PAIR, tmp_path)], local(), log, deadlines=QUICK)
    log.close()
    assert caught.value.code == "disk-full"


def test_deadlines_leave_room_for_ranks_that_are_ended_in_order() -> None:
    """Peers that a starter kills after its grace must not look like causes."""
    from executors.rank_starter import GRACE_S

    assert Deadlines().settle_s < GRACE_S
