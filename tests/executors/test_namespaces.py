"""Namespaces as hosts: joined, named, limited, and gone afterwards, also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import (
    INTERFACE,
    Namespace,
    names_in_use,
    namespaces,
    remove_stale,
    why_no_namespaces,
    why_no_rate_limits,
)

pytestmark = [
    pytest.mark.net,
    pytest.mark.netns,
    pytest.mark.skipif(bool(why_no_namespaces()), reason=f"namespaces: {why_no_namespaces()}"),
]

LISTEN = """
import socket
server = socket.create_server(("", 7000))
print("listening", flush=True)
server.settimeout(20)
peer, place = server.accept()
print(place[0], peer.recv(100).decode(), flush=True)
"""
CALL = """
import socket, sys
socket.create_connection((sys.argv[1], 7000), timeout=20).sendall(b"good day")
"""
CRASH = """
import os, signal, sys
sys.path[:0] = sys.argv[1:]
from namespaces import namespaces
with namespaces(1) as hosts:
    print(hosts[0].name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def inside(host: Namespace, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python program on a host."""
    return subprocess.Popen(
        ["ip", "netns", "exec", host.name, sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def own_names() -> set[str]:
    return {name for name in names_in_use() if f"{os.getpid()}-" in name}


def test_hosts_reach_each_other_by_name_and_are_gone_afterwards() -> None:
    with namespaces(3) as hosts:
        assert set(own_names()) >= {host.name for host in hosts}
        for called, caller in ((hosts[0], hosts[1]), (hosts[2], hosts[0])):
            with inside(called, LISTEN) as listening:
                assert listening.stdout is not None
                assert listening.stdout.readline() == "listening\n"
                with inside(caller, CALL, called.name):
                    assert listening.stdout.readline() == f"{caller.address} good day\n"
        for host in hosts:
            shown = subprocess.check_output(["ip", "-n", host.name, "-o", "link", "show", "up"], text=True)
            assert f"{INTERFACE}@" in shown
    assert own_names() == set()
    assert not any((Path("/etc/netns") / host.name).exists() for host in hosts)


def test_they_are_gone_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), namespaces(1):
        raise ZeroDivisionError
    assert own_names() == set()


def test_those_of_a_crashed_run_are_removed_and_those_of_a_living_one_kept() -> None:
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parents[2])]
    with namespaces(1) as hosts:
        crashed = subprocess.run(
            [sys.executable, "-c", CRASH, *paths], check=False, stdout=subprocess.PIPE, text=True
        )
        assert crashed.returncode == -signal.SIGKILL
        left = crashed.stdout.strip()
        assert left in names_in_use()
        remove_stale()
        assert left not in names_in_use()
        assert hosts[0].name in names_in_use()


@pytest.mark.skipif(bool(why_no_rate_limits()), reason=f"rate limits: {why_no_rate_limits()}")
def test_each_host_has_its_rate() -> None:
    with namespaces(2, bits_per_s=(20e6, None)) as hosts:
        queues = [
            subprocess.check_output(["tc", "-n", host.name, "qdisc", "show", "dev", INTERFACE], text=True)
            for host in hosts
        ]
    assert "tbf" in queues[0]
    assert "rate 20Mbit" in queues[0]
    assert "tbf" not in queues[1]
