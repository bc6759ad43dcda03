"""Secure aggregation, measured: CPU seconds of one core, bytes up, memory, and a million bent frames.

Run it as a program: `python tests/bench/bench_secagg.py [--quick]`. Every figure is the median of the runs,
with the least and the greatest beside it; the first line says what the machine did alone then. Members know
each other's certificates from an earlier window; a first one costs one more signature check per member.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from boundary.secagg_fuzz import fuzz  # noqa: E402
from boundary.secagg_house import House, Stream  # noqa: E402
from executors.boundary.secagg.aggregator import Aggregator  # noqa: E402
from executors.boundary.secagg.fixed_point import Aggregate  # noqa: E402
from executors.boundary.secagg.keys import derive_key  # noqa: E402
from executors.boundary.secagg.masks import Stream as Mask  # noqa: E402
from executors.boundary.secagg.masks import apply_streams  # noqa: E402
from executors.boundary.secagg.protocol import Outgoing  # noqa: E402
from executors.boundary.secagg.reception import Phase  # noqa: E402
from executors.boundary.secagg.spool import FileSpool, MemorySpool, Spool  # noqa: E402


@dataclass(slots=True)
class Figures:
    """CPU seconds of one window.

    `client_s` is the mean over members of all their work, `setup_s` the part before the update is touched.
    """

    client_s: float = 0.0
    setup_s: float = 0.0
    server_s: float = 0.0
    up_bytes: int = 0
    control_bytes: int = 0


def decode(result: Aggregate) -> NDArray[np.float32]:
    """The mean in single precision, piece by piece: the aggregator's second vector."""
    mean_N = np.empty(len(result.sum_N), dtype=np.float32)
    for start in range(0, len(mean_N), 1 << 16):
        mean_N[start : start + (1 << 16)] = result.mean(start, start + (1 << 16))
    return mean_N


@dataclass(slots=True)
class Clock:
    """Adds up process time by name."""

    spent_s: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, call: Callable[[], object]) -> object:
        start_s = time.process_time()
        found = call()
        self.spent_s[name] = self.spent_s.get(name, 0.0) + time.process_time() - start_s
        return found


class Window:
    """One window whose parts are timed apart; members after the first only see their own frames."""

    def __init__(self, house: House, update_N: NDArray[np.float32], spool: Spool, drops: int) -> None:
        self.house, self.update_N, self.drops = house, update_N, set(house.names[:drops])
        self.clock, self.figures = Clock(), Figures()
        self.members = house.participants()
        self.aggregator: Aggregator = house.aggregator(spool=spool, trust=house.trust())

    def client(self, part: str, call: Callable[[], bytes | None]) -> bytes | None:
        found = self.clock.run(part, call)
        assert found is None or isinstance(found, bytes)
        return found

    def server(self, frame: bytes, name: str) -> None:
        self.figures.up_bytes += len(frame)
        self.clock.run("server", lambda: self.aggregator.receive(frame, sender=name, now_s=1.0))

    def advance(self) -> list[Outgoing]:
        found = self.clock.run("server", lambda: self.aggregator.advance(now_s=1.0))
        assert isinstance(found, list)
        return found

    def deliver(self, outgoing: Iterable[Outgoing], part: str, skip: set[str]) -> None:
        for item in outgoing:
            for name in self.members if item.to is None else [item.to]:
                if name in skip:
                    continue
                member = self.members[name]
                answer = self.client(part, lambda m=member, f=item.frame: m.receive(f, now_s=1.0))  # type: ignore[misc]
                if answer is not None:
                    self.server(answer, name)

    def upload(self, name: str) -> None:
        member = self.members[name]
        start_s = time.process_time()
        masked = member.mask(self.update_N, weight=1.0, update_id=name, now_s=1.0)
        self.clock.spent_s["mask"] = self.clock.spent_s.get("mask", 0.0) + time.process_time() - start_s
        chunks = masked.chunks()
        while True:
            chunk = self.client("mask", lambda: next(chunks, None))
            if chunk is None:
                break
            self.server(chunk, name)
        trailer = self.client("mask", masked.trailer)
        assert trailer is not None
        self.server(trailer, name)

    def run(self) -> Figures:
        opening = Outgoing(to=None, frame=self.aggregator.open())
        self.deliver([opening], "setup", set())
        while self.aggregator.phase < Phase.UPLOADING:
            self.deliver(self.advance(), "setup", set())
        for name in self.house.names:
            if name in self.drops:
                self.aggregator.lose(name)
            else:
                self.upload(name)
        while self.aggregator.phase < Phase.READY:
            self.deliver(self.advance(), "reveal", self.drops)
        result = self.clock.run("server", self.aggregator.combine)
        assert isinstance(result, Aggregate)
        self.clock.run("server", lambda: decode(result))
        return self.read()

    def read(self) -> Figures:
        num, alive = len(self.house.names), len(self.house.names) - len(self.drops)
        spent = self.clock.spent_s
        self.figures.setup_s = spent["setup"] / num
        self.figures.client_s = spent["setup"] / num + (spent["mask"] + spent["reveal"]) / alive
        self.figures.server_s = spent["server"]
        self.figures.control_bytes = self.figures.up_bytes - alive * self.house.descriptor.num_bytes
        return self.figures


