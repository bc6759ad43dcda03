"""The process of one benchmark case: `one_case.py WORK ARGUMENTS` prints one JSON object."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTED_S = float(os.environ.get("ECHELON_BENCH_STARTED_S", time.monotonic()))
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    """Do one piece of work by name and print what it found."""
    import json

    work, arguments = sys.argv[1], json.loads(sys.argv[2])
    if work == "solve":
        from bench.work_solve import solve_case

        answer = solve_case(started_s=STARTED_S, **arguments)
    else:
        from bench import work_others

        answer = getattr(work_others, work)(**arguments)
    print(json.dumps(answer, sort_keys=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
