"""A recorder in a process of its own that terminates TLS: it sees the plaintext and the wire of both sides.

    python net_recorder.py SPEC       SPEC: JSON with listener and dialler TLS files, roots, target port,
    output

It shares no code with the product: what it counts, it counts with the standard library's own TLS sockets. To
the caller it presents the server's certificate, to the server the caller's. It writes `OUTPUT.up` and
`OUTPUT.down` (plaintext) and ends with `OUTPUT.json` once the connection has ended: bytes of plaintext and,
from a relay below TLS, of the TCP stream.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TURN_S = 0.02
GRACE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """A running recorder: the port to call instead of the server's."""

    port: int
    output: Path
    process: subprocess.Popen[str]

    def finish(self) -> dict[str, int]:
        """What it counted, once its one connection has ended."""
        assert self.process.wait(20) == 0
        counted: dict[str, int] = json.loads(self.output.with_suffix(".json").read_text())
        return counted


@contextmanager
def recording(
    *, listener_tls: Path, dialler_tls: Path, roots: Path, target_port: int, output: Path
) -> Iterator[Recorder]:
    """A recorder of one connection between the two whose TLS files are given."""
    spec = {
        "listener_tls": str(listener_tls),
        "dialler_tls": str(dialler_tls),
        "roots": str(roots),
        "target_port": target_port,
        "output": str(output),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(spec)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Recorder(port=int(process.stdout.readline()), output=output, process=process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _relay(source: socket.socket, target: socket.socket, counted: dict[str, int], name: str) -> None:
    """Carry the TCP stream on as it is, and count it."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            counted[name] += len(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _counted_pair(
    sock: socket.socket, counted: dict[str, int], side: str
) -> tuple[socket.socket, list[threading.Thread]]:
    """A local end in the place of `sock`, with a counting relay between the two."""
    near, far = socket.socketpair()
    threads = [
        threading.Thread(target=_relay, args=(sock, far, counted, f"{side}_wire_in")),
        threading.Thread(target=_relay, args=(far, sock, counted, f"{side}_wire_out")),
    ]
    for thread in threads:
        thread.start()
    return near, threads


class _Side:
    """One TLS connection, without blocking: what it has said goes to a file and waits for the other side."""

    def __init__(self, tls: ssl.SSLSocket, file: Path) -> None:
        self.tls, self.file = tls, file.open("wb")
        self.said, self.num_said_bytes, self.has_ended = bytearray(), 0, False
        tls.setblocking(False)

    def read(self) -> None:
        """Take what it says now."""
        try:
            while data := self.tls.recv(1 << 16):
                self.said += data
                self.num_said_bytes += len(data)
                self.file.write(data)
        except ssl.SSLWantReadError:
            return
        except OSError:
            pass
        self.has_ended = True

    def write(self, other: _Side) -> None:
        """Tell it what the other one said, as far as it goes."""
        try:
            while other.said:
                del other.said[: self.tls.send(other.said)]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self.has_ended = True


def _pump(caller: _Side, server: _Side) -> None:
    """Carry plaintext both ways until both have ended, or one and the other leaves its last word unanswered.

    One thread: a TLS socket is not made for two. The end of one is not passed on, since a TLS socket can't
    say that it ends and still read; both ends say goodbye in what they send.
    """
    grace_s = GRACE_S
    while not (caller.has_ended and server.has_ended) and grace_s > 0.0:
        if caller.has_ended or server.has_ended:
            grace_s -= TURN_S
        for side, other in ((caller, server), (server, caller)):
            if not side.has_ended:
                side.read()
            other.write(side)
        live = [side.tls for side in (caller, server) if not side.has_ended]
        pending = [side.tls for side, other in ((caller, server), (server, caller)) if other.said]
        select.select(live, pending, [], TURN_S)
    for side in (caller, server):
        side.file.close()
        # The relay below must see the end too.
        with suppress(OSError):
            side.tls.shutdown(socket.SHUT_RDWR)


def _context(protocol: int, tls_file: str, roots: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls_file)
    for root in sorted(Path(roots).glob("*.root.pem")):
        context.load_verify_locations(root)
    return context


def _main(spec: dict[str, Any]) -> None:
    output = Path(spec["output"])
    names = [f"{side}_wire_{way}" for side in ("caller", "server") for way in ("in", "out")]
    counted = dict.fromkeys([*names, "up", "down"], 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        caller, _ = listener.accept()
    server = socket.create_connection(("127.0.0.1", int(spec["target_port"])))
    near_caller, threads = _counted_pair(caller, counted, "caller")
    near_server, more = _counted_pair(server, counted, "server")
    listening = _context(ssl.PROTOCOL_TLS_SERVER, spec["listener_tls"], spec["roots"])
    listening.num_tickets = 0
    dialling = _context(ssl.PROTOCOL_TLS_CLIENT, spec["dialler_tls"], spec["roots"])
    with (
        listening.wrap_socket(near_caller, server_side=True) as to_caller,
        dialling.wrap_socket(near_server) as to_server,
    ):
        sides = [
            _Side(tls, output.with_suffix(suffix))
            for tls, suffix in ((to_caller, ".up"), (to_server, ".down"))
        ]
        _pump(*sides)
    counted["up"], counted["down"] = (side.num_said_bytes for side in sides)
    for thread in (*threads, *more):
        thread.join(10)
    output.with_suffix(".json").write_text(json.dumps(counted))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
