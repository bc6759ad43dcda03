"""The same launch through ssh and pdsh, with a real server at the other end."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from launches import HERE, MARK, QUICK, Heard, mark, marked, replica_of, spec_of, wait_until
from small_worker import Behaviour
from ssh_server import SshServer, ssh_server, why_no_ssh_server

from executors.base import LaunchSpec
from executors.events import Event, Kind
from executors.outcome import Status
from executors.processes import process_table
from executors.remote import Transport, transport_from
from executors.supervisor import supervise

__all__ = ["mark"]

pytestmark = [
    pytest.mark.net,
    pytest.mark.usefixtures("mark"),
    pytest.mark.skipif(bool(why_no_ssh_server()), reason=f"ssh: {why_no_ssh_server()}"),
]
PAIR = replica_of(["a/0", "b/0"])
PDSH = pytest.param(
    "pdsh", marks=pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh: needs the program")
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def transport(
    request: pytest.FixtureRequest, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> Transport:
    """ssh with the options of our server; pdsh gives the same ones to the ssh that it runs."""
    addresses = {"a": "127.0.0.1", "b": "127.0.0.2"}
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    if request.param == "pdsh":
        monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", " ".join(server.options))
        return transport_from("pdsh", address_of=addresses)
    return transport_from(f"ssh {shlex.join(server.options)} {{address}}", address_of=addresses)


def spec(folder: Path, behaviour: Behaviour | None = None) -> LaunchSpec:
    """Ranks carry the mark themselves, in case the server doesn't pass it on."""
    return spec_of(PAIR, folder, behaviour, env={MARK: os.environ[MARK]})


BOTH = pytest.mark.parametrize("transport", ["ssh", PDSH], indirect=True)
SSH = pytest.mark.parametrize("transport", ["ssh"], indirect=True)


@BOTH
def test_a_launch_goes_through(transport: Transport, tmp_path: Path) -> None:
    heard = Heard()
    # More than one piece of arguments, and more than a pipe holds.
    noise = os.urandom(80_000).hex()
    whole = spec(tmp_path)
    whole = replace(whole, files={**whole.files, "plan.json": noise})
    outcome = supervise([whole], transport, heard, deadlines=QUICK)
    assert outcome.finished, outcome.error()
    assert (tmp_path / "plan.json").read_text() == noise
    assert {event.host for event in heard.of(Kind.FINISHED)} == {"a", "b"}
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == set()


@SSH
def test_a_lost_rank_ends_the_replica_on_all_hosts(transport: Transport, tmp_path: Path, mark: str) -> None:
    behaviour = Behaviour(steps=100_000, rank=1, at=3, how="kill")
    (lost,) = supervise([spec(tmp_path, behaviour)], transport, Heard(), deadlines=QUICK).replicas
    assert (lost.status, lost.rank, lost.signal) == (Status.LOST, 1, signal.SIGKILL)
    wait_until(lambda: marked(mark) == [])


@BOTH
def test_a_stop_reaches_ranks_that_will_not_end(transport: Transport, tmp_path: Path, mark: str) -> None:
    heard = Heard()
    behaviour = Behaviour(steps=100_000, how="stubborn")
    (stopped,) = supervise(
        [spec(tmp_path, behaviour)],
        transport,
        heard,
        deadlines=QUICK,
        should_stop=lambda: bool(heard.of(Kind.CHECKPOINT)),
    ).replicas
    assert stopped.status is Status.STOPPED
    assert {event.host for event in heard.of(Kind.ENDED)} == {"a", "b"}
    assert marked(mark) == []


@BOTH
def test_a_connection_that_breaks_is_a_lost_host_and_leaves_nothing(
    transport: Transport, tmp_path: Path, mark: str
) -> None:
    """The local end of the way to host b is killed: its agent, far away, must end everything by itself."""

    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.rank == 1 and event.data["step"] == 3:
            for pid in children_with(os.getpid(), "127.0.0.2"):
                os.kill(pid, signal.SIGKILL)

    behaviour = Behaviour(steps=100_000, how="stubborn")
    (lost,) = supervise([spec(tmp_path, behaviour)], transport, Heard(react), deadlines=QUICK).replicas
    assert (lost.status, lost.code, lost.host) == (Status.LOST, "host-lost", "b")
    wait_until(lambda: marked(mark) == [])


def children_with(parent: int, word: str) -> list[int]:
    """Children of a process that have this word among their arguments."""
    children = [process.pid for process in process_table().values() if process.parent == parent]
    return [
        pid for pid in children if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]


@SSH
def test_a_wrong_host_is_refused(transport: Transport, tmp_path: Path, mark: str) -> None:
    """Both names lead to the same machine, which is not the one that the plan means by c."""
    words = tuple(word.replace("{address}", "127.0.0.1") for word in transport.words)
    wrong = replace(transport, words=words)
    wrong = replace(wrong, address_of={"a": "127.0.0.1", "b": "192.0.2.7"})
    (refused,) = supervise([spec(tmp_path)], wrong, Heard(), deadlines=QUICK).replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "wrong-host", "b")
    # An agent whose connection was given up before it spoke ends when it notices.
    wait_until(lambda: marked(mark) == [])


@SSH
def test_a_host_without_our_packages_is_refused_with_its_words(transport: Transport, tmp_path: Path) -> None:
    other = replace(transport, python="/usr/bin/no-such-python")
    (refused,) = supervise([spec(tmp_path)], other, Heard(), deadlines=QUICK).replicas
    assert (refused.status, refused.code) == (Status.REFUSED, "host-unreachable")
    assert "no-such-python" in refused.message
    assert "install echelon there" in refused.hint


@BOTH
def test_nobody_at_the_other_end_is_refused(transport: Transport, tmp_path: Path, mark: str) -> None:
    nobody = replace(transport, address_of={"a": "127.0.0.1", "b": "no-such-host.invalid"})
    (refused,) = supervise([spec(tmp_path)], nobody, Heard(), deadlines=QUICK).replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "host-unreachable", "b")
    assert "no-such-host.invalid" in refused.message
    wait_until(lambda: marked(mark) == [])
