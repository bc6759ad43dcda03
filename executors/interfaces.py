"""Which network interface leads to the other ranks. Collective backends guess by host name, often wrongly."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from executors.addresses import LOOPBACK

_SIOCGIFADDR = 0x8915
"""Linux, netdevice(7): the IPv4 address of an interface."""


def interface_towards(address: str) -> str | None:
    """The interface from which this host reaches an address; None where it can't be told."""
    if address == LOOPBACK:
        return "lo"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: a datagram socket only looks up its route
            own = probe.getsockname()[0]
        names = [name for _, name in socket.if_nameindex()]
        return next((name for name in names if _address_of(name) == own), None)
    except OSError:
        return None


def choose_interface(address: str) -> None:
    """Have collective backends use the interface towards an address, unless the environment names one."""
    interface = interface_towards(address)
    if interface is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, interface)


def _address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
