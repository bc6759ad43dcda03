"""A stretch of WAN in user space: delay, rate, loss, and connections that break after so many bytes.

It forwards a TCP stream, so it can't lose a segment of it. What a loss does to a stream is imitated: each
segment of 1,448 bytes is lost with the given probability and holds up all behind it for a retransmission
timeout, which doubles as long as the resent one is lost too (RFC 6298, with the 200 ms floor that Linux has).
Up to a window of segments share one timeout, as they are lost and resent together.
"""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE_BYTES = 32_768
SEGMENT_BYTES = 1448
RETRANSMISSION_S = 0.2
LONGEST_TIMEOUT_S = 3.2
MAX_QUEUED = 256


@dataclass(kw_only=True)
class Wan:
    """What the stretch is like.

    `cuts` are numbers of bytes towards the server after which a connection breaks, one for each connection in
    turn, and `down_cuts` the same for bytes from it; connections after the last cut live.
    """

    delay_s: float = 0.0
    rate_bytes_per_s: float = float("inf")
    loss_frac: float = 0.0
    cuts: list[int] = field(default_factory=list)
    down_cuts: list[int] = field(default_factory=list)
    seed: int = 0
    num_connections: int = 0
    num_up_bytes: int = 0
    num_down_bytes: int = 0
    is_frozen: bool = False
    """Whether nothing is forwarded any more, with the connections open."""

    def hold_up_s(self, num_bytes: int, chance: random.Random) -> float:
        """Seconds that losses hold up a piece."""
        if not self.loss_frac:
            return 0.0
        num_lost = sum(chance.random() < self.loss_frac for _ in range(-(-num_bytes // SEGMENT_BYTES)))
        held_s, timeout_s = 0.0, RETRANSMISSION_S
        while num_lost:
            held_s += timeout_s
            timeout_s = min(2 * timeout_s, LONGEST_TIMEOUT_S)
            num_lost = sum(chance.random() < self.loss_frac for _ in range(num_lost))
        return held_s


@contextmanager
def forwarding(port: int, wan: Wan) -> Iterator[int]:
    """A port on this machine from which that stretch leads to `port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = [listener]

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            sockets.extend((near, far))
            cut, down_cut = (each.pop(0) if each else None for each in (wan.cuts, wan.down_cuts))
            wan.num_connections += 1
            for source, target, limit, is_up in ((near, far, cut, True), (far, near, down_cut, False)):
                line = _Line(wan, source, target, limit, is_up=is_up)
                threading.Thread(target=line.take, daemon=True).start()
                threading.Thread(target=line.give, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class _Line:
    """One direction of one connection: pieces wait in a queue until they are due."""

    def __init__(
        self, wan: Wan, source: socket.socket, target: socket.socket, limit: int | None, *, is_up: bool
    ) -> None:
        self.wan, self.source, self.target, self.limit, self.is_up = wan, source, target, limit, is_up
        self.queue: queue.Queue[tuple[float, bytes]] = queue.Queue(MAX_QUEUED)
        self.chance = random.Random(f"{wan.seed} {wan.num_connections} {self.is_up}")

    def take(self) -> None:
        free_s, left = time.monotonic(), self.limit
        while True:
            try:
                while self.wan.is_frozen:
                    time.sleep(0.02)
                data = self.source.recv(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
            except OSError:
                data = b""
            now_s = time.monotonic()
            free_s = max(now_s, free_s) + len(data) / self.wan.rate_bytes_per_s
            free_s += self.wan.hold_up_s(len(data), self.chance)
            self.queue.put((free_s + self.wan.delay_s, data))
            if not data:
                return
            # A source that is faster than the line is held back, as a full window would hold it.
            time.sleep(max(0.0, free_s - now_s - 0.25))
            if left is not None:
                left -= len(data)
                if left <= 0:
                    self.queue.put((0.0, b"cut"))
                    return

    def give(self) -> None:
        while True:
            due_s, data = self.queue.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            while self.wan.is_frozen:
                time.sleep(0.02)
            try:
                if due_s == 0.0:
                    break
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    return
                self.target.sendall(data)
                self.count(len(data))
            except OSError:
                break
        for sock in (self.source, self.target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def count(self, num_bytes: int) -> None:
        if self.is_up:
            self.wan.num_up_bytes += num_bytes
        else:
            self.wan.num_down_bytes += num_bytes
