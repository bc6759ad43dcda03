"""Bandwidth and latency between ranks, measured by sends over the collective backend in use.

Torch is imported by those functions alone that send.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from costmodels.interface import Origin
from costmodels.measured_profile import MEASURED, LinkCurve
from policies.errors import InputError

PAYLOADS_BYTES = (1_000, 100_000, 1_000_000, 10_000_000)
"""Latency, the tensors of small and of large models, and the rate for long."""
ROUNDS = {1_000: 40, 100_000: 20, 1_000_000: 10, 10_000_000: 5}
WARM_UP_ROUNDS = 2


def curve_of(timed: Mapping[int, float], *, note: str = "") -> LinkCurve:
    """A link curve through measured one-way seconds by payload bytes.

    Latency is the smallest payload's time. The ceiling is the rate at which seconds grow between the smallest
    and the largest payload. A larger payload that was quicker was disturbed less, so each entry becomes the
    smallest of itself and of all larger ones.

    Raises:
        InputError: `profile-incomplete` with fewer than two payloads.
    """
    sizes = sorted(timed)
    if len(sizes) < 2:
        raise InputError(
            "profile-incomplete",
            f"a link was timed with {len(sizes)} payloads",
            hint="time at least a small and a large one",
        )
    seconds = [min(timed[larger] for larger in sizes[i:]) for i in range(len(sizes))]
    growth_s = seconds[-1] - seconds[0]
    ceiling = (sizes[-1] - sizes[0]) / growth_s if growth_s > 0.0 else sizes[-1] / seconds[-1]
    return LinkCurve(
        gigabytes_per_s=(ceiling / 1e9,),
        ceiling_bytes_per_s=ceiling,
        latency_s=seconds[0],
        origin=Origin(kind=MEASURED, note=note),
        seconds_at=tuple((float(size), second) for size, second in zip(sizes, seconds, strict=True)),
    )


def slowest_curve(curves: Sequence[LinkCurve]) -> LinkCurve:
    """The curve of the slowest of several links of one kind: pipelines and rings go at its pace."""
    return min(curves, key=lambda curve: (curve.ceiling_bytes_per_s, -curve.latency_s))


def ping_pong_s(
    peer: int,
    *,
    leads: bool,
    device: Any,
    payloads_bytes: Sequence[int] = PAYLOADS_BYTES,
) -> dict[int, float]:
    """One-way seconds by payload: half a round trip to another rank of the default group.

    Of several the lower quartile: what makes a trip longer is mostly other work on either side. Both ranks
    call it; `leads` on the one that sends first. Sends and receives block, one tensor at a time, as they do
    between stages.
    """
    import torch
    import torch.distributed as dist

    timed: dict[int, float] = {}
    for size in payloads_bytes:
        out = torch.ones(size // 4, dtype=torch.float32, device=device)
        back = torch.empty_like(out)
        trips: list[float] = []
        for _ in range(WARM_UP_ROUNDS + ROUNDS.get(size, 5)):
            _wait_for(device)
            begin_s = time.perf_counter()
            if leads:
                dist.send(out, peer)
                dist.recv(back, peer)
            else:
                dist.recv(back, peer)
                dist.send(out, peer)
            _wait_for(device)
            trips.append(time.perf_counter() - begin_s)
        timed[size] = statistics.quantiles(trips[WARM_UP_ROUNDS:], n=4)[0] / 2.0
    return timed


def time_all_links(rank: int, world_size: int, *, device: Any) -> dict[tuple[int, int], dict[int, float]]:
    """One-way seconds of every pair of ranks, one pair after another; known on the first rank of each pair.

    Collective over the default group.
    """
    import torch.distributed as dist

    found: dict[tuple[int, int], dict[int, float]] = {}
    for first in range(world_size):
        for second in range(first + 1, world_size):
            dist.barrier()
            if rank in (first, second):
                timed = ping_pong_s(second if rank == first else first, leads=rank == first, device=device)
                if rank == first:
                    found[first, second] = timed
    return found


def _wait_for(device: Any) -> None:
    """Until a GPU has done what it was told; nothing to wait for on a processor."""
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        torch.cuda.synchronize(device)