def measure(num: int, length: int, drops: int, *, runs: int, in_files: bool = False, **fields: Any) -> None:
    """Print one row."""
    found = []
    update_N = np.random.default_rng(1).normal(0, 0.5, length).astype(np.float32)
    for run in range(-1, runs):
        house = House(num, length=length, clip_l2=1e6, **fields)
        with tempfile.TemporaryDirectory() as folder:
            spool: Spool = FileSpool(Path(folder)) if in_files else MemorySpool(house.descriptor.num_bytes)
            figures = Window(house, update_N, spool, drops).run()
            spool.close()
        if run >= 0:
            found.append(figures)
        gc.collect()
    alive = num - drops

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"

    print(
        f"{num:>5} x {length:<9} {drops} lost {'files' if in_files else 'memory':<6}"
        f" client {spread([f.client_s for f in found])}  of it set-up {spread([f.setup_s for f in found])}"
        f"  server {spread([f.server_s for f in found])}"
        f"  up {found[0].up_bytes / alive / length:.4f} B/parameter"
        f"  control {found[0].control_bytes / num:.0f} B/member",
        flush=True,
    )


def calibrate() -> None:
    """Print what the machine does alone now: a mask and a digest of 1e6 elements, a signature check."""
    vector_N = np.zeros(1_000_000, dtype=np.uint32)
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = key.public_key(), key.sign(b"x")
    calls: dict[str, Callable[[], object]] = {
        "mask": lambda: apply_streams(vector_N, [Mask(bytes(32), True)]),
        "digest": lambda: sha256(vector_N.data).digest(),
        "verify": lambda: public.verify(signature, b"x"),
    }
    found = []
    for name, call in calls.items():
        times = []
        for _ in range(15):
            start_s = time.process_time()
            call()
            times.append(time.process_time() - start_s)
        found.append(f"{name} {1e3 * statistics.median(times):.3f} ms")
    print("alone, now: " + ", ".join(found), flush=True)


def measure_memory(num: int, length: int) -> None:
    """Print the aggregator's peak memory in vectors, members' own memory not counted."""
    house = House(num, length=length, clip_l2=1e6)
    update_N = np.random.default_rng(1).normal(0, 0.5, length).astype(np.float32)
    uploads = {}
    window = Window(house, update_N, MemorySpool(house.descriptor.num_bytes), 0)
    window.deliver([Outgoing(to=None, frame=window.aggregator.open())], "setup", set())
    while window.aggregator.phase < Phase.UPLOADING:
        window.deliver(window.advance(), "setup", set())
    for name, member in window.members.items():
        masked = member.mask(update_N, weight=1.0, update_id=name, now_s=1.0)
        uploads[name] = [*masked.chunks(), masked.trailer()]
    gc.collect()
    tracemalloc.start()
    for name, frames in uploads.items():
        for frame in frames:
            window.aggregator.receive(frame, sender=name, now_s=1.0)
    while window.aggregator.phase < Phase.READY:
        window.deliver(window.advance(), "reveal", set())
    window.aggregator.combine()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"aggregator of {num} x {length}: peak {peak / house.descriptor.num_bytes:.3f} vectors", flush=True)


def collide(num: int) -> None:
    """Print how many of `num` derived masks begin alike."""
    random_bytes, seen = Stream("collide"), set()
    for _ in range(num):
        key = derive_key(random_bytes(32), context=bytes(32), purpose="self", first=0, second=0)
        vector_N = np.zeros(4, dtype=np.uint32)
        apply_streams(vector_N, [Mask(key, True)])
        seen.add(vector_N.tobytes())
    print(f"masks of {num} seeds: {num - len(seen)} collisions", flush=True)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="sizes that end within a minute or two")
    quick = parser.parse_args().quick
    print(
        "CPU seconds of one core, median (least-greatest); a client is the mean over members of all its work"
    )
    runs = 3 if quick else 5
    calibrate()
    for num, length, drops in ((10, 100_000, 0), (10, 1_000_000, 0), (10, 1_000_000, 2)):
        measure(num, length, drops, runs=runs)
    for in_files in (False, True):
        measure(10, 10_000_000, 2, runs=runs, in_files=in_files)
    measure(50, 1_000, 0, runs=1 if quick else 3)
    measure(100, 1_000, 0, runs=1 if quick else 3, corrupt_permille=100)
    for num in (5, 20):
        measure_memory(num, 2_000_000)
    num_bent = 20_000 if quick else 1_000_000
    print(f"{num_bent} bent frames: {fuzz(num_bent, seed=1)}", flush=True)
    collide(20_000 if quick else 1_000_000)
    if importlib.util.find_spec("flwr") is None:
        print("flwr is not installed: no comparison")
    else:
        print("flwr is installed, but no way to run the same work through it is written yet")


if __name__ == "__main__":
    main()
