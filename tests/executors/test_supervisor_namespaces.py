"""Several hosts for real: an agent in each network namespace, and what can go wrong between them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from launches import QUICK, Heard, fleet_of, mark, marked, plan_of, replica_of, spec_of, wait_until
from namespaces import INTERFACE, Namespace, namespaces, why_no_namespaces
from small_worker import Behaviour

from executors.base import LaunchSpec
from executors.events import Event, Kind
from executors.outcome import Status
from executors.relaunch import run_with_failover
from executors.remote import Transport, transport_from
from executors.supervisor import supervise
from planner.plan import Failover, ReplicaPlan

__all__ = ["mark"]

pytestmark = [
    pytest.mark.net,
    pytest.mark.netns,
    pytest.mark.usefixtures("mark"),
    pytest.mark.skipif(bool(why_no_namespaces()), reason=f"namespaces: {why_no_namespaces()}"),
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Namespace, ...]]:
    with namespaces(3) as found:
        yield found


def on(hosts: Sequence[Namespace]) -> ReplicaPlan:
    """A replica with one device on each host."""
    return replica_of([f"{host.name}/0" for host in hosts])


def spec_on(hosts: Sequence[Namespace], folder: Path, behaviour: Behaviour, port: int = 7100) -> LaunchSpec:
    return spec_of(on(hosts), folder, behaviour, address=hosts[0].address, port=port)


def through(hosts: Sequence[Namespace]) -> Transport:
    return transport_from("netns", address_of={host.name: host.address for host in hosts})


def test_ranks_of_three_hosts_meet_over_the_network(hosts: tuple[Namespace, ...], tmp_path: Path) -> None:
    heard = Heard()
    outcome = supervise([spec_on(hosts, tmp_path, Behaviour())], through(hosts), heard, deadlines=QUICK)
    assert outcome.finished
    assert {event.host for event in heard.of(Kind.FINISHED)} == {host.name for host in hosts}
    assert {path.name for path in tmp_path.glob("host-*.log")} == {f"host-{h.name}.log" for h in hosts}


def test_a_missing_host_is_refused_and_nothing_is_left_on_the_others(
    hosts: tuple[Namespace, ...], tmp_path: Path, mark: str
) -> None:
    missing = (hosts[0], Namespace(name="nowhere", address="10.0.0.9"), hosts[1])
    spec = spec_on(missing, tmp_path, Behaviour(steps=100_000))
    outcome = supervise([spec], through(missing), Heard(), deadlines=QUICK)
    (refused,) = outcome.replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "host-unreachable", "nowhere")
    assert "ip netns exec nowhere" in refused.message
    assert "No such file or directory" in refused.message
    assert marked(mark) == []
    error = outcome.error()
    assert error is not None
    assert error.exit_code == 9


def test_swapped_hosts_are_refused(hosts: tuple[Namespace, ...], tmp_path: Path, mark: str) -> None:
    swapped = {hosts[0].name: hosts[0].address, hosts[1].name: hosts[2].address}
    spec = spec_on(hosts[:2], tmp_path, Behaviour(steps=100_000))
    (refused,) = supervise(
        [spec], transport_from("netns", address_of=swapped), Heard(), deadlines=QUICK
    ).replicas
    assert (refused.status, refused.code, refused.host) == (Status.REFUSED, "wrong-host", hosts[1].name)
    assert marked(mark) == []


@pytest.mark.parametrize("what", ["rank", "runner", "agent", "everything"])
def test_a_kill_on_one_host_is_noticed_and_ends_the_replica_everywhere(
    hosts: tuple[Namespace, ...], tmp_path: Path, mark: str, what: str
) -> None:
    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.rank == 1 and event.data["step"] == 3:
            runner = next(e.data["pid"] for e in heard.of(Kind.STARTED) if e.host == hosts[1].name)
            agent = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
            inside = subprocess.check_output(["ip", "netns", "pids", hosts[1].name], text=True).split()
            victims = {
                "rank": [heard.pids()[1]],
                "runner": [runner],
                "agent": [agent],
                "everything": [int(pid) for pid in inside],
            }
            for pid in victims[what]:
                os.kill(pid, signal.SIGKILL)

    heard = Heard(react)
    spec = spec_on(hosts[:2], tmp_path, Behaviour(steps=100_000))
    (lost,) = supervise([spec], through(hosts), heard, deadlines=QUICK).replicas
    assert (lost.status, lost.host, lost.lost_devices) == (
        Status.LOST,
        hosts[1].name,
        (f"{hosts[1].name}/0",),
    )
    assert lost.lost_hosts == (() if what == "rank" else (hosts[1].name,))
    wait_until(lambda: marked(mark) == [])


def test_a_host_that_dies_is_replaced_by_another(
    hosts: tuple[Namespace, ...], tmp_path: Path, mark: str
) -> None:
    """All of a host's processes are killed at once; its replacement runs on the third host."""
    first, spare = on(hosts[:2]), on((hosts[0], hosts[2]))
    failover = Failover(
        devices=(f"{hosts[1].name}/0",), replica=first.id, replacement=spare, tokens_per_s=1.0
    )

    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.host == hosts[1].name and event.data["step"] == 6:
            inside = subprocess.check_output(["ip", "netns", "pids", hosts[1].name], text=True).split()
            for pid in inside:
                os.kill(int(pid), signal.SIGKILL)

    def prepare(replica: ReplicaPlan, **about: object) -> LaunchSpec:
        return spec_of(replica, tmp_path, Behaviour(steps=20), address=hosts[0].address, port=7100)

    heard = Heard(react)
    outcome = run_with_failover(
        plan_of([first], [failover]),
        fleet_of({host.name: 1 for host in hosts}),
        [spec_on(hosts[:2], tmp_path, Behaviour(steps=100_000))],
        prepare,
        through(hosts),
        heard,
        deadlines=QUICK,
    )
    assert outcome.finished
    assert {event.host for event in heard.of(Kind.FINISHED)} == {hosts[0].name, hosts[2].name}
    (told,) = heard.of(Kind.FAILOVER)
    assert told.data["resumed_step"] >= 4


def test_a_cable_that_is_pulled_is_noticed(hosts: tuple[Namespace, ...], tmp_path: Path) -> None:
    """Agents live on, since they speak over pipes here; no step is finished any more."""

    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.data["step"] == 3:
            subprocess.run(["ip", "-n", hosts[1].name, "link", "set", INTERFACE, "down"], check=True)

    deadlines = replace(QUICK, stall_s=1.5)
    spec = spec_on(hosts[:2], tmp_path, Behaviour(steps=100_000))
    try:
        (stalled,) = supervise([spec], through(hosts), Heard(react), deadlines=deadlines).replicas
    finally:
        subprocess.run(["ip", "-n", hosts[1].name, "link", "set", INTERFACE, "up"], check=True)
    assert (stalled.status, stalled.code) == (Status.FAULT, "stalled")
