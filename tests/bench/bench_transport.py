"""What the boundary's transport and journal cost, and the heavy sweeps behind their tests.

    python tests/bench/bench_transport.py [--part PART]... [--kills N] [--fuzz N]

Parts: bulk (40 MB uploads over loopback, mutual TLS), frames (small ones), connect, deadlines (how late a
wait ends), journal, kills (kill -9 of a writer), fuzz (frame reader). CPU seconds are those of the whole
process, that is of both sides, unless a row says otherwise; medians over the repeats.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "boundary")]

from boundary.net_cases import ECHO, caller, end_in, payload, serving  # noqa: E402
from boundary.net_forwarder import Wan, forwarding  # noqa: E402
from boundary.net_journal_kills import kill_and_compare  # noqa: E402
from boundary.test_transport_frames import fuzz  # noqa: E402
from executors.boundary.deadlines import WaitEndedError  # noqa: E402
from executors.boundary.journal import Journal  # noqa: E402
from executors.boundary.transport.connection import Connection  # noqa: E402
from executors.boundary.transport.control import Tag  # noqa: E402
from executors.boundary.transport.inbox import BufferSource  # noqa: E402

BULK_BYTES = 40_000_000
REPEATS = 5


def row(name: str, value: float, unit: str, note: str = "") -> None:
    """Print one figure."""
    print(f"{name:<52} {value:>12,.4g} {unit:<8} {note}", flush=True)


def cpu_of(work: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median CPU and wall seconds of a call."""
    cpu_s, wall_s = [], []
    for _ in range(repeats):
        before = time.process_time(), time.perf_counter()
        work()
        cpu_s.append(time.process_time() - before[0])
        wall_s.append(time.perf_counter() - before[1])
    return statistics.median(cpu_s), statistics.median(wall_s)


def bench_bulk() -> None:
    """Uploads, both sides in this process; then with the server in another one, each side for itself."""
    data = payload(BULK_BYTES)
    source = BufferSource(data)
    epochs = iter(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        with serving(Path(folder) / "in", expect=lambda sender, tag: BULK_BYTES) as (server, _):
            client = caller(server.port)
            cpu_s, wall_s = cpu_of(lambda: client.upload(Tag(next(epochs), 0), source, end=end_in(60)))
        row("40 MB upload, both sides", cpu_s, "CPU s", "to a file, digest checked")
        row("40 MB upload, both sides on one core", BULK_BYTES / cpu_s / 1e6, "MB/s", f"wall {wall_s:.2f} s")
        pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_serve_elsewhere, args=(theirs, folder))
        process.start()
        client = caller(pipe.recv())
        client_s, _ = cpu_of(lambda: client.upload(Tag(next(epochs), 0), source, end=end_in(60)))
        pipe.send("stop")
        server_s = pipe.recv() / REPEATS
        process.join()
    row("40 MB upload, client", client_s, "CPU s", f"{BULK_BYTES / client_s / 1e6:,.0f} MB/s per core")
    row("40 MB upload, server", server_s, "CPU s", f"{BULK_BYTES / server_s / 1e6:,.0f} MB/s per core")


def _serve_elsewhere(pipe: object, folder: str) -> None:
    with serving(Path(folder) / "there", expect=lambda sender, tag: BULK_BYTES) as (server, _):
        before_s = time.process_time()
        pipe.send(server.port)  # type: ignore[attr-defined]
        pipe.recv()  # type: ignore[attr-defined]
        pipe.send(time.process_time() - before_s)  # type: ignore[attr-defined]


def bench_frames() -> None:
    """Small frames: one way, and there and back."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (server, _):
        connection = caller(server.port).connect()
        wait = end_in(600)

        def there_and_back() -> None:
            for _ in range(2000):
                connection.send(ECHO, bytes(100), wait)
                connection.receive(wait)

        def burst() -> None:
            for _ in range(2000):
                connection.send(ECHO, bytes(100), wait)
            for _ in range(2000):
                connection.receive(wait)

        for name, work in (
            ("100-byte frames, there and back", there_and_back),
            ("100-byte frames, burst", burst),
        ):
            cpu_s, wall_s = cpu_of(work)
            row(name, 4000 / cpu_s, "frames/s", f"per CPU second of both sides; wall {4000 / wall_s:,.0f}/s")
        connection.close()


def bench_connect() -> None:
    """A connection with all checks, from the first byte to the goodbye."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (server, _):
        client = caller(server.port)
        cpu_s, wall_s = cpu_of(lambda: client.connect().close(), repeats=30)
        row("connect, check, close, both sides", cpu_s * 1e3, "CPU ms", f"wall {wall_s * 1e3:.1f} ms")


