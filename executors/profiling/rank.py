"""One rank of a measurement, `python -m executors.profiling.rank`: order on stdin, answer on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from executors.pinning import pin
from executors.profiling.answers import RankOrder, answer_to_json

LAYERS = "layers"


def main() -> int:
    """Measure what the order says."""
    order = read_order(json.loads(sys.stdin.readline()))
    # Whatever a library prints goes to stderr: stdout carries the answer alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if order.accelerator == "cpu":
        pin(order.slot, order.threads)
    from executors.profiling.measuring import measure_executor, measure_layers

    answer = measure_layers(order) if order.phase == LAYERS else measure_executor(order)
    answers.write(json.dumps(answer_to_json(answer)) + "\n")
    answers.close()
    return 0


def read_order(value: Mapping[str, Any]) -> RankOrder:
    """The order in plain JSON."""
    return RankOrder(**{**value, "chosen": tuple(value["chosen"]), "sizes": tuple(value["sizes"])})


if __name__ == "__main__":
    sys.exit(main())
