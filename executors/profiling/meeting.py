"""Where the ranks of a measurement meet: one store, and process groups on top of it."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from executors.interfaces import choose_interface
from executors.profiling.answers import RankOrder

TIMEOUT = timedelta(minutes=10)


class Meeting:
    """The ranks of one phase. `order.join` is `file:PATH` on one host, or `tcp:HOST:PORT` of rank 0."""

    def __init__(self, order: RankOrder, device: torch.device) -> None:
        kind, _, place = order.join.partition(":")
        self._rank, self._device = order.rank, device
        self._world_size = order.world_size
        if kind == "tcp":
            host, _, port = place.rpartition(":")
            choose_interface(host)
            self._store: Any = dist.TCPStore(
                host, int(port), order.world_size, is_master=order.rank == 0, timeout=TIMEOUT
            )
        else:
            self._store = dist.FileStore(place, order.world_size)

    def join(self, name: str, *, world_size: int | None = None) -> None:
        """Enter a default group of the first `world_size` ranks, by default all."""
        count = self._world_size if world_size is None else world_size
        self._enter(name, self._rank, count)

    def join_alone(self) -> None:
        """Enter a default group of this rank alone."""
        self._enter(f"alone-{self._rank}", 0, 1)

    def leave(self) -> None:
        """Leave the default group."""
        dist.destroy_process_group()

    def wait_for_all(self, name: str) -> None:
        """Go on when every rank has come to this place, so that they run side by side."""
        deadline_s = time.monotonic() + TIMEOUT.total_seconds()
        arrived = self._store.add(name, 1)
        while arrived < self._world_size:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{arrived} of {self._world_size} ranks came to {name}")
            time.sleep(0.002)
            arrived = self._store.add(name, 0)

    def _enter(self, name: str, rank: int, world_size: int) -> None:
        # DeepSpeed reads these even where a group exists.
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            store=dist.PrefixStore(name, self._store),
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
