"""A recorder in a process of its own that terminates TLS: it sees the plaintext and the wire of both sides.

    python net_recorder.py SPEC       SPEC: JSON with listener and dialler TLS files, roots, target port, output

It shares no code with the product: what it counts, it counts with the standard library's own TLS sockets. To the
caller it presents the server's certificate, to the server the caller's. It writes `OUTPUT.up` and `OUTPUT.down`
(plaintext) and ends with `OUTPUT.json` once the connection has ended: bytes of plaintext and, from a relay below
TLS, of the TCP stream.
"""

from __future__ import annotations

import json
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


def _counted_pair(sock: socket.socket, counted: dict[str, int], side: str) -> tuple[socket.socket, list[threading.Thread]]:
    """A local end in the place of `sock`, with a counting relay between the two."""
    near, far = socket.socketpair()
    threads = [
        threading.Thread(target=_relay, args=(sock, far, counted, f"{side}_wire_in")),
        threading.Thread(target=_relay, args=(far, sock, counted, f"{side}_wire_out")),
    ]
    for thread in threads:
        thread.start()
    return near, threads


def _pump(source: ssl.SSLSocket, target: ssl.SSLSocket, file: Path, counted: dict[str, int], name: str) -> None:
    """Read plaintext, write it down, send it on; a clean end is passed on."""
    with file.open("wb") as record:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                counted[name] += len(data)
                record.write(data)
                target.sendall(data)
    with suppress(OSError, ValueError):
        target.unwrap()


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
        up = threading.Thread(
            target=_pump, args=(to_caller, to_server, output.with_suffix(".up"), counted, "up")
        )
        up.start()
        _pump(to_server, to_caller, output.with_suffix(".down"), counted, "down")
        up.join(10)
    for thread in (*threads, *more):
        thread.join(10)
    output.with_suffix(".json").write_text(json.dumps(counted))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
