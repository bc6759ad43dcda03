"""Network namespaces as hosts: each with one interface of the same name, joined by a switch.

Everything lives in namespaces, the switch too, so that nothing is added to the machine's own network and
removing the namespaces removes it all. Their names carry the owner's pid and start, by which namespaces of
test runs that crashed are found and removed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from executors.processes import read_process

INTERFACE = "eth0"
_PREFIX = "ec"
_NAME = re.compile(rf"{_PREFIX}(\d+)-(\d+)-(\w+)")
_ETC = Path("/etc/netns")
_BURST_S = 0.002
"""So short that a single message of a training step does not pass at once."""
_MIN_BURST_BYTES = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A host: `name` for `ip netns exec`, and its address, by which the others reach it."""

    name: str
    address: str


@cache
def why_no_namespaces() -> str:
    """Why this machine can't have namespaces as hosts; "" where it can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"needs the program {tool}"
    name = _name("probe")
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", INTERFACE, "type", "veth", "peer", "name", "p0")
        _ip("-n", name, "link", "add", "br0", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"the kernel refuses: {error.stderr.strip()}"
    finally:
        _remove(name)
    return ""


@cache
def why_no_rate_limits() -> str:
    """Why rates can't be limited here; "" where they can."""
    reason = why_no_namespaces()
    if reason:
        return reason
    name = _name("probe")
    try:
        _ip("netns", "add", name)
        _limit(name, "lo", 1e6)
    except subprocess.CalledProcessError as error:
        return f"the kernel refuses the queue tbf: {error.stderr.strip()}"
    finally:
        _remove(name)
    return ""


@contextmanager
def namespaces(
    count: int, *, bits_per_s: Sequence[float | None] | float | None = None
) -> Iterator[tuple[Namespace, ...]]:
    """So many hosts, each able to reach the others by address and by name.

    `bits_per_s` limits what each host sends and receives, one figure for all or one each.
    """
    remove_stale()
    rates = list(bits_per_s) if isinstance(bits_per_s, Sequence) else [bits_per_s] * count
    subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 256}"
    hosts = tuple(Namespace(name=_name(f"h{i}"), address=f"{subnet}.{i + 1}") for i in range(count))
    switch = _name("switch")
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for i, host in enumerate(hosts):
            _add_host(host, switch, f"p{i}", hosts)
            rate = rates[i]
            if rate is not None:
                _limit(host.name, INTERFACE, rate)
                _limit(switch, f"p{i}", rate)
        yield hosts
    finally:
        for name in (*(host.name for host in hosts), switch):
            _remove(name)


def names_in_use() -> list[str]:
    """Our namespaces that exist now, of any test run."""
    listed = _ip("netns", "list").split("\n")
    return [line.split()[0] for line in listed if line.strip() and _NAME.match(line)]


def remove_stale() -> None:
    """Remove namespaces whose owner has ended."""
    for name in names_in_use():
        match = _NAME.match(name)
        assert match is not None
        owner = read_process(int(match.group(1)))
        if owner is None or owner.start_ticks != int(match.group(2)):
            _remove(name)


def _name(what: str) -> str:
    own = read_process(os.getpid())
    assert own is not None
    return f"{_PREFIX}{own.pid}-{own.start_ticks}-{what}"


def _add_host(host: Namespace, switch: str, port: str, hosts: Sequence[Namespace]) -> None:
    """One host with its cable to the switch; `ip netns exec` shows it the names of all."""
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "add", INTERFACE, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "br0", "up")
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    _ip("-n", host.name, "link", "set", INTERFACE, "up")
    _ip("-n", host.name, "link", "set", "lo", "up")
    folder = _ETC / host.name
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in hosts)]
    (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _limit(namespace: str, interface: str, bits_per_s: float) -> None:
    """What leaves the interface is held to a rate; the queue holds what a window of TCP may send at once."""
    burst = max(_MIN_BURST_BYTES, int(bits_per_s / 8 * _BURST_S))
    rate = ("rate", f"{int(bits_per_s)}bit", "burst", str(burst), "limit", str(4 * burst + 1_000_000))
    _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *rate)


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
    shutil.rmtree(_ETC / name, ignore_errors=True)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
