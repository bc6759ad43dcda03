"""One rank: `python -m executors.training.worker RUN.json`, started by an executor's launcher.

It finds its row of the rank table by RANK, asserts that it runs what the plan says, trains, and writes
`rank-<r>.jsonl`, checkpoints, the adapter and the report.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from executors import events
from executors.layout import layout_of
from executors.runfile import read_run
from executors.training.place import take_place
from policies.errors import EchelonError
from policies.one_home import require_one_home

LOST_PEER_EXIT = 75
"""Another rank went first: this rank is not the cause (EX_TEMPFAIL of sysexits.h)."""


def main(argv: Sequence[str]) -> int:
    """Train; the exit code is that of the error, if any."""
    require_one_home()
    rank = int(os.environ["RANK"])
    path = Path(argv[0])
    log = events.rank_log(path.parent, rank)
    try:
        run = read_run(path)
        layout = layout_of(run.inputs.fleet, run.replica)
        me = layout.ranks[rank]
        take_place(run, layout, me)
        from executors.training.session import train

        train(run, layout, me, log)
    except Exception as error:
        return _failed(log, rank, error)
    log(events.finished(rank))
    return 0


def _failed(log: events.EventLog, rank: int, error: Exception) -> int:
    """Report the error; a lost connection is a consequence of what happened to another rank."""
    event = events.failure(rank, error)
    if isinstance(error, EchelonError):
        log(event)
        return error.exit_code
    sys.stderr.write("".join(traceback.format_exception(error)))
    exit_code = LOST_PEER_EXIT if is_lost_peer(error) else 1
    data = {**event.data, "consequence": is_lost_peer(error), "exit_code": exit_code}
    log(replace(event, data=data))
    return exit_code


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another rank is gone or silent."""
    words = ("closed by peer", "Connection reset", "Connection refused", "Timed out waiting", "Broken pipe")
    more = ("timeout", "NCCL", "gloo", "Socket", "store->get")
    text = str(error)
    return type(error).__name__.startswith("Dist") or (
        isinstance(error, RuntimeError) and any(word in text for word in (*words, *more))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