def bench_deadlines() -> None:
    """How late waits end, and how long a close takes whose peer is silent."""
    late_s: dict[str, list[float]] = {}

    def measure(name: str, limit_s: float, work: Callable[[], object]) -> None:
        before_s = time.monotonic()
        with suppress(WaitEndedError):
            work()
        late_s.setdefault(name, []).append(time.monotonic() - before_s - limit_s)

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (server, _):
        wan = Wan()
        with forwarding(server.port, wan) as port:
            for _ in range(10):
                wan.is_frozen = False
                connection, other = (caller(port).connect() for _ in range(2))
                measure("receive: late by", 0.3, partial(_receive, connection))
                wan.is_frozen = True
                measure("receive over a frozen link: late by", 0.3, partial(_receive, connection))
                measure("send over a frozen link: late by", 0.3, partial(_send_for_ever, connection))
                measure("close over a frozen link: takes", 0.0, other.close)
                connection.abandon()
            wan.is_frozen = False
    for name, values in late_s.items():
        row(f"{name}, worst of 10", max(values), "s")


def _receive(connection: Connection) -> None:
    connection.receive(end_in(0.3))


def _send_for_ever(connection: Connection) -> None:
    wait = end_in(0.3)
    while True:
        connection.send(ECHO, bytes(100_000), wait)


def bench_journal() -> None:
    """Records with one sync each, and many in a transaction."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        journal = Journal(Path(folder) / "journal")
        numbers = iter(range(10**9))

        def one() -> None:
            for _ in range(100):
                journal.record("a", str(next(numbers)).encode(), bytes(200))

        def many() -> None:
            with journal.transaction():
                for _ in range(1000):
                    journal.record("b", str(next(numbers)).encode(), bytes(200))

        for name, work, count in (("a record of its own", one, 100), ("a record among 1000", many, 1000)):
            cpu_s, wall_s = cpu_of(work)
            row(f"journal: {name}", cpu_s / count * 1e6, "CPU us", f"wall {wall_s / count * 1e6:,.0f} us")
        cpu_s, _ = cpu_of(lambda: sum(1 for _ in journal.replay()))
        row("journal: replay, an entry", cpu_s / journal.num_entries * 1e6, "CPU us")
        journal.close()


def bench_kills(num_kills: int) -> None:
    """kill -9 at random points; journals of 50 lives each."""
    done = num_entries = 0
    with tempfile.TemporaryDirectory() as folder:
        while done < num_kills:
            lives = min(50, num_kills - done)
            num_entries += kill_and_compare(Path(folder) / f"journal{done}", lives, seed=1000 + done)
            done += lives
    row("kill -9 of a journal's writer, all compared", done, "kills", f"{num_entries:,} entries stood")


def bench_fuzz(num_inputs: int) -> None:
    """Mutated frames."""
    before_s = time.process_time()
    num_refused, most_held_bytes = fuzz(num_inputs, seed=77)
    cpu_s = time.process_time() - before_s
    row(
        "mutated streams read or refused", num_inputs, "inputs", f"{num_refused:,} refused, {cpu_s:.0f} CPU s"
    )
    row("held beyond what was fed, at most", most_held_bytes, "bytes")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("bulk", "frames", "connect", "deadlines", "journal", "kills", "fuzz")
    parser.add_argument("--part", action="append", choices=names)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--fuzz", type=int, default=1_000_000)
    chosen = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "bulk": bench_bulk,
        "frames": bench_frames,
        "connect": bench_connect,
        "deadlines": bench_deadlines,
        "journal": bench_journal,
        "kills": lambda: bench_kills(chosen.kills),
        "fuzz": lambda: bench_fuzz(chosen.fuzz),
    }
    for name in chosen.part or names:
        parts[name]()


if __name__ == "__main__":
    main()
