"""Which machine this is, and which of its ports are free. Standard library only."""

from __future__ import annotations

import errno
import ipaddress
import socket

from policies.errors import ExecutorFailedError

LOOPBACK = "127.0.0.1"


def is_here(expected: str) -> bool:
    """Whether a host name or address is this machine's.

    A name is ours when it is the machine's own (with or without its domain) or resolves to one of its
    addresses. An address is ours when a socket can be bound to it.
    """
    if not _is_address(expected) and _same_name(expected, socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(expected, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_can_bind(family, place) for family, _, _, _, place in found)


def free_port(address: str = LOOPBACK) -> int:
    """A TCP port of this machine that nothing listens on at the moment."""
    with _server_socket(address) as server:
        server.bind((address, 0))
        return int(server.getsockname()[1])


def require_free_port(port: int, address: str = "") -> None:
    """Nothing listens on this TCP port of this machine ("" for all its addresses).

    Raises:
        ExecutorFailedError: `port-taken`, or `port-refused` where this user may not listen there.
    """
    try:
        with _server_socket(address) as server:
            server.bind((address, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ExecutorFailedError(
                "port-taken",
                f"port {port} of {socket.gethostname()} is in use by another program",
                hint="choose another one with `--port`, or end the program that listens there",
            ) from error
        raise ExecutorFailedError(
            "port-refused",
            f"port {port} of {socket.gethostname()} can't be listened on: {error.strerror}",
            hint="choose a port above 1023 with `--port`",
        ) from error


def _server_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    # As servers do: connections of an earlier run that linger are no obstacle, a listener is.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return server


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _same_name(first: str, second: str) -> bool:
    """Equal host names; where one has no domain, that of the other is left out of account."""
    ours, theirs = first.lower().rstrip("."), second.lower().rstrip(".")
    if "." in ours and "." in theirs:
        return ours == theirs
    return ours.partition(".")[0] == theirs.partition(".")[0]


def _can_bind(family: int, place: tuple[object, ...]) -> bool:
    # The unspecified address stands for every machine and so for none.
    if ipaddress.ip_address(str(place[0]).partition("%")[0]).is_unspecified:
        return False
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
