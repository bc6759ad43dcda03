"""Sustained rates of one device under torch: matrix products per dtype, and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

DTYPES = ("fp32", "bf16", "fp16")
SMALLEST = 256
LARGEST_ON_CPU = 1024
LARGEST_ON_GPU = 8192
CPU_COPY_BYTES = 64 * 2**20
GPU_COPY_BYTES = 2**30


def matmul_flop_per_s(dtype: str, device: Any, *, probe_s: float) -> float:
    """Operations per second of square matrix products, 2 n³ each, for about `probe_s` seconds.

    As large as fits the time: a processor without instructions for a dtype takes hundreds of times longer.
    """
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    largest = LARGEST_ON_GPU if device.type == "cuda" else LARGEST_ON_CPU
    size, flop_per_s = SMALLEST, 0.0
    while True:
        generator = torch.Generator(device="cpu").manual_seed(0)
        left, right = (
            torch.rand((size, size), generator=generator).to(device, kinds[dtype]) for _ in range(2)
        )
        out = torch.empty_like(left)
        last = size == largest
        work = partial(torch.matmul, left, right, out=out)
        rounds, seconds = _repeated(work, device, probe_s if last else probe_s / 16)
        flop_per_s = 2.0 * size**3 * rounds / seconds
        if last or 2.0 * (2 * size) ** 3 / flop_per_s > probe_s:
            return flop_per_s
        size *= 2


def copy_bytes_per_s(device: Any, *, probe_s: float) -> float:
    """Bytes per second read plus written while copying arrays larger than the caches.

    Counted as STREAM's "copy" does: 2 bytes moved for each byte copied (McCalpin, 1995).
    """
    import torch

    size = GPU_COPY_BYTES if device.type == "cuda" else CPU_COPY_BYTES
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    rounds, seconds = _repeated(lambda: target.copy_(source), device, probe_s)
    return 2.0 * size * rounds / seconds


def sustained_rates(device: Any, *, probe_s: float) -> dict[str, float]:
    """Operations per second by dtype; fp16 on GPUs alone."""
    dtypes = DTYPES if device.type == "cuda" else DTYPES[:2]
    return {dtype: matmul_flop_per_s(dtype, device, probe_s=probe_s) for dtype in dtypes}


def _repeated(work: Callable[[], object], device: Any, probe_s: float) -> tuple[int, float]:
    """Rounds done and seconds taken, after one round that isn't counted."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    rounds, begin_s = 0, time.perf_counter()
    # A GPU takes many rounds at once: asking after each would time the question.
    batch = 8 if device.type == "cuda" else 1
    while True:
        for _ in range(batch):
            work()
        rounds += batch
        wait()
        seconds = time.perf_counter() - begin_s
        if seconds >= probe_s:
            return rounds, max(seconds, 1e-9)
