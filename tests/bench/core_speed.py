"""How fast the cores are now: CPU seconds of the same training work on every core at once.

    python tests/bench/core_speed.py CORE

Cores of a shared machine drift by a tenth and more within minutes; figures taken at different times are
compared by what this work took beside each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNITS = 40
KEPT_FRAC = 0.25


def unit_cpu_s(cores: tuple[int, ...] = (0, 1)) -> float:
    """CPU seconds of one unit of work, the mean over cores that all work."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(core)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for core in cores
    ]
    return sum(float(process.communicate()[0]) for process in running) / len(running)


def measure(core: int) -> float:
    """The mean of the quickest quarter of the units on one core."""
    os.sched_setaffinity(0, {core})
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Sequential(nn.Linear(256, 704), nn.SiLU(), nn.Linear(704, 256)) for _ in range(6))
    )
    given = torch.randn(256, 256)
    taken_s = []
    for _ in range(UNITS):
        began_s = time.thread_time()
        layers(given).square().mean().backward()
        taken_s.append(time.thread_time() - began_s)
    kept = sorted(taken_s)[: max(1, int(KEPT_FRAC * UNITS))]
    return sum(kept) / len(kept)


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))
