"""Starts small workers on one host: `small_starter.py MODE RANKS WORLD_SIZE ADDRESS PORT`.

MODE `starter` is the product's own starter of ranks. `slow` is a launcher that hardly looks after its ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from executors.rank_starter import rank_starts, run_ranks

WORKER = Path(__file__).with_name("small_worker.py")


def main() -> int:
    """Run this host's ranks; the exit code is that of the first that fails."""
    mode, ranks, size, address, port = sys.argv[1:]
    pairs = [(int(rank), local_rank) for local_rank, rank in enumerate(ranks.split(","))]
    starts = rank_starts(
        pairs,
        [sys.executable, str(WORKER)],
        world_size=int(size),
        master=(address, int(port)),
        threads=1,
    )
    if mode == "starter":
        return run_ranks(starts, Path.cwd(), grace_s=1.0)
    running = [subprocess.Popen(start.argv, env={**os.environ, **start.env}) for start in starts]
    while any(process.poll() is None for process in running):
        time.sleep(5)
    return max(abs(int(process.returncode)) for process in running)


if __name__ == "__main__":
    sys.exit(main())
